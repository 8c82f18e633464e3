/* A client of a control socket: requests one after the other on one connection. */
#ifndef DOPPEL_API_CLIENT_H
#define DOPPEL_API_CLIENT_H

#include <jansson.h>

#include "base/error.h"

struct client;

/* To the virtual machine of that name, each answer within that time; 0: however long it takes. NULL: err says why. */
struct client *client_open(const char *name, unsigned seconds, struct error *err);
void client_close(struct client *client);

/* What a call brings back. */
struct client_answer {
    int status;             /* of HTTP; 0: no answer came */
    json_t *body;           /* NULL: there was none. client_answer_end frees it */
};

/*
 * Asks and waits for the answer. body may be NULL (else the reference is taken over), descriptor -1. False: the request was refused or
 * not answered, and err says why, in the other side's words if it has any.
 */
bool client_call(struct client *client, const char *method, const char *path, json_t *body, int descriptor,
                 struct client_answer *answer, struct error *err);
void client_answer_end(struct client_answer *answer);

#endif
