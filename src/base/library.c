#include "base/library.h"

#include <dlfcn.h>
#include <string.h>

#include "base/error.h"

bool library_load(const char *soname, const char *const *names, unsigned count, void *functions, struct error *err)
{
    void *library = dlopen(soname, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (!library)
        return error_set(err, "the library %s cannot be loaded: %s", soname, dlerror());
    for (unsigned i = 0; i < count; i++) {
        void *function = dlsym(library, names[i]);
        if (!function)
            return error_set(err, "the library %s has no %s: it is too old", soname, names[i]);
        memcpy((char *)functions + i * sizeof(function), &function, sizeof(function));
    }
    return true;
}
