/*
 * The monitor: a line-based window into a running machine, on the terminal (Ctrl-A c) and on a Unix socket. It has a thread
 * of its own, because its commands wait for processors.
 */
#ifndef DOPPEL_API_MONITOR_H
#define DOPPEL_API_MONITOR_H

#include <stdbool.h>
#include <stdio.h>

struct error;
struct machine;
struct monitor;

/* socket: text for chardev_open ("socket:PATH"), or NULL. Before machine_start. NULL: err says why. */
struct monitor *monitor_create(struct machine *machine, const char *socket, struct error *err);
/* After machine_wait, before machine_destroy. NULL is fine. */
void monitor_destroy(struct monitor *monitor);
/* Gives the terminal to the monitor, or back to the guest. The loop's thread, board lock not held. */
void monitor_toggle(struct monitor *monitor);

/* What commands keep between lines. Zero-initialise, set machine. */
struct monitor_session {
    struct machine *machine;
    unsigned cpu;
    bool stopped;               /* by this session: one machine_pause is due to be ended */
};

/*
 * Executes one line and prints to out. False: what it asks for was not done, and what was printed says why. Any thread but a vCPU's, board lock
 * not held. The line is hostile.
 */
bool monitor_execute(struct monitor_session *session, const char *line, FILE *out);
/* Lets the machine go on if this session stopped it. */
void monitor_session_end(struct monitor_session *session);

#endif
