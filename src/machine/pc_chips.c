/* The board's chips with fixed addresses: interrupt controllers, timers, serial line, power management and the like. */
#include <stdio.h>

#include "dev/acpi_pm.h"
#include "dev/apic_bus.h"
#include "dev/debug_exit.h"
#include "dev/debugcon.h"
#include "dev/fw_cfg.h"
#include "dev/hpet.h"
#include "dev/i8042.h"
#include "dev/ioapic.h"
#include "dev/lapic.h"
#include "dev/pci_hotplug.h"
#include "dev/pic.h"
#include "dev/pit.h"
#include "dev/pvpanic.h"
#include "dev/rtc.h"
#include "dev/storage/flash.h"
#include "dev/uart.h"
#include "dev/vmgenid.h"
#include "machine/firmware.h"
#include "machine/layout.h"
#include "machine/pc_internal.h"
#include "vcpu/thread.h"
#include "x86/model.h"
#include "x86/x86.h"

/* --- interrupt controllers --- */

static struct gsi *gsi_of(struct pc_wiring *wiring) { return &wiring->machine->pc->gsi; }

static void wire_lapic(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct lapic *lapic = (struct lapic *)device;
    struct vcpu *vcpu = (struct vcpu *)wiring->argument;
    lapic->apic_id = vcpu->apic_id;
    lapic->bsp = vcpu->index == 0;
    lapic->timer_hz = (uint64_t)x86_crystal(vcpu->model->tsc_hz).khz * 1000;
    lapic->physical_bits = (uint8_t)x86_physical_bits(vcpu);
    lapic->no_x2apic = !x86_has(vcpu, FEATURE_X2APIC);
    lapic->no_tsc_deadline = !x86_has(vcpu, FEATURE_TSC_DEADLINE);
    lapic->bus = wiring->machine->pc->apic_bus;
    lapic->signal = vcpu_signal(vcpu);
    if (lapic->bsp)
        lapic->extint = (struct extint_source){ pic_acknowledge, wiring->machine->pic };
}

static void wire_ioapic(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    ((struct ioapic *)device)->bus = wiring->machine->pc->apic_bus;
}

bool pc_make_interrupt_controllers(struct machine *machine, struct error *err)
{
    struct pc *pc = machine->pc;
    machine->pic = pc_make(machine, &device_pic, "pic", NULL, NULL, err);
    machine->ioapic = pc_make(machine, &device_ioapic, "ioapic", wire_ioapic, NULL, err);
    if (!machine->pic || !machine->ioapic)
        return false;
    for (unsigned i = 0; i < machine->config.cpus; i++) {
        struct vcpu *vcpu = machine->vcpu[i];
        char name[16];
        snprintf(name, sizeof(name), "lapic%u", i);
        machine->lapic[i] = pc_make(machine, &device_lapic, name, wire_lapic, vcpu, err);
        if (!machine->lapic[i])
            return false;
        vcpu->intc_ops = &lapic_intc_ops;
        vcpu->intc = machine->lapic[i];
    }
    /* The local APIC asks the 8259 for vectors and is asked by its line: the one made first is connected last. */
    ((struct pic *)machine->pic)->intr = (struct irq_line){ lapic_lint_line, machine->lapic[0], 0 };
    pc->gsi.pic = (struct irq_line){ pic_set_irq, machine->pic, 0 };
    pc->gsi.ioapic = (struct irq_line){ ioapic_set_irq, machine->ioapic, 0 };
    pc->gsi.counters = &machine->counters;
    return true;
}

/* --- the others --- */

static void wire_pit(struct device *device, void *opaque)
{
    ((struct pit *)device)->irq = gsi_replaceable_line(gsi_of(opaque), GSI_PIT);
}

static void wire_rtc(struct device *device, void *opaque)
{
    ((struct rtc *)device)->irq = gsi_replaceable_line(gsi_of(opaque), GSI_RTC);
}

static void wire_hpet(struct device *device, void *opaque)
{
    struct hpet *hpet = (struct hpet *)device;
    for (unsigned i = 0; i < HPET_LINES; i++)
        hpet->irq[i] = gsi_shared_line(gsi_of(opaque), GSI_HPET, i);
    hpet->legacy = gsi_hpet_legacy_line(gsi_of(opaque));
}

static void wire_acpi_pm(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct acpi_pm *pm = (struct acpi_pm *)device;
    pm->sci = gsi_line(gsi_of(wiring), IRQ_SCI);
    pm->signal = wiring->machine->pc->signal;
}

static void wire_vmgenid(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct vmgenid *vmgenid = (struct vmgenid *)device;
    vmgenid->base = VMGENID_BASE;
    vmgenid->changed = (struct irq_line){ acpi_pm_gpe_line, wiring->machine->acpi_pm, GPE_VMGENID };
}

static void wire_pci_hotplug(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct pci_hotplug *hotplug = (struct pci_hotplug *)device;
    hotplug->base = PORT_PCI_HOTPLUG_BASE;
    hotplug->changed = (struct irq_line){ acpi_pm_gpe_line, wiring->machine->acpi_pm, GPE_PCI_HOTPLUG };
    hotplug->eject = pc_on_eject;
    hotplug->owner = wiring->machine;
}

static void wire_i8042(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct i8042 *i8042 = (struct i8042 *)device;
    i8042->irq = gsi_line(gsi_of(wiring), IRQ_KEYBOARD);
    i8042->irq_aux = gsi_line(gsi_of(wiring), IRQ_MOUSE);
    i8042->signal = wiring->machine->pc->signal;
    i8042->plugged = pc_has_display(wiring->machine);
}

static void wire_uart(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    struct uart *uart = (struct uart *)device;
    uart->irq = gsi_line(gsi_of(wiring), IRQ_UART0);
    uart->chardev = wiring->machine->console;
}

static void wire_debugcon(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    ((struct debugcon *)device)->chardev = wiring->machine->debug_console;
}

static void wire_debug_exit(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    ((struct debug_exit *)device)->signal = wiring->machine->pc->signal;
}

static void wire_pvpanic(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    ((struct pvpanic *)device)->signal = wiring->machine->pc->signal;
}

static void wire_flash(struct device *device, void *opaque)
{
    struct pc_wiring *wiring = opaque;
    firmware_wire_flash(wiring->machine->firmware, (struct flash *)device);
}

bool pc_make_chips(struct machine *machine, struct error *err)
{
    const struct machine_config *config = &machine->config;
    machine->acpi_pm = pc_make(machine, &device_acpi_pm, "acpi-pm", wire_acpi_pm, NULL, err);
    machine->uart = machine->acpi_pm ? pc_make(machine, &device_uart, "uart0", wire_uart, NULL, err) : NULL;
    machine->rtc = machine->uart ? pc_make(machine, &device_rtc, "rtc", wire_rtc, NULL, err) : NULL;
    if (machine->firmware && firmware_has_flash(machine->firmware) && !pc_make(machine, &device_flash, "flash", wire_flash, NULL, err))
        return false;
    if (machine->rtc && machine->firmware && !(machine->fw_cfg = pc_make(machine, &device_fw_cfg, "fw-cfg", NULL, NULL, err)))
        return false;
    return machine->rtc && pc_make(machine, &device_pit, "pit", wire_pit, NULL, err) &&
           pc_make(machine, &device_hpet, "hpet", wire_hpet, NULL, err) &&
           (machine->i8042 = pc_make(machine, &device_i8042, "i8042", wire_i8042, NULL, err)) &&
           (machine->vmgenid = pc_make(machine, &device_vmgenid, "vmgenid", wire_vmgenid, NULL, err)) &&
           pc_make(machine, &device_pvpanic, "pvpanic", wire_pvpanic, NULL, err) &&
           (machine->pci_hotplug = pc_make(machine, &device_pci_hotplug, "pci-hotplug", wire_pci_hotplug, NULL, err)) &&
           (!config->debug_console || pc_make(machine, &device_debugcon, "debugcon", wire_debugcon, NULL, err)) &&
           (!config->debug_exit || pc_make(machine, &device_debug_exit, "debug-exit", wire_debug_exit, NULL, err));
}
