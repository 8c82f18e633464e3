/*
 * What every device must do, whatever it is: each type in types.def goes through all of this. A new type needs no line
 * here, unless its access is not by the buses (the local APIC).
 *
 * Usage: conformance [accesses per type and test]
 */
#include <stdlib.h>
#include <string.h>

#include "unit/cmocka_all.h"

#include "dev/board.h"
#include "dev/lapic.h"
#include "dev/pci/host_bridge.h"
#include "dev/pci/pci.h"

static unsigned accesses = 100000;

static const uint64_t config_port = 0xCF8, bar_window = 0xC0000000;
enum { TEST_DEVFN = 3 << 3, ECAM_WINDOW = 0xB0000000 };

/* --- a device under test, with what it needs around it --- */

struct rig {
    const struct device_type *type;
    struct board *board;
    struct device *bridge, *device;
    uint64_t seed;
};

static uint64_t random64(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static bool has_list(const struct state_list *list, const struct state_list *wanted)
{
    for (unsigned i = 0; i < list->count; i++)
        if (list->fields[i].list && (list->fields[i].list == wanted || has_list(list->fields[i].list, wanted)))
            return true;
    return false;
}

static bool is_bridge(const struct device_type *type) { return type == &device_host_bridge; }
static bool is_pci(const struct device_type *type) { return has_list(type->state, &pci_function_state) && !is_bridge(type); }
static bool is_lapic(const struct device_type *type) { return type == &device_lapic; }

static void configure_bridge(struct device *device, void *opaque)
{
    struct host_bridge *bridge = (struct host_bridge *)device;
    for (unsigned i = 0; i < ARRAY_SIZE(bridge->bus.intx); i++)
        bridge->bus.intx[i] = board_line(opaque, 16 + i);
    bridge->config_port = config_port;
    bridge->ecam_base = ECAM_WINDOW;
    bridge->ecam_size = 0x10000000;
}

static void configure(struct device *device, void *opaque)
{
    struct rig *rig = opaque;
    if (is_bridge(rig->type)) {
        configure_bridge(device, rig->board);
    } else if (is_pci(rig->type)) {
        struct pci_function *function = (struct pci_function *)device;
        function->bus = pci_bus_of(rig->bridge);
        function->devfn = TEST_DEVFN;
    }
}

static uint64_t config_address(unsigned offset) { return ECAM_WINDOW + ((uint64_t)TEST_DEVFN << 12) + offset; }

/* What firmware does: BARs placed, decoding and mastering on. */
static void enable_pci(struct rig *rig)
{
    for (unsigned bar = 0; bar < PCI_BARS; bar++) {
        struct pci_function *function = (struct pci_function *)rig->device;
        bool io = function->bar[bar].size && function->bar[bar].io;
        if (function->bar[bar].size)
            write32(rig->board, config_address(0x10 + bar * 4), io ? 0xC000 + bar * 0x400 : (uint32_t)bar_window + bar * 0x1000000);
    }
    write32(rig->board, config_address(4), 7);
}

static void build(struct rig *rig, const struct device_type *type, uint64_t time_ns)
{
    *rig = (struct rig){ .type = type, .board = board_create() };
    clock_set_ns(rig->board->clock, time_ns);
    if (is_pci(type))
        rig->bridge = board_device(rig->board, &device_host_bridge, configure_bridge, rig->board);
    rig->device = board_device(rig->board, type, configure, rig);
}

static void tear_down(struct rig *rig)
{
    device_destroy(rig->device);
    device_destroy(rig->bridge);
    board_destroy(rig->board);
}

/* --- random accesses --- */

struct regions {
    const struct region *region[64];
    unsigned count;
};

static void collect(const struct region *region, void *opaque)
{
    struct regions *regions = opaque;
    if (regions->count < ARRAY_SIZE(regions->region))
        regions->region[regions->count++] = region;
}

/* Mostly small and plausible values; sometimes anything. */
static uint64_t random_value(uint64_t *seed)
{
    uint64_t r = random64(seed);
    switch (r & 3) {
    case 0: return r >> 32 & 0xFF;
    case 1: return 1ull << (r >> 8 & 63);
    case 2: return r >> 16 & 0xFFFF;
    default: return random64(seed);
    }
}

/* Within the region, its first bytes more often: registers are there; sometimes over its edges. */
static uint64_t random_offset(uint64_t *seed, uint64_t size)
{
    uint64_t r = random64(seed);
    uint64_t reach = r & 1 ? min_u64(size, 64) : r & 2 ? min_u64(size, 1024) : size;
    return (r >> 8) % reach - ((r >> 4 & 15) == 0 ? 4 : 0);
}

static uint64_t poke_bus(struct bus *bus, uint64_t *seed, bool ports)
{
    struct regions regions = { .count = 0 };
    bus_for_each(bus, collect, &regions);
    if (!regions.count)
        return 0;
    const struct region *region = regions.region[random64(seed) % regions.count];
    struct access access = { .requester = REQUESTER_CPU };
    access.size = (uint8_t)(1u << random64(seed) % (ports ? 3 : 4));
    access.address = region->base + random_offset(seed, region->size);
    access.write = random64(seed) & 1;
    access.value = access.write ? random_value(seed) : 0;
    bus_access(bus, &access);
    return access.write ? 0 : access.value;
}

static uint64_t poke_lapic(struct lapic *lapic, uint64_t *seed)
{
    uint64_t r = random64(seed), value = random_value(seed);
    uint32_t msr = r & 8 ? 0x800 + (r >> 8 & 0x3F) : r & 16 ? 0x6E0 : 0x1B;
    struct access access = { .address = 0xFEE00000 + (r >> 16 & 0x3F0) + (r & 0x7000 ? 0 : r >> 32 & 15),
                             .size = (uint8_t)(r & 0x8000 ? 4 : 1u << (r >> 40 & 3)), .write = r >> 33 & 1, .value = value };
    switch (r & 7) {
    case 0: lapic_intc_ops.write_msr(lapic, msr, r >> 34 & 1 ? value : 0xFEE00800 | (value & 0x400)); return 0;
    case 1: return lapic_intc_ops.read_msr(lapic, msr, &value) ? value : 0;
    case 2: return (uint64_t)lapic_intc_ops.acknowledge(lapic);
    case 3: lapic_set_lint(lapic, r >> 35 & 1, r >> 36 & 1); return (uint64_t)lapic_intc_ops.pending(lapic);
    case 4: lapic_deliver(lapic, &(struct apic_message){ .vector = (uint8_t)value, .delivery = r >> 37 & 7, .level = r >> 38 & 1 });
        return lapic_intc_ops.get_tpr(lapic);
    default: lapic_intc_ops.mmio(lapic, &access); return access.write ? 0 : access.value;
    }
}

/* One random step of the world; what it read. */
static uint64_t poke(struct rig *rig)
{
    uint64_t r = random64(&rig->seed);
    if ((r & 15) == 0) {
        board_advance(rig->board, r >> 8 & 0xFFFFF);
        loop_run_once(rig->board->loop, 0);
        return 0;
    }
    if (is_lapic(rig->type))
        return poke_lapic((struct lapic *)rig->device, &rig->seed);
    return r & 16 ? poke_bus(rig->board->ports, &rig->seed, true) : poke_bus(rig->board->mmio, &rig->seed, false);
}

static void poke_often(struct rig *rig, uint64_t seed, unsigned times)
{
    rig->seed = seed;
    for (unsigned i = 0; i < times; i++)
        poke(rig);
}

/* --- the tests; each for one type --- */

static void check_equal(const struct rig *a, const struct rig *b, const char *what)
{
    const char *field = NULL;
    if (!state_equal(a->type->state, a->device, b->device, &field))
        fail_msg("%s: %s: %s differs", a->type->name, what, field);
}

/* The RTC's battery and the contents of flash outlive a reset. */
static bool outlives_reset(const struct device_type *type) { return type == &device_rtc || type == &device_flash; }

static void reset_is_as_new(const struct device_type *type)
{
    struct rig used, fresh;
    build(&used, type, 0);
    if (is_pci(type))
        enable_pci(&used);
    poke_often(&used, 0x1234567, accesses / 10);
    pthread_mutex_lock(&used.board->lock);
    type->reset(used.device);
    pthread_mutex_unlock(&used.board->lock);
    build(&fresh, type, clock_ns(used.board->clock));
    if (!outlives_reset(type))
        check_equal(&used, &fresh, "after reset");
    for (unsigned n = 0; n < BOARD_LINES; n++)
        if (used.board->level[n])
            fail_msg("%s: line %u is asserted after reset", type->name, n);
    tear_down(&used);
    tear_down(&fresh);
}

static void quiesce(struct rig *rig)
{
    pthread_mutex_lock(&rig->board->lock);
    if (rig->type->quiesce)
        rig->type->quiesce(rig->device);
    pthread_mutex_unlock(&rig->board->lock);
}

static void resume(struct rig *rig)
{
    pthread_mutex_lock(&rig->board->lock);
    if (rig->type->resume)
        rig->type->resume(rig->device);
    pthread_mutex_unlock(&rig->board->lock);
}

static void load(struct device *into, const struct state_buffer *from)
{
    struct error err;
    size_t used;
    if (!state_load(into->type->state, into, from->data, from->size, &used, &err))
        fail_msg("%s: %s", into->type->name, err.text);
    assert_int_equal(used, from->size);
}

/* The bridge before the device is part of its world. */
static void copy_bridge(struct rig *to, const struct rig *from)
{
    struct state_buffer buffer = { 0 };
    if (!from->bridge)
        return;
    state_save(device_host_bridge.state, from->bridge, &buffer);
    load(to->bridge, &buffer);
    device_host_bridge.resume(to->bridge);
    state_buffer_free(&buffer);
}

/* Saved, loaded into a new device and saved again: the same bytes; from there both live the same life. */
static void saved_state_is_complete(const struct device_type *type)
{
    struct rig a, b;
    build(&a, type, 0);
    if (is_pci(type))
        enable_pci(&a);
    for (unsigned round = 0; round < 8; round++) {
        poke_often(&a, 0x9876543 + round, accesses / 40);
        quiesce(&a);
        build(&b, type, clock_ns(a.board->clock));
        memcpy(b.board->memory, a.board->memory, BOARD_MEMORY);
        struct state_buffer first = { 0 }, second = { 0 };
        state_save(type->state, a.device, &first);
        copy_bridge(&b, &a);
        load(b.device, &first);
        state_save(type->state, b.device, &second);
        assert_int_equal(first.size, second.size);
        assert_memory_equal(first.data, second.data, first.size);
        resume(&a);
        resume(&b);
        check_equal(&a, &b, "after loading and going on");
        a.seed = b.seed = 0x55AA + round;
        for (unsigned i = 0; i < accesses / 40; i++) {
            uint64_t from_a = poke(&a), from_b = poke(&b);
            if (from_a != from_b)
                fail_msg("%s: access %u reads 0x%llx, from its loaded twin 0x%llx", type->name, i, (unsigned long long)from_a,
                         (unsigned long long)from_b);
        }
        check_equal(&a, &b, "after the same accesses");
        state_buffer_free(&first);
        state_buffer_free(&second);
        tear_down(&b);
    }
    tear_down(&a);
}

static void random_accesses_are_harmless(const struct device_type *type)
{
    struct rig rig;
    build(&rig, type, 0);
    poke_often(&rig, 0xABCDEF, accesses / 10);
    if (is_pci(type))
        enable_pci(&rig);
    poke_often(&rig, 0xFEDCBA, accesses);
    tear_down(&rig);
}

static void random_state_is_harmless(const struct device_type *type)
{
    uint64_t seed = 0x31415926;
    for (unsigned round = 0; round < 50; round++) {
        struct rig rig;
        build(&rig, type, 1000000);
        quiesce(&rig);
        state_randomize(type->state, rig.device, &seed);
        resume(&rig);
        poke_often(&rig, seed, accesses / 50);
        quiesce(&rig);
        resume(&rig);
        poke_often(&rig, seed, accesses / 200);
        type->reset(rig.device);
        tear_down(&rig);
    }
}

static void has_what_a_type_must_have(const struct device_type *type)
{
    assert_non_null(type->name);
    assert_non_null(type->text);
    assert_non_null(type->state);
    assert_true(type->size >= sizeof(struct device));
    assert_ptr_equal(device_type_find(type->name), type);
    for (const struct config_field *field = type->config; field && field->name; field++)
        assert_true(field->offset >= sizeof(struct device) && field->offset < type->size);
}

/* --- all types --- */

static void for_each_type(void (*test)(const struct device_type *type))
{
    unsigned count;
    const struct device_type *const *types = device_types(&count);
    assert_true(count > 0);
    for (unsigned i = 0; i < count; i++)
        test(types[i]);
}

static void every_type_is_described(void **state) { for_each_type(has_what_a_type_must_have); }
static void every_type_resets_to_new(void **state) { for_each_type(reset_is_as_new); }
static void every_type_saves_all_of_its_state(void **state) { for_each_type(saved_state_is_complete); }
static void every_type_bears_random_accesses(void **state) { for_each_type(random_accesses_are_harmless); }
static void every_type_bears_any_loaded_state(void **state) { for_each_type(random_state_is_harmless); }

int main(int argc, char **argv)
{
    if (argc > 1)
        accesses = (unsigned)strtoul(argv[1], NULL, 0);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_type_is_described),
        cmocka_unit_test(every_type_resets_to_new),
        cmocka_unit_test(every_type_saves_all_of_its_state),
        cmocka_unit_test(every_type_bears_random_accesses),
        cmocka_unit_test(every_type_bears_any_loaded_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
