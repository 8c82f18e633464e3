/* What the files behind the options' table share. */
#ifndef DOPPEL_CLI_OPTIONS_INTERNAL_H
#define DOPPEL_CLI_OPTIONS_INTERNAL_H

#include "cli/options.h"

/* The handler of each row of options.def: `value` is the argument, or NULL where the option takes none. False: one sentence in err. */
#define OPTION(id, name, argument, group, text) bool option_##id(struct options *options, const char *value, struct error *err);
#include "cli/options.def"
#undef OPTION

/* A word that is no option: a disk, or a CD if the image has the mark of one. */
bool options_add_file(struct options *options, const char *path, struct error *err);
/*
 * Cuts the text at single commas, in place, and makes one comma of two. Returns the rest after the first part, or NULL. To
 * be called again with that.
 */
char *options_cut_at_comma(char *text);
/* The text after "key=", or NULL if part is something else. */
char *options_value_of(char *part, const char *key);

#endif
