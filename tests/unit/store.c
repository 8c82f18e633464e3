/* The cache of translations on disk: what is written is found again, and what is damaged, foreign or too much is not used. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmocka_all.h"
#include "engine/dbt/store.h"
#include "engine/dbt/store_file.h"

enum { SIZE = 64, ENTRIES = 200 };
static const struct store_shape shape = { { 1, 2 } }, other_shape = { { 1, 3 } };

struct place {
    char directory[64];
    struct log log;
    char *messages;
    size_t length;
};

static int make_place(void **state)
{
    struct place *place = calloc(1, sizeof(*place));
    strcpy(place->directory, "/tmp/doppel-store-XXXXXX");
    *state = place;
    log_init(&place->log, open_memstream(&place->messages, &place->length));
    return mkdtemp(place->directory) ? 0 : -1;
}

static int remove_place(void **state)
{
    struct place *place = *state;
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", place->directory);
    fclose(place->log.out);
    free(place->messages);
    int status = system(command);
    free(place);
    return status;
}

static struct store *open_store(struct place *place, uint64_t bytes_most, const struct store_shape *its)
{
    struct error err;
    struct store *store = store_create(place->directory, bytes_most, &place->log);
    assert_non_null(store);
    if (!store_check_directory(store, &err))
        fail_msg("%s", err.text);
    assert_true(store_open(store, its));
    return store;
}

static void fill(uint8_t bytes[SIZE], unsigned i)
{
    for (unsigned n = 0; n < SIZE; n++)
        bytes[n] = (uint8_t)(i * 7 + n);
}

static void add(struct store *store, unsigned from, unsigned to)
{
    uint8_t bytes[SIZE];
    for (unsigned i = from; i < to; i++) {
        fill(bytes, i);
        store_add(store, i, bytes, SIZE, NULL);
    }
}

/* How many of them are there and good. All that are must be right. */
static unsigned count(struct store *store, unsigned from, unsigned to)
{
    uint8_t bytes[SIZE];
    unsigned found = 0;
    for (unsigned i = from; i < to; i++) {
        const struct store_entry *entry = store_first(store, i);
        if (!entry || !store_good(store, entry))
            continue;
        fill(bytes, i);
        assert_int_equal(entry->size, SIZE);
        assert_memory_equal(entry->bytes, bytes, SIZE);
        assert_null(store_next(entry));
        found++;
    }
    return found;
}

static void write_some(struct place *place, unsigned from, unsigned to)
{
    struct store *store = open_store(place, STORE_BYTES_MOST, &shape);
    add(store, from, to);
    store_destroy(store);
}

static char *file_of(const struct place *place, const struct store_shape *its, char path[128])
{
    snprintf(path, 128, "%s/translations-%016llx", place->directory, (unsigned long long)its->hash[0]);
    return path;
}

static size_t read_file(const struct place *place, uint8_t *bytes, size_t most)
{
    char path[128];
    FILE *in = fopen(file_of(place, &shape, path), "r");
    assert_non_null(in);
    size_t size = fread(bytes, 1, most, in);
    fclose(in);
    return size;
}

static void write_file(const struct place *place, const uint8_t *bytes, size_t size)
{
    char path[128];
    FILE *out = fopen(file_of(place, &shape, path), "w");
    assert_non_null(out);
    assert_int_equal(fwrite(bytes, 1, size, out), size);
    fclose(out);
}

static unsigned warnings(struct place *place)
{
    unsigned lines = 0;
    fflush(place->log.out);
    for (const char *at = place->messages; at && (at = strchr(at, '\n')); at++)
        lines++;
    return lines;
}

static void test_kept(void **state)
{
    struct place *place = *state;
    char path[128];
    struct stat stat_of;
    write_some(place, 0, ENTRIES);
    assert_int_equal(stat(file_of(place, &shape, path), &stat_of), 0);
    assert_int_equal(stat_of.st_mode & 0777, 0600);
    struct store *store = open_store(place, STORE_BYTES_MOST, &shape);
    assert_int_equal(store_stats(store).read, ENTRIES);
    assert_int_equal(count(store, 0, ENTRIES), ENTRIES);
    assert_null(store_first(store, ENTRIES));
    add(store, 0, ENTRIES);                     /* known already */
    assert_int_equal(store_stats(store).added, 0);
    store_destroy(store);
    assert_int_equal(warnings(place), 0);
}

/* Each byte of the file damaged: nothing wrong is ever found, and somebody is told, once. */
static void test_flipped(void **state)
{
    struct place *place = *state;
    static uint8_t bytes[1 << 16];
    write_some(place, 0, 8);
    size_t size = read_file(place, bytes, sizeof(bytes));
    for (size_t i = 0; i < size; i++) {
        unsigned before = warnings(place);
        bytes[i] ^= 0x10;
        write_file(place, bytes, size);
        bytes[i] ^= 0x10;
        struct store *store = open_store(place, STORE_BYTES_MOST, &shape);
        unsigned found = count(store, 0, 8);
        assert_true(found == 0 || found == 7);
        assert_int_equal(warnings(place), before + 1);
        store_destroy(store);
    }
}

static void test_cut(void **state)
{
    struct place *place = *state;
    static uint8_t bytes[1 << 16];
    write_some(place, 0, 8);
    size_t size = read_file(place, bytes, sizeof(bytes) - 8);
    for (size_t cut = 0; cut < size + 8; cut += 8) {
        write_file(place, bytes, cut);
        struct store *store = open_store(place, STORE_BYTES_MOST, &shape);
        assert_int_equal(count(store, 0, 8), cut == size ? 8 : 0);
        store_destroy(store);
    }
}

/* A damaged file is replaced by the next one that is written. */
static void test_heals(void **state)
{
    struct place *place = *state;
    uint8_t nothing[4096] = { 0 };
    write_file(place, nothing, sizeof(nothing));
    write_some(place, 0, 10);
    struct store *store = open_store(place, STORE_BYTES_MOST, &shape);
    assert_int_equal(count(store, 0, 10), 10);
    store_destroy(store);
}

static void test_other_shape(void **state)
{
    struct place *place = *state;
    write_some(place, 0, 10);
    struct store *store = open_store(place, STORE_BYTES_MOST, &other_shape);   /* the same name, as it happens */
    assert_int_equal(count(store, 0, 10), 0);
    assert_false(store_open(store, &shape));
    store_destroy(store);
    assert_int_equal(warnings(place), 1);
}

/* Machine code that somebody else could have written is not run. */
static void test_writable_by_others(void **state)
{
    struct place *place = *state;
    char path[128];
    struct error err;
    write_some(place, 0, 10);
    chmod(file_of(place, &shape, path), 0660);
    struct store *store = open_store(place, STORE_BYTES_MOST, &shape);
    assert_int_equal(count(store, 0, 10), 0);
    store_destroy(store);
    assert_int_equal(warnings(place), 1);
    chmod(path, 0600);
    chmod(place->directory, 0777);
    store = store_create(place->directory, STORE_BYTES_MOST, &place->log);
    assert_false(store_check_directory(store, &err));
    assert_non_null(strstr(err.text, "others may write"));
    store_open(store, &shape);
    assert_int_equal(count(store, 0, 10), 0);
    store_destroy(store);
}

/* Nor what is reached through a link. */
static void test_link(void **state)
{
    struct place *place = *state;
    char path[128], moved[160];
    write_some(place, 0, 10);
    snprintf(moved, sizeof(moved), "%s/elsewhere", place->directory);
    assert_int_equal(rename(file_of(place, &shape, path), moved), 0);
    assert_int_equal(symlink(moved, path), 0);
    struct store *store = open_store(place, STORE_BYTES_MOST, &shape);
    assert_int_equal(count(store, 0, 10), 0);
    store_destroy(store);
}

/* What this run used stays; of the rest, what was of use most lately. */
static void test_limit(void **state)
{
    struct place *place = *state;
    write_some(place, 0, 50);
    write_some(place, 50, 100);                 /* 0 to 49 are a run older now */
    struct store *store = open_store(place, 60 * SIZE, &shape);
    add(store, 100, 120);
    store_use(store_first(store, 3));
    store_destroy(store);
    store = open_store(place, STORE_BYTES_MOST, &shape);
    assert_int_equal(store_stats(store).read, 60);
    assert_int_equal(count(store, 100, 120), 20);
    assert_int_equal(count(store, 3, 4), 1);
    assert_int_equal(count(store, 50, 100), 39);
    store_destroy(store);
    store = store_create(NULL, 10 * SIZE, &place->log);         /* in memory the limit holds as well */
    add(store, 0, 50);
    assert_int_equal(count(store, 0, 50), 10);
    store_destroy(store);
}

/* Two machines at the same time: what either wrote is there. */
static void test_two(void **state)
{
    struct place *place = *state;
    write_some(place, 0, 10);
    struct store *a = open_store(place, STORE_BYTES_MOST, &shape), *b = open_store(place, STORE_BYTES_MOST, &shape);
    add(a, 10, 20);
    add(b, 20, 30);
    store_destroy(a);
    assert_int_equal(count(b, 0, 10), 10);      /* its file is still there for it */
    store_destroy(b);
    struct store *store = open_store(place, STORE_BYTES_MOST, &shape);
    assert_int_equal(count(store, 0, 30), 30);
    store_destroy(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_kept, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_flipped, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_cut, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_heals, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_other_shape, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_writable_by_others, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_link, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_limit, make_place, remove_place),
        cmocka_unit_test_setup_teardown(test_two, make_place, remove_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
