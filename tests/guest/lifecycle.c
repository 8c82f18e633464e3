/*
 * The life of a machine under load, in one process: made and unmade many times, paused, stepped, reset and ended while two
 * processors run a guest that never rests (busy.c). A hang is ended by the alarm.
 *   lifecycle CASE ELF
 */
#include <dirent.h>
#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "machine/machine.h"
#include "vcpu/work.h"

enum { TIMEOUT_SECONDS = 200 };

static const char *elf;

static void on_alarm(int number)
{
    static const char text[] = "FAIL it hangs\n";
    if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
        _exit(2);
    _exit(1);
}

static void check(bool ok, const char *what)
{
    if (ok)
        return;
    printf("FAIL %s\n", what);
    exit(1);
}

static struct machine *create(const char *kernel)
{
    struct error err = { "" };
    struct machine_config config = { 0 };
    machine_config_defaults(&config);
    config.memory = 32 * MiB;
    config.cpus = 2;
    config.kernel = kernel;
    config.boot = kernel == elf ? BOOT_AUTO : BOOT_FLAT;
    config.flat_address = 0x7C00;
    config.net[0].backend = "user";
    config.net_count = 1;
    config.extra[0] = "edu";
    config.extra_count = 1;
    struct machine *machine = machine_create(&config, &err);
    if (!machine)
        fprintf(stderr, "%s\n", err.text);
    check(machine, "a machine is made");
    return machine;
}

static struct machine *start(const char *kernel)
{
    struct machine *machine = create(kernel);
    struct error err = { "" };
    check(machine_start(machine, &err), "a machine starts");
    return machine;
}

static void *wait_for_end(void *machine)
{
    machine_wait(machine);
    return NULL;
}

static uint64_t instructions(const struct machine *machine) { return machine_counter(machine, COUNTER_instructions); }

/* The count is added when an engine returns, which it does for each IPI. */
static void wait_until_it_runs(struct machine *machine)
{
    for (uint64_t before = instructions(machine); instructions(machine) < before + 1000;)
        usleep(200);
}

static void finish(struct machine *machine, pthread_t waiter)
{
    machine_end(machine, END_QUIT, 0);
    pthread_join(waiter, NULL);
    check(machine->end == END_QUIT, "the machine ends as it was told");
    machine_destroy(machine);
}

/* --- made and unmade --- */

static unsigned entries(const char *folder)
{
    unsigned count = 0;
    DIR *dir = opendir(folder);
    while (dir && readdir(dir))
        count++;
    if (dir)
        closedir(dir);
    return count;
}

static unsigned mappings(void)
{
    unsigned count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    for (int c; maps && (c = getc(maps)) != EOF;)
        count += c == '\n';
    if (maps)
        fclose(maps);
    return count;
}

struct footprint {
    unsigned descriptors, threads, mappings;
    size_t heap;
};

static struct footprint footprint(void)
{
    return (struct footprint){ entries("/proc/self/fd"), entries("/proc/self/task"), mappings(), mallinfo2().uordblks };
}

static void nothing_is_left_behind(void)
{
    enum { WARM = 20, ROUNDS = 200, HEAP_SLACK = 64 * 1024 };
#ifdef __SANITIZE_ADDRESS__
    enum { MAPPINGS_SLACK = 10000 };    /* the sanitizer keeps what was freed; leaks it reports itself */
#else
    enum { MAPPINGS_SLACK = 16 };
#endif
    struct footprint before = { 0 };
    for (unsigned i = 0; i < WARM + ROUNDS; i++) {
        if (i == WARM)
            before = footprint();
        struct machine *machine = i % 4 ? create(elf) : start(elf);
        if (i % 4 == 0) {
            machine_end(machine, END_QUIT, 0);
            machine_wait(machine);
        }
        machine_destroy(machine);
    }
    struct footprint after = footprint();
    printf("descriptors %u -> %u, threads %u -> %u, mappings %u -> %u, heap %zu -> %zu\n", before.descriptors,
           after.descriptors, before.threads, after.threads, before.mappings, after.mappings, before.heap, after.heap);
    check(after.descriptors == before.descriptors, "descriptors stay as many");
    check(after.threads == before.threads, "threads stay as many");
    check(after.mappings <= before.mappings + MAPPINGS_SLACK, "mappings stay as many");
    check(after.heap <= before.heap + HEAP_SLACK, "the heap stays as large");
}

/* --- paused, stepped --- */

static void read_rip(struct vcpu *vcpu, void *argument) { *(uint64_t *)argument = vcpu->rip; }

static void pauses_and_steps(void)
{
    enum { ROUNDS = 400 };
    struct machine *machine = start(elf);
    pthread_t waiter;
    pthread_create(&waiter, NULL, wait_for_end, machine);
    for (unsigned i = 0; i < ROUNDS; i++) {
        machine_pause(machine);
        uint64_t rip, again;
        vcpu_run_on(NULL, machine->vcpu[i % 2], read_rip, &rip);
        uint64_t stood = instructions(machine);
        machine_pause(machine);
        machine_resume(machine);
        vcpu_run_on(NULL, machine->vcpu[i % 2], read_rip, &again);
        check(again == rip && instructions(machine) == stood, "a paused machine stands still");
        machine_step(machine, i % 2, i % 7);
        check(instructions(machine) <= stood + 7, "a step is as long as it should be");
        machine_resume(machine);
        if (i % 8 == 0)
            wait_until_it_runs(machine);
    }
    finish(machine, waiter);
}

struct pauser {
    struct machine *machine;
    _Atomic bool stop;
};

static void *keep_pausing(void *argument)
{
    struct pauser *pauser = argument;
    for (unsigned i = 0; !pauser->stop; i++) {
        machine_pause(pauser->machine);
        machine_step(pauser->machine, i % 2, 3);
        machine_resume(pauser->machine);
        sched_yield();
    }
    return NULL;
}

/* --- reset --- */

static void resets_under_load(void)
{
    enum { ROUNDS = 150 };
    struct machine *machine = start(elf);
    struct pauser pauser = { .machine = machine };
    pthread_t waiter, pausing;
    pthread_create(&waiter, NULL, wait_for_end, machine);
    pthread_create(&pausing, NULL, keep_pausing, &pauser);
    for (unsigned i = 0; i < ROUNDS; i++) {
        machine_reset(machine);
        if (i % 3 == 0)
            machine_power_button(machine);
        usleep(i % 5 * 300);
        if (i % 10 == 0)
            wait_until_it_runs(machine);
    }
    pauser.stop = true;
    pthread_join(pausing, NULL);
    wait_until_it_runs(machine);
    finish(machine, waiter);
}

/* mov $0xCF9, %dx; mov $6, %al; out %al, %dx; jmp . */
static const uint8_t reset_code[] = { 0xBA, 0xF9, 0x0C, 0xB0, 0x06, 0xEE, 0xEB, 0xFE };

static void a_guest_that_resets_at_once_goes_on_doing_so(void)
{
    char path[] = "/tmp/doppel-lifecycle-XXXXXX";
    int fd = mkstemp(path);
    check(fd >= 0 && write(fd, reset_code, sizeof(reset_code)) == sizeof(reset_code), "the guest's file is written");
    close(fd);
    struct machine *machine = start(path);
    unlink(path);
    pthread_t waiter;
    pthread_create(&waiter, NULL, wait_for_end, machine);
    while (machine_counter(machine, COUNTER_port_writes) < 300)
        usleep(1000);
    finish(machine, waiter);
}

/* --- ended --- */

static void ends_in_the_midst_of_all_that(void)
{
    for (unsigned i = 0; i < 60; i++) {
        struct machine *machine = start(elf);
        struct pauser pauser = { .machine = machine };
        pthread_t waiter, pausing;
        pthread_create(&waiter, NULL, wait_for_end, machine);
        pthread_create(&pausing, NULL, keep_pausing, &pauser);
        usleep(i * 200);
        machine_reset(machine);
        if (i % 3 == 0)
            usleep(i * 20);
        machine_end(machine, END_QUIT, 0);
        pthread_join(waiter, NULL);
        pauser.stop = true;
        pthread_join(pausing, NULL);
        machine_destroy(machine);
    }
}

static const struct {
    const char *name;
    void (*run)(void);
} cases[] = {
    { "nothing_is_left_behind", nothing_is_left_behind },
    { "pauses_and_steps", pauses_and_steps },
    { "resets_under_load", resets_under_load },
    { "a_guest_that_resets_at_once_goes_on_doing_so", a_guest_that_resets_at_once_goes_on_doing_so },
    { "ends_in_the_midst_of_all_that", ends_in_the_midst_of_all_that },
};

int main(int argc, char **argv)
{
    if (argc != 3) {
        fprintf(stderr, "usage: lifecycle CASE ELF\n");
        return 2;
    }
    elf = argv[2];
    signal(SIGALRM, on_alarm);
    alarm(TIMEOUT_SECONDS);
    for (unsigned i = 0; i < ARRAY_SIZE(cases); i++)
        if (!strcmp(cases[i].name, argv[1])) {
            cases[i].run();
            printf("PASS %s\n", argv[1]);
            return 0;
        }
    return 2;
}
