/*
 * Hostile files of translations and hostile entries, their checksums made right: what store_parse accepts must lie in the file, and what
 * kept_check accepts in the entry. A reader that trusts a number too much walks out of the buffer, which the sanitizers tell.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "engine/dbt/kept.h"
#include "engine/dbt/store_file.h"
#include "mutate.h"

enum { MOST = 4096, ENTRIES = 5, ENTRY = 128 };

static size_t make_file(uint8_t *file)
{
    struct store_header *header = (struct store_header *)file;
    struct store_index *index = (struct store_index *)(header + 1);
    memset(file, 0, MOST);
    memcpy(header->magic, store_magic, sizeof(store_magic));
    header->entries = ENTRIES;
    header->bytes = ENTRIES * ENTRY;
    for (unsigned i = 0; i < ENTRIES; i++)
        index[i] = (struct store_index){ .key = i, .size = ENTRY };
    return sizeof(*header) + ENTRIES * (sizeof(*index) + ENTRY);
}

/* So that what lies behind them is reached. */
static void mend(uint8_t *file, size_t size)
{
    struct store_header *header = (struct store_header *)file;
    size_t index = header->entries < MOST ? header->entries * sizeof(struct store_index) : 0;
    if (sizeof(*header) + index <= size)
        header->index_checksum = store_hash(header + 1, index);
    if (sizeof(*header) <= size)
        header->checksum = store_hash(header, offsetof(struct store_header, checksum));
}

static unsigned try_file(uint64_t *seed)
{
    static _Alignas(8) uint8_t file[MOST];
    size_t size = make_file(file);
    struct store_view view;
    struct error err;
    for (uint64_t times = fuzz_below(seed, 4); times; times--)
        size = fuzz_mutate(file, size, sizeof(struct store_header) + ENTRIES * sizeof(struct store_index), seed);
    if (fuzz_below(seed, 8))
        mend(file, size);
    uint8_t *exact = malloc(size + 1);          /* of its own, so that a byte too far is seen */
    memcpy(exact, file, size);
    bool good = store_parse(exact, size, &view, &err);
    const uint8_t *at = good ? view.bytes : NULL;
    for (uint64_t i = 0; good && i < view.header->entries; at += view.index[i++].size)
        kept_check(at, view.index[i].size);
    if (good && at != exact + size)
        abort();
    free(exact);
    return good;
}

/* A small entry that is right, by the layout in kept.c: one range of three bytes, a byte of code for each. */
static size_t make_entry(uint8_t *entry)
{
    uint16_t head[16] = { 4, 3, 0, 1, 0x123, 0x201, 1, 0, 0, 0, 0, 1, 0, 3 }, range[2] = { 0x123, 3 };
    memcpy(entry, head, sizeof(head));
    memcpy(entry + sizeof(head), range, sizeof(range));
    memset(entry + sizeof(head) + sizeof(range), 0x90, 12);
    return 48;
}

static unsigned try_entry(uint64_t *seed)
{
    uint8_t entry[MOST] = { 0 };
    size_t size = make_entry(entry);
    if (!kept_check(entry, size))
        abort();
    for (uint64_t times = 1 + fuzz_below(seed, 6); times; times--) {
        uint16_t value = (uint16_t)(fuzz_below(seed, 2) ? fuzz_below(seed, 40) : fuzz_number(seed));
        memcpy(entry + 2 * fuzz_below(seed, 40), &value, 2);
    }
    size = 8 * (1 + fuzz_below(seed, MOST / 8 - 1));
    uint8_t *exact = malloc(size);
    memcpy(exact, entry, size);
    unsigned good = kept_check(exact, size);
    free(exact);
    return good;
}

int main(int argc, char **argv)
{
    unsigned long rounds = fuzz_rounds(argc, argv, 300000), files = 0, entries = 0;
    uint64_t seed = argc > 2 ? strtoull(argv[2], NULL, 0) : 0x2545F4914F6CDD1Dull;
    for (unsigned long round = 0; round < rounds; round++) {
        files += try_file(&seed);
        entries += try_entry(&seed);
    }
    printf("%lu rounds, %lu files and %lu entries accepted\n", rounds, files, entries);
    return files && entries ? 0 : 1;
}
