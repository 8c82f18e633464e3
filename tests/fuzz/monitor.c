/*
 * Hostile lines to the monitor of a machine that stands still: every command with every kind of argument, and garbage. Nothing may crash,
 * and every line that is not empty must be answered or obeyed. Runs under whatever sanitizers the build has.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/monitor.h"
#include "base/base.h"
#include "machine/machine.h"
#include "mutate.h"

static const char *const words[] = {
    "help", "info", "cpu", "stop", "continue", "step", "disassemble", "x", "xp", "translate", "trace", "counters", "power", "reset",
    "registers", "cpus", "tlb", "mem", "mtree", "devices", "device", "pci", "irq", "uart0", "ioapic", "lapic0", "*", "?", "cpu_*", "[",
    "on", "off", "media", "none", "force", "rip", "$rsp+8", "pc-1", "rip+", "+", "-", "0", "1", "-1", "4096", "4097", "0x100000", "0xfee00000", "0xffffffffffffffff",
    "0x7fffffffffffffff", "18446744073709551616", "0xfffffffffffffff0", "%s%n", "99999999999999999999", "0x", "q", "i", "d", "",
};

static void make_line(char *line, size_t size, uint64_t *seed)
{
    size_t used = 0;
    for (uint64_t count = 1 + fuzz_below(seed, 5); count; count--) {
        int more = snprintf(line + used, size - used, "%s ", words[fuzz_below(seed, ARRAY_SIZE(words))]);
        used = used + (size_t)more < size ? used + (size_t)more : size - 1;
    }
    if (!fuzz_below(seed, 4))
        line[fuzz_mutate((uint8_t *)line, used, used, seed)] = 0;
}

int main(int argc, char **argv)
{
    struct machine_config config = { 0 };
    struct error err;
    machine_config_defaults(&config);
    config.memory = 16 * MiB;
    config.cpus = 2;
    config.log = fopen("/dev/null", "w");
    struct machine *machine = machine_create(&config, &err);
    if (!machine) {
        fprintf(stderr, "%s\n", err.text);
        return 1;
    }
    struct monitor_session session = { .machine = machine };
    unsigned long rounds = fuzz_rounds(argc, argv, 30000);
    uint64_t seed = 0x2545F4914F6CDD1Dull;
    FILE *out = fopen("/dev/null", "w");
    for (unsigned long round = 0; round < rounds; round++) {
        char line[512] = "";
        make_line(line, sizeof(line), &seed);
        monitor_execute(&session, line, out);
    }
    monitor_session_end(&session);
    machine_destroy(machine);
    fclose(out);
    fclose(config.log);
    printf("%lu lines\n", rounds);
    return 0;
}
