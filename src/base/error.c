#include "base/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

bool error_set(struct error *err, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
    }
    return false;
}

bool error_errno(struct error *err, int errno_value, const char *format, ...)
{
    if (err) {
        va_list args;
        va_start(args, format);
        int used = vsnprintf(err->text, sizeof(err->text), format, args);
        va_end(args);
        if (used >= 0 && (size_t)used < sizeof(err->text))
            snprintf(err->text + used, sizeof(err->text) - (size_t)used, ": %s", strerror(errno_value));
    }
    return false;
}
