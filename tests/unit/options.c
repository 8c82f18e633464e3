/* The command line: what each option sets, near misses, sizes, exit statuses, and that every mistake gets its sentence. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "base/base.h"
#include "cli/exit_status.h"
#include "cli/options.h"
#include "cli/size.h"
#include "cli/suggest.h"

static struct options options;
static struct error err;

/* Splits at spaces; "%" stands for a space within a word. */
static bool parse(const char *line)
{
    static char text[512];
    char *words[64] = { "run" }, *rest = text, *word;
    int count = 1;
    snprintf(text, sizeof(text), "%s", line);
    while ((word = strtok_r(rest, " ", &rest)))
        words[count++] = word;
    for (char *at = text; at < text + sizeof(text); at++)
        if (*at == '%')
            *at = ' ';
    options_free(&options);
    err.text[0] = 0;
    return options_parse(&options, count, words, &err);
}

static void refused(const char *line, const char *reason)
{
    if (parse(line))
        fail_msg("'%s' was taken", line);
    if (!strstr(err.text, reason))
        fail_msg("'%s': said \"%s\", not \"%s\"", line, err.text, reason);
}

static void every_option_sets_its_field(void **state)
{
    assert_true(parse("--memory 2G --cpus=4 --kernel k --initrd a%b --initrd c --append x%y --cpu host --engine interp --boot pvh "
                      "--no-rng --no-reboot --debug-exit --device edu --console pty --virtio-console file:f --debug-console stdio "
                      "--monitor socket:s --log l --trace cpu_*"));
    const struct machine_config *config = &options.config;
    assert_int_equal(config->memory, 2 * GiB);
    assert_int_equal(config->cpus, 4);
    assert_string_equal(config->kernel, "k");
    assert_int_equal(config->initrd_count, 2);
    assert_string_equal(config->initrd[0], "a b");
    assert_string_equal(config->append, "x y");
    assert_string_equal(config->cpu_model, "host");
    assert_int_equal(config->boot, BOOT_PVH);
    assert_false(config->rng);
    assert_true(config->no_reboot && config->debug_exit);
    assert_string_equal(config->extra[0], "edu");
    assert_string_equal(config->console, "pty");
    assert_string_equal(config->virtio_console, "file:f");
    assert_string_equal(options.monitor, "socket:s");
    assert_string_equal(options.log, "l");
    assert_int_equal(options.trace_count, 1);
    assert_true(parse("--kernel k"));
    assert_string_equal(options.config.console, "stdio");
    assert_true(parse("disk.img --memory 1G"));
    assert_string_equal(config->disk[0].path, "disk.img");
    assert_string_equal(config->firmware, FIRMWARE_BY_DISK);
    assert_true(parse("--kernel k --boot flat=0x7c00"));
    assert_null(config->firmware);
    assert_int_equal(options.config.boot, BOOT_FLAT);
    assert_int_equal(options.config.flat_address, 0x7C00);
}

static void disks_and_networks_are_taken_apart(void **state)
{
    assert_true(parse("--kernel k --disk a,,b.img,ro,serial=S1,engine=threads --disk c,direct --net user,mac=52:54:00:12:34:56,"
                      "hostfwd=tcp::2222-:22 --net tap,ifname=t0"));
    const struct machine_config *config = &options.config;
    assert_int_equal(config->disk_count, 2);
    assert_string_equal(config->disk[0].path, "a,b.img");
    assert_string_equal(config->disk[0].serial, "S1");
    assert_true(config->disk[0].image.read_only);
    assert_false(config->disk[1].image.read_only);
    assert_true(config->disk[1].image.direct);
    assert_string_equal(config->net[0].backend, "user,hostfwd=tcp::2222-:22");
    assert_int_equal(config->net[0].mac[5], 0x56);
    assert_string_equal(config->net[1].backend, "tap,ifname=t0");
    assert_int_equal(config->net_count, 2);
}

static void formats_are_said_and_nothing_is_allowed_unasked(void **state)
{
    assert_true(parse("--kernel k --disk a,format=qcow2,backing=on --disk b,ephemeral --disk c"));
    const struct disk_config *disk = options.config.disk;
    assert_int_equal(disk[0].image.format, DISK_FORMAT_QCOW2);
    assert_true(disk[0].image.backing && !disk[0].image.ephemeral);
    assert_true(disk[1].image.ephemeral && !disk[1].image.backing);
    assert_int_equal(disk[2].image.format, DISK_FORMAT_BY_NAME);
    assert_true(!disk[2].image.ephemeral && !disk[2].image.backing);
    assert_true(parse("--ephemeral --kernel k --disk a --disk b"));
    assert_true(options.config.disk[0].image.ephemeral && options.config.disk[1].image.ephemeral);
    assert_true(parse("--ephemeral --kernel k --cdrom none"));         /* nothing is written to it */
    assert_true(disk[0].bus == DISK_CDROM && !disk[0].path && disk[0].image.read_only && !disk[0].image.ephemeral);
}

static void translations_have_a_place(void **state)
{
    assert_true(parse("--kernel k"));
    assert_string_equal(options.config.translations, "memory");
    assert_true(parse("--kernel k --translation-cache off"));
    assert_null(options.config.translations);
    assert_true(parse("--kernel k --translation-cache ./onn"));
    assert_string_equal(options.config.translations, "./onn");
    assert_false(options.config.translations_try);
    assert_true(parse("--kernel k --translation-cache on"));
    assert_true(options.config.translations_try);
}

static void mistakes_get_a_sentence(void **state)
{
    refused("", "name a disk image");
    refused("disk.img --append x", "are for a kernel");
    refused("disk.img --initrd x", "are for a kernel");
    refused("disk.img --boot pvh", "are for a kernel");
    refused("--kernel k --uefi-variables v", "is for firmware");
    refused("--kernel k --virtio-console stdio", "say also --console none");
    refused("--kernel k --translation-cache onn", "there are on, off, memory, and directories, whose names need a slash: ./onn");
    refused("--kernel k --translation-cache=", "whose names need a slash: ./translations");
    refused("--kernel", "--kernel needs an argument: FILE");
    refused("--memroy 1G", "did you mean '--memory'?");
    refused("--xyzzy", "'doppel help run' lists them");
    refused("--kernel k --no-reboot=yes", "takes no argument");
    refused("-kernel", "begin with two dashes");
    refused("--memory lots", "not a memory size");
    refused("--memory 99999999999999999999G", "not a memory size");
    refused("--memory 900T", "at most 30G");
    refused("--memory 12K", "at least 1M");
    refused("--cpus 0", "1 to 64 processors");
    refused("--cpus 65", "1 to 64 processors");
    refused("--cpus -1", "1 to 64 processors");
    refused("--boot bios", "not a way to boot");
    refused("--boot flat=0x100000000", "not a way to boot");
    refused("--disk a,rw", "not a setting of a disk");
    refused("--disk ,ro", "needs the name");
    refused("--disk a,format=vmdk", "there are raw and qcow2");
    refused("--net wifi", "not a network");
    refused("--net user,mac=1:2:3", "not a network card's address");
    refused("--net user,mac=01:00:00:00:00:00", "not a network card's address");
    refused("--console telepathy", "not something to connect to");
    refused("--monitor stdio", "not something to connect to");
    refused("--trace nothing_like_it", "no trace point matches");
}

static void sizes_are_read_as_people_write_them(void **state)
{
    uint64_t size;
    assert_true(size_parse("512", &size) && size == 512 * MiB);
    assert_true(size_parse("64K", &size) && size == 64 * KiB);
    assert_true(size_parse("3g", &size) && size == 3 * GiB);
    assert_true(size_parse("1TiB", &size) && size == 1024 * GiB);
    assert_false(size_parse("", &size));
    assert_false(size_parse("-1M", &size));
    assert_false(size_parse("1Q", &size));
    assert_false(size_parse("1Mx", &size));
    assert_false(size_parse("16777216T", &size));
}

static const char *word_at(unsigned i)
{
    static const char *const words[] = { "kernel", "memory", "monitor", "net" };
    return i < ARRAY_SIZE(words) ? words[i] : NULL;
}

static void near_misses_find_their_word(void **state)
{
    assert_int_equal(suggest_distance("kitten", "sitting"), 3);
    assert_int_equal(suggest_distance("memroy", "memory"), 1);
    assert_int_equal(suggest_distance("", "abc"), 3);
    assert_string_equal(suggest("kernal", word_at), "kernel");
    assert_string_equal(suggest("moniter", word_at), "monitor");
    assert_null(suggest("xylophone", word_at));
}

static void every_end_has_its_status(void **state)
{
    assert_int_equal(exit_status_of(END_POWER_OFF, 0), 0);
    assert_int_equal(exit_status_of(END_DEBUG_EXIT, 0), 1);
    assert_int_equal(exit_status_of(END_DEBUG_EXIT, 0x31), 0x63);
    assert_int_equal(exit_status_of(END_QUIT, 0), 130);
    assert_int_equal(exit_status_of(END_QUIT, SIGTERM), 143);
    assert_int_equal(exit_status_of(END_HOST_ERROR, 0), 4);
    assert_int_equal(exit_status_of(END_REBOOT, 0), 6);
    assert_int_equal(exit_status_of(END_TRIPLE_FAULT, 0), 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_option_sets_its_field),         cmocka_unit_test(disks_and_networks_are_taken_apart),
        cmocka_unit_test(formats_are_said_and_nothing_is_allowed_unasked), cmocka_unit_test(mistakes_get_a_sentence),             cmocka_unit_test(sizes_are_read_as_people_write_them),
        cmocka_unit_test(translations_have_a_place),
        cmocka_unit_test(near_misses_find_their_word),         cmocka_unit_test(every_end_has_its_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
