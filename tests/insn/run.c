/* What both sides of the differential tests share: the memory's layout, its contents, and how a run goes on after a fault. */
#include "case.h"

#include <string.h>

#include "base/base.h"
#include "x86/flags.h"

const struct data_page data_page[DATA_PAGES] = {
    { 0, 0, true }, { 1, 1, true }, { 3, 2, true }, { 4, 3, false }, { 5, 4, true },
    { 6, 0, true },                     /* the first page again */
};

/* One pool of random bytes serves all cases: each starts somewhere else in it. */
enum { POOL = 0x8000 };

static const uint8_t *pool(void)
{
    static uint8_t bytes[POOL + DATA_SIZE];
    if (!bytes[0]) {
        uint64_t seed = 1;
        for (unsigned i = 0; i < sizeof(bytes); i += 8) {
            uint64_t value = next_random(&seed);
            memcpy(bytes + i, &value, 8);
        }
        bytes[0] |= 1;
    }
    return bytes;
}

void fill_run_data(const struct run *run, uint8_t data[DATA_SIZE])
{
    memcpy(data, pool() + run->data_seed % POOL, DATA_SIZE);
    if (run->table_count)
        memcpy(data + 3 * PAGE_SIZE, run->table, run->table_count * sizeof(run->table[0]));
}

uint64_t resume_at(const struct run *run, const struct outcome *outcome, uint64_t rip)
{
    uint8_t vector = outcome->fault[outcome->fault_count - 1].vector;
    uint64_t offset = rip - run->start.rip;
    if (vector == VEC_UD || vector == VEC_BP || outcome->fault_count == FAULTS_MAX || !run->resume_count)
        return 0;
    if (vector == VEC_DB)
        return rip;
    if (offset >= run->code_length)
        return 0;
    for (unsigned i = 0; i < run->resume_count; i++)
        if (run->resume[i] > offset)
            return run->start.rip + run->resume[i];
    return 0;
}

static uint64_t hash_registers(const struct cpu_image *image)
{
    uint64_t hash = image->rflags & (RFLAGS_STATUS | RFLAGS_DF);
    for (unsigned i = 0; i < 16; i++)
        hash = (hash ^ image->gpr[i]) * 0x9E3779B97F4A7C15ull;
    return hash;
}

void add_fault(struct outcome *outcome, uint8_t vector, uint32_t error, uint64_t cr2)
{
    outcome->fault[outcome->fault_count++] =
        (struct fault){ vector, error, vector == VEC_PF ? cr2 : 0, outcome->end.rip, hash_registers(&outcome->end) };
}
