#include "program.h"

#include <string.h>

#include "base/base.h"

static void put_le(uint8_t *at, uint64_t value, unsigned size) { memcpy(at, &value, size); }

/* Does a signed number of so many bytes hold the value? */
static bool fits(int64_t value, unsigned size)
{
    unsigned shift = 64 - 8 * size;
    return (int64_t)((uint64_t)value << shift) >> shift == value;
}

static bool fix_unit(const struct program *program, const uint64_t *address, unsigned i, uint8_t *bytes)
{
    const struct unit *unit = &program->unit[i];
    uint64_t next = address[i + 1];
    int64_t value;
    switch (unit->fix) {
    case FIX_BRANCH: value = (int64_t)(address[unit->target] - next); break;
    case FIX_CODE: value = (int64_t)address[unit->target]; break;
    case FIX_CODE_RIP: value = (int64_t)(address[unit->target + 1] + (uint64_t)unit->addend - next); break;
    case FIX_DATA_RIP: value = unit->addend - (int64_t)next; break;
    default: return true;
    }
    put_le(bytes + unit->fix_at, (uint64_t)value, unit->fix_size);
    return fits(value, unit->fix_size);
}

bool assemble(const struct program *program, struct run *run)
{
    uint64_t address[UNITS_MAX + 2];
    memset(run, 0, offsetof(struct run, code));
    run->mode = CODE_64;
    run->engines_only = program->engines_only;
    run->start = program->start;
    run->data_seed = program->data_seed;
    address[0] = program->start.rip;
    for (unsigned i = 0; i < program->unit_count; i++)
        address[i + 1] = address[i] + program->unit[i].insn.length;
    run->code_length = (unsigned)(address[program->unit_count] - address[0]) + 2;
    if (run->code_length > CODE_BYTES_MAX || address[0] + run->code_length > CODE_BASE + CODE_SIZE)
        return false;
    address[program->unit_count + 1] = address[program->unit_count] + 2;
    for (unsigned i = 0; i < program->unit_count; i++) {
        const struct unit *unit = &program->unit[i];
        uint8_t *bytes = run->code + (address[i] - address[0]);
        memcpy(bytes, unit->insn.bytes, unit->insn.length);
        if (!fix_unit(program, address, i, bytes))
            return false;
        if (unit->block && i && run->resume_count < RESUME_MAX)
            run->resume[run->resume_count++] = (uint16_t)(address[i] - address[0]);
    }
    memcpy(run->code + run->code_length - 2, "\x0F\x0B", 2);            /* UD2 */
    run->table_count = program->table_count;
    for (unsigned i = 0; i < program->table_count; i++)
        run->table[i] = address[program->table[i]];
    return true;
}

static void lead_past(int16_t *target, unsigned dropped)
{
    if (*target > (int)dropped)
        --*target;
}

void drop_unit(struct program *program, unsigned index)
{
    bool block = program->unit[index].block;
    program->unit_count--;
    memmove(&program->unit[index], &program->unit[index + 1], (program->unit_count - index) * sizeof(program->unit[0]));
    for (unsigned i = 0; i < program->unit_count; i++)
        lead_past(&program->unit[i].target, index);
    for (unsigned i = 0; i < program->table_count; i++)
        lead_past(&program->table[i], index);
    if (index < program->unit_count)
        program->unit[index].block |= block;
}
