#include "engine/interp/native_impl.h"

#include <sys/mman.h>
#include <unistd.h>

/*
 * One memory object seen twice: writable here, executable there, never both at one address. The pages come as they are
 * first written.
 */
bool arena_open(struct native_arena *arena, size_t size)
{
    int fd = memfd_create("doppel-native", MFD_CLOEXEC);
    if (fd < 0)
        return false;
    void *write = MAP_FAILED, *execute = MAP_FAILED;
    if (ftruncate(fd, (off_t)size) == 0) {
        write = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        execute = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    close(fd);
    if (write == MAP_FAILED || execute == MAP_FAILED) {
        if (write != MAP_FAILED)
            munmap(write, size);
        if (execute != MAP_FAILED)
            munmap(execute, size);
        return false;
    }
    *arena = (struct native_arena){ .write = write, .execute = execute, .size = size };
    return true;
}

void arena_close(struct native_arena *arena)
{
    munmap(arena->write, arena->size);
    munmap(arena->execute, arena->size);
}
