/* The USB host controller as a driver sees it: ports, commands, the enumeration of a keyboard, reports, and what is refused. */
#include "dev/rig.h"

#include "dev/usb/xhci.h"

enum { SLOT = 4 << 3, COMMANDS = 0x10000, EVENTS = 0x11000, EVENT_TABLE = 0x12000, DCBAA = 0x13000, INPUT = 0x14000, OUTPUT = 0x15000, CONTROL = 0x16000,
       REPORTS = 0x17000, BUFFER = 0x18000, EVENTS_SIZE = 32 };
enum { USBCMD = 0x40, USBSTS = 0x44, CRCR = 0x58, DCBAAP = 0x70, CONFIG = 0x78, PORTSC = 0x440, IMAN = 0x1020, ERSTSZ = 0x1028, ERSTBA = 0x1030,
       ERDP = 0x1038, DOORBELL = 0x2000 };

struct trb {
    uint64_t parameter;
    uint32_t status, control;
};

struct fixture {
    struct rig rig;
    struct xhci *xhci;
    uint64_t bar;
    unsigned command, event, control;
};
static struct fixture f;

static void reg_write(unsigned offset, uint32_t value) { rig_write(&f.rig, f.bar + offset, 4, value); }
static uint32_t reg_read(unsigned offset) { return (uint32_t)rig_read(&f.rig, f.bar + offset, 4); }

static void with_inputs(struct device *device, void *opaque) { ((struct xhci *)device)->inputs = true; }

static int setup(void **state)
{
    memset(&f, 0, sizeof(f));
    rig_create(&f.rig);
    f.xhci = (struct xhci *)rig_add(&f.rig, &device_xhci, SLOT, with_inputs, NULL);
    f.bar = rig_bar(&f.rig, SLOT, 0);
    const struct { uint64_t base; uint32_t size, reserved; } row = { EVENTS, EVENTS_SIZE, 0 };
    uint64_t output = OUTPUT;
    ram_write(f.rig.ram, EVENT_TABLE, &row, sizeof(row));
    ram_write(f.rig.ram, DCBAA + 8, &output, sizeof(output));
    reg_write(CONFIG, 8);
    reg_write(DCBAAP, DCBAA);
    reg_write(CRCR, COMMANDS | 1);
    reg_write(ERSTSZ, 1);
    reg_write(ERDP, EVENTS);
    reg_write(ERSTBA, EVENT_TABLE);
    reg_write(ERSTBA + 4, 0);
    reg_write(IMAN, 2);
    reg_write(USBCMD, 5);
    return 0;
}

static int teardown(void **state)
{
    device_destroy(&f.xhci->pci.device);
    rig_destroy(&f.rig);
    return 0;
}

/* The next event; false: there is none. */
static bool next_event(struct trb *trb)
{
    ram_read(f.rig.ram, EVENTS + 16 * f.event, trb, sizeof(*trb));
    if (!(trb->control & 1))
        return false;
    f.event++;
    assert_true(f.event < EVENTS_SIZE);
    reg_write(ERDP, (EVENTS + 16 * f.event) | 8);
    return true;
}

static uint32_t expect_event(unsigned type, unsigned code)
{
    struct trb trb;
    assert_true(next_event(&trb));
    assert_int_equal(trb.control >> 10 & 63, type);
    assert_int_equal(trb.status >> 24, code);
    return trb.control;
}

static void port_events(void)
{
    expect_event(34, 1);
    expect_event(34, 1);
}

/* A command, and what it is answered with. */
static uint32_t command(uint64_t parameter, uint32_t control, unsigned code)
{
    const struct trb trb = { parameter, 0, control | 1 };
    ram_write(f.rig.ram, COMMANDS + 16 * f.command++, &trb, sizeof(trb));
    reg_write(DOORBELL, 0);
    return expect_event(33, code) >> 24;
}

static void input_context(uint32_t add, unsigned port)
{
    uint32_t context[8 * 5] = { 0, add };
    context[8] = 3u << 27 | 1u << 20;
    context[9] = port << 16;
    context[16 + 1] = 64u << 16 | 4 << 3 | 3 << 1;
    context[16 + 2] = CONTROL | 1;
    context[32 + 1] = 8u << 16 | 7 << 3 | 3 << 1;
    context[32 + 2] = REPORTS | 1;
    ram_write(f.rig.ram, INPUT, context, sizeof(context));
}

static void address_keyboard(void)
{
    reg_write(PORTSC, 0x210);                   /* reset */
    expect_event(34, 1);
    assert_int_equal(reg_read(PORTSC) & 0x3, 3);
    assert_int_equal(command(0, 9 << 10, 1), 1);
    input_context(3, 1);
    command(INPUT, 1u << 24 | 11 << 10, 1);
}

static void put_control(uint64_t parameter, uint32_t status, uint32_t control)
{
    const struct trb trb = { parameter, status, control | 1 };
    ram_write(f.rig.ram, CONTROL + 16 * f.control++, &trb, sizeof(trb));
}

static void devices_are_seen_at_two_ports(void **state)
{
    port_events();
    assert_int_equal(reg_read(PORTSC) & 0x3C01, 0x0401);        /* connected, full speed */
    assert_int_equal(reg_read(PORTSC + 16) & 1, 1);
    assert_int_equal(reg_read(PORTSC + 32) & 1, 0);
    assert_true(f.rig.line[pci_intx_line(SLOT, 0)]);
    reg_write(IMAN, 3);
    assert_false(f.rig.line[pci_intx_line(SLOT, 0)]);
    assert_int_equal(reg_read(USBSTS) & 1, 0);
}

static void keyboard_is_enumerated_and_reports_its_keys(void **state)
{
    uint8_t descriptor[18], report[8];
    uint32_t context[8];
    port_events();
    address_keyboard();
    ram_read(f.rig.ram, OUTPUT, context, sizeof(context));
    assert_int_equal(context[3], 2u << 27 | 1);                 /* addressed */
    put_control(0x0012000001000680, 8, 2 << 10 | 1 << 6 | 3 << 16);     /* the device's descriptor */
    put_control(BUFFER, 64, 3 << 10 | 1 << 2 | 1 << 16);
    put_control(0, 0, 4 << 10 | 1 << 5);
    reg_write(DOORBELL + 4, 1);
    expect_event(32, 13);                                       /* short: 18 of 64 */
    expect_event(32, 1);
    ram_read(f.rig.ram, BUFFER, descriptor, sizeof(descriptor));
    assert_int_equal(descriptor[0], 18);
    assert_int_equal(descriptor[1], 1);
    input_context(1 | 1u << 3, 1);
    command(INPUT, 1u << 24 | 12 << 10, 1);
    put_control(0x0000000000010900, 8, 2 << 10 | 1 << 6);       /* the configuration */
    put_control(0, 0, 4 << 10 | 1 << 5 | 1 << 16);
    reg_write(DOORBELL + 4, 1);
    expect_event(32, 1);
    for (unsigned i = 0; i < 3; i++) {
        const struct trb trb = { BUFFER + 8 * i, 8, 1 << 10 | 1 << 5 | 1 };
        ram_write(f.rig.ram, REPORTS + 16 * i, &trb, sizeof(trb));
    }
    reg_write(DOORBELL + 4, 3);
    struct trb none;
    assert_false(next_event(&none));
    assert_true(xhci_key(f.xhci, KEY_SHIFT, true));
    assert_true(xhci_key(f.xhci, KEY_A, true));
    expect_event(32, 1);
    expect_event(32, 1);
    ram_read(f.rig.ram, BUFFER + 8, report, sizeof(report));
    assert_memory_equal(report, "\2\0\4\0\0\0\0\0", 8);
    xhci_key(f.xhci, KEY_A, false);
    expect_event(32, 1);
    ram_read(f.rig.ram, BUFFER + 16, report, sizeof(report));
    assert_memory_equal(report, "\2\0\0\0\0\0\0\0", 8);
}

static void what_is_refused_halts_the_endpoint(void **state)
{
    uint32_t context[8];
    port_events();
    address_keyboard();
    put_control(0x0012000009000680, 8, 2 << 10 | 1 << 6 | 3 << 16);     /* there is no such descriptor */
    reg_write(DOORBELL + 4, 1);
    expect_event(32, 6);
    ram_read(f.rig.ram, OUTPUT + 32, context, sizeof(context));
    assert_int_equal(context[0] & 7, 2);
    command(0, 1u << 24 | 15u << 10 | 1 << 16, 19);             /* a halted endpoint is not stopped, but reset */
    command(0, 1u << 24 | 14u << 10 | 1 << 16, 1);
    command((CONTROL + 16) | 1, 1u << 24 | 16u << 10 | 1 << 16, 1);
    command(0, 2u << 24 | 14u << 10 | 1 << 16, 11);             /* no such slot */
    command(0, 1u << 24 | 10u << 10, 1);
    command(INPUT, 1u << 24 | 11 << 10, 11);
}

static void full_event_ring_says_so_and_a_ring_of_links_ends(void **state)
{
    port_events();
    reg_write(ERDP, EVENTS | 8);
    for (unsigned i = 0; i < 40; i++) {
        const struct trb trb = { 0, 0, 23 << 10 | 1 };
        ram_write(f.rig.ram, COMMANDS + 16 * i, &trb, sizeof(trb));
    }
    reg_write(DOORBELL, 0);
    struct trb last;
    ram_read(f.rig.ram, EVENTS + 16 * (EVENTS_SIZE - 2), &last, sizeof(last));
    assert_int_equal(last.control >> 10 & 63, 37);
    assert_int_equal(last.status >> 24, 21);
    const struct trb link = { COMMANDS + 16 * 40, 0, 6 << 10 | 1 };
    ram_write(f.rig.ram, COMMANDS + 16 * 40, &link, sizeof(link));
    reg_write(DOORBELL, 0);
    assert_int_equal(reg_read(USBSTS) & 5, 5);                  /* host system error, halted */
    reg_write(USBCMD, 2);
    assert_int_equal(reg_read(USBSTS), 1);
}

#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        CASE(devices_are_seen_at_two_ports),
        CASE(keyboard_is_enumerated_and_reports_its_keys),
        CASE(what_is_refused_halts_the_endpoint),
        CASE(full_event_ring_says_so_and_a_ring_of_links_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
