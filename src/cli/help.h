/* Texts made from the tables: usage, the man page, shell completion. */
#ifndef DOPPEL_CLI_HELP_H
#define DOPPEL_CLI_HELP_H

#include <stdio.h>

void help_overview(FILE *out);
struct command;

/* Of any command but run, restore and serve, which have a list of their own. */
void help_command(FILE *out, const struct command *command);
void help_run(FILE *out);
void help_restore(FILE *out);
void help_snapshot(FILE *out);     /* cli/snapshot.c */
void help_serve(FILE *out);
void help_man(FILE *out);
void help_bash_completion(FILE *out);

#endif
