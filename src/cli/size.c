#include "cli/size.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool size_parse(const char *text, uint64_t *bytes)
{
    static const char units[] = "KMGT";
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    const char *unit = *end ? strchr(units, toupper((unsigned char)*end)) : &units[1];
    if (errno || !unit || (*end && end[1] && strcmp(end + 1, "iB") && strcmp(end + 1, "B")))
        return false;
    unsigned shift = 10 * (unsigned)(unit - units + 1);
    *bytes = number << shift;
    return *bytes >> shift == number;
}

bool number_parse(const char *text, uint64_t max, uint64_t *number)
{
    char *end;
    if (!isdigit((unsigned char)*text))
        return false;
    errno = 0;
    bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    *number = strtoull(text, &end, hex ? 16 : 10);
    return !errno && !*end && end > text + (hex ? 2 : 0) && *number <= max;
}
