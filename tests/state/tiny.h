/* A machine with 2 MiB whose guest counts at address 0x500 and writes to a few pages, and a folder to keep snapshots of it in. */
#ifndef DOPPEL_TESTS_STATE_TINY_H
#define DOPPEL_TESTS_STATE_TINY_H

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "base/base.h"
#include "base/error.h"
#include "machine/snapshot.h"
#include "machine/snapshot_inspect.h"
#include "mem/ram.h"

/*
 * xor ax,ax / mov ds,ax / again: inc dword [0x500] / mov ax,[0x500] / and ax,0x7000 / mov di,ax / inc byte [di+0x1000] / jmp again
 */
static const uint8_t tiny_code[] = { 0x31, 0xC0, 0x8E, 0xD8, 0x66, 0xFF, 0x06, 0x00, 0x05, 0xA1, 0x00, 0x05, 0x25, 0x00, 0x70,
                                     0x89, 0xC7, 0xFE, 0x85, 0x00, 0x10, 0xEB, 0xED };
enum { TINY_COUNTER = 0x500, TINY_RUN_US = 20000 };

struct tiny {
    char folder[64], kernel[128];
    FILE *log;
    struct machine *machine;
    struct snapshot *snapshot;      /* what the machine comes from */
};

static inline char *tiny_path(const struct tiny *tiny, const char *name)
{
    static char path[8][128];
    static unsigned next;
    char *to = path[next++ % 8];
    snprintf(to, sizeof(path[0]), "%s/%s", tiny->folder, name);
    return to;
}

/* Starts it; engine NULL: the translator. */
static inline void tiny_new(struct tiny *tiny, const char *engine, unsigned cpus)
{
    struct error err;
    struct machine_config config = { 0 };
    *tiny = (struct tiny){ .folder = "/tmp/doppel-tiny-XXXXXX", .log = fopen("/dev/null", "w") };
    assert_non_null(mkdtemp(tiny->folder));
    strcpy(tiny->kernel, tiny_path(tiny, "guest"));
    FILE *file = fopen(tiny->kernel, "w");
    fwrite(tiny_code, 1, sizeof(tiny_code), file);
    fclose(file);
    machine_config_defaults(&config);
    config.memory = 2 * MiB;
    config.cpus = cpus;
    config.engine = engine ? engine : "dbt";
    config.boot = BOOT_FLAT;
    config.flat_address = 0x7C00;
    config.kernel = tiny->kernel;
    config.log = tiny->log;
    tiny->machine = machine_create(&config, &err);
    if (!tiny->machine || !machine_start(tiny->machine, &err))
        fail_msg("%s", err.text);
}

/* Ends the machine; the folder stays. */
static inline void tiny_stop(struct tiny *tiny)
{
    if (!tiny->machine)
        return;
    if (tiny->machine->running) {
        machine_end(tiny->machine, END_QUIT, 0);
        machine_wait(tiny->machine);
    }
    machine_destroy(tiny->machine);
    snapshot_close(tiny->snapshot);
    tiny->machine = NULL;
    tiny->snapshot = NULL;
}

static inline void tiny_end(struct tiny *tiny)
{
    char command[128];
    tiny_stop(tiny);
    fclose(tiny->log);
    snprintf(command, sizeof(command), "rm -rf %s", tiny->folder);
    assert_int_equal(system(command), 0);
}

static inline void tiny_save(struct tiny *tiny, const char *name, const char *parent)
{
    struct error err;
    const struct snapshot_options options = { .parent = parent ? tiny_path(tiny, parent) : NULL };
    if (!machine_snapshot(tiny->machine, tiny_path(tiny, name), &options, &err))
        fail_msg("%s", err.text);
}

/* Another machine in the same folder, which stands still until tiny_go. False: err tells why. */
static inline bool tiny_restore(const struct tiny *from, struct tiny *to, const char *name, const char *engine, bool exact,
                                struct error *err)
{
    const struct restore_options options = { .exact = exact };
    *to = *from;
    to->machine = NULL;
    to->snapshot = snapshot_open(tiny_path(from, name), err);
    if (!to->snapshot)
        return false;
    snapshot_config(to->snapshot)->log = from->log;
    if (engine)
        snapshot_config(to->snapshot)->engine = engine;
    to->machine = machine_restore(to->snapshot, &options, err);
    if (!to->machine) {
        snapshot_close(to->snapshot);
        to->snapshot = NULL;
        return false;
    }
    machine_pause(to->machine);
    if (!machine_start(to->machine, err))
        fail_msg("%s", err->text);
    return true;
}

static inline void tiny_go(struct tiny *tiny) { machine_resume(tiny->machine); }

static inline uint32_t tiny_count(const struct tiny *tiny)
{
    uint32_t value = 0;
    ram_read(tiny->machine->ram, TINY_COUNTER, &value, sizeof(value));
    return value;
}

/* Waits until the guest has counted on. */
static inline void tiny_await_work(const struct tiny *tiny)
{
    uint32_t before = tiny_count(tiny);
    for (unsigned i = 0; tiny_count(tiny) - before < 1000; i++) {
        if (i > 10000)
            fail_msg("the guest does not go on");
        usleep(1000);
    }
}

/* The engine is not the guest's affair, and the time of day goes on while a machine stands still. */
static inline bool tiny_may_differ(const char *line)
{
    return !strncmp(line, "config engine ", 14) || !strncmp(line, "clock wall_ns ", 14) || !strncmp(line, "device/rtc ", 11);
}

static inline void tiny_same(const struct tiny *tiny, const char *a, const char *b)
{
    char line[4096];
    uint64_t differences;
    struct error err;
    FILE *out = fopen(tiny_path(tiny, "differences"), "w+");
    if (!snapshot_diff(tiny_path(tiny, a), tiny_path(tiny, b), &differences, out, &err))
        fail_msg("%s", err.text);
    rewind(out);
    while (fgets(line, sizeof(line), out))
        if (!tiny_may_differ(line))
            fail_msg("%s and %s differ: %s", a, b, line);
    fclose(out);
}

#endif
