/*
 * A log file that does not grow without bound, whatever a guest writes: past a mebibyte it becomes NAME.1, in place of an earlier one,
 * and a new one begins.
 */
#ifndef DOPPEL_API_LOG_FILE_H
#define DOPPEL_API_LOG_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct error;

struct log_file {
    int directory, fd;          /* directory: borrowed */
    const char *name;           /* borrowed */
    size_t size;
};

bool log_file_open(struct log_file *file, int directory, const char *name, struct error *err);
/* One thread at a time. What a full disk does not take is lost. */
void log_file_write(struct log_file *file, const void *data, size_t size);
void log_file_close(struct log_file *file);
/* A stream that writes to it, each line as it ends; NULL: no memory. The file must outlive it. */
FILE *log_file_stream(struct log_file *file);

#endif
