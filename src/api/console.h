/*
 * The shared console: the guest's serial line in a process that has no terminal. What the guest writes goes to a log and to everybody who is
 * attached; what any of them types goes to the guest. A guest never waits for a reader: one that is too slow misses something.
 */
#ifndef DOPPEL_API_CONSOLE_H
#define DOPPEL_API_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>

struct console;
struct error;

/* What a configuration says for it; console_connect turns it into a character backend's text. */
#define CONSOLE_SHARED "shared"

/* directory: of the log, borrowed; -1: there is no log. NULL: err says why. */
struct console *console_create(int directory, const char *log, struct error *err);
/* What the guest wrote until now still goes to the log and, as far as they keep up, to those attached. NULL is fine. */
void console_destroy(struct console *console);

/* A new line for the next guest, as a text for chardev_open, good until the next call. NULL: err says why. */
const char *console_connect(struct console *console, struct error *err);
/*
 * Any thread. Takes the socket over, and shows it first the last `backlog` bytes that there are. False: err says why, and the
 * socket stays the caller's.
 */
bool console_attach(struct console *console, int fd, size_t backlog, struct error *err);

#endif
