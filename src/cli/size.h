/* Sizes and numbers as people write them. */
#ifndef DOPPEL_CLI_SIZE_H
#define DOPPEL_CLI_SIZE_H

#include <stdbool.h>
#include <stdint.h>

/* "512M", "2G", "64K", "1T"; a number alone is mebibytes. False: not a size, or more than 64 bits hold. */
bool size_parse(const char *text, uint64_t *bytes);
/* Decimal, or hexadecimal with 0x. False: not a number up to max. */
bool number_parse(const char *text, uint64_t max, uint64_t *number);

#endif
