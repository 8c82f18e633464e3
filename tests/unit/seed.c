/* The seed of a cloud image: xorriso finds in it what was put there. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmocka_all.h"

#include "machine/seed.h"

static void xorriso_extracts_what_was_put_in(void **state)
{
    static char large[5000];
    char folder[] = "/tmp/doppel-seed-XXXXXX", command[512], path[64];
    memset(large, 'x', sizeof(large));
    const struct seed_file files[] = { { "meta-data", "a: b\n", 5 }, { "user-data", large, sizeof(large) }, { "vendor-data", "", 0 } };
    uint8_t *image;
    size_t size;
    assert_true(seed_image("cidata", files, 3, &image, &size));
    assert_non_null(mkdtemp(folder));
    snprintf(path, sizeof(path), "%s/seed.iso", folder);
    FILE *file = fopen(path, "w");
    assert_int_equal(fwrite(image, 1, size, file), size);
    fclose(file);
    free(image);
    snprintf(command, sizeof(command),
             "cd %s && xorriso -abort_on WARNING -osirrox on -indev seed.iso -extract / out >log 2>&1 && test \"$(ls out | tr '\\n' ' ')\" = "
             "'meta-data user-data vendor-data ' && test \"$(cat out/meta-data)\" = 'a: b' && test $(tr -d -c x <out/user-data | wc -c) = 5000 && "
             "xorriso -indev seed.iso -pvd_info 2>/dev/null | grep -q \"Volume Id    : cidata\"", folder);
    int status = system(command);
    snprintf(command, sizeof(command), "%s cat %s/log; chmod -R u+w %s; rm -r %s", status ? "" : ": ", folder, folder, folder);
    assert_int_equal(system(command), 0);
    assert_int_equal(status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = { cmocka_unit_test(xorriso_extracts_what_was_put_in) };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
