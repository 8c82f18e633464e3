/* What the subcommands that talk to a running machine share. */
#ifndef DOPPEL_CLI_REMOTE_H
#define DOPPEL_CLI_REMOTE_H

#include "api/client.h"
#include "cli/exit_status.h"

enum { REMOTE_SECONDS = 30 };       /* how long a process that lives may take for an ordinary answer */

/* Prints one sentence about the machine and returns the status. */
int remote_complain(const char *name, const struct error *err, int status);
/* A connection to the machine, as client_open; NULL: the complaint was printed and *status is the exit status. */
struct client *remote_open(const char *name, unsigned seconds, int *status);
/* The exit status for a call that failed; the complaint was printed. */
int remote_failed(const char *name, const struct client_answer *answer, const struct error *err);
/* GETs a body. NULL: as remote_open. */
json_t *remote_get(struct client *client, const char *name, const char *path, int *status);
/* PUTs to the path on each of the machines; all are tried, and the first failure is the exit status. */
int remote_put_each(char **name, int count, const char *path);

#endif
