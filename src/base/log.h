/*
 * The log of one machine: messages, trace points and the three verbs of the house.
 *   assert           our bug (assert.h)
 *   guest_error      the guest did what the manual forbids and no fault reports; counted, rate-limited
 *   unimplemented    the guest asked for what Doppel does not model; counted, shown once per place
 * No guest action reaches abort.
 */
#ifndef DOPPEL_BASE_LOG_H
#define DOPPEL_BASE_LOG_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum log_level { LOG_ERROR, LOG_WARNING, LOG_INFO, LOG_DEBUG };

/* The trace points, by name; `trace NAME on` in the monitor, `--trace NAME` on the command line. */
enum trace_point {
#define TRACE_POINT(name, text) TRACE_##name,
#include "base/trace.def"
#undef TRACE_POINT
    TRACE_COUNT
};

struct log {
    FILE *out;                          /* borrowed; stderr unless a file was asked for */
    enum log_level level;
    atomic_bool trace[TRACE_COUNT];
    _Atomic uint64_t guest_errors;      /* how often guest_error was called */
    _Atomic uint64_t unimplemented;
    uint64_t shown_second;              /* rate limit of guest_error: messages shown in this second */
    unsigned shown_count;
};

void log_init(struct log *log, FILE *out);

/* Any thread. log may be NULL: then stderr. */
void log_message(struct log *log, enum log_level level, const char *format, ...) __attribute__((format(printf, 3, 4)));
void guest_error(struct log *log, const char *format, ...) __attribute__((format(printf, 2, 3)));
void unimplemented(struct log *log, const char *format, ...) __attribute__((format(printf, 2, 3)));

const char *trace_name(enum trace_point point);
const char *trace_text(enum trace_point point);
/* Switches each trace point whose name matches the glob; returns how many matched. Any thread. */
unsigned trace_switch(struct log *log, const char *glob, bool on);
void trace_print(struct log *log, enum trace_point point, const char *format, ...) __attribute__((format(printf, 3, 4)));

static inline bool trace_on(const struct log *log, enum trace_point point)
{
    return __builtin_expect(log && atomic_load_explicit(&log->trace[point], memory_order_relaxed), 0);
}

/* trace(log, pic_ack, "irq %d", irq): costs a load and a test while it is off. */
#define trace(log_, name, ...)                                   \
    do {                                                         \
        if (trace_on((log_), TRACE_##name))                      \
            trace_print((log_), TRACE_##name, __VA_ARGS__);      \
    } while (0)

#endif
