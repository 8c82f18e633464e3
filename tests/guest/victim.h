/* A machine that stands in the same process while a hostile one runs: its RAM and state must stay as they were. */
#ifndef DOPPEL_TESTS_GUEST_VICTIM_H
#define DOPPEL_TESTS_GUEST_VICTIM_H

#include "machine/machine.h"
#include "state/state.h"

struct victim {
    struct machine *machine;
    uint64_t hash;
    struct state_buffer state;
};

/* Like the machine of the configuration, but without a kernel and never started; RAM is filled with a known word. */
bool victim_create(struct victim *victim, const struct machine_config *config, struct error *err);
/* Compares, prints a PASS or FAIL line each for RAM and state, and destroys it. */
void victim_check(struct victim *victim, unsigned *passed, unsigned *failed);

#endif
