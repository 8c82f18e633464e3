/*
 * The host processor as judge of native execution: loads *all* user-level state of a vCPU into the processor, runs
 * the instruction's own bytes unchanged, and stores all state back. RSP is the host's: instructions under test must not use it.
 */
#ifndef DOPPEL_TESTS_NATIVE_REFERENCE_H
#define DOPPEL_TESTS_NATIVE_REFERENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "vcpu/vcpu.h"

struct reference_fault {
    int signal, code;           /* signal 0: none */
    uint64_t address;
};

/* Installs signal handlers; before anything else does. */
void reference_init(void);
/* state->fpu must be 64-byte aligned. */
struct reference_fault reference_run(struct vcpu *state, const uint8_t *bytes, unsigned length);
/* Where the last run's instruction was: what FIP shows. */
uint64_t reference_address(void);

#endif
