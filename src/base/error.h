/*
 * A configuration or host error, with a text for the person who reads it:
 * one plain sentence that says what is wrong and, where it can, what to do.
 * Functions that can fail that way take a `struct error *` and return false.
 */
#ifndef DOPPEL_BASE_ERROR_H
#define DOPPEL_BASE_ERROR_H

#include <stdbool.h>

struct error {
    char text[512];
};

/* Writes the text and returns false, so that callers can `return error_set(...)`. err may be NULL. */
bool error_set(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* As error_set, with ": " and strerror(errno_value) appended. */
bool error_errno(struct error *err, int errno_value, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
