/*
 * Building and taking apart a machine. The order matters in both directions: what is made first is borrowed by what comes
 * later, so all is undone backwards. Threads exist only between machine_start and the end of machine_wait.
 */
#include "machine/machine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/loop.h"
#include "base/thread.h"
#include "bus/bus.h"
#include "dev/device.h"
#include "engine/dbt/beside.h"
#include "engine/dbt/perf.h"
#include "engine/dbt/store.h"
#include "engine/engine.h"
#include "engine/kvm/host.h"
#include "machine/code_drops.h"
#include "machine/firmware.h"
#include "machine/firmware_choice.h"
#include "machine/image.h"
#include "machine/layout.h"
#include "machine/lifecycle.h"
#include "machine/pc.h"
#include "mem/gather.h"
#include "mem/ram.h"
#include "mem/stretch.h"
#include "mmu/mmu.h"
#include "vcpu/loop.h"
#include "vcpu/thread.h"
#include "vcpu/work.h"
#include "vmx/vmx.h"
#include "x86/model.h"
#include "x86/x86.h"

enum { MEMORY_MIN = 1 * MiB };

static const char *const disk_buses[] = { [DISK_VIRTIO] = "virtio", [DISK_AHCI] = "ahci", [DISK_CDROM] = "cdrom", [DISK_NVME] = "nvme",
                                         [DISK_USB] = "usb" };

bool disk_bus_parse(const char *name, enum disk_bus *bus)
{
    for (unsigned i = 0; i < ARRAY_SIZE(disk_buses); i++)
        if (!strcmp(name, disk_buses[i])) {
            *bus = (enum disk_bus)i;
            return true;
        }
    return false;
}

const char *disk_bus_name(enum disk_bus bus) { return bus < ARRAY_SIZE(disk_buses) ? disk_buses[bus] : "unknown"; }

void machine_config_defaults(struct machine_config *config)
{
    config->memory = 512 * MiB;
    config->cpus = 1;
    config->console = "none";
    config->rng = true;
    config->translations = "memory";
}

static bool keeps_on_disk(const struct machine_config *config) { return config->translations && strcmp(config->translations, "memory") != 0; }

/* KVM where it is as fast as it should be, and offers what is asked for; else the translator. */
static const char *default_engine(const struct machine *machine)
{
    double nanoseconds;
    struct error why_not;
    const struct machine_config *config = &machine->config;
    bool software = config->clock_instructions || config->perf_map || config->jitdump || config->code_cache || config->tlb || keeps_on_disk(config) ||
                    model_has(machine->model, FEATURE_VMX);
    return !software && kvm_fast(&nanoseconds, &why_not) ? "kvm" : "dbt";
}

static bool check_config(const struct machine_config *config, struct error *err)
{
    if (config->cpus < 1 || config->cpus > MACHINE_CPUS_MAX)
        return error_set(err, "a machine has 1 to %d processors, not %u", MACHINE_CPUS_MAX, config->cpus);
    if (config->memory < MEMORY_MIN)
        return error_set(err, "%llu bytes of memory are too few: a machine has at least 1M",
                         (unsigned long long)config->memory);
    if (config->memory % PAGE_SIZE)
        return error_set(err, "the memory size must be a multiple of 4K");
    if (config->firmware && config->kernel)
        return error_set(err, "a machine starts either a kernel or firmware, not both");
    if (config->clock_instructions && config->cpus > 1)
        return error_set(err, "time can only be counted in instructions on a machine with one processor");
    return !config->engine || engine_named(config->engine, err);
}

/*
 * RAM fills the space below LOW_RAM_MAX, but for the VGA memory; what is left goes above 4 GiB, past the hole for devices. The
 * slots that are used most come first.
 */
static bool add_memory(struct machine *machine, struct error *err)
{
    uint64_t low = min_u64(machine->config.memory, LOW_RAM_MAX_BASE);
    if (low > EXTENDED_BASE && !ram_add(machine->ram, "low RAM", EXTENDED_BASE, low - EXTENDED_BASE, false, err))
        return false;
    if (!ram_add(machine->ram, "conventional", CONVENTIONAL_BASE, CONVENTIONAL_SIZE, false, err) ||
        !ram_add(machine->ram, "BIOS area", BIOS_AREA_BASE, BIOS_AREA_SIZE, false, err))
        return false;
    if (machine->firmware && !firmware_map(machine, err))
        return false;
    uint64_t high = machine->config.memory - low;
    return high == 0 || ram_add(machine->ram, "high RAM", HIGH_RAM_BASE, high, false, err);
}

/* A device or another vCPU wrote bytes that some vCPU has decoded: each drops them at its next block border. */
static void drop_code(struct vcpu *vcpu, void *argument)
{
    struct code_drop drop[CODE_DROPS_MOST];
    unsigned count = code_drops_take(argument, drop);
    for (unsigned i = 0; i < count; i++)
        vcpu->engine->code_written(vcpu, drop[i].gpa, drop[i].size);
}

static void drop_added(struct code_drops *drops)
{
    if (drops->count == 1 && !vcpu_post(drops->owner, drop_code, drops))
        abort();        /* out of host memory: there is no way to keep the guest's view right */
    if (drops->count == CODE_DROPS_MANY)
        vcpu_wake(drops->owner);
}

static void code_written(void *owner, uint64_t gpa, uint64_t size)
{
    struct machine *machine = owner;
    for (unsigned i = 0; i < machine->config.cpus; i++) {
        struct vcpu *vcpu = machine->vcpu[i];
        /* A vCPU that overwrites code drops what it writes to itself, without waiting for the border; here the whole page, if that wore out. */
        if (vcpu_thread_is_own(vcpu) && vcpu->overwriting) {
            if (size == PAGE_SIZE)
                vcpu->code_overwritten(vcpu, gpa, size);
            continue;
        }
        code_drops_add(&machine->code_drops[i], gpa, size);
    }
}

static void system_event(void *owner, struct vcpu *vcpu, unsigned event)
{
    struct machine *machine = owner;
    switch ((enum system_event)event) {
    case SYSTEM_TRIPLE_FAULT:
        trace(&machine->log, cpu_state, "vcpu%u triple fault at %#lx", vcpu->index, vcpu->rip);
        machine_triple_fault(machine);
        break;
    case SYSTEM_RESET:
        machine_reset(machine);
        break;
    case SYSTEM_POWER_OFF:
        machine_end(machine, END_POWER_OFF, 0);
        break;
    }
}

static void deadline_earlier(void *owner) { vcpu_kick(owner, REQUEST_CLOCK); }

/* The first processor settles it for all. */
static bool settle_engine(struct machine *machine, const struct vcpu *vcpu, struct error *err)
{
    struct machine_config *config = &machine->config;
    if (vcpu_engine_available(vcpu, machine->first_engine, err))
        return true;
    if (!config->engine_was_default)
        return false;
    log_message(&machine->log, LOG_WARNING, "going on with the translator (dbt), as %s", err->text);
    config->engine = "dbt";
    machine->first_engine = engine_find(config->engine);
    return vcpu_engine_available(vcpu, machine->first_engine, err);
}

static struct vcpu *create_vcpu(struct machine *machine, unsigned index, struct error *err)
{
    struct vcpu *vcpu = aligned_alloc(64, align_up(sizeof(*vcpu), 64));
    if (!vcpu) {
        error_set(err, "no memory for vCPU %u", index);
        return NULL;
    }
    memset(vcpu, 0, sizeof(*vcpu));
    vcpu_thread_init(vcpu);
    vcpu->index = index;
    vcpu->apic_id = index;
    vcpu->model = machine->model;
    vcpu->ram = machine->ram;
    vcpu->mmio = machine->mmio;
    vcpu->ports = machine->ports;
    vcpu->clock = machine->clock;
    vcpu->log = &machine->log;
    vcpu->perf = machine->perf;
    vcpu->translations = machine->translations;
    vcpu->beside = machine->beside;
    vcpu->code_cache = machine->config.code_cache;
    vcpu->board_apic = machine->config.board_apic;
    vcpu->all = machine->vcpu;
    vcpu->all_count = machine->config.cpus;
    vcpu->system_event = system_event;
    vcpu->stop_ops = &machine_stop_ops;
    vcpu->counted = clock_counted(machine->clock);
    if (vcpu->counted)
        clock_on_earlier(machine->clock, deadline_earlier, vcpu);
    vcpu->system_owner = machine;
    vcpu->mmu = mmu_create();
    if (!vcpu->mmu) {
        error_set(err, "no memory for the TLB of vCPU %u", index);
        goto fail;
    }
    if (!mmu_set_policy(vcpu->mmu, machine->config.tlb)) {
        error_set(err, "no memory for what vCPU %u remembers of its walks", index);
        goto fail;
    }
    x86_reset(vcpu, false);
    if (!settle_engine(machine, vcpu, err))
        goto fail;
    const struct engine *engine = machine->first_engine;
    if (!vcpu_set_engine(vcpu, engine)) {
        error_set(err, "the host refuses what engine %s needs for vCPU %u", engine->name, index);
        goto fail;
    }
    vcpu->activity = index == 0 ? ACTIVITY_ACTIVE : ACTIVITY_WAIT_SIPI;
    return vcpu;
fail:
    if (vcpu->mmu)
        mmu_destroy(vcpu->mmu);
    vcpu_thread_fini(vcpu);
    free(vcpu);
    return NULL;
}

static void destroy_vcpu(struct vcpu *vcpu)
{
    if (!vcpu)
        return;
    vcpu_serve_work(vcpu);      /* what devices posted in their last moments */
    vcpu->engine->detach(vcpu);
    vmx_fini(vcpu);
    mmu_destroy(vcpu->mmu);
    vcpu_thread_fini(vcpu);
    free(vcpu);
}

static bool create_vcpus(struct machine *machine, struct error *err)
{
    machine->vcpu = calloc(machine->config.cpus, sizeof(*machine->vcpu));
    machine->code_drops = calloc(machine->config.cpus, sizeof(*machine->code_drops));
    if (!machine->vcpu || !machine->code_drops)
        return error_set(err, "no memory for %u vCPUs", machine->config.cpus);
    for (unsigned i = 0; i < machine->config.cpus; i++) {
        machine->vcpu[i] = create_vcpu(machine, i, err);
        if (!machine->vcpu[i])
            return false;
        code_drops_init(&machine->code_drops[i], drop_added, machine->vcpu[i]);
    }
    machine->ram->watcher = (struct ram_watcher){ code_written, machine };
    return !machine->config.state_log.path || (machine->state_log = state_log_open(machine, err));
}

static bool first_state(struct machine *machine, const struct machine_origin *origin, struct error *err)
{
    if (!origin)
        return images_load(machine, err);
    clock_pause(machine->clock);
    return origin->load(origin->owner, machine, err);
}

static bool open_translations(struct machine *machine, struct error *err)
{
    const struct machine_config *config = &machine->config;
    bool on_disk = keeps_on_disk(config);
    machine->translations = store_create(on_disk ? config->translations : NULL, STORE_BYTES_MOST, &machine->log);
    if (!machine->translations)
        return error_set(err, "no memory for translations");
    if (!on_disk || store_check_directory(machine->translations, err))
        return true;
    if (config->translations_try)
        log_message(&machine->log, LOG_WARNING, "%s; translations are kept for this run only", err->text);
    return config->translations_try;
}

static bool build(struct machine *machine, const struct machine_origin *origin, struct error *err)
{
    const struct machine_config *config = &machine->config;
    if (!check_config(config, err))
        return false;
    /* Images first: a missing kernel is told before anything else is made. */
    machine->restored = origin;
    machine->images = origin ? images_later(err) : images_open(config, err);
    if (!machine->images)
        return false;
    if (!firmware_choose(machine, err) || (config->firmware && !(machine->firmware = firmware_open(config, err))))
        return false;
    machine->loop = loop_create(err);
    if (!machine->loop)
        return false;
    machine->clock = config->clock_instructions ? clock_create_counted(&machine->lock, config->clock_instructions)
                                                : clock_create(machine->loop, &machine->lock, origin ? origin->tsc_hz : 0);
    machine->ram = ram_create();
    if (machine->ram) {
        machine->ram->counters = &machine->counters;
        machine->ram->gatherer = origin ? NULL : ram_gatherer_create(machine->ram);         /* a snapshot's pages stay as they are */
        machine->ram->stretches = origin || thread_processors() == 1 ? NULL : ram_stretches_create(machine->ram);
    }
    machine->mmio = bus_create("mmio", 0, &machine->log);
    machine->ports = bus_create("port", 0x10000, &machine->log);
    if (!machine->clock || !machine->ram || !machine->mmio || !machine->ports)
        return error_set(err, "no memory for a machine");
    machine->model = x86_model_create(config->cpu_model, config->cpus, clock_tsc_hz(machine->clock), err);
    if (!machine->model)
        return false;
    machine->first_engine = engine_find(config->engine ? config->engine : default_engine(machine));
    if ((config->perf_map || config->jitdump) && !(machine->perf = perf_open(config->perf_map, config->jitdump, err)))
        return false;
    if (config->translations && !open_translations(machine, err))
        return false;
    if (thread_processors() > 1)        /* on one it would only take the vCPUs' time */
        machine->beside = beside_create();
    return add_memory(machine, err) && create_vcpus(machine, err) && pc_build(machine, err) &&
           (!machine->firmware || firmware_describe(machine, err)) && first_state(machine, origin, err);
}

struct machine *machine_create(const struct machine_config *config, struct error *err)
{
    return machine_create_from(config, NULL, err);
}

struct machine *machine_create_from(const struct machine_config *config, const struct machine_origin *origin, struct error *err)
{
    struct machine *machine = calloc(1, sizeof(*machine));
    if (!machine) {
        error_set(err, "no memory for a machine");
        return NULL;
    }
    machine->config = *config;
    log_init(&machine->log, config->log);
    pthread_mutexattr_t recursive;
    pthread_mutexattr_init(&recursive);
    pthread_mutexattr_settype(&recursive, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(&machine->lock, &recursive);
    pthread_mutexattr_destroy(&recursive);
    pthread_mutex_init(&machine->state_lock, NULL);
    pthread_mutex_init(&machine->pause_lock, NULL);
    pthread_mutex_init(&machine->snapshot_lock, NULL);
    pthread_cond_init(&machine->state_changed, NULL);
    if (build(machine, origin, err))
        return machine;
    machine_destroy(machine);
    return NULL;
}

void machine_destroy(struct machine *machine)
{
    pc_destroy(machine);
    state_log_close(machine->state_log);
    for (unsigned i = 0; machine->vcpu && i < machine->config.cpus; i++)
        destroy_vcpu(machine->vcpu[i]);
    for (unsigned i = 0; machine->code_drops && i < machine->config.cpus && machine->code_drops[i].owner; i++)
        code_drops_fini(&machine->code_drops[i]);
    free(machine->code_drops);
    free(machine->vcpu);
    perf_close(machine->perf);
    beside_destroy(machine->beside);
    store_destroy(machine->translations);
    if (machine->model)
        x86_model_destroy(machine->model);
    if (machine->ports)
        bus_destroy(machine->ports);
    if (machine->mmio)
        bus_destroy(machine->mmio);
    if (machine->ram)
        ram_destroy(machine->ram);
    if (machine->clock)
        clock_destroy(machine->clock);
    if (machine->loop)
        loop_destroy(machine->loop);
    images_close(machine->images);
    firmware_close(machine->firmware);
    disk_image_close(machine->first_image);
    pthread_cond_destroy(&machine->state_changed);
    pthread_mutex_destroy(&machine->snapshot_lock);
    pthread_mutex_destroy(&machine->pause_lock);
    pthread_mutex_destroy(&machine->state_lock);
    pthread_mutex_destroy(&machine->lock);
    machine_free_texts(machine->texts);
    free(machine);
}

const char *machine_keep_text(struct machine *machine, const char *text)
{
    struct machine_text *kept = malloc(sizeof(*kept) + strlen(text) + 1);
    if (!kept)
        return NULL;
    strcpy(kept->text, text);
    kept->next = machine->texts;
    machine->texts = kept;
    return kept->text;
}

void machine_free_texts(struct machine_text *texts)
{
    while (texts) {
        struct machine_text *next = texts->next;
        free(texts);
        texts = next;
    }
}

uint64_t machine_counter(const struct machine *machine, enum counter counter)
{
    uint64_t sum = counter_get(&machine->counters, counter);
    for (unsigned i = 0; i < machine->config.cpus; i++)
        sum += counter_get(&machine->vcpu[i]->counters, counter);
    return sum;
}
