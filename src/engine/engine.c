#include "engine/engine.h"

#include <string.h>

#include "base/error.h"

/* Every engine, ended by NULL. */
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

const struct engine *engine_named(const char *name, struct error *err)
{
    const struct engine *engine = engine_find(name);
    if (!engine)
        error_set(err, "there is no engine '%s'; there are kvm, dbt and interp", name);
    return engine;
}
