/*
 * A case of `blocks`: a small program, as a list of units (an instruction each) that know each other by number, so that it can be
 * put together again without some of them.
 */
#ifndef DOPPEL_TESTS_INSN_PROGRAM_H
#define DOPPEL_TESTS_INSN_PROGRAM_H

#include <stdio.h>

#include "case.h"

enum { UNITS_MAX = 200 };

/* What of an instruction depends on where things lie. */
enum fix {
    FIX_NONE,
    FIX_BRANCH,             /* displacement to unit `target` */
    FIX_CODE,               /* absolute address of unit `target` */
    FIX_CODE_RIP,           /* RIP-relative displacement to the last bytes of unit `target`: `addend` from its end */
    FIX_DATA_RIP,           /* RIP-relative displacement to the address `addend` */
};

struct unit {
    struct insn_bytes insn;
    uint8_t fix, fix_at, fix_size;      /* enum fix; offset and bytes of the field */
    int16_t target;
    int32_t addend;
    bool block;                         /* starts a block: a run goes on here after a fault */
    uint8_t immediate;                  /* bytes at the end that may be overwritten with anything */
};

struct program {
    uint64_t seed, data_seed;
    bool engines_only;
    struct cpu_image start;
    unsigned unit_count, table_count, block_count;
    struct unit unit[UNITS_MAX];
    int16_t table[TABLE_MAX];           /* units */
};

/* The program of a seed; false: this seed gives none. */
bool generate_program(uint64_t seed, const struct host_features *features, struct program *program);
/* False: a short branch does not reach, or there is no room. */
bool assemble(const struct program *program, struct run *run);
/* Takes a unit out; what led to it leads to the next. */
void drop_unit(struct program *program, unsigned index);

/* Text form of a run, to be kept as a file (run_text.c). */
void write_run(FILE *out, const struct run *run);
/* False: cannot be read; says so on stderr. */
bool read_run(const char *path, struct run *run);

#endif
