/*
 * VGA (IBM VGA Technical Reference, 1992, "VGA Function") on a PCI card with the dispi interface (vga_dispi.c), in the likeness of
 * QEMU's standard VGA: 1234:1111, the memory in BAR 0, registers in BAR 2 (QEMU documentation, "QEMU Standard VGA"), its BIOS
 * in the expansion ROM. The same registers answer at the old ports, and the window at 0xA0000 shows the memory.
 *
 * Not modelled: monochrome addresses' own registers (0x3Bx reaches the same ones), the light pen, the frame's exact timing:
 * only the retrace that programs wait for. EDID is absent.
 */
#include <string.h>

#include "dev/display/vga_internal.h"

/* --- registers --- */

enum { VGA_VENDOR = 0x1234, VGA_DEVICE = 0x1111, VGA_CLASS = 0x030000, BAR_MEMORY = 0, BAR_REGISTERS = 2, REGISTERS_SIZE = 0x1000 };
enum { WINDOW_BASE = 0xA0000, WINDOW_SIZE = 0x20000, PORTS_BASE = 0x3B0, PORTS_SIZE = 0x30, DISPI_PORT = 0x1CE, DISPI_PORTS = 4 };
enum { MMIO_PORTS = 0x400, MMIO_PORTS_FIRST = 0x3C0, MMIO_PORTS_SIZE = 0x20, MMIO_DISPI = 0x500, MMIO_EXTENSION = 0x600,
       EXTENSION_SIZE = 8, LITTLE_ENDIAN_MARK = 0x1E1E1E1E };

enum vga_port {
    PORT_ATTRIBUTE = 0x3C0,
    PORT_ATTRIBUTE_READ = 0x3C1,
    PORT_MISC_WRITE = 0x3C2,
    PORT_SEQUENCER = 0x3C4,
    PORT_SEQUENCER_DATA = 0x3C5,
    PORT_DAC_MASK = 0x3C6,
    PORT_DAC_READ_INDEX = 0x3C7,
    PORT_DAC_WRITE_INDEX = 0x3C8,
    PORT_DAC_DATA = 0x3C9,
    PORT_FEATURE_READ = 0x3CA,
    PORT_MISC_READ = 0x3CC,
    PORT_GRAPHICS = 0x3CE,
    PORT_GRAPHICS_DATA = 0x3CF,
    PORT_CRTC_MONO = 0x3B4,
    PORT_CRTC_MONO_DATA = 0x3B5,
    PORT_STATUS_MONO = 0x3BA,
    PORT_CRTC = 0x3D4,
    PORT_CRTC_DATA = 0x3D5,
    PORT_STATUS = 0x3DA,
};
enum { ATTRIBUTE_INDEX = 0x3F, ATTRIBUTE_PALETTE_ON = 0x20, DAC_READING = 3, CRTC_PROTECT = 0x80, CRTC_PROTECTED = 8, STATUS_BLANK = 1,
       STATUS_RETRACE = 8, SWITCH_SENSE = 0x10 };

/* Bits that exist in each register. */
static const uint8_t sequencer_mask[VGA_SEQUENCER] = { 0x03, 0x3D, 0x0F, 0x3F, 0x0E };
static const uint8_t graphics_mask[VGA_GRAPHICS] = { 0x0F, 0x0F, 0x0F, 0x1F, 0x03, 0x7B, 0x0F, 0x0F, 0xFF };
static const uint8_t attribute_mask[VGA_ATTRIBUTE] = {
    0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0x3F, 0xEF, 0xFF, 0x3F, 0x0F, 0x0F };

/* --- ports --- */

/* 70 frames a second; the last twentieth of each is the vertical retrace. */
static uint8_t status(struct vga *vga)
{
    const uint64_t frame = 14285714, line = 31777;
    uint64_t at = clock_ns(vga->pci.device.world.clock) % frame;
    vga->attribute_data = false;
    if (at >= frame - frame / 20)
        return STATUS_RETRACE | STATUS_BLANK;
    return at % line >= line - line / 5 ? STATUS_BLANK : 0;
}

static uint8_t read_dac(struct vga *vga)
{
    uint8_t value = vga->dac[3 * vga->dac_read_index + vga->dac_component];
    if (++vga->dac_component == 3) {
        vga->dac_component = 0;
        vga->dac_read_index++;
    }
    return value;
}

static void write_dac(struct vga *vga, uint8_t value)
{
    vga->dac[3 * vga->dac_write_index + vga->dac_component] = value;
    if (++vga->dac_component == 3) {
        vga->dac_component = 0;
        vga->dac_write_index++;
    }
}

static uint8_t indexed(const uint8_t *reg, unsigned count, unsigned index) { return index < count ? reg[index] : 0; }

static uint8_t read_port(struct vga *vga, unsigned port)
{
    switch ((enum vga_port)port) {
    case PORT_ATTRIBUTE: return vga->attribute_index;
    case PORT_ATTRIBUTE_READ: return indexed(vga->attribute, VGA_ATTRIBUTE, vga->attribute_index & 0x1F);
    case PORT_MISC_WRITE: return SWITCH_SENSE;
    case PORT_SEQUENCER: return vga->sequencer_index;
    case PORT_SEQUENCER_DATA: return indexed(vga->sequencer, VGA_SEQUENCER, vga->sequencer_index);
    case PORT_DAC_MASK: return vga->dac_mask;
    case PORT_DAC_READ_INDEX: return vga->dac_reading ? DAC_READING : 0;
    case PORT_DAC_WRITE_INDEX: return vga->dac_write_index;
    case PORT_DAC_DATA: return read_dac(vga);
    case PORT_FEATURE_READ: return vga->feature;
    case PORT_MISC_READ: return vga->misc_output;
    case PORT_GRAPHICS: return vga->graphics_index;
    case PORT_GRAPHICS_DATA: return indexed(vga->graphics, VGA_GRAPHICS, vga->graphics_index);
    case PORT_CRTC: case PORT_CRTC_MONO: return vga->crtc_index;
    case PORT_CRTC_DATA: case PORT_CRTC_MONO_DATA: return indexed(vga->crtc, VGA_CRTC, vga->crtc_index);
    case PORT_STATUS: case PORT_STATUS_MONO: return status(vga);
    default: return 0xFF;
    }
}

/* The attribute controller has one port for both: index and data take turns, and reading the status begins anew. */
static void write_attribute(struct vga *vga, uint8_t value)
{
    unsigned index = vga->attribute_index & 0x1F;
    if (!vga->attribute_data)
        vga->attribute_index = value & ATTRIBUTE_INDEX;
    else if (index < VGA_ATTRIBUTE && (index >= AT_MODE || !(vga->attribute_index & ATTRIBUTE_PALETTE_ON)))
        vga->attribute[index] = value & attribute_mask[index];
    vga->attribute_data = !vga->attribute_data;
}

/* Bit 7 of the retrace end register protects registers 0 to 7, but for the line compare bit of 7. */
static void write_crtc(struct vga *vga, uint8_t value)
{
    unsigned index = vga->crtc_index;
    if (index >= VGA_CRTC)
        return;
    if (index < CRTC_PROTECTED && vga->crtc[CR_RETRACE_END] & CRTC_PROTECT) {
        if (index == CR_OVERFLOW)
            vga->crtc[CR_OVERFLOW] = (uint8_t)((vga->crtc[CR_OVERFLOW] & ~0x10) | (value & 0x10));
        return;
    }
    vga->crtc[index] = value;
}

static void write_port(struct vga *vga, unsigned port, uint8_t value)
{
    switch ((enum vga_port)port) {
    case PORT_ATTRIBUTE: write_attribute(vga, value); break;
    case PORT_MISC_WRITE: vga->misc_output = value; break;
    case PORT_SEQUENCER: vga->sequencer_index = value & 7; break;
    case PORT_SEQUENCER_DATA:
        if (vga->sequencer_index < VGA_SEQUENCER)
            vga->sequencer[vga->sequencer_index] = value & sequencer_mask[vga->sequencer_index];
        break;
    case PORT_DAC_MASK: vga->dac_mask = value; break;
    case PORT_DAC_READ_INDEX:
        vga->dac_read_index = value;
        vga->dac_component = 0;
        vga->dac_reading = true;
        break;
    case PORT_DAC_WRITE_INDEX:
        vga->dac_write_index = value;
        vga->dac_component = 0;
        vga->dac_reading = false;
        break;
    case PORT_DAC_DATA: write_dac(vga, value); break;
    case PORT_GRAPHICS: vga->graphics_index = value & 15; break;
    case PORT_GRAPHICS_DATA:
        if (vga->graphics_index < VGA_GRAPHICS)
            vga->graphics[vga->graphics_index] = value & graphics_mask[vga->graphics_index];
        break;
    case PORT_CRTC: case PORT_CRTC_MONO: vga->crtc_index = value & 0x3F; break;
    case PORT_CRTC_DATA: case PORT_CRTC_MONO_DATA: write_crtc(vga, value); break;
    case PORT_STATUS: case PORT_STATUS_MONO: vga->feature = value; break;
    default: break;
    }
}

/* A wider access reaches several ports: an index and its data are often written as one word. */
static void port_access(struct vga *vga, unsigned port, struct access *access)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < access->size; i++) {
        if (access->write)
            write_port(vga, port + i, (uint8_t)(access->value >> (8 * i)));
        else
            value |= (uint64_t)read_port(vga, port + i) << (8 * i);
    }
    if (access->write)
        vga_changed(vga);
    else
        access->value = value;
}

/* --- access --- */

static enum access_result ports_access(void *owner, struct access *access)
{
    port_access(owner, PORTS_BASE + (unsigned)access->address, access);
    return ACCESS_OK;
}

/* The index at 0x1CE, the data at 0x1CF and, for those who want it aligned, at 0x1D0. */
static enum access_result dispi_access(void *owner, struct access *access)
{
    struct vga *vga = owner;
    if (access->size != 2) {
        access->value = size_mask(access->size);
        return ACCESS_OK;
    }
    if (access->address == 0 && access->write)
        vga->dispi_index = (uint16_t)access->value;
    else if (access->address == 0)
        access->value = vga->dispi_index;
    else if (access->write)
        vga_dispi_write(vga, vga->dispi_index, (uint16_t)access->value);
    else
        access->value = vga_dispi_read(vga, vga->dispi_index);
    if (access->write)
        vga_changed(vga);
    return ACCESS_OK;
}

static enum access_result window_access(void *owner, struct access *access)
{
    struct vga *vga = owner;
    uint64_t value = 0;
    for (unsigned i = 0; i < access->size; i++) {
        if (access->write)
            vga_window_write(vga, (unsigned)access->address + i, (uint8_t)(access->value >> (8 * i)));
        else
            value |= (uint64_t)vga_window_read(vga, (unsigned)access->address + i) << (8 * i);
    }
    if (access->write)
        vga_changed(vga);
    else
        access->value = value;
    return ACCESS_OK;
}

static enum access_result memory_access(void *owner, struct access *access)
{
    struct vga *vga = owner;
    if (access->write) {
        memcpy(vga->memory + access->address, &access->value, access->size);
        vga_changed(vga);
    } else {
        access->value = 0;
        memcpy(&access->value, vga->memory + access->address, access->size);
    }
    return ACCESS_OK;
}

static enum access_result registers_access(void *owner, struct access *access)
{
    struct vga *vga = owner;
    unsigned offset = (unsigned)access->address;
    if (offset >= MMIO_PORTS && offset + access->size <= MMIO_PORTS + MMIO_PORTS_SIZE) {
        port_access(vga, offset - MMIO_PORTS + MMIO_PORTS_FIRST, access);
    } else if (offset >= MMIO_DISPI && offset < MMIO_DISPI + 2 * VGA_DISPI && access->size == 2) {
        if (access->write)
            vga_dispi_write(vga, (offset - MMIO_DISPI) / 2, (uint16_t)access->value);
        else
            access->value = vga_dispi_read(vga, (offset - MMIO_DISPI) / 2);
    } else if (!access->write) {
        access->value = offset == MMIO_EXTENSION ? EXTENSION_SIZE : offset == MMIO_EXTENSION + 4 ? LITTLE_ENDIAN_MARK : 0;
    }
    if (access->write)
        vga_changed(vga);
    return ACCESS_OK;
}

/* --- reset, init --- */

static void vga_reset(struct device *device)
{
    struct vga *vga = (struct vga *)device;
    pci_function_reset(&vga->pci);
    vga->misc_output = vga->feature = 0;
    vga->sequencer_index = vga->graphics_index = vga->crtc_index = vga->attribute_index = 0;
    memset(vga->sequencer, 0, sizeof(vga->sequencer));
    memset(vga->graphics, 0, sizeof(vga->graphics));
    memset(vga->crtc, 0, sizeof(vga->crtc));
    memset(vga->attribute, 0, sizeof(vga->attribute));
    memset(vga->dac, 0, sizeof(vga->dac));
    memset(vga->latch, 0, sizeof(vga->latch));
    memset(vga->dispi, 0, sizeof(vga->dispi));
    memset(vga->memory, 0, sizeof(vga->memory));
    vga->attribute_data = vga->dac_reading = false;
    vga->dac_read_index = vga->dac_write_index = vga->dac_component = 0;
    vga->dac_mask = 0xFF;
    vga->dispi_index = 0;
    vga->dispi[DISPI_ID] = 0xB0C5;
    vga->dispi[DISPI_MEMORY_64K] = VGA_RAM_SIZE >> 16;
    vga_changed(vga);
}

static void map(struct bus *bus, struct region *region, const char *name, uint64_t base, uint64_t size,
                enum access_result (*access)(void *owner, struct access *access), struct vga *vga)
{
    *region = (struct region){ .name = name, .base = base, .size = size, .access = access, .owner = vga, .priority = -1,
                               .lock = &vga->mutex };
    bus_map(bus, region);
}

static bool vga_init(struct device *device, struct error *err)
{
    struct vga *vga = (struct vga *)device;
    struct device_world *world = &device->world;
    static const struct pci_identity identity = { VGA_VENDOR, VGA_DEVICE, 0x1AF4, 0x1100, VGA_CLASS, 2 };
    vga->pci.conventional = true;
    pthread_mutex_init(&vga->mutex, NULL);
    if (!pci_function_init(&vga->pci, &identity, err))
        return false;
    vga->pci.config[PCI_INTERRUPT_PIN] = 0;
    pci_bar_init(&vga->pci, BAR_MEMORY, "vga-memory", VGA_RAM_SIZE, false, false, memory_access, vga);
    vga->pci.config[PCI_BASE_ADDRESS_0 + 4 * BAR_MEMORY] |= PCI_BASE_ADDRESS_MEM_PREFETCH;
    pci_bar_init(&vga->pci, BAR_REGISTERS, "vga-registers", REGISTERS_SIZE, false, false, registers_access, vga);
    vga->pci.bar[BAR_REGISTERS].region.access_max = 4;
    vga->pci.bar[BAR_MEMORY].region.lock = vga->pci.bar[BAR_REGISTERS].region.lock = &vga->mutex;
    if (vga->rom)
        pci_rom_init(&vga->pci, vga->rom, vga->rom_size);
    map(world->ports, &vga->legacy_ports, "vga", PORTS_BASE, PORTS_SIZE, ports_access, vga);
    map(world->ports, &vga->dispi_ports, "vga-dispi", DISPI_PORT, DISPI_PORTS, dispi_access, vga);
    vga->dispi_ports.unaligned = true;         /* a word at 0x1CF is one register */
    map(world->mmio, &vga->window, "vga-window", WINDOW_BASE, WINDOW_SIZE, window_access, vga);
    return true;
}

/* What was loaded may be anything: indices are brought into their bounds. */
static void vga_resume(struct device *device)
{
    struct vga *vga = (struct vga *)device;
    vga->dac_component %= 3;
    if (vga->dispi[DISPI_BANK] >= VGA_RAM_SIZE >> 16)
        vga->dispi[DISPI_BANK] = 0;
    vga_changed(vga);
    pci_function_resume(&vga->pci);
}

static void vga_fini(struct device *device)
{
    struct vga *vga = (struct vga *)device;
    bus_unmap(device->world.ports, &vga->legacy_ports);
    bus_unmap(device->world.ports, &vga->dispi_ports);
    bus_unmap(device->world.mmio, &vga->window);
    pci_function_fini(&vga->pci);
    pthread_mutex_destroy(&vga->mutex);
}

/* --- state list, type --- */

static const struct state_field fields[] = {
    STATE_NESTED(struct vga, pci, pci_function_state),
    STATE_SCALAR(struct vga, misc_output),     STATE_SCALAR(struct vga, feature),
    STATE_SCALAR(struct vga, sequencer_index), STATE_ARRAY(struct vga, sequencer),
    STATE_SCALAR(struct vga, graphics_index),  STATE_ARRAY(struct vga, graphics),
    STATE_SCALAR(struct vga, crtc_index),      STATE_ARRAY(struct vga, crtc),
    STATE_SCALAR(struct vga, attribute_index), STATE_ARRAY(struct vga, attribute),
    STATE_SCALAR(struct vga, attribute_data),  STATE_SCALAR(struct vga, dac_read_index),
    STATE_SCALAR(struct vga, dac_write_index), STATE_SCALAR(struct vga, dac_component),
    STATE_SCALAR(struct vga, dac_mask),        STATE_BLOB(struct vga, dac),
    STATE_SCALAR(struct vga, dac_reading),     STATE_BLOB(struct vga, latch),
    STATE_SCALAR(struct vga, dispi_index),     STATE_ARRAY(struct vga, dispi),
    STATE_BLOB(struct vga, memory),
};
static const struct state_list vga_state = STATE_LIST("vga", 1, fields);

const struct device_type device_vga = {
    .name = "vga",
    .text = "VGA display with the dispi interface",
    .size = sizeof(struct vga),
    .state = &vga_state,
    .init = vga_init,
    .reset = vga_reset,
    .resume = vga_resume,
    .fini = vga_fini,
};
