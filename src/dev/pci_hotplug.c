/*
 * Hot-plug of PCI slots by ACPI (ACPI 6.4 §5.6.6 "Device Object Notifications", §6.3.3 "_EJx (Eject)"). The registers are between us and our DSDT: no
 * document has them. A general-purpose event makes the guest run a method, which reads what has come and what is wanted back, and notifies the slots'
 * devices; the guest's driver ends with _EJ0, which writes here.
 *   0 CAME    32 bits, a slot each; writing 1 clears
 *   4 LEAVE   the same
 *   8 EJECT   write only: the device in the slot may go
 */
#include "dev/pci_hotplug.h"

#include "base/base.h"

enum pci_hotplug_port { CAME = 0, LEAVE = 4, EJECT = 8, SIZE = 16, SLOTS = 32 };

static const uint64_t base_default = 0x640;

static void tell(struct pci_hotplug *hotplug)
{
    irq_set(&hotplug->changed, true);
    irq_set(&hotplug->changed, false);
}

void pci_hotplug_came(struct pci_hotplug *hotplug, unsigned slot)
{
    hotplug->came |= 1u << slot;
    tell(hotplug);
}

void pci_hotplug_ask_back(struct pci_hotplug *hotplug, unsigned slot)
{
    hotplug->leave |= 1u << slot;
    tell(hotplug);
}

/* --- access --- */

static void eject(struct pci_hotplug *hotplug, uint32_t slots)
{
    for (unsigned slot = 0; slot < SLOTS && hotplug->eject; slot++)
        if (slots & 1u << slot)
            hotplug->eject(hotplug->owner, slot);
}

static enum access_result hotplug_access(void *owner, struct access *access)
{
    struct pci_hotplug *hotplug = owner;
    uint32_t value = (uint32_t)access->value;
    access->value = access->address == CAME ? hotplug->came : access->address == LEAVE ? hotplug->leave : 0;
    if (!access->write)
        return ACCESS_OK;
    switch (access->address) {
    case CAME: hotplug->came &= ~value; break;
    case LEAVE: hotplug->leave &= ~value; break;
    case EJECT: eject(hotplug, value); break;
    }
    return ACCESS_OK;
}

/* --- reset, init --- */

static void hotplug_reset(struct device *device)
{
    struct pci_hotplug *hotplug = (struct pci_hotplug *)device;
    hotplug->came = hotplug->leave = 0;
}

static bool hotplug_init(struct device *device, struct error *err)
{
    struct pci_hotplug *hotplug = (struct pci_hotplug *)device;
    hotplug->region = (struct region){ .name = "pci-hotplug", .base = hotplug->base ? hotplug->base : base_default, .size = SIZE,
                                       .access_min = 4, .access_max = 4, .access = hotplug_access, .owner = hotplug,
                                       .lock = device->world.lock };
    bus_map(device->world.ports, &hotplug->region);
    return true;
}

static void hotplug_fini(struct device *device) { bus_unmap(device->world.ports, &((struct pci_hotplug *)device)->region); }

/* --- state list, type --- */

static const struct state_field hotplug_fields[] = {
    STATE_SCALAR(struct pci_hotplug, came), STATE_SCALAR(struct pci_hotplug, leave),
};
static const struct state_list hotplug_state = STATE_LIST("pci-hotplug", 1, hotplug_fields);

static const struct config_field hotplug_config[] = {
    { "base", CONFIG_UINT, offsetof(struct pci_hotplug, base), "first port" },
    { NULL },
};

const struct device_type device_pci_hotplug = {
    .name = "pci-hotplug",
    .text = "hot-plug of PCI slots",
    .size = sizeof(struct pci_hotplug),
    .config = hotplug_config,
    .state = &hotplug_state,
    .init = hotplug_init,
    .reset = hotplug_reset,
    .fini = hotplug_fini,
};
