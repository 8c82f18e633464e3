#include "base/log.h"

#include <fnmatch.h>
#include <stdarg.h>
#include <time.h>

/* At most this many guest errors a second are shown; all are counted. */
enum { GUEST_ERRORS_SHOWN_PER_SECOND = 20 };

static const struct {
    const char *name, *text;
} points[TRACE_COUNT] = {
#define TRACE_POINT(name, text) [TRACE_##name] = { #name, text },
#include "base/trace.def"
#undef TRACE_POINT
};

void log_init(struct log *log, FILE *out)
{
    *log = (struct log){ .out = out ? out : stderr, .level = LOG_WARNING };
}

/* One write a line, so that lines of several threads do not mix. */
static void write_line(struct log *log, const char *prefix, const char *format, va_list args)
{
    char line[1024];
    int used = snprintf(line, sizeof(line), "%s", prefix);
    int more = vsnprintf(line + used, sizeof(line) - (size_t)used, format, args);
    if (more < 0)
        return;
    fprintf(log && log->out ? log->out : stderr, "%s\n", line);
}

void log_message(struct log *log, enum log_level level, const char *format, ...)
{
    static const char *const prefixes[] = { "doppel: ", "doppel: warning: ", "doppel: ", "doppel: debug: " };
    if (log && level > log->level)
        return;
    va_list args;
    va_start(args, format);
    write_line(log, prefixes[level], format, args);
    va_end(args);
}

/* True if this message is within the second's allowance. Races between threads only blur the limit. */
static bool within_rate(struct log *log)
{
    uint64_t now = (uint64_t)time(NULL);
    if (__atomic_load_n(&log->shown_second, __ATOMIC_RELAXED) != now) {
        __atomic_store_n(&log->shown_second, now, __ATOMIC_RELAXED);
        __atomic_store_n(&log->shown_count, 0, __ATOMIC_RELAXED);
    }
    return __atomic_fetch_add(&log->shown_count, 1, __ATOMIC_RELAXED) < GUEST_ERRORS_SHOWN_PER_SECOND;
}

void guest_error(struct log *log, const char *format, ...)
{
    if (!log)
        return;
    atomic_fetch_add_explicit(&log->guest_errors, 1, memory_order_relaxed);
    if (log->level < LOG_INFO || !within_rate(log))
        return;
    va_list args;
    va_start(args, format);
    write_line(log, "guest error: ", format, args);
    va_end(args);
}

void unimplemented(struct log *log, const char *format, ...)
{
    if (!log)
        return;
    atomic_fetch_add_explicit(&log->unimplemented, 1, memory_order_relaxed);
    if (!within_rate(log))
        return;
    va_list args;
    va_start(args, format);
    write_line(log, "doppel: not modelled: ", format, args);
    va_end(args);
}

const char *trace_name(enum trace_point point) { return points[point].name; }
const char *trace_text(enum trace_point point) { return points[point].text; }

unsigned trace_switch(struct log *log, const char *glob, bool on)
{
    unsigned matched = 0;
    for (unsigned i = 0; i < TRACE_COUNT; i++) {
        if (fnmatch(glob, points[i].name, 0))
            continue;
        atomic_store_explicit(&log->trace[i], on, memory_order_relaxed);
        matched++;
    }
    return matched;
}

void trace_print(struct log *log, enum trace_point point, const char *format, ...)
{
    char prefix[64];
    snprintf(prefix, sizeof(prefix), "%s ", points[point].name);
    va_list args;
    va_start(args, format);
    write_line(log, prefix, format, args);
    va_end(args);
}
