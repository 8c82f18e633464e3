/*
 * 82540EM Gigabit Ethernet controller (PCI/PCI-X Family of Gigabit Ethernet Controllers Software Developer's Manual, 317453-006), as on Intel's PRO/1000 MT
 * desktop card: the registers, by memory and by the I/O window, interrupts and resets. The descriptors' side is in e1000_transmit.c and e1000_receive.c.
 *
 * Not modelled: delays and the throttling of interrupts (each cause interrupts at once), flow control, wake-up and management, the flash, writing the EEPROM,
 * diagnostics of the packet buffer. The link is as fast as it gets and is up whenever there is a network.
 */
#include "dev/net/e1000_internal.h"

/* --- registers --- */

static const struct row {
    uint32_t offset, reset, rw, w1c;
} rows[E1000_REGISTERS] = {
#define REG(name, offset, reset, rw, w1c, section) [E1000_##name] = { offset, reset, rw, w1c },
#include "dev/net/e1000_registers.def"
};

enum { E1000_VENDOR = 0x8086, E1000_DEVICE = 0x100E, E1000_CLASS = 0x020000, E1000_REVISION = 2, BAR_REGISTERS = 0, BAR_IO = 2,
       REGISTERS_SIZE = 0x20000, IO_SIZE = 64, IO_ADDRESS = 0, IO_DATA = 4 };
enum { STATISTICS_BASE = 0x4000, MULTICAST_BASE = 0x5200, ADDRESS_BASE = 0x5400, VLAN_BASE = 0x5600 };
enum { STATUS_LU = 1 << 1, EERD_START = 1 << 0 };
static const uint32_t ctrl_phy_rst = 1u << 31, address_valid = 1u << 31, address_high_mask = 0x8003FFFF, causes_mask = 0x0001FFFF;

/* --- helpers --- */

static void update_interrupt(struct e1000 *e1000) { pci_intx(&e1000->pci, e1000->reg[E1000_ICR] & e1000->reg[E1000_IMS]); }

void e1000_raise(struct e1000 *e1000, uint32_t causes)
{
    e1000->reg[E1000_ICR] |= causes;
    update_interrupt(e1000);
}

/* Statistics stay at their greatest value: §13.7. */
void e1000_count(struct e1000 *e1000, unsigned statistic, uint32_t amount)
{
    uint32_t *at = &e1000->statistics[statistic];
    *at = (uint32_t)min_u64((uint64_t)*at + amount, UINT32_MAX);
}

void e1000_count_wide(struct e1000 *e1000, unsigned statistic, uint64_t amount)
{
    uint64_t value = (e1000->statistics[statistic] | (uint64_t)e1000->statistics[statistic + 1] << 32) + amount;
    e1000->statistics[statistic] = (uint32_t)value;
    e1000->statistics[statistic + 1] = (uint32_t)(value >> 32);
}

static void show_link(struct e1000 *e1000)
{
    e1000->reg[E1000_STATUS] = (e1000->reg[E1000_STATUS] & ~(uint32_t)STATUS_LU) | (e1000->link_up ? STATUS_LU : 0);
}

/* The card's address, as it is read from the EEPROM after a reset (§5.4 "Auto-Read"). */
static void load_address(struct e1000 *e1000)
{
    e1000->address[0] = get32(e1000->mac);
    e1000->address[1] = get16(e1000->mac + 4) | address_valid;
}

static void reset_registers(struct e1000 *e1000)
{
    timer_disarm(&e1000->more);
    for (unsigned i = 0; i < E1000_REGISTERS; i++)
        e1000->reg[i] = rows[i].reset;
    memset(e1000->multicast, 0, sizeof(e1000->multicast));
    memset(e1000->address, 0, sizeof(e1000->address));
    memset(e1000->vlan, 0, sizeof(e1000->vlan));
    memset(e1000->statistics, 0, sizeof(e1000->statistics));
    e1000->checksum = e1000->segmentation = (struct e1000_context){ 0 };
    e1000->eeprom_in = e1000->eeprom_out = e1000->eeprom_bits = 0;
    e1000->eeprom_reading = e1000->frame_lost = false;
    e1000->frame_size = e1000->frame_options = 0;
    load_address(e1000);
    show_link(e1000);
    update_interrupt(e1000);
}

/* --- access --- */

static uint32_t read_row(struct e1000 *e1000, enum e1000_register n)
{
    uint32_t value = e1000->reg[n];
    if (n != E1000_ICR)
        return value;
    e1000->reg[E1000_ICR] = 0;
    update_interrupt(e1000);
    return value;
}

/* A command of the driver that has been written to reg[n]. */
static void act(struct e1000 *e1000, enum e1000_register n, uint32_t before, uint32_t value)
{
    switch (n) {
    case E1000_CTRL:
        if (value & ctrl_phy_rst)
            e1000_phy_reset(e1000);
        if (value & CTRL_RST)
            reset_registers(e1000);
        break;
    case E1000_EECD: e1000_eeprom_pins(e1000, before); break;
    case E1000_EERD:
        if (value & EERD_START)
            e1000_eeprom_read(e1000);
        break;
    case E1000_MDIC: e1000_phy_access(e1000); break;
    case E1000_ICS: e1000_raise(e1000, value & causes_mask); break;
    case E1000_IMS: e1000->reg[E1000_IMS] |= value & causes_mask; break;
    case E1000_IMC: e1000->reg[E1000_IMS] &= ~value; break;
    case E1000_RCTL: case E1000_RDT:
        if (e1000->net && e1000->reg[E1000_RCTL] & RCTL_EN)
            net_receive_ready(e1000->net);
        break;
    case E1000_TCTL: case E1000_TDT: e1000_transmit(e1000); break;
    default: break;
    }
    update_interrupt(e1000);
}

static void write_row(struct e1000 *e1000, enum e1000_register n, uint32_t value)
{
    const struct row *row = &rows[n];
    uint32_t before = e1000->reg[n];
    e1000->reg[n] = ((before & ~row->rw) | (value & row->rw)) & ~(value & row->w1c);
    act(e1000, n, before, value);
}

/* One of the arrays, or NULL; mask: the bits that there are. */
static uint32_t *in_array(struct e1000 *e1000, uint32_t offset, uint32_t *mask)
{
    *mask = UINT32_MAX;
    if (offset - MULTICAST_BASE < sizeof(e1000->multicast))
        return &e1000->multicast[(offset - MULTICAST_BASE) / 4];
    if (offset - VLAN_BASE < sizeof(e1000->vlan))
        return &e1000->vlan[(offset - VLAN_BASE) / 4];
    if (offset - ADDRESS_BASE >= sizeof(e1000->address))
        return NULL;
    *mask = offset & 4 ? address_high_mask : UINT32_MAX;
    return &e1000->address[(offset - ADDRESS_BASE) / 4];
}

static enum e1000_register find_row(uint32_t offset)
{
    unsigned n = 0;
    while (n < E1000_REGISTERS && rows[n].offset != offset)
        n++;
    return (enum e1000_register)n;
}

static uint32_t read_register(struct e1000 *e1000, uint32_t offset)
{
    enum e1000_register n = find_row(offset);
    uint32_t mask, *array = in_array(e1000, offset, &mask), value = 0;
    if (n < E1000_REGISTERS)
        return read_row(e1000, n);
    if (array)
        return *array;
    if (offset - STATISTICS_BASE < sizeof(e1000->statistics)) {
        value = e1000->statistics[(offset - STATISTICS_BASE) / 4];
        e1000->statistics[(offset - STATISTICS_BASE) / 4] = 0;
    }
    return value;
}

static void write_register(struct e1000 *e1000, uint32_t offset, uint32_t value)
{
    enum e1000_register n = find_row(offset);
    uint32_t mask, *array = in_array(e1000, offset, &mask);
    if (n < E1000_REGISTERS)
        write_row(e1000, n, value);
    else if (array)
        *array = value & mask;
}

/* The bus hands over aligned accesses of four bytes only. */
static enum access_result registers_access(void *owner, struct access *access)
{
    if (access->write)
        write_register(owner, (uint32_t)access->address, (uint32_t)access->value);
    else
        access->value = read_register(owner, (uint32_t)access->address);
    return ACCESS_OK;
}

/* §13.2.2 "I/O-Mapped Internal Register": the address in one port, the data in the next. */
static enum access_result io_access(void *owner, struct access *access)
{
    struct e1000 *e1000 = owner;
    bool reachable = e1000->io_address < REGISTERS_SIZE;
    if (access->address == IO_ADDRESS && access->write)
        e1000->io_address = (uint32_t)access->value & ~3u;
    else if (access->address == IO_ADDRESS)
        access->value = e1000->io_address;
    else if (access->address == IO_DATA && access->write && reachable)
        write_register(e1000, e1000->io_address, (uint32_t)access->value);
    else if (!access->write)
        access->value = access->address == IO_DATA && reachable ? read_register(e1000, e1000->io_address) : 0;
    return ACCESS_OK;
}

/* --- the network --- */

static void link_changed(void *owner, bool up)
{
    struct e1000 *e1000 = owner;
    e1000->link_up = up;
    show_link(e1000);
    e1000_raise(e1000, ICR_LSC);
}

static void transmit_more(void *owner) { e1000_transmit(owner); }

/* --- reset, init --- */

static void e1000_reset(struct device *device)
{
    struct e1000 *e1000 = (struct e1000 *)device;
    pci_function_reset(&e1000->pci);
    e1000->link_up = e1000->net != NULL;
    e1000->io_address = 0;
    memset(e1000->frame, 0, sizeof(e1000->frame));
    e1000_phy_reset(e1000);
    reset_registers(e1000);
}

static bool e1000_init(struct device *device, struct error *err)
{
    struct e1000 *e1000 = (struct e1000 *)device;
    static const struct pci_identity identity = { E1000_VENDOR, E1000_DEVICE, 0x8086, 0x001E, E1000_CLASS, E1000_REVISION };
    e1000->pci.conventional = true;
    if (!pci_function_init(&e1000->pci, &identity, err))
        return false;
    pci_bar_init(&e1000->pci, BAR_REGISTERS, "e1000", REGISTERS_SIZE, false, false, registers_access, e1000);
    pci_bar_init(&e1000->pci, BAR_IO, "e1000-io", IO_SIZE, false, true, io_access, e1000);
    e1000->pci.bar[BAR_REGISTERS].region.access_min = e1000->pci.bar[BAR_REGISTERS].region.access_max = 4;
    e1000->pci.bar[BAR_IO].region.access_min = e1000->pci.bar[BAR_IO].region.access_max = 4;
    timer_init(&e1000->more, device->world.clock, transmit_more, e1000);
    if (e1000->net)
        net_connect(e1000->net, &(struct net_client){ e1000_receive, link_changed, e1000 });
    return true;
}

/*
 * The address is this machine's configuration, which may not be that of the machine that the state comes from: a driver has it from
 * the EEPROM and keeps its own, but a reset brings it in. What was loaded may be anything: sizes are brought into their bounds.
 */
static void e1000_resume(struct device *device)
{
    struct e1000 *e1000 = (struct e1000 *)device;
    e1000->frame_size = (uint32_t)min_u64(e1000->frame_size, E1000_FRAME_MAX - VLAN_TAG);
    pci_function_resume(&e1000->pci);
    update_interrupt(e1000);
    if (e1000->reg[E1000_TDH] != e1000->reg[E1000_TDT])
        timer_arm(&e1000->more, clock_ns(device->world.clock));
}

static void e1000_fini(struct device *device)
{
    struct e1000 *e1000 = (struct e1000 *)device;
    timer_disarm(&e1000->more);
    if (e1000->net)
        net_connect(e1000->net, NULL);
    pci_function_fini(&e1000->pci);
}

/* --- state list, type --- */

static const struct state_field context_fields[] = {
    STATE_SCALAR(struct e1000_context, ip_start), STATE_SCALAR(struct e1000_context, ip_field), STATE_SCALAR(struct e1000_context, ip_end),
    STATE_SCALAR(struct e1000_context, tu_start), STATE_SCALAR(struct e1000_context, tu_field), STATE_SCALAR(struct e1000_context, tu_end),
    STATE_SCALAR(struct e1000_context, header),   STATE_SCALAR(struct e1000_context, command),  STATE_SCALAR(struct e1000_context, segment),
    STATE_SCALAR(struct e1000_context, payload),
};
static const struct state_list context_state = STATE_LIST("e1000-context", 1, context_fields);

static const struct state_field fields[] = {
    STATE_NESTED(struct e1000, pci, pci_function_state),
    STATE_ARRAY(struct e1000, reg),           STATE_ARRAY(struct e1000, multicast),
    STATE_ARRAY(struct e1000, address),       STATE_ARRAY(struct e1000, vlan),
    STATE_ARRAY(struct e1000, statistics),    STATE_ARRAY(struct e1000, phy),
    STATE_SCALAR(struct e1000, io_address),   STATE_SCALAR(struct e1000, eeprom_in),
    STATE_SCALAR(struct e1000, eeprom_out),   STATE_SCALAR(struct e1000, eeprom_bits),
    STATE_SCALAR(struct e1000, eeprom_reading), STATE_SCALAR(struct e1000, link_up),
    STATE_NESTED(struct e1000, checksum, context_state),
    STATE_NESTED(struct e1000, segmentation, context_state),
    STATE_SCALAR(struct e1000, frame_size),   STATE_SCALAR(struct e1000, frame_lost),
    STATE_SCALAR(struct e1000, frame_options), STATE_BLOB(struct e1000, frame),
};
static const struct state_list state = STATE_LIST("e1000", 1, fields);

const struct device_type device_e1000 = {
    .name = "e1000",
    .text = "Gigabit Ethernet controller (82540EM)",
    .size = sizeof(struct e1000),
    .state = &state,
    .init = e1000_init,
    .reset = e1000_reset,
    .resume = e1000_resume,
    .fini = e1000_fini,
};
