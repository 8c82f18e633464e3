/* Memory that can be given to another process by a descriptor: guest RAM, as far as a backend needs to know it. */
#ifndef DOPPEL_BACKEND_SHARED_MEMORY_H
#define DOPPEL_BACKEND_SHARED_MEMORY_H

#include <stdint.h>

enum { SHARED_REGIONS_MAX = 7 };        /* vhost-user: eight, and one is the backend's own */

struct shared_region {
    uint8_t *host;
    uint64_t size;
    int fd;                             /* whose byte 0 is host[0] */
};

struct shared_memory {
    struct shared_region region[SHARED_REGIONS_MAX];
    unsigned count;
};

#endif
