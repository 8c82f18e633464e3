#include "dev/device.h"

#include <string.h>

/* Every type, in the order of types.def; the NULL keeps the array legal while the list is short. */
static const struct device_type *const types[] = {
#define DEVICE_TYPE(id) &device_##id,
#include "dev/types.def"
#undef DEVICE_TYPE
    NULL,
};

const struct device_type *const *device_types(unsigned *count)
{
    *count = sizeof(types) / sizeof(types[0]) - 1;
    return types;
}

const struct device_type *device_type_find(const char *name)
{
    for (const struct device_type *const *type = types; *type; type++)
        if (!strcmp((*type)->name, name))
            return *type;
    return NULL;
}
