/*
 * Runs one bare-metal guest in a machine of its own in this process and counts its PASS and FAIL lines.
 *   run_guest [--cpus N] [--memory MIB] [--cpu MODEL] [--engine NAME] [--device NAME]... ELF
 * The guest must end itself by the debug-exit port; anything else is a failure.
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/base.h"
#include "machine/machine.h"

enum { TIMEOUT_SECONDS = 240 };

static bool parse(int argc, char **argv, struct machine_config *config)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (argv[i][0] != '-') {
            config->kernel = argv[i];
            continue;
        }
        if (!value)
            return false;
        if (!strcmp(argv[i], "--cpus"))
            config->cpus = (unsigned)atoi(value);
        else if (!strcmp(argv[i], "--memory"))
            config->memory = strtoull(value, NULL, 0) * MiB;
        else if (!strcmp(argv[i], "--cpu"))
            config->cpu_model = value;
        else if (!strcmp(argv[i], "--engine"))
            config->engine = value;
        else if (!strcmp(argv[i], "--device") && config->extra_count < MACHINE_EXTRA_MAX)
            config->extra[config->extra_count++] = value;
        else
            return false;
        i++;
    }
    return config->kernel;
}

/* Prints the guest's lines and counts them. */
static void count_lines(const char *path, unsigned *passed, unsigned *failed)
{
    char line[1024];
    FILE *file = fopen(path, "r");
    while (file && fgets(line, sizeof(line), file)) {
        *passed += !strncmp(line, "PASS ", 5);
        *failed += !strncmp(line, "FAIL ", 5);
        fputs(line, stdout);
    }
    if (file)
        fclose(file);
}

static void on_alarm(int number)
{
    static const char text[] = "FAIL the guest did not end in time\n0 passed, 1 failed, 0 skipped\n";
    if (write(STDOUT_FILENO, text, sizeof(text) - 1) < 0)
        _exit(2);
    _exit(1);
}

int main(int argc, char **argv)
{
    struct machine_config config = { 0 };
    struct error err;
    machine_config_defaults(&config);
    config.memory = 64 * MiB;
    config.no_reboot = true;
    config.debug_exit = true;
    config.rng = false;
    if (!parse(argc, argv, &config)) {
        fprintf(stderr, "usage: run_guest [--cpus N] [--memory MIB] [--cpu MODEL] [--engine NAME] [--device NAME]... ELF\n");
        return 2;
    }
    char path[] = "/tmp/doppel-guest-XXXXXX", console[64];
    int fd = mkstemp(path);
    if (fd < 0) {
        perror("mkstemp");
        return 1;
    }
    close(fd);
    snprintf(console, sizeof(console), "file:%s", path);
    config.debug_console = console;
    signal(SIGALRM, on_alarm);
    alarm(TIMEOUT_SECONDS);
    struct machine *machine = machine_create(&config, &err);
    if (!machine || !machine_start(machine, &err)) {
        fprintf(stderr, "%s\n", err.text);
        unlink(path);
        return 1;
    }
    enum machine_end end = machine_wait(machine);
    unsigned passed = 0, failed = 0, code = machine->end_code;
    machine_destroy(machine);
    count_lines(path, &passed, &failed);
    unlink(path);
    if (end != END_DEBUG_EXIT || code != failed) {
        printf("FAIL the guest ended by %d, code %u\n", end, code);
        failed++;
    }
    printf("%u passed, %u failed, 0 skipped\n", passed, failed);
    return failed || passed == 0;
}
