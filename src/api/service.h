/* What a service manager offers and wants: sockets that it has opened, and to hear when we are ready (sd_listen_fds(3), sd_notify(3)). */
#ifndef DOPPEL_API_SERVICE_H
#define DOPPEL_API_SERVICE_H

#include <stdbool.h>

struct error;

/*
 * The number of sockets that were passed to this very process, from descriptor 3 on; they are marked close-on-exec and the environment
 * forgets them. 0 if none were.
 */
int service_listeners(void);
/* Whether the descriptor is a listening Unix stream socket. False: err says so. */
bool service_check_listener(int fd, struct error *err);
/*
 * What --api-socket names: "PATH" or "path=PATH" is made, mode 0600, and *path is to be removed at the end; "fd=N" is inherited, and
 * *path is NULL. -1: err says why.
 */
int service_open_listener(const char *text, const char **path, struct error *err);
/* Tells the service manager, if there is one: "READY=1", "STOPPING=1" ... one a line. */
void service_notify(const char *state);

enum { SERVICE_FIRST_FD = 3 };

#endif
