/* SMBIOS: structures follow one another to the end, and say what the machine has; dmidecode's rules for strings hold. */
#include "cmocka_all.h"

#include <string.h>

#include "base/base.h"
#include "machine/smbios.h"

static const uint8_t *next(const uint8_t *at)
{
    for (at += at[1]; at[0] || at[1]; at++)
        ;
    return at + 2;
}

static void structures_follow_one_another(void **state)
{
    static struct smbios smbios;
    const struct smbios_config config = { 6 * GiB, 2 * GiB, 64 };
    unsigned of[128] = { 0 }, count = 0;
    assert_true(smbios_build(&config, &smbios));
    const uint8_t *at = smbios.tables, *end = smbios.tables + smbios.size;
    for (; at < end; at = next(at), count++) {
        assert_true(at[0] < 128 && at[1] >= 4);
        of[at[0]]++;
    }
    assert_ptr_equal(at, end);
    static const uint8_t required[] = { 0, 1, 3, 16, 17, 32, 127 };
    for (unsigned i = 0; i < sizeof(required); i++)
        assert_int_equal(of[required[i]], 1);
    assert_int_equal(of[4], 64);
    assert_int_equal(of[19], 2);
    assert_memory_equal(smbios.anchor, "_SM_", 4);
    assert_memory_equal(smbios.anchor + 16, "_DMI_", 5);
    assert_int_equal(smbios.anchor[22] | smbios.anchor[23] << 8, smbios.size);
    assert_int_equal(smbios.anchor[28] | smbios.anchor[29] << 8, count);
}

static void memory_sizes_use_the_extended_fields(void **state)
{
    static struct smbios smbios;
    const struct smbios_config config = { 64 * GiB, 2 * GiB, 1 };
    assert_true(smbios_build(&config, &smbios));
    const uint8_t *at = smbios.tables;
    while (at[0] != 17)
        at = next(at);
    uint32_t extended;
    memcpy(&extended, at + 28, 4);
    assert_int_equal(at[12] | at[13] << 8, 0x7FFF);
    assert_int_equal(extended, 64 * 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(structures_follow_one_another),
        cmocka_unit_test(memory_sizes_use_the_extended_fields),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
