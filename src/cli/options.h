/* The command lines of `doppel run`, `doppel restore` and `doppel serve`, by the table options.def. */
#ifndef DOPPEL_CLI_OPTIONS_H
#define DOPPEL_CLI_OPTIONS_H

#include "base/error.h"
#include "machine/snapshot.h"

enum { OPTIONS_TRACES_MAX = 16, OPTIONS_STRINGS_MAX = 64 };

/* What the command line asked for. Strings in `config` are argv's own or in `owned`, until options_free. */
struct options {
    struct machine_config config;
    const char *name;                           /* NULL: none was given */
    const char *monitor;                        /* chardev text; NULL: none */
    bool detach;
    const char *api_socket;                     /* PATH or fd=N; NULL: none but that of the machine's directory */
    bool restoring;                             /* the command is `restore` */
    bool serving;                               /* no machine yet: one is to be created through the control socket */
    const char *restore;                        /* directory of the snapshot */
    const char *restore_disks;
    bool restore_verify, restore_clone;
    enum restore_memory restore_memory;
    const char *log;                            /* path; NULL: standard error */
    const char *trace[OPTIONS_TRACES_MAX];
    unsigned trace_count;
    const char *user_data, *ssh_key;            /* paths; NULL: none (cli/seed.h) */
    bool ephemeral;                             /* every disk; it is in `config` already */
    bool counters;                              /* print them at the end */
    bool help;                                  /* --help: nothing is to be run */
    bool cpu_help, trace_help;                  /* --cpu help, --trace help */
    char *owned[OPTIONS_STRINGS_MAX];
    unsigned owned_count;
};

struct option_row {
    const char *name, *argument, *group, *text; /* argument NULL: takes none */
    bool (*set)(struct options *options, const char *value, struct error *err);
};

/* The table's rows in order; NULL past the end. */
const struct option_row *option_row(unsigned i);

/* argv[0] is the command's name. False: one sentence in err; options_free is due all the same. */
bool options_parse(struct options *options, int argc, char **argv, struct error *err);
/* That of `doppel restore`: the directory, and options that are the host's affair; the board is the snapshot's. */
bool options_parse_restore(struct options *options, int argc, char **argv, struct error *err);
/* That of `doppel serve`: options of the process, and what machines are to be made with that their configurations do not say. */
bool options_parse_serve(struct options *options, int argc, char **argv, struct error *err);
/* Whether `doppel run`, `doppel restore`, `doppel serve` takes it. */
bool options_for_run(const struct option_row *row);
bool options_for_restore(const struct option_row *row);
bool options_for_serve(const struct option_row *row);
/* Keeps the text (from malloc; NULL fails) until options_free; too many: it is freed at once. */
bool options_own(struct options *options, char *text, struct error *err);
void options_free(struct options *options);

#endif
