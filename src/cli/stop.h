/* Ending machines from outside. */
#ifndef DOPPEL_CLI_STOP_H
#define DOPPEL_CLI_STOP_H

/* Ends it at once, by its socket or, if that does not answer, by SIGKILL. Returns the exit status; a complaint was printed. */
int stop_forced(const char *name);

#endif
