/*
 * One case of the differential test: a start state, a few instructions and a data area. It is run on the host CPU in a
 * sandboxed child and on an engine of Doppel; both must end in the same state (DESIGN D5). Everything about a case
 * follows from its seed, so that a failure is reproduced by the seed alone.
 *
 * Both sides use the same linear addresses:
 *   CODE_BASE    code, one page; the instructions start at a random offset near its middle and end in UD2
 *   DATA_BASE    two pages of data, filled from the seed; the page before and the page after are not mapped
 */
#ifndef DOPPEL_TESTS_INSN_CASE_H
#define DOPPEL_TESTS_INSN_CASE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    CODE_BASE = 0x20000000, CODE_SIZE = 0x1000,
    DATA_BASE = 0x10001000, DATA_SIZE = 0x2000,
    INSN_MAX = 8, CODE_BYTES_MAX = 160,
};

enum code_mode { CODE_64, CODE_32, CODE_MODES };

/* Registers in the order of struct vcpu; vectors whole. */
struct cpu_image {
    uint64_t gpr[16];
    uint64_t rip, rflags;
    uint8_t fxsave[512];        /* the x87 part and MXCSR */
    uint8_t zmm[32][64];
    uint64_t k[8];
};

struct insn_bytes {
    uint8_t length;
    uint8_t bytes[15];
};

struct test_case {
    uint64_t seed;
    enum code_mode mode;
    unsigned insn_count;
    struct insn_bytes insn[INSN_MAX];
    struct cpu_image start;             /* rip: where the code starts */
    uint64_t data_seed;
};

/* How it ended: the exception and all state after. */
struct outcome {
    bool timed_out;
    uint8_t vector;
    uint32_t error;                     /* vectors with an error code */
    uint64_t cr2;                       /* #PF */
    struct cpu_image end;
    uint8_t data[DATA_SIZE];
};

/* What the host offers; filled once (host.c). */
struct host_features {
    bool avx, avx512;
    uint32_t ymm_offset, k_offset, zmm_hi256_offset, hi16_zmm_offset, xsave_size;
};

uint64_t next_random(uint64_t *state);
void fill_data(uint64_t seed, uint8_t data[DATA_SIZE]);

/* Makes the case of a seed (generate.c). */
void generate_case(uint64_t seed, enum code_mode mode, const struct host_features *features, struct test_case *test);
/* The instructions joined, UD2 at the end; returns the length. */
unsigned join_code(const struct test_case *test, uint8_t code[CODE_BYTES_MAX]);

/* The host side (host.c): a child process that runs batches. */
struct host;
enum { HOST_BATCH = 128 };
struct host *host_start(void);
const struct host_features *host_features(const struct host *host);
/* Runs `count` cases; false: the child died (the cases after the last filled outcome are lost; it is started again). */
bool host_run(struct host *host, const struct test_case *cases, unsigned count, struct outcome *outcomes);
void host_stop(struct host *host);

/* The guest side (guest.c): a vCPU at CPL 3 with its own page tables, on one engine. */
struct guest;
struct guest *guest_start(const char *engine, const char *cpu_model);
void guest_run(struct guest *guest, const struct test_case *test, struct outcome *outcome);
void guest_stop(struct guest *guest);

/* Compares (compare.c): true if equal; else prints what differs when `print`. */
bool outcomes_equal(const struct test_case *test, const struct outcome *host, const struct outcome *guest, bool print);
void print_case(const struct test_case *test);

#endif
