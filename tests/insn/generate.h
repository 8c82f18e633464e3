/* What the two generators of cases share (generate.c). */
#ifndef DOPPEL_TESTS_INSN_GENERATE_H
#define DOPPEL_TESTS_INSN_GENERATE_H

#include "case.h"

#include <Zydis/Zydis.h>

struct making {
    struct test_case *test;
    uint64_t random;
    ZydisDecoder decoder;
    uint32_t pinned;        /* general registers that hold a pointer into the data area */
    uint32_t small;         /* that hold a small number */
    uint32_t written;       /* that an earlier instruction wrote */
    bool aligned;
};

static inline unsigned pick(uint64_t *random, unsigned n) { return (unsigned)(next_random(random) % n); }
static inline bool chance(uint64_t *random, unsigned percent) { return pick(random, 100) < percent; }

/* -1: not a general register. */
int gpr_number(ZydisRegister reg);
uint64_t random_value(uint64_t *random);
uint64_t data_pointer(struct making *m);
/* Does the host's processor do with this instruction of 64-bit code what the guest's does? */
bool host_judges(const struct insn_bytes *insn);
/* All registers of test->start. */
void random_state(struct making *m, const struct host_features *features);
/* A random instruction at `rip` whose memory operands the pinned registers steer; false: this was none, try again. */
bool make_insn(struct making *m, uint64_t rip, struct insn_bytes *out, const struct host_features *features);

#endif
