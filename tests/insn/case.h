/*
 * A case of the differential tests: a start state, code and data. It is run on the host CPU in a sandboxed child and on an engine
 * of Doppel; all must end in the same state (DESIGN D5). Two programs make cases: `random` (generate.c) a few
 * instructions of any kind, `blocks` (generate_program.c) small programs. Everything about a case follows from its seed,
 * so that a failure is reproduced by the seed alone.
 *
 * Both sides use the same linear addresses:
 *   CODE_BASE    two pages of code, which may be written; HLT, which faults, around the code of the case
 *   DATA_BASE    pages of data (data_page), filled from the seed; the page before and the page after are not mapped
 */
#ifndef DOPPEL_TESTS_INSN_CASE_H
#define DOPPEL_TESTS_INSN_CASE_H

#include <stdbool.h>
#include <stdint.h>

enum {
    CODE_BASE = 0x20000000, CODE_SIZE = 0x2000,
    DATA_BASE = 0x10001000,
    DATA_BACKING = 5, DATA_SIZE = DATA_BACKING * 0x1000,    /* different pages of data, and their bytes */
    INSN_MAX = 8, CODE_BYTES_MAX = 1536, RESUME_MAX = 48, TABLE_MAX = 8, FAULTS_MAX = 6,
    CODE_FILL = 0xF4,                   /* HLT */
    TABLE_AT = 0x4000,                  /* of the jump table, from DATA_BASE: in the page that is not writable */
};

/* The pages of data, by page number from DATA_BASE; every other page near them is not mapped. */
struct data_page {
    uint8_t page, backing;              /* two pages with the same backing are the same memory */
    bool writable;
};
enum { DATA_PAGES = 6 };
extern const struct data_page data_page[DATA_PAGES];

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

/*
 * What is run. After a fault the program goes on at the first of the offsets in `resume` that lies behind it (after a debug trap
 * where it stands), as if a handler had said so; it ends at UD2, where there is no such offset, and after FAULTS_MAX faults.
 */
struct run {
    enum code_mode mode;
    bool engines_only;                  /* the host's vendor has its own way in what is in it, so the host does not judge */
    struct cpu_image start;             /* rip: where the code lies */
    uint64_t data_seed;
    unsigned code_length, resume_count, table_count;
    uint8_t code[CODE_BYTES_MAX];
    uint16_t resume[RESUME_MAX];        /* ascending */
    uint64_t table[TABLE_MAX];          /* at TABLE_AT in the data */
};

struct fault {
    uint8_t vector;
    uint32_t error;                     /* vectors with an error code */
    uint64_t cr2;                       /* #PF */
    uint64_t rip;
    uint64_t registers;                 /* a hash of the general registers and status flags */
};

/* How it went: each exception, the last of which ended it, and all state after. */
struct outcome {
    bool timed_out;
    unsigned fault_count;
    struct fault fault[FAULTS_MAX];
    struct cpu_image end;
    uint64_t instructions;              /* counted by the engine; host: 0 */
    bool stopped;                       /* guest: by guest_how.until; the instruction is at end.rip */
    bool code_kept;                     /* guest: nothing was written to the pages of code */
    uint8_t data[DATA_SIZE];
    uint8_t code[CODE_BYTES_MAX];
};

/* What the host offers; filled once (host.c). */
struct host_features {
    bool avx, avx512;
    bool amd;                           /* a processor that goes by AMD's manual */
    uint32_t ymm_offset, k_offset, zmm_hi256_offset, hi16_zmm_offset, xsave_size;
};

uint64_t next_random(uint64_t *state);
void fill_data(uint64_t seed, uint8_t data[DATA_SIZE]);

/* Makes the case of a seed (generate.c). */
void generate_case(uint64_t seed, enum code_mode mode, const struct host_features *features, struct test_case *test);
/* The instructions joined, UD2 at the end. */
void make_run(const struct test_case *test, struct run *run);
/* Where it goes on after a fault; 0: it ends. */
uint64_t resume_at(const struct run *run, const struct outcome *outcome, uint64_t rip);
/* Enters a fault with the state in `end`. */
void add_fault(struct outcome *outcome, uint8_t vector, uint32_t error, uint64_t cr2);
/* The data of the start. */
void fill_run_data(const struct run *run, uint8_t data[DATA_SIZE]);

/* The host side (host.c): a child process that runs batches. */
struct host;
enum { HOST_BATCH = 64 };
struct host *host_start(void);
const struct host_features *host_features(const struct host *host);
/* Runs `count` cases; false: the child died (the cases after the last filled outcome are lost; it is started again). */
bool host_run(struct host *host, const struct run *runs, unsigned count, struct outcome *outcomes);
void host_stop(struct host *host);

/* The guest side (guest.c): a vCPU at CPL 3 with its own page tables, on one engine. */
struct guest;

/* How an engine runs a case; all zero: in one go. */
struct guest_how {
    bool same_code;                     /* the code is there from the last run and was not changed */
    bool flush;                         /* the TLB is empty at the start */
    bool windows;                       /* dbt reaches memory through windows (mmu/window.h); lasts as long as the guest */
    uint64_t chop;                      /* not 0: a seed for budgets that cut the run in pieces, and for TLB flushes between them */
    bool one_by_one;                    /* an instruction at a time, an element of a repeated one */
    bool flags_as_amd;                  /* with one_by_one: a repeated CMPS or SCAS that faults leaves those of its last comparison */
    /* Not NULL: one by one, up to the first instruction of which this is true. (`length`: so many bytes are there.) */
    bool (*until)(const struct insn_bytes *insn);
};

struct guest *guest_start(const char *engine, const char *cpu_model);
/* dbt: how often the interpreter runs a block before it is translated. A new engine's default is 0 here: at first sight. */
void guest_set_hot(struct guest *guest, unsigned runs);
/* The same, translated as beside the vCPU: by a thread, or `at_once`. */
void guest_set_beside(struct guest *guest, unsigned runs, bool at_once);
/* Waits for the thread, but not for long if the host has no processor for it. */
void guest_await_beside(struct guest *guest);
void guest_run(struct guest *guest, const struct run *run, struct guest_how how, struct outcome *outcome);
/* The two ends of guest_run for a run that does not end: until guest_kick, which any thread may call. */
void guest_prepare(struct guest *guest, const struct run *run, struct guest_how how);
void guest_run_until_kicked(struct guest *guest);
void guest_kick(struct guest *guest);
void guest_stop(struct guest *guest);

/* Compares (compare.c): true if equal; else prints what differs when `print`. `names`: what the two are called. */
bool outcomes_equal(const struct run *run, const struct outcome *host, const struct outcome *guest, const char *const names[2],
                    const struct host_features *features, bool print);
/* The code, disassembled, and the general registers at the start. */
void print_run(const struct run *run);

#endif
