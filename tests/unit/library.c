/* Libraries that are loaded when they are needed: what is there is found by name, and what is not is named. */
#include <string.h>
#include <zlib.h>

#include "base/base.h"
#include "base/error.h"
#include "base/library.h"
#include "cmocka_all.h"

struct functions {
    LIBRARY_POINTER(zlibVersion)
    LIBRARY_POINTER(crc32)
};

static void loads(void **state)
{
    static const char *const names[] = { LIBRARY_NAME(zlibVersion) LIBRARY_NAME(crc32) };
    struct functions zlib = { 0 };
    struct error err;
    assert_true(library_load("libz.so.1", names, ARRAY_SIZE(names), &zlib, &err));
    assert_string_equal(zlib.zlibVersion(), zlibVersion());
    assert_true(zlib.crc32(0, (const Bytef *)"123456789", 9) == 0xCBF43926);
}

static void names_what_is_missing(void **state)
{
    static const char *const names[] = { "zlibVersion", "no_such_function" };
    struct functions zlib;
    struct error err;
    assert_false(library_load("libno-such-library.so.9", names, ARRAY_SIZE(names), &zlib, &err));
    assert_non_null(strstr(err.text, "libno-such-library.so.9"));
    assert_false(library_load("libz.so.1", names, ARRAY_SIZE(names), &zlib, &err));
    assert_non_null(strstr(err.text, "no_such_function"));
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(loads), cmocka_unit_test(names_what_is_missing) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
