/* --user-data and --ssh-key: what a cloud image is told at its first boot. */
#ifndef DOPPEL_CLI_SEED_H
#define DOPPEL_CLI_SEED_H

#include "cli/options.h"

/*
 * Makes the seed that the options ask for, where it will be found again (snapshots name it), and adds it as the last disk. Nothing was
 * asked for: nothing is done. False: err says why.
 */
bool seed_add(struct options *options, struct error *err);

#endif
