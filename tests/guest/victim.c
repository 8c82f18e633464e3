#include "victim.h"

#include <stdio.h>
#include <string.h>

#include "dev/device.h"
#include "mem/ram.h"
#include "x86/x86.h"

static const uint64_t secret = 0x0DD5EC2E7B0B5EC5ull;       /* tests/guest/hostile.c looks for it */

static void fill(struct ram *ram)
{
    for (unsigned n = 0; n < ram->slot_count; n++)
        for (uint64_t at = 0; at < ram->slot[n].size; at += sizeof(secret))
            memcpy(ram->slot[n].host + at, &secret, sizeof(secret));
}

/* FNV-1a, by words. */
static uint64_t hash_ram(const struct ram *ram)
{
    uint64_t hash = 0xCBF29CE484222325ull;
    for (unsigned n = 0; n < ram->slot_count; n++)
        for (uint64_t at = 0; at < ram->slot[n].size; at += sizeof(uint64_t)) {
            uint64_t word;
            memcpy(&word, ram->slot[n].host + at, sizeof(word));
            hash = (hash ^ word) * 0x100000001B3ull;
        }
    return hash;
}

static void save(const struct machine *machine, struct state_buffer *out)
{
    for (unsigned i = 0; i < machine->config.cpus; i++)
        state_save(&vcpu_state_list, machine->vcpu[i], out);
    for (struct device *device = machine->devices; device; device = device->next)
        state_save(device->type->state, device, out);
}

bool victim_create(struct victim *victim, const struct machine_config *config, struct error *err)
{
    struct machine_config own = *config;
    own.kernel = own.debug_console = NULL;
    *victim = (struct victim){ .machine = machine_create(&own, err) };
    if (!victim->machine)
        return false;
    fill(victim->machine->ram);
    victim->hash = hash_ram(victim->machine->ram);
    save(victim->machine, &victim->state);
    return true;
}

static void report(bool ok, const char *name, unsigned *passed, unsigned *failed)
{
    printf("%s %s\n", ok ? "PASS" : "FAIL", name);
    *passed += ok;
    *failed += !ok;
}

void victim_check(struct victim *victim, unsigned *passed, unsigned *failed)
{
    struct state_buffer now = { 0 };
    save(victim->machine, &now);
    report(hash_ram(victim->machine->ram) == victim->hash, "the other machine's RAM has not changed", passed, failed);
    report(now.size == victim->state.size && !memcmp(now.data, victim->state.data, now.size),
           "nor have its processors and devices", passed, failed);
    state_buffer_free(&now);
    state_buffer_free(&victim->state);
    machine_destroy(victim->machine);
}
