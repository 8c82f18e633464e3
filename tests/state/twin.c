/*
 * A kernel boots by counted time (base/clock.h), so that a run can be repeated exactly. At random moments of it: the machine is saved,
 * restored and saved again, which must give the same; and the restored one, run on for a while, must be in the state
 * that a machine which was never interrupted is in after as many instructions. Each leg runs on another engine.
 *
 * Usage: state-twin KERNEL INITRD MOMENTS SEED
 */
#include "state/tiny.h"

#include "vcpu/vcpu.h"

enum { BOOT_INSTRUCTIONS = 1000 * 1000 * 1000, LEG_INSTRUCTIONS = 60 * 1000 * 1000 };

struct stop {
    struct vcpu_checkpoint checkpoint;
    struct machine *machine;
};

static void reached(struct vcpu *vcpu, struct vcpu_checkpoint *checkpoint)
{
    checkpoint->next = UINT64_MAX;
    machine_end(((struct stop *)checkpoint)->machine, END_QUIT, 0);
}

/* Runs until so many instructions were carried out since the machine was made. */
static void run(struct machine *machine, uint64_t instructions)
{
    struct error err;
    struct stop stop = { { instructions, reached }, machine };
    machine->vcpu[0]->checkpoint = &stop.checkpoint;
    if (!machine_start(machine, &err))
        fail_msg("%s", err.text);
    if (machine_wait(machine) != END_QUIT)
        fail_msg("the guest ended by itself");
    machine->vcpu[0]->checkpoint = NULL;
}

static struct machine *boot(const struct tiny *tiny, char **argv, const char *engine)
{
    struct error err;
    struct machine_config config = { 0 };
    machine_config_defaults(&config);
    config.memory = 256 * MiB;
    config.engine = engine;
    config.clock_instructions = 1000;
    config.kernel = argv[1];
    config.initrd[config.initrd_count++] = argv[2];
    config.append = "console=ttyS0 panic=-1";
    config.rng = false;
    config.log = tiny->log;
    struct machine *machine = machine_create(&config, &err);
    if (!machine)
        fail_msg("%s", err.text);
    return machine;
}

static void save(const struct tiny *tiny, struct machine *machine, const char *name)
{
    struct error err;
    if (!machine_snapshot(machine, tiny_path(tiny, name), NULL, &err))
        fail_msg("%s", err.text);
}

static void moment(struct tiny *tiny, char **argv, uint64_t instructions, bool dbt_first)
{
    const char *one = dbt_first ? "dbt" : "interp", *other = dbt_first ? "interp" : "dbt";
    const struct restore_options exact = { .exact = true };
    struct error err;
    struct machine *machine = boot(tiny, argv, "dbt");
    run(machine, instructions);
    save(tiny, machine, "first");
    machine_destroy(machine);

    struct snapshot *snapshot = snapshot_open(tiny_path(tiny, "first"), &err);
    if (!snapshot)
        fail_msg("%s", err.text);
    snapshot_config(snapshot)->engine = one;
    snapshot_config(snapshot)->log = tiny->log;
    machine = machine_restore(snapshot, &exact, &err);
    if (!machine)
        fail_msg("%s", err.text);
    save(tiny, machine, "again");
    tiny_same(tiny, "first", "again");
    run(machine, LEG_INSTRUCTIONS);
    save(tiny, machine, "restored");
    machine_destroy(machine);
    snapshot_close(snapshot);

    machine = boot(tiny, argv, other);
    run(machine, instructions + LEG_INSTRUCTIONS);
    save(tiny, machine, "uninterrupted");
    machine_destroy(machine);
    tiny_same(tiny, "restored", "uninterrupted");
    char command[160];
    snprintf(command, sizeof(command), "cd %s && rm -r first again restored uninterrupted", tiny->folder);
    assert_int_equal(system(command), 0);
}

int main(int argc, char **argv)
{
    if (argc != 5)
        return 2;
    unsigned seed = (unsigned)atoi(argv[4]), moments = (unsigned)atoi(argv[3]);
    struct tiny tiny = { .folder = "/tmp/doppel-twin-XXXXXX", .log = fopen("/dev/null", "w") };
    assert_non_null(mkdtemp(tiny.folder));
    for (unsigned i = 0; i < moments; i++) {
        uint64_t instructions = 1000000 + (uint64_t)rand_r(&seed) % BOOT_INSTRUCTIONS;
        printf("moment %u: after %llu instructions\n", i, (unsigned long long)instructions);
        fflush(stdout);
        moment(&tiny, argv, instructions, i & 1);
    }
    tiny_end(&tiny);
    return 0;
}
