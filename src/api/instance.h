/*
 * Virtual machines by name: each has a directory of that name under the user's runtime directory, with the control socket, the
 * logs and a record of how it began and ended. What proves that one runs is the lock that its process holds on a file there:
 * the kernel lets it go with the process, however that ends.
 */
#ifndef DOPPEL_API_INSTANCE_H
#define DOPPEL_API_INSTANCE_H

#include <stdbool.h>
#include <stdio.h>
#include <sys/types.h>

struct error;
struct instance;

enum { INSTANCE_NAME_MAX = 64 };

/* The files of a directory. */
#define INSTANCE_SOCKET "api.sock"
#define INSTANCE_CONSOLE "console.log"      /* what the guest wrote to its console, if that is shared */
#define INSTANCE_MESSAGES "messages.log"    /* what Doppel had to say, if nobody watches */

/* --- this process's own --- */

/* Letters, digits and . _ - , the first a letter or digit; so a name is never a path. */
bool instance_name_is_valid(const char *name);
/*
 * Takes the name, or without one (NULL) the first free one of vm1, vm2 ... What an earlier machine of the name left is removed. keep: what is
 * left of this one stays until `doppel rm` or the next that is given its name; otherwise the next one without a name may take its
 * place. NULL: err says why, for instance that such a machine runs.
 */
struct instance *instance_claim(const char *name, bool keep, struct error *err);
const char *instance_name(const struct instance *instance);
/* Its directory, open; the instance's own. */
int instance_directory(const struct instance *instance);
/* A file in the directory, as a path to show. */
void instance_path(const struct instance *instance, const char *file, char *path, size_t size);
/* A listening socket there, mode 0600, whatever the path's length; -1: err says why. The caller's to close. */
int instance_listen(struct instance *instance, struct error *err);
/* Writes down how the process ends. */
void instance_record_end(struct instance *instance, int exit_status, const char *reason);
/* Gives the name back. started: there is something to tell of it, so that the directory stays if it was to be kept. */
void instance_release(struct instance *instance, bool started);

/* Our own crash: writes the signal's number down. Async-signal-safe; nothing happens while no name is claimed. */
void instance_record_crash(int signal_number);

/* --- anybody's --- */

enum instance_state { INSTANCE_RUNS, INSTANCE_ENDED, INSTANCE_CRASHED };

struct instance_status {
    char name[INSTANCE_NAME_MAX + 1];
    enum instance_state state;
    pid_t pid;                      /* of the process that holds the lock; else 0 */
    long long started, ended;       /* seconds since 1970; 0: not known */
    int exit_status;                /* INSTANCE_ENDED */
    char reason[256];               /* how it ended, for people */
};

/* False: there is none of that name. */
bool instance_look(const char *name, struct instance_status *status);
/* Calls visit for each, sorted by name. False: err says why the directory cannot be read; that there is none yet is no error. */
bool instance_list(void (*visit)(const struct instance_status *status, void *owner), void *owner, struct error *err);
/* A connection to its control socket, on which nothing waits longer than that (0: no limit); -1: err says why. */
int instance_connect(const char *name, unsigned seconds, struct error *err);
/* Opens a file of its directory to read; -1: errno says why. */
int instance_open(const char *name, const char *file);
/* Removes what is left of one that does not run. */
bool instance_remove(const char *name, struct error *err);

#endif
