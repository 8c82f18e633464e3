/* PCI: configuration space, BARs, interrupts of all three kinds, and the edu device that uses them all. */
#include "dev/pci/lpc.h"
#include "dev/pci/watchdog.h"
#include "dev/rig.h"

enum { EDU = 3 << 3, EDU2 = 11 << 3 };      /* slots 3 and 11 share a line */

static uint32_t port_config(struct rig *rig, uint8_t devfn, unsigned offset, unsigned size)
{
    rig_access(rig->ports, 0xCF8, 4, true, 1u << 31 | (uint32_t)devfn << 8 | (offset & 0xFC));
    return (uint32_t)rig_access(rig->ports, 0xCFC + (offset & 3), size, false, 0);
}

static void both_configuration_mechanisms_agree(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *edu = rig_add(&rig, &device_edu, EDU, NULL, NULL);
    assert_int_equal(port_config(&rig, 0, 0, 4), 0x29C08086);
    assert_int_equal(port_config(&rig, EDU, 0, 4), 0x11E81234);
    for (unsigned i = 0; i < 256; i++)
        assert_int_equal(port_config(&rig, EDU, i, 1), rig_config_read(&rig, EDU, i, 1));
    assert_int_equal(port_config(&rig, 5 << 3, 0, 4), 0xFFFFFFFF);
    assert_int_equal(rig_config_read(&rig, 5 << 3, 0, 2), 0xFFFF);
    assert_int_equal(rig_read(&rig, RIG_ECAM + (1 << 20), 4), 0xFFFFFFFF);      /* bus 1 */
    rig_config_write(&rig, EDU, 0, 4, 0);
    assert_int_equal(rig_config_read(&rig, EDU, 0, 4), 0x11E81234);
    rig_access(rig.ports, 0xCF8, 4, true, 0);                                   /* not enabled */
    assert_int_equal(rig_access(rig.ports, 0xCFC, 4, false, 0), 0xFFFFFFFF);
    device_destroy(&edu->device);
    assert_int_equal(rig_config_read(&rig, EDU, 0, 2), 0xFFFF);
    rig_destroy(&rig);
}

static void reset_register_resets_on_the_rising_bit(void **state)
{
    struct rig rig;
    rig_create(&rig);
    rig_access(rig.ports, 0xCF9, 1, true, 0x02);
    assert_int_equal(rig.resets, 0);
    rig_access(rig.ports, 0xCF9, 1, true, 0x06);
    rig_access(rig.ports, 0xCF9, 1, true, 0x06);
    assert_int_equal(rig.resets, 1);
    rig_destroy(&rig);
}

static void bars_size_move_and_vanish(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *edu = rig_add(&rig, &device_edu, EDU, NULL, NULL);
    uint64_t base = rig_bar(&rig, EDU, 0);
    assert_int_equal(rig_read(&rig, base, 4), 0x010000ED);
    rig_config_write(&rig, EDU, PCI_BASE_ADDRESS_0, 4, 0xFFFFFFFF);
    assert_int_equal(rig_config_read(&rig, EDU, PCI_BASE_ADDRESS_0, 4), 0xFFF00000);
    assert_int_equal(rig_read(&rig, base, 4), 0xFFFFFFFF);
    rig_config_write(&rig, EDU, PCI_BASE_ADDRESS_0, 4, 0xD0000000);
    assert_int_equal(rig_read(&rig, 0xD0000000, 4), 0x010000ED);
    rig_config_write(&rig, EDU, PCI_COMMAND, 2, 0);
    assert_int_equal(rig_read(&rig, 0xD0000000, 4), 0xFFFFFFFF);
    rig_config_write(&rig, EDU, PCI_BASE_ADDRESS_1, 4, 0xFFFFFFFF);
    assert_int_equal(rig_config_read(&rig, EDU, PCI_BASE_ADDRESS_1, 4), 0);
    device_destroy(&edu->device);
    rig_destroy(&rig);
}

static void a_bar_cannot_cover_a_chip(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *edu = rig_add(&rig, &device_edu, EDU, NULL, NULL);
    rig_config_write(&rig, EDU, PCI_BASE_ADDRESS_0, 4, RIG_ECAM);
    assert_int_equal(rig_config_read(&rig, 0, 0, 4), 0x29C08086);
    device_destroy(&edu->device);
    rig_destroy(&rig);
}

static void capabilities_form_a_list(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *net = rig_add(&rig, &device_virtio_net, EDU, NULL, NULL);
    assert_int_not_equal(rig_capability(&rig, EDU, PCI_CAP_ID_EXP, 0), 0);
    assert_int_not_equal(rig_capability(&rig, EDU, PCI_CAP_ID_MSIX, 0), 0);
    for (unsigned i = 0; i < 5; i++)
        assert_int_not_equal(rig_capability(&rig, EDU, PCI_CAP_ID_VNDR, i), 0);
    assert_int_equal(rig_capability(&rig, EDU, PCI_CAP_ID_VNDR, 5), 0);
    assert_int_equal(rig_capability(&rig, 0, PCI_CAP_ID_EXP, 0), 0);
    device_destroy(&net->device);
    rig_destroy(&rig);
}

static void intx_lines_are_shared_and_can_be_disabled(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *a = rig_add(&rig, &device_edu, EDU, NULL, NULL), *b = rig_add(&rig, &device_edu, EDU2, NULL, NULL);
    uint64_t bar_a = rig_bar(&rig, EDU, 0), bar_b = rig_bar(&rig, EDU2, 0);
    assert_int_not_equal(bar_a, bar_b);
    rig_write(&rig, bar_a + 0x60, 4, 1);
    assert_true(rig.line[3]);
    assert_true(rig_config_read(&rig, EDU, PCI_STATUS, 2) & PCI_STATUS_INTERRUPT);
    rig_write(&rig, bar_b + 0x60, 4, 2);
    rig_write(&rig, bar_a + 0x64, 4, 1);
    assert_true(rig.line[3]);
    assert_int_equal(rig_read(&rig, bar_b + 0x24, 4), 2);
    rig_config_write(&rig, EDU2, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
    assert_false(rig.line[3]);
    rig_config_write(&rig, EDU2, PCI_COMMAND, 2, PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER);
    assert_true(rig.line[3]);
    rig_write(&rig, bar_b + 0x64, 4, 2);
    assert_false(rig.line[3]);
    device_destroy(&a->device);
    device_destroy(&b->device);
    rig_destroy(&rig);
}

static void msi_goes_out_as_a_write_and_can_be_masked(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *edu = rig_add(&rig, &device_edu, EDU, NULL, NULL);
    uint64_t bar = rig_bar(&rig, EDU, 0);
    unsigned at = rig_capability(&rig, EDU, PCI_CAP_ID_MSI, 0);
    rig_config_write(&rig, EDU, at + PCI_MSI_ADDRESS_LO, 4, 0xFEE01004);
    rig_config_write(&rig, EDU, at + PCI_MSI_DATA_64, 2, 0x4041);
    rig_config_write(&rig, EDU, at + PCI_MSI_FLAGS, 2, PCI_MSI_FLAGS_ENABLE);
    rig_write(&rig, bar + 0x60, 4, 1);
    assert_int_equal(rig.msi_count, 1);
    assert_int_equal(rig.msi[0].address, 0xFEE01004);
    assert_int_equal(rig.msi[0].data, 0x4041);
    assert_int_equal(rig.msi[0].requester, EDU);
    assert_false(rig.line[3]);
    rig_config_write(&rig, EDU, at + PCI_MSI_MASK_64, 4, 1);
    rig_write(&rig, bar + 0x60, 4, 1);
    assert_int_equal(rig.msi_count, 1);
    assert_int_equal(rig_config_read(&rig, EDU, at + PCI_MSI_PENDING_64, 4), 1);
    rig_config_write(&rig, EDU, at + PCI_MSI_MASK_64, 4, 0);
    assert_int_equal(rig.msi_count, 2);
    rig_bus_master(&rig, EDU, false);
    rig_write(&rig, bar + 0x60, 4, 1);
    assert_int_equal(rig.msi_count, 2);         /* no bus master, no message */
    device_destroy(&edu->device);
    rig_destroy(&rig);
}

static void msix_masks_and_pending_bits(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *net = rig_add(&rig, &device_virtio_net, EDU, NULL, NULL);
    unsigned at = rig_capability(&rig, EDU, PCI_CAP_ID_MSIX, 0);
    assert_int_equal(rig_config_read(&rig, EDU, at + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE, 2);
    uint64_t table = rig_bar(&rig, EDU, 1);
    uint64_t pba = table + (rig_config_read(&rig, EDU, at + PCI_MSIX_PBA, 4) & ~7u);
    assert_int_equal(rig_read(&rig, table + 16 + 12, 4), 1);    /* masked after reset */
    rig_write(&rig, table + 16, 8, 0xFEE00000);
    rig_write(&rig, table + 16 + 8, 4, 0x55);
    pci_msix_send(net, 1);
    assert_int_equal(rig_read(&rig, pba, 8), 0);                /* not enabled at all */
    rig_config_write(&rig, EDU, at + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    pci_msix_send(net, 1);
    assert_int_equal(rig.msi_count, 0);
    assert_int_equal(rig_read(&rig, pba, 8), 2);
    rig_config_write(&rig, EDU, at + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE | PCI_MSIX_FLAGS_MASKALL);
    rig_write(&rig, table + 16 + 12, 4, 0);
    assert_int_equal(rig.msi_count, 0);
    rig_config_write(&rig, EDU, at + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    assert_int_equal(rig.msi_count, 1);
    assert_int_equal(rig.msi[0].data, 0x55);
    assert_int_equal(rig_read(&rig, pba, 8), 0);
    pci_msix_send(net, 1);
    assert_int_equal(rig.msi_count, 2);
    pci_msix_send(net, 63);                                     /* no such vector */
    assert_int_equal(rig.msi_count, 2);
    device_destroy(&net->device);
    rig_destroy(&rig);
}

static void edu_computes_and_moves_data(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *edu = rig_add(&rig, &device_edu, EDU, NULL, NULL);
    uint64_t bar = rig_bar(&rig, EDU, 0);
    rig_write(&rig, bar + 4, 4, 0x12345678);
    assert_int_equal(rig_read(&rig, bar + 4, 4), 0xEDCBA987);
    rig_write(&rig, bar + 0x20, 4, 0x80);
    rig_write(&rig, bar + 8, 4, 10);
    assert_int_equal(rig_read(&rig, bar + 0x20, 4), 0x81);
    clock_advance(rig.clock, 1000000);
    assert_int_equal(rig_read(&rig, bar + 0x20, 4), 0x80);
    assert_int_equal(rig_read(&rig, bar + 8, 4), 3628800);
    assert_int_equal(rig_read(&rig, bar + 0x24, 4), 1);
    assert_true(rig.line[3]);
    rig_write(&rig, bar + 0x64, 4, 1);

    uint8_t out[256], in[256] = { 0 };
    for (unsigned i = 0; i < sizeof(out); i++)
        out[i] = (uint8_t)(i ^ 0x5A);
    ram_write(rig.ram, 0x10000, out, sizeof(out));
    rig_write(&rig, bar + 0x80, 8, 0x10000);
    rig_write(&rig, bar + 0x88, 8, 0x40010);
    rig_write(&rig, bar + 0x90, 8, sizeof(out));
    rig_write(&rig, bar + 0x98, 8, 1);
    assert_int_equal(rig_read(&rig, bar + 0x98, 8) & 1, 1);
    clock_advance(rig.clock, 200000000);
    assert_int_equal(rig_read(&rig, bar + 0x98, 8) & 1, 0);
    rig_write(&rig, bar + 0x80, 8, 0x40010);
    rig_write(&rig, bar + 0x88, 8, 0x20000);
    rig_write(&rig, bar + 0x98, 8, 7);
    clock_advance(rig.clock, 200000000);
    assert_int_equal(rig_read(&rig, bar + 0x24, 4), 0x100);
    ram_read(rig.ram, 0x20000, in, sizeof(in));
    assert_memory_equal(in, out, sizeof(out));
    /* Sizes and places that reach outside the buffer move nothing. */
    rig_write(&rig, bar + 0x90, 8, UINT64_MAX);
    rig_write(&rig, bar + 0x98, 8, 3);
    clock_advance(rig.clock, 200000000);
    assert_int_equal(rig_read(&rig, bar + 0x98, 8) & 1, 0);
    device_destroy(&edu->device);
    rig_destroy(&rig);
}

/* A device that writes to its own registers is not re-entered; to another's it is delivered. */
static void dma_reaches_peers_but_not_itself(void **state)
{
    struct rig rig;
    rig_create(&rig);
    struct pci_function *a = rig_add(&rig, &device_edu, EDU, NULL, NULL), *b = rig_add(&rig, &device_edu, EDU2, NULL, NULL);
    uint64_t bar_a = rig_bar(&rig, EDU, 0), bar_b = rig_bar(&rig, EDU2, 0);
    uint32_t value = 0x0F0F0F0F, back = 0;
    assert_false(dma_write(&a->device.dma, bar_a + 4, &value, 4));
    assert_true(dma_write(&a->device.dma, bar_b + 4, &value, 4));
    assert_true(dma_read(&a->device.dma, bar_b + 4, &back, 4));
    assert_int_equal(back, ~value);
    rig_bus_master(&rig, EDU, false);
    assert_false(dma_read(&a->device.dma, 0x1000, &back, 4));
    assert_false(dma_write(&b->device.dma, 0x90000000, &value, 4));
    device_destroy(&a->device);
    device_destroy(&b->device);
    rig_destroy(&rig);
}

static void state_survives_a_save_and_a_load(void **state)
{
    struct rig rig;
    struct state_buffer buffer = { 0 };
    size_t used = 0;
    rig_create(&rig);
    struct pci_function *edu = rig_add(&rig, &device_edu, EDU, NULL, NULL);
    uint64_t bar = rig_bar(&rig, EDU, 0);
    rig_write(&rig, bar + 0x60, 4, 1);
    state_save(edu->device.type->state, edu, &buffer);
    edu->device.type->reset(&edu->device);
    assert_false(rig.line[3]);
    assert_int_equal(rig_read(&rig, bar, 4), 0xFFFFFFFF);
    assert_true(state_load(edu->device.type->state, edu, buffer.data, buffer.size, &used, NULL));
    edu->device.type->resume(&edu->device);
    assert_true(rig.line[3]);
    assert_int_equal(rig_read(&rig, bar, 4), 0x010000ED);
    state_buffer_free(&buffer);
    device_destroy(&edu->device);
    rig_destroy(&rig);
}

static void ecam_moves_with_pciexbar(void **state)
{
    struct rig rig;
    rig_create(&rig);
    rig_config_write(&rig, 0, 0x60, 4, 0xE0000001);
    assert_int_equal(rig_read(&rig, RIG_ECAM, 4), 0xFFFFFFFF);
    assert_int_equal(rig_read(&rig, 0xE0000000, 4), 0x29C08086);
    assert_int_equal(host_bridge_ecam((struct host_bridge *)rig.bridge), 0xE0000000);
    rig_write(&rig, 0xE0000060, 4, 0xE0000000);
    assert_int_equal(rig_read(&rig, 0xE0000000, 4), 0xFFFFFFFF);
    assert_int_equal(port_config(&rig, 0, 0, 4), 0x29C08086);
    device_host_bridge.reset(rig.bridge);
    assert_int_equal(rig_read(&rig, RIG_ECAM, 4), 0x29C08086);
    rig_destroy(&rig);
}

static void note_segment(void *owner, unsigned segment, bool read, bool write)
{
    ((uint8_t *)owner)[segment] = (uint8_t)(read | write << 1);
}

static void pam_registers_name_their_segments(void **state)
{
    struct rig rig;
    uint8_t seen[PAM_SEGMENTS] = { 0 };
    rig_create(&rig);
    struct host_bridge *bridge = (struct host_bridge *)rig.bridge;
    bridge->pam = (struct pam_sink){ note_segment, seen };
    rig_config_write(&rig, 0, 0x90, 1, 0xFF);
    rig_config_write(&rig, 0, 0x91, 1, 0x21);
    rig_config_write(&rig, 0, 0x96, 1, 0x13);
    static const uint8_t expected[PAM_SEGMENTS] = { 3, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1 };
    assert_memory_equal(seen, expected, sizeof(seen));
    assert_int_equal(rig_config_read(&rig, 0, 0x90, 1), 0x30);
    assert_int_equal(pam_segment(0).base, 0xF0000);
    assert_int_equal(pam_segment(1).base, 0xC0000);
    assert_int_equal(pam_segment(12).base + pam_segment(12).size, 0xF0000);
    host_bridge_open_shadow(bridge);
    for (unsigned i = 0; i < PAM_SEGMENTS; i++)
        assert_int_equal(seen[i], 3);
    device_host_bridge.reset(rig.bridge);
    for (unsigned i = 0; i < PAM_SEGMENTS; i++)
        assert_int_equal(seen[i], 0);
    rig_destroy(&rig);
}

static void note_irq(void *sink, unsigned n, bool level) { ((bool *)sink)[n] = level; }

static void wire_router(struct device *device, void *opaque)
{
    struct lpc *lpc = (struct lpc *)device;
    for (unsigned i = 0; i < LPC_ISA_IRQS; i++)
        lpc->irq[i] = (struct irq_line){ note_irq, opaque, i };
}

static void pirqs_reach_the_8259_inputs_that_they_are_routed_to(void **state)
{
    struct rig rig;
    bool irq[LPC_ISA_IRQS] = { false };
    rig_create(&rig);
    struct pci_function *lpc = rig_add(&rig, &device_lpc, LPC_DEVFN, wire_router, irq);
    device_lpc.reset(&lpc->device);
    lpc_set_pirq(lpc, 1, true);                                 /* PIRQB is not routed after a reset */
    for (unsigned i = 0; i < LPC_ISA_IRQS; i++)
        assert_false(irq[i]);
    rig_config_write(&rig, LPC_DEVFN, 0x61, 1, 11);
    rig_config_write(&rig, LPC_DEVFN, 0x6B, 1, 11);             /* PIRQH shares it */
    assert_true(irq[11]);
    lpc_set_pirq(lpc, 7, true);
    lpc_set_pirq(lpc, 1, false);
    assert_true(irq[11]);
    lpc_set_pirq(lpc, 7, false);
    assert_false(irq[11]);
    lpc_set_pirq(lpc, 7, true);
    rig_config_write(&rig, LPC_DEVFN, 0x6B, 1, 0x80 | 11);
    assert_false(irq[11]);
    rig_config_write(&rig, LPC_DEVFN, 0x6B, 1, 8);              /* reserved: the RTC's */
    assert_false(irq[8]);
    device_destroy(&lpc->device);
    rig_destroy(&rig);
}

/* --- the watchdog --- */

enum { WATCHDOG_SLOT = 5 << 3 };
static unsigned watchdog_requests;

static void watchdog_request(void *owner, enum system_request request, uint32_t code)
{
    assert_int_equal(request, SYSTEM_REQUEST_WATCHDOG);
    watchdog_requests++;
}

static void watchdog_configure(struct device *device, void *opaque)
{
    ((struct watchdog *)device)->signal = (struct system_signal){ watchdog_request, NULL };
}

static void unlock(struct rig *rig, uint64_t bar, unsigned offset, uint32_t value)
{
    rig_write(rig, bar + 0xC, 2, 0x80);
    rig_write(rig, bar + 0xC, 2, 0x86);
    rig_write(rig, bar + offset, offset == 0xC ? 2 : 4, value);
}

static void watchdog_runs_out_in_two_stages_unless_it_is_fed(void **state)
{
    struct rig rig;
    const uint64_t second = 1000000000;
    rig_create(&rig);
    struct pci_function *watchdog = rig_add(&rig, &device_watchdog, WATCHDOG_SLOT, watchdog_configure, NULL);
    uint64_t bar = rig_bar(&rig, WATCHDOG_SLOT, 0);
    rig_write(&rig, bar, 4, 1);                         /* locked: nothing happens */
    assert_int_equal(rig_read(&rig, bar, 4), 0xFFFFF);
    unlock(&rig, bar, 0, 1007);                         /* a second each */
    unlock(&rig, bar, 4, 1007);
    rig_config_write(&rig, WATCHDOG_SLOT, 0x68, 1, 3);  /* enabled, for good */
    rig_config_write(&rig, WATCHDOG_SLOT, 0x68, 1, 0);
    assert_int_equal(rig_config_read(&rig, WATCHDOG_SLOT, 0x68, 1), 3);
    for (unsigned i = 0; i < 5; i++) {
        clock_advance(rig.clock, second * 9 / 10);
        unlock(&rig, bar, 0xC, 0x100);
    }
    assert_false(rig.line[pci_intx_line(WATCHDOG_SLOT, 0)]);
    clock_advance(rig.clock, second * 11 / 10);
    assert_true(rig.line[pci_intx_line(WATCHDOG_SLOT, 0)]);
    assert_int_equal(rig_read(&rig, bar + 8, 4), 1);
    rig_write(&rig, bar + 8, 4, 1);
    assert_false(rig.line[pci_intx_line(WATCHDOG_SLOT, 0)]);
    assert_int_equal(watchdog_requests, 0);
    clock_advance(rig.clock, second);
    assert_int_equal(watchdog_requests, 1);
    assert_int_equal(rig_read(&rig, bar + 0xC, 2), 0x200);
    device_destroy(&watchdog->device);
    rig_destroy(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(both_configuration_mechanisms_agree),
        cmocka_unit_test(reset_register_resets_on_the_rising_bit),
        cmocka_unit_test(bars_size_move_and_vanish),
        cmocka_unit_test(a_bar_cannot_cover_a_chip),
        cmocka_unit_test(capabilities_form_a_list),
        cmocka_unit_test(intx_lines_are_shared_and_can_be_disabled),
        cmocka_unit_test(msi_goes_out_as_a_write_and_can_be_masked),
        cmocka_unit_test(msix_masks_and_pending_bits),
        cmocka_unit_test(edu_computes_and_moves_data),
        cmocka_unit_test(dma_reaches_peers_but_not_itself),
        cmocka_unit_test(state_survives_a_save_and_a_load),
        cmocka_unit_test(ecam_moves_with_pciexbar),
        cmocka_unit_test(watchdog_runs_out_in_two_stages_unless_it_is_fed),
        cmocka_unit_test(pam_registers_name_their_segments),
        cmocka_unit_test(pirqs_reach_the_8259_inputs_that_they_are_routed_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
