/* What the command line and a viewer may say about a screen: addresses, passwords, keysyms. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmocka_all.h"

#include "backend/vnc_listen.h"
#include "base/error.h"
#include "machine/keymap.h"

static void addresses_are_read(void **state)
{
    static const struct { const char *text, *host, *path; unsigned port; } good[] = {
        { ":0", "127.0.0.1", "", 5900 }, { ":99", "127.0.0.1", "", 5999 }, { "127.0.0.1:100", "127.0.0.1", "", 100 },
        { "localhost:1", "127.0.0.1", "", 5901 }, { "[::1]:2", "::1", "", 5902 }, { "unix:/tmp/a:b", "", "/tmp/a:b", 0 },
        { "0.0.0.0:65535,password=x", "0.0.0.0", "", 65535 }, { ":0,tls=/a,b", "127.0.0.1", "", 5900 },
    };
    for (unsigned i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        struct vnc_address address;
        struct error err = { "" };
        if (!vnc_address_parse(good[i].text, &address, &err))
            fail_msg("%s: %s", good[i].text, err.text);
        assert_string_equal(address.host, good[i].host);
        assert_string_equal(address.path, good[i].path);
        assert_int_equal(address.port, good[i].port);
    }
}

static void options_follow_in_any_order(void **state)
{
    static const char *const texts[] = { "unix:/s,tls=/a,b,password=/c=d", "unix:/s,password=/c=d,tls=/a,b" };
    for (unsigned i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct vnc_address address;
        assert_true(vnc_address_parse(texts[i], &address, NULL));
        assert_string_equal(address.path, "/s");
        assert_string_equal(address.tls, "/a,b");
        assert_string_equal(address.password_file, "/c=d");
    }
}

static void bad_addresses_are_refused(void **state)
{
    static const char *const bad[] = { "", ":", "5900", ":-1", ":65536", ":99999999999999999999", ":1x", "host:1", "1.2.3:1", "[1.2.3.4]:1", "::1",
                                       "unix:", "0.0.0.0:1", "[::]:1", ":1,password=", ":1,tls=", ":1,tls=a,tls=b", "0.0.0.0:1,tls=a",
                                       ":1,tls=a,password=" };
    for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct vnc_address address;
        struct error err = { "" };
        if (vnc_address_parse(bad[i], &address, &err))
            fail_msg("'%s' was taken", bad[i]);
        assert_true(*err.text);
    }
}

static void expect_password(const char *contents, const char *password)
{
    char path[] = "/tmp/doppel-password-XXXXXX", read[VNC_PASSWORD_MAX + 1];
    struct error err = { "" };
    int fd = mkstemp(path);
    assert_true(write(fd, contents, strlen(contents)) == (ssize_t)strlen(contents));
    close(fd);
    bool good = vnc_read_password(path, read, &err);
    unlink(path);
    assert_int_equal(good, password != NULL);
    if (password)
        assert_string_equal(read, password);
}

static void passwords_are_a_first_line_of_eight_characters_at_most(void **state)
{
    expect_password("secret\nmore\n", "secret");
    expect_password("12345678", "12345678");
    expect_password("123456789\n", NULL);
    expect_password("\nsecret\n", NULL);
    expect_password("", NULL);
}

static void keysyms_and_characters_are_keys_of_a_us_keyboard(void **state)
{
    bool shift;
    for (int character = 0x20; character < 0x7F; character++)
        assert_int_not_equal(keymap_of_character((char)character, &shift), KEY_COUNT);
    assert_int_equal(keymap_of_character('<', &shift), KEY_COMMA);
    assert_true(shift);
    assert_int_equal(keymap_of_character('a', &shift), KEY_A);
    assert_false(shift);
    assert_int_equal(keymap_of_keysym(0xFF0D), KEY_RET);
    assert_int_equal(keymap_of_keysym(0xFFC9), KEY_F12);
    assert_int_equal(keymap_of_keysym(0xFF9C), KEY_KP_1);
    assert_int_equal(keymap_of_keysym(0), KEY_COUNT);
    assert_int_equal(keymap_of_keysym(0x12345678), KEY_COUNT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(addresses_are_read),
        cmocka_unit_test(options_follow_in_any_order),
        cmocka_unit_test(bad_addresses_are_refused),
        cmocka_unit_test(passwords_are_a_first_line_of_eight_characters_at_most),
        cmocka_unit_test(keysyms_and_characters_are_keys_of_a_us_keyboard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
