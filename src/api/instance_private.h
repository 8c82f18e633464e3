/* What the files about instances share. */
#ifndef DOPPEL_API_INSTANCE_PRIVATE_H
#define DOPPEL_API_INSTANCE_PRIVATE_H

#include <jansson.h>
#include <sys/un.h>

#include "api/instance.h"

#define INSTANCE_LOCK "lock"
#define INSTANCE_RECORD "record.json"
#define INSTANCE_CRASH "crash"

/* The directory with one directory a machine, made if it is not there (create) and checked to be ours alone. -1: err says why. */
int instance_open_runtime(bool create, struct error *err);
/* One machine's directory; -1: errno says why. */
int instance_open_directory(const char *name);
/* Removes every file in it that is ours. */
void instance_empty(int directory);
/* A Unix socket's address for a file of it, whatever the path's length. */
void instance_address(int directory, const char *file, struct sockaddr_un *address);
/* What was written down there, a new reference; NULL: nothing. */
json_t *instance_read_record(int directory);
/* The process that holds the lock file in there, 0 if none does; -1: there is no lock file. */
pid_t instance_lock_holder(int directory);

#endif
