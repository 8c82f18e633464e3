/* `--detach`: the machine's process leaves the terminal, and the command returns once the machine runs, or with what went wrong. */
#ifndef DOPPEL_CLI_DETACH_H
#define DOPPEL_CLI_DETACH_H

#include <stdbool.h>

struct error;

struct detach {
    int ready;          /* the writing end of a pipe to the command; -1: not detached */
};

/*
 * Goes on in a child, which still has the terminal's outputs, for complaints. In the command itself it returns only when the child is
 * ready or has ended: true with *over, and *status is the exit status. Before any thread is made. False: err says why.
 */
bool detach_begin(struct detach *detach, bool *over, int *status, struct error *err);
/* Lets the command go, and gives the outputs up for the file. */
void detach_ready(struct detach *detach, int output);

#endif
