/* A seed (seed.h) as a file, where it will be found again: snapshots name it. */
#ifndef DOPPEL_MACHINE_SEED_FILE_H
#define DOPPEL_MACHINE_SEED_FILE_H

#include "machine/machine.h"

enum { SEED_TEXT_MAX = 1024 * 1024 };       /* bytes of user data or keys */

/* What a cloud image is told at its first boot; texts are UTF-8. */
struct seed_contents {
    const char *name;           /* of the machine; NULL: none */
    const char *user_data;      /* NULL: none */
    const char *ssh_keys;       /* public keys as an authorized_keys file has them; NULL: none */
    const char *keys_from;      /* where they come from, for who is told that they are none */
};

/* cloud-init knows by the first line what kind of user data it has before it. */
bool seed_user_data_is_known(const char *text);
/* Makes the file, unless the same is there already, and adds it as the last disk, with its path, which the caller frees. NULL: err says why. */
char *seed_add_disk(const struct seed_contents *contents, struct machine_config *config, struct error *err);

#endif
