#include "engine/engine.h"

#include <stdio.h>
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

/* "interp, dbt, kvm" */
static void list_names(char *text, size_t size)
{
    size_t used = 0;
    text[0] = 0;
    for (const struct engine *const *engine = engines; *engine && used < size; engine++)
        used += (size_t)snprintf(text + used, size - used, "%s%s", used ? ", " : "", (*engine)->name);
}

const struct engine *engine_named(const char *name, struct error *err)
{
    const struct engine *engine = engine_find(name);
    char names[64];
    if (engine)
        return engine;
    list_names(names, sizeof(names));
    error_set(err, "there is no engine '%s'; there are %s", name, names);
    return NULL;
}
