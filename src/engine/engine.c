#include "engine/engine.h"

#include <string.h>

/* Every engine, the default first; ended by NULL. */
static const struct engine *const engines[] = {
    &engine_interp,
    &engine_dbt,
    &engine_kvm,
    NULL,
};

const struct engine *engine_find(const char *name)
{
    for (const struct engine *const *engine = engines; *engine; engine++)
        if (!strcmp((*engine)->name, name))
            return *engine;
    return NULL;
}
