#include "machine/seed.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"

/* Where things are, in sectors: 16 are the system's (ECMA-119 §6.2.1). */
enum { SECTOR = 2048, PRIMARY = 16, TERMINATOR, PATH_TABLE_L, PATH_TABLE_M, ROOT, FIRST_FILE };
enum { VERSION = 1, RECORD_FIXED = 33, FLAG_DIRECTORY = 2, PATH_TABLE_SIZE = 10, DATE_SIZE = 7 };

/* --- numbers: §7.2 and §7.3, in one order or in both --- */

static void put_little(uint8_t *at, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

static void put_big(uint8_t *at, unsigned size, uint32_t value)
{
    for (unsigned i = 0; i < size; i++)
        at[i] = (uint8_t)(value >> (8 * (size - 1 - i)));
}

static void put_both(uint8_t *at, unsigned size, uint32_t value)
{
    put_little(at, size, value);
    put_big(at + size, size, value);
}

static uint32_t sectors_of(uint32_t size) { return (size + SECTOR - 1) / SECTOR; }

/* --- directory records: §9.1 --- */

/* SUSP 1.12 §5.3 and §5.5: there is something behind the names of this volume, and it is Rock Ridge. In the first record of the root alone. */
static const uint8_t susp_indicator[] = { 'S', 'P', 7, 1, 0xBE, 0xEF, 0, 'E', 'R', 18, 1, 10, 0, 0, 1, 'R', 'R', 'I', 'P', '_', '1', '9', '9', '1', 'A' };

enum { MODE_DIRECTORY = 0040555, MODE_FILE = 0100444 };

/* Rock Ridge §4.1.1 "PX": what stat() says, all of it root's. */
static unsigned put_attributes(uint8_t *at, uint32_t mode)
{
    enum { SIZE = 36 };
    const uint8_t header[] = { 'P', 'X', SIZE, 1 };
    memcpy(at, header, sizeof(header));
    put_both(at + 4, 4, mode);
    put_both(at + 12, 4, 1);
    return SIZE;
}

/* Rock Ridge (RRIP 1.12) §4.1.4 "NM": the name as it is. */
static unsigned put_name(uint8_t *at, const char *name)
{
    unsigned length = (unsigned)strlen(name);
    const uint8_t header[] = { 'N', 'M', (uint8_t)(5 + length), 1, 0 };
    memcpy(at, header, sizeof(header));
    memcpy(at + sizeof(header), name, length);
    return 5 + length;
}

/* All but the identifier and what follows it; returns where that goes. */
static uint8_t *put_record(uint8_t *at, uint32_t extent, uint32_t size, uint8_t flags, unsigned identifier)
{
    static const uint8_t date[DATE_SIZE] = { 100, 1, 1, 0, 0, 0, 0 };       /* the same image for the same files */
    put_both(at + 2, 4, extent);
    put_both(at + 10, 4, size);
    memcpy(at + 18, date, sizeof(date));
    at[25] = flags;
    put_both(at + 28, 2, 1);
    at[32] = (uint8_t)identifier;
    return at + RECORD_FIXED;
}

/* The directory itself (0) and the one above it (1), which for the root is the same. Returns the record's length. */
static unsigned put_self(uint8_t *at, uint8_t identifier, bool indicator)
{
    uint8_t *end = put_record(at, ROOT, SECTOR, FLAG_DIRECTORY, 1);
    *end++ = identifier;
    if (indicator) {
        memcpy(end, susp_indicator, sizeof(susp_indicator));
        end += sizeof(susp_indicator);
        end += put_attributes(end, MODE_DIRECTORY);
        end += (end - at) & 1;
    }
    return at[0] = (uint8_t)(end - at);
}

static unsigned put_file(uint8_t *at, const struct seed_file *file, uint32_t extent)
{
    char identifier[64];
    unsigned length = 0;
    for (const char *c = file->name; *c && length < 32; c++)
        identifier[length++] = isalnum((unsigned char)*c) ? (char)toupper((unsigned char)*c) : '_';
    identifier[length++] = ';';
    identifier[length++] = '1';
    uint8_t *end = put_record(at, extent, file->size, 0, length);
    memcpy(end, identifier, length);
    end += length + !(length & 1);              /* §9.1.12: padded to an even length */
    end += put_attributes(end, MODE_FILE);
    end += put_name(end, file->name);
    end += (end - at) & 1;
    return at[0] = (uint8_t)(end - at);
}

static void put_directory(uint8_t *at, const struct seed_file *files, unsigned count)
{
    uint32_t extent = FIRST_FILE;
    at += put_self(at, 0, true);
    at += put_self(at, 1, false);
    for (unsigned i = 0; i < count; i++) {
        at += put_file(at, &files[i], extent);
        extent += sectors_of(files[i].size);
    }
}

/* --- descriptors --- */

/* §9.4: the root alone. */
static void put_path_table(uint8_t *at, void (*put)(uint8_t *, unsigned, uint32_t))
{
    at[0] = 1;
    put(at + 2, 4, ROOT);
    put(at + 6, 2, 1);
}

/* §8.4; fields are at their byte positions less one. */
static void put_primary(uint8_t *at, const char *label, uint32_t sectors)
{
    enum { TEXTS = 190, TEXTS_END = 813, DATES = 4, LONG_DATE = 17 };
    memcpy(at, "\1CD001\1", 7);
    memset(at + 8, ' ', 64);
    memcpy(at + 40, label, min_u64(strlen(label), 32));
    put_both(at + 80, 4, sectors);
    put_both(at + 120, 2, 1);
    put_both(at + 124, 2, 1);
    put_both(at + 128, 2, SECTOR);
    put_both(at + 132, 4, PATH_TABLE_SIZE);
    put_little(at + 140, 4, PATH_TABLE_L);
    put_big(at + 148, 4, PATH_TABLE_M);
    put_self(at + 156, 0, false);
    memset(at + TEXTS, ' ', TEXTS_END - TEXTS);
    for (unsigned i = 0; i < DATES; i++)
        memset(at + TEXTS_END + i * LONG_DATE, '0', LONG_DATE - 1);
    at[881] = VERSION;
}

bool seed_image(const char *label, const struct seed_file *files, unsigned count, uint8_t **image, size_t *size)
{
    uint32_t sectors = FIRST_FILE, at = FIRST_FILE;
    for (unsigned i = 0; i < count; i++)
        sectors += sectors_of(files[i].size);
    *size = (size_t)sectors * SECTOR;
    *image = calloc(sectors, SECTOR);
    if (!*image)
        return false;
    put_primary(*image + PRIMARY * SECTOR, label, sectors);
    memcpy(*image + TERMINATOR * SECTOR, "\377CD001\1", 7);
    put_path_table(*image + PATH_TABLE_L * SECTOR, put_little);
    put_path_table(*image + PATH_TABLE_M * SECTOR, put_big);
    put_directory(*image + ROOT * SECTOR, files, count);
    for (unsigned i = 0; i < count; at += sectors_of(files[i++].size))
        memcpy(*image + (size_t)at * SECTOR, files[i].data, files[i].size);
    return true;
}
