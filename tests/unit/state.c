/* Field lists: save = load = save, versions, and hostile streams. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/base.h"
#include "base/error.h"
#include "state/state.h"
#include "unit/cmocka_all.h"

struct inner {
    uint16_t a;
    bool flag;
};

struct outer {
    uint64_t wide;
    uint8_t bytes[5];
    uint32_t array[3];
    struct inner inner, more[2];
    bool on;
    uint32_t late;
};

static const struct state_field inner_fields[] = { STATE_SCALAR(struct inner, a), STATE_SCALAR(struct inner, flag) };
static const struct state_list inner_list = STATE_LIST("inner", 1, inner_fields);

#define OUTER_FIELDS_V1                                                                       \
    STATE_SCALAR(struct outer, wide), STATE_BLOB(struct outer, bytes), STATE_ARRAY(struct outer, array), \
        STATE_NESTED(struct outer, inner, inner_list), STATE_NESTED_ARRAY(struct outer, more, inner_list), \
        STATE_SCALAR(struct outer, on)
static const struct state_field fields_v1[] = { OUTER_FIELDS_V1 };
static const struct state_field fields_v2[] = { OUTER_FIELDS_V1, STATE_SCALAR_SINCE(struct outer, late, 2) };
static const struct state_field fields_v2_required[] = { OUTER_FIELDS_V1, STATE_SCALAR(struct outer, late) };
static const struct state_list v1 = STATE_LIST("outer", 1, fields_v1);
static const struct state_list v2 = STATE_LIST("outer", 2, fields_v2);
static const struct state_list v2_required = STATE_LIST("outer", 2, fields_v2_required);

static struct outer random_outer(uint64_t seed)
{
    struct outer outer = { 0 };
    state_randomize(&v2, &outer, &seed);
    return outer;
}

static void save_load_save_is_the_same(void **state)
{
    for (uint64_t seed = 1; seed < 100; seed++) {
        struct outer a = random_outer(seed), b = { 0 };
        struct state_buffer first = { 0 }, second = { 0 };
        size_t used;
        state_save(&v2, &a, &first);
        assert_true(state_load(&v2, &b, first.data, first.size, &used, NULL));
        assert_int_equal(used, first.size);
        assert_true(state_equal(&v2, &a, &b, NULL));
        state_save(&v2, &b, &second);
        assert_int_equal(first.size, second.size);
        assert_memory_equal(first.data, second.data, first.size);
        state_buffer_free(&first);
        state_buffer_free(&second);
    }
}

static void a_difference_is_named(void **state)
{
    struct outer a = random_outer(1), b = a;
    const char *field = NULL;
    b.more[1].flag = !b.more[1].flag;
    assert_false(state_equal(&v2, &a, &b, &field));
    assert_string_equal(field, "flag");
}

static void new_field_keeps_its_value_when_an_old_stream_is_loaded(void **state)
{
    struct outer a = random_outer(1), b = { .late = 77 };
    struct state_buffer out = { 0 };
    state_save(&v1, &a, &out);
    assert_true(state_load(&v2, &b, out.data, out.size, NULL, NULL));
    assert_int_equal(b.late, 77);
    assert_int_equal(b.wide, a.wide);
    struct error err;
    assert_false(state_load(&v2_required, &b, out.data, out.size, NULL, &err));
    assert_non_null(strstr(err.text, "late"));
    out.size = 0;
    state_save(&v2, &a, &out);
    assert_false(state_load(&v1, &b, out.data, out.size, NULL, &err));
    state_buffer_free(&out);
}

static void hostile_streams_are_refused_or_loaded_but_never_overrun(void **state)
{
    struct outer a = random_outer(1);
    struct state_buffer out = { 0 };
    state_save(&v2, &a, &out);
    struct error err;
    for (size_t cut = 0; cut < out.size; cut++) {
        uint8_t *copy = malloc(cut + 1);        /* exactly as long as it says, for the address sanitizer */
        memcpy(copy, out.data, cut);
        assert_false(state_load(&v2, &(struct outer){ 0 }, copy, cut, NULL, &err));
        free(copy);
    }
    uint64_t seed = 42;
    for (int round = 0; round < 20000; round++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        size_t at = (seed >> 33) % out.size;
        uint8_t old = out.data[at];
        out.data[at] = (uint8_t)(seed >> 24);
        state_load(&v2, &(struct outer){ 0 }, out.data, out.size, NULL, &err);
        out.data[at] = old;
    }
    state_buffer_free(&out);
}

static void dump_names_every_element(void **state)
{
    char *text = NULL;
    size_t size = 0;
    FILE *file = open_memstream(&text, &size);
    struct outer a = random_outer(1);
    state_dump(&v2, &a, "x.", file);
    fclose(file);
    assert_non_null(strstr(text, "x.array[2] 0x"));
    assert_non_null(strstr(text, "x.more[1].flag "));
    free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(save_load_save_is_the_same),
        cmocka_unit_test(a_difference_is_named),
        cmocka_unit_test(new_field_keeps_its_value_when_an_old_stream_is_loaded),
        cmocka_unit_test(hostile_streams_are_refused_or_loaded_but_never_overrun),
        cmocka_unit_test(dump_names_every_element),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
