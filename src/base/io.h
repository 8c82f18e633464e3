/* Reading and writing as much as was asked for, whatever read() and write() return at once. For blocking descriptors. */
#ifndef DOPPEL_BASE_IO_H
#define DOPPEL_BASE_IO_H

#include <stdbool.h>
#include <stddef.h>

/* Any thread. False: the end came before (errno is 0 then), or an error that errno names. */
bool io_read_all(int fd, void *data, size_t size);
bool io_write_all(int fd, const void *data, size_t size);

#endif
