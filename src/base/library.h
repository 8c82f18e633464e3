/*
 * Libraries that few machines need are loaded when one needs them: a library with all that it brings along can cost more than the rest
 * of the program's start (libnbd and libvncserver bring 20 others). Which functions are wanted is a .def file of FUNCTION(name) rows, that
 * becomes a struct of pointers and a table of names:
 *
 *     struct libnbd {
 *     #define FUNCTION LIBRARY_POINTER
 *     #include "backend/libnbd.def"
 *     #undef FUNCTION
 *     };
 */
#ifndef DOPPEL_BASE_LIBRARY_H
#define DOPPEL_BASE_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

struct error;

#define LIBRARY_POINTER(name) __typeof__(name) *name;
/* In two steps: a name may be a macro of the header. */
#define LIBRARY_NAME(name) LIBRARY_STRING(name)
#define LIBRARY_STRING(name) #name,

/*
 * Any thread. Fills `functions`, a struct of `count` function pointers and nothing else, in the order of `names`. The library stays for
 * the life of the process. False: err names what is missing.
 */
bool library_load(const char *soname, const char *const *names, unsigned count, void *functions, struct error *err);

#endif
