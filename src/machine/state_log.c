#include "machine/state_log.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#include "machine/lifecycle.h"
#include "machine/machine.h"
#include "mem/ram.h"
#include "state/state.h"
#include "x86/x86.h"

enum { EVERY_DEFAULT = 1000000, FXSAVE_OPCODE = 6, FXSAVE_MXCSR = 24, FXSAVE_MXCSR_MASK = 28, FXSAVE_ST = 32, FXSAVE_XMM = 160 };

struct state_log {
    struct vcpu_checkpoint checkpoint;      /* first: vcpu->checkpoint */
    struct state_log_config config;
    struct machine *machine;
    FILE *out;
    uint64_t lines;
    struct vcpu shown;                      /* a copy without what says nothing */
    struct state_buffer buffer;
};

/*
 * Bytes of the FXSAVE image that are no state (the vectors live in zmm); and FOP, FIP and FDP, which an AMD processor keeps
 * or forgets depending on when its state was saved last.
 */
static void forget_what_is_no_state(struct fpu *fpu)
{
    memset(fpu->fxsave + FXSAVE_OPCODE, 0, FXSAVE_MXCSR - FXSAVE_OPCODE);
    memset(fpu->fxsave + FXSAVE_MXCSR_MASK, 0, FXSAVE_ST - FXSAVE_MXCSR_MASK);
    for (unsigned i = 0; i < 8; i++)
        memset(fpu->fxsave + FXSAVE_ST + 16 * i + 10, 0, 6);
    memset(fpu->fxsave + FXSAVE_XMM, 0, sizeof(fpu->fxsave) - FXSAVE_XMM);
}

/* Of `shown`; the status flags stand by themselves. */
static uint64_t digest_state(struct state_log *log)
{
    log->shown.rflags &= ~(uint64_t)RFLAGS_STATUS;
    log->buffer.size = 0;
    state_save(&vcpu_state_list, &log->shown, &log->buffer);
    return XXH3_64bits(log->buffer.data, log->buffer.size);
}

/* Pages that were granted, with their places; a page of zeroes counts as one that was not. */
static uint64_t digest_memory(struct ram *ram)
{
    static const uint8_t zero[PAGE_SIZE];
    uint64_t digest = 0;
    for (unsigned i = 0; i < ram->slot_count; i++) {
        const struct ram_slot *slot = &ram->slot[i];
        uint64_t end = slot->fd_offset + slot->size;
        off_t at = (off_t)slot->fd_offset;
        while ((at = lseek(slot->fd, at, SEEK_DATA)) >= 0 && (uint64_t)at < end) {
            uint64_t offset = (uint64_t)at - slot->fd_offset;
            if (memcmp(slot->host + offset, zero, PAGE_SIZE))
                digest ^= XXH3_64bits_withSeed(slot->host + offset, PAGE_SIZE, slot->gpa + offset);
            at += PAGE_SIZE;
        }
    }
    return digest;
}

static void write_line(struct state_log *log, const struct vcpu *vcpu, uint64_t count)
{
    memcpy(&log->shown, vcpu, sizeof(log->shown));
    forget_what_is_no_state(&log->shown.fpu);
    if (log->config.registers)
        state_dump(&vcpu_state_list, &log->shown, "  ", log->out);
    fprintf(log->out, "%" PRIu64 " %016" PRIx64 " %016" PRIx64 " %03" PRIx64, count, vcpu->rip, digest_state(log),
            vcpu->rflags & RFLAGS_STATUS);
    if (log->config.memory && ++log->lines % log->config.memory == 0)
        fprintf(log->out, " %016" PRIx64, digest_memory(vcpu->ram));
    fputc('\n', log->out);
}

static void reached(struct vcpu *vcpu, struct vcpu_checkpoint *checkpoint)
{
    struct state_log *log = (struct state_log *)checkpoint;
    uint64_t count = checkpoint->next, end = log->config.to;
    write_line(log, vcpu, count);
    checkpoint->next = count + log->config.every;
    if (!end)
        return;
    if (count >= end) {
        checkpoint->next = UINT64_MAX;
        machine_end(log->machine, END_POWER_OFF, 0);
    } else if (checkpoint->next > end) {
        checkpoint->next = end;
    }
}

struct state_log *state_log_open(struct machine *machine, struct error *err)
{
    const struct state_log_config *config = &machine->config.state_log;
    struct vcpu *vcpu = machine->vcpu[0];
    if (!vcpu->counted) {
        error_set(err, "a state log needs --clock instructions");
        return NULL;
    }
    struct state_log *log = aligned_alloc(64, align_up(sizeof(*log), 64));
    if (!log) {
        error_set(err, "no memory for a state log");
        return NULL;
    }
    memset(log, 0, sizeof(*log));
    log->config = *config;
    log->machine = machine;
    if (!log->config.every)
        log->config.every = EVERY_DEFAULT;
    log->out = fopen(config->path, "we");
    if (!log->out) {
        error_errno(err, errno, "cannot write the state log %s", config->path);
        free(log);
        return NULL;
    }
    setvbuf(log->out, NULL, _IOLBF, 0);         /* somebody may be reading it already */
    log->checkpoint = (struct vcpu_checkpoint){ config->from ? config->from : log->config.every, reached };
    vcpu->checkpoint = &log->checkpoint;
    return log;
}

void state_log_close(struct state_log *log)
{
    if (!log)
        return;
    fclose(log->out);
    state_buffer_free(&log->buffer);
    free(log);
}
