/* Shared by the monitor's files. */
#ifndef DOPPEL_API_MONITOR_INTERNAL_H
#define DOPPEL_API_MONITOR_INTERNAL_H

#include <inttypes.h>

#include "api/monitor.h"
#include "machine/machine.h"

enum { MONITOR_WORDS_MAX = 8, MONITOR_LINE_MAX = 256 };

/* One command being executed. */
struct monitor_command {
    struct monitor_session *session;
    struct machine *machine;
    FILE *out;
    bool refused;                               /* by monitor_refuse */
    int count;                                  /* words, the command's name included */
    char *word[MONITOR_WORDS_MAX];
};

/* It is not done: says why, in a sentence without the end of its line. */
__attribute__((format(printf, 2, 3))) void monitor_refuse(struct monitor_command *command, const char *format, ...);
/* The chosen processor. */
struct vcpu *monitor_vcpu(const struct monitor_command *command);
/* Runs on the vCPU's thread, or right here while no thread of it exists; the caller waits. */
void monitor_on_vcpu(struct machine *machine, struct vcpu *vcpu, void (*run)(struct vcpu *vcpu, void *argument), void *argument);
/* Word i as a number, or a register's value ("rip", "rsp+16"). False: refused. */
bool monitor_number(struct monitor_command *command, int i, uint64_t *value);
/* The same for an optional count, at most max. */
bool monitor_count(struct monitor_command *command, int i, uint64_t standard, uint64_t max, uint64_t *value);

/* monitor_info.c, monitor_memory.c */
void monitor_info(struct monitor_command *command);
void monitor_info_help(FILE *out);
void monitor_print_counters(const struct machine *machine, const char *glob, FILE *out);
void monitor_print_trace(const struct log *log, FILE *out);
void monitor_print_code(const struct monitor_command *command, uint64_t address, uint64_t count);
uint64_t monitor_code_address(const struct vcpu *vcpu);
void monitor_disassemble(struct monitor_command *command);
void monitor_x(struct monitor_command *command);
void monitor_xp(struct monitor_command *command);
void monitor_translate(struct monitor_command *command);

#endif
