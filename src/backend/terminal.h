/*
 * Terminals in raw mode. The one place in the house with file-scope state: a signal handler has no argument, and what it
 * must put back belongs to the process, not to a machine.
 */
#ifndef DOPPEL_BACKEND_TERMINAL_H
#define DOPPEL_BACKEND_TERMINAL_H

#include <stdbool.h>

/* Makes the terminal raw and remembers how it was; nothing happens if fd is no terminal or it was done already. */
void terminal_make_raw(int fd);
/* Puts one back. */
void terminal_restore(int fd);

#endif
