/* The monitor's commands on a machine of our own: what each prints, on a machine that stands still and on one that runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "api/monitor.h"
#include "base/base.h"
#include "machine/boot.h"
#include "machine/machine.h"
#include "mem/ram.h"
#include "mmu/mmu.h"
#include "x86/x86.h"

static struct machine *machine;
static struct monitor_session session;

static struct machine *create(const struct machine_config *more)
{
    struct machine_config config = *more;
    struct error err;
    config.memory = 16 * MiB;
    config.cpus = 2;
    struct machine *made = machine_create(&config, &err);
    if (!made)
        fail_msg("%s", err.text);
    session = (struct monitor_session){ .machine = made };
    return made;
}

static bool done;                      /* of the last line */

/* What the line prints; static, until the next call. */
static const char *says(const char *line)
{
    static char *text;
    size_t size;
    free(text);
    FILE *out = open_memstream(&text, &size);
    done = monitor_execute(&session, line, out);
    fclose(out);
    return text;
}

static void check(const char *line, const char *words, bool wanted)
{
    const char *text = says(line);
    if (!strstr(text, words))
        fail_msg("'%s' printed\n%s\nwithout '%s'", line, text, words);
    if (done != wanted)
        fail_msg("'%s' counts as %s", line, done ? "done" : "refused");
}

static void expect(const char *line, const char *words) { check(line, words, true); }
static void expect_refusal(const char *line, const char *words) { check(line, words, false); }

static int set_up(void **state)
{
    struct machine_config config = { 0 };
    machine_config_defaults(&config);
    machine = create(&config);
    return 0;
}

static int take_down(void **state)
{
    monitor_session_end(&session);
    machine_destroy(machine);
    return 0;
}

static void commands_are_found_by_name_and_prefix(void **state)
{
    expect("help", "translate");
    expect("help info", "registers");
    expect("h", "disassemble");
    expect_refusal("s", "several commands");
    expect_refusal("frobnicate", "no command 'frobnicate'");
    expect("info", "mtree");
    expect_refusal("help nonsense", "no command 'nonsense'");
    expect_refusal("info nonsense", "nothing called 'nonsense'");
    assert_string_equal(says(""), "");
    assert_string_equal(says("  \t "), "");
}

static void registers_and_processors_are_shown(void **state)
{
    machine->vcpu[1]->gpr[RBX] = 0x1234567890ABCDEF;
    expect("cpu 1", "processor 1");
    expect("info registers", "rbx 1234567890abcdef");
    expect_refusal("cpu 2", "processors 0 to 1");
    expect_refusal("cpu x", "processors 0 to 1");
    expect("info cpus", "waits for SIPI");
    expect("cpu 0", "processor 0");
    expect("info registers", "real, runs");
}

static void memory_is_dumped_and_disassembled(void **state)
{
    static const uint8_t code[] = { 0xB8, 0x34, 0x12, 0xF4, 'd', 'o', 'p', 'p', 'e', 'l' };
    ram_write(machine->ram, 0x7C00, code, sizeof(code));
    expect("xp 0x7c00 10", "b8 34 12 f4 64 6f 70 70 65 6c");
    expect("xp 0x7c00", ".4..doppel");
    expect("x 0x7c00+4 6", "doppel");
    expect("disassemble 0x7c00 2", "mov ax, 0x1234");
    expect("disassemble 0x7c00 2", "hlt");
    machine->vcpu[0]->gpr[RSP] = 0x7C10;
    expect("x rsp-12 6", "doppel");
    expect("x $rsp-0xc 6", "doppel");
    expect_refusal("xp 0x1000000", "not all of that is RAM");
    expect_refusal("xp 0xfffffffffffffffe 16", "not all of that is RAM");
    expect_refusal("x", "needs an address");
    expect_refusal("x blue", "neither a number nor a register");
    expect_refusal("x 0 0", "not a number from 1 to 4096");
}

/* A 4-level map of one 2 MiB page: 0xFFFF800000000000 -> 0x400000. */
static void translation_shows_every_level(void **state)
{
    struct vcpu *vcpu = machine->vcpu[0];
    const uint64_t tables[][2] = { { 0x1800, 0x2003 }, { 0x2000, 0x3003 }, { 0x3000, 0x4000E3 } };
    for (unsigned i = 0; i < ARRAY_SIZE(tables); i++)
        ram_write(machine->ram, tables[i][0], &tables[i][1], 8);
    const struct boot_entry entry = { .mode = BOOT_ENTRY_LONG, .rip = 0xFFFF800000000000, .cr3 = 0x1000, .cs = 0x10, .ds = 0x18 };
    boot_apply(&entry, vcpu);
    expect("translate rip+0x1234", "level 4  entry at 000000001800");
    expect("translate rip+0x1234", "level 2  entry at 000000003000  00000000004000e3  P R/W A D PS/PAT");
    expect("translate rip+0x1234", "-> 000000401234, in a page of 2048 KiB");
    expect("translate 0x1000", "is not mapped");
    expect("info registers", "64-bit");
    expect_refusal("x 0x1000", "is not mapped, or not RAM");
    expect("info tlb", "paging is 4-level");
    expect("info windows", "threshold");
    expect("info sites", "runs");
}

static void board_is_shown(void **state)
{
    expect("info mem", "15360 KiB");
    expect("info mtree", "ioapic");
    expect("info devices", "ioapic");
    expect("info irq", "ioapic.redirection[23]");
    expect("info pci", "00:00.0");
    expect_refusal("info device none", "no device 'none'");
    expect("trace cpu_exception on", "");
    expect("trace", "on   cpu_exception");
    expect("trace cpu_* off", "");
    expect("info trace", "off  cpu_exception");
    expect_refusal("trace bogus", "no trace point matches");
    expect_refusal("trace cpu_* maybe", "neither on nor off");
    expect_refusal("step", "stop the machine first");
    expect_refusal("continue", "not stopped from here");
    expect_refusal("engine none", "none");
    expect_refusal("snapshot", "which directory");
    expect_refusal("screenshot", "name of a file");
    expect_refusal("sendkey none", "none");
    expect_refusal("pointer none", "has no mouse");
    expect_refusal("media", "say which image");
    expect_refusal("media none force", "has no CD-ROM drive");
}

/* A machine that runs: inc eax; jmp. It can be stopped, stepped, looked at while it runs, and ended. */
static void running_machine_is_stopped_and_stepped(void **state)
{
    char path[] = "/tmp/doppel-monitor-XXXXXX";
    static const uint8_t code[] = { 0x40, 0xEB, 0xFD };     /* 7C00: inc ax; 7C01: jmp 7C00 */
    int fd = mkstemp(path);
    assert_int_equal(write(fd, code, sizeof(code)), sizeof(code));
    close(fd);
    struct machine_config config = { 0 };
    machine_config_defaults(&config);
    config.boot = BOOT_FLAT;
    config.flat_address = 0x7C00;
    config.kernel = path;
    for (; config.disk_count < 2; config.disk_count++)
        config.disk[config.disk_count] = (struct disk_config){ .bus = DISK_CDROM, .image.read_only = true };
    struct error err;
    struct machine *runner = create(&config);
    assert_true(machine_start(runner, &err));
    usleep(20000);
    expect("info registers", "real, runs");
    expect("disassemble 0x7c00 2", "inc ax");
    expect("stop", "7c0");
    uint64_t before = runner->vcpu[0]->gpr[RAX] & 0xFFFF;
    says("step 20");
    assert_int_equal(((runner->vcpu[0]->gpr[RAX] & 0xFFFF) - before) & 0xFFFF, 10);
    expect("counters instructions", "guest instructions executed");
    char line[64];
    snprintf(line, sizeof(line), "media _disk1 %s", path);
    expect_refusal("media none", "_disk0, _disk1");
    expect_refusal("media _disk2 none", "'_disk2' is no CD-ROM drive");
    expect_refusal("media _disk1 /no/such/image", "/no/such/image");
    expect(line, "done");
    assert_string_equal(runner->config.disk[1].path, path);
    says("continue");
    expect("media _disk1 none force", "done");
    assert_null(runner->config.disk[1].path);
    usleep(1000);
    says("quit");
    assert_int_equal(machine_wait(runner), END_QUIT);
    machine_destroy(runner);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(commands_are_found_by_name_and_prefix, set_up, take_down),
        cmocka_unit_test_setup_teardown(registers_and_processors_are_shown, set_up, take_down),
        cmocka_unit_test_setup_teardown(memory_is_dumped_and_disassembled, set_up, take_down),
        cmocka_unit_test_setup_teardown(translation_shows_every_level, set_up, take_down),
        cmocka_unit_test_setup_teardown(board_is_shown, set_up, take_down),
        cmocka_unit_test(running_machine_is_stopped_and_stepped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
