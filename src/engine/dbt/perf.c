#include "engine/dbt/perf.h"

#include <elf.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

struct perf {
    FILE *map, *dump;
    void *marker;               /* a mapping of the dump, by which perf record learns of it */
    uint64_t count;             /* names so far; guarded by the lock of `dump` */
};

enum { MARKER_SIZE = 4096 };

/* --- the dump's records --- */

enum { JITDUMP_MAGIC = 0x4A695444, JITDUMP_VERSION = 1 };
enum record { JIT_CODE_LOAD = 0, JIT_CODE_CLOSE = 3 };

struct file_header {
    uint32_t magic, version, total_size, elf_mach, pad1, pid;
    uint64_t timestamp, flags;
};

struct record_header {
    uint32_t id, total_size;
    uint64_t timestamp;
};

struct code_load {
    struct record_header header;
    uint32_t pid, tid;
    uint64_t vma, code_addr, code_size, code_index;
};

/* perf record's clock with -k 1 (or --clockid mono). */
static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void dump_code(struct perf *perf, const char *name, const void *code, size_t size)
{
    size_t name_size = strlen(name) + 1;
    flockfile(perf->dump);
    struct code_load load = {
        .header = { .id = JIT_CODE_LOAD, .total_size = (uint32_t)(sizeof(load) + name_size + size), .timestamp = now() },
        .pid = (uint32_t)getpid(), .tid = (uint32_t)gettid(), .vma = (uintptr_t)code, .code_addr = (uintptr_t)code,
        .code_size = size, .code_index = perf->count++,
    };
    fwrite_unlocked(&load, sizeof(load), 1, perf->dump);
    fwrite_unlocked(name, name_size, 1, perf->dump);
    fwrite_unlocked(code, size, 1, perf->dump);
    funlockfile(perf->dump);
}

static bool open_dump(struct perf *perf, const char *directory, struct error *err)
{
    char path[4096];
    struct file_header header = { .magic = JITDUMP_MAGIC, .version = JITDUMP_VERSION, .total_size = sizeof(header),
                                  .elf_mach = EM_X86_64, .pid = (uint32_t)getpid(), .timestamp = now() };
    if (snprintf(path, sizeof(path), "%s/jit-%ld.dump", directory, (long)getpid()) >= (int)sizeof(path))
        return error_set(err, "the name of the directory for the jitdump is too long");
    unlink(path);
    perf->dump = fopen(path, "wx+e");
    if (!perf->dump || fwrite(&header, sizeof(header), 1, perf->dump) != 1 || fflush(perf->dump))
        return error_errno(err, errno, "cannot write %s", path);
    perf->marker = mmap(NULL, MARKER_SIZE, PROT_READ | PROT_EXEC, MAP_PRIVATE, fileno(perf->dump), 0);
    return perf->marker != MAP_FAILED || error_errno(err, errno, "cannot map %s as code, by which perf finds it", path);
}

/* --- the map --- */

/* Where perf looks for it. Anybody may have put something of that name there, so it is made anew. */
static bool open_map(struct perf *perf, struct error *err)
{
    char path[64];
    snprintf(path, sizeof(path), "/tmp/perf-%ld.map", (long)getpid());
    unlink(path);
    perf->map = fopen(path, "wxe");
    return perf->map || error_errno(err, errno, "cannot write %s", path);
}

/* --- both --- */

struct perf *perf_open(bool map, const char *dump_directory, struct error *err)
{
    struct perf *perf = calloc(1, sizeof(*perf));
    if (!perf) {
        error_set(err, "no memory");
        return NULL;
    }
    perf->marker = MAP_FAILED;
    if ((!map || open_map(perf, err)) && (!dump_directory || open_dump(perf, dump_directory, err)))
        return perf;
    perf_close(perf);
    return NULL;
}

void perf_close(struct perf *perf)
{
    if (!perf)
        return;
    if (perf->marker != MAP_FAILED) {
        struct record_header end = { .id = JIT_CODE_CLOSE, .total_size = sizeof(end), .timestamp = now() };
        fwrite(&end, sizeof(end), 1, perf->dump);
        munmap(perf->marker, MARKER_SIZE);
    }
    if (perf->map)
        fclose(perf->map);
    if (perf->dump)
        fclose(perf->dump);
    free(perf);
}

void perf_name(struct perf *perf, const char *name, const void *code, size_t size)
{
    if (perf->map)
        fprintf(perf->map, "%lx %zx %s\n", (unsigned long)(uintptr_t)code, size, name);
    if (perf->dump)
        dump_code(perf, name, code, size);
}
