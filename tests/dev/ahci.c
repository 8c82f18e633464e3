/* AHCI: a disk and a CD-ROM drive seen through the adapter, with a driver's eyes. */
#include "dev/ahci_driver.h"

enum { DISK, CD };

static struct ahci_rig rig;

static int setup(void **state)
{
    ahci_rig_create(&rig);
    return 0;
}

static int teardown(void **state)
{
    ahci_rig_destroy(&rig);
    return 0;
}

static const uint8_t *buffer(unsigned at) { return ram_host(rig.rig.ram, AHCI_BUFFER) + at; }

static void drives_show_their_signatures(void **state)
{
    assert_int_equal(port_read(&rig, DISK, P_SIG), 0x00000101);
    assert_int_equal(port_read(&rig, CD, P_SIG), 0xEB140101);
    assert_int_equal(port_read(&rig, DISK, P_SSTS), 0x123);
    assert_int_equal(port_read(&rig, 2, P_SSTS), 0);
    assert_int_equal(port_read(&rig, 2, P_TFD), 0x7F);
    assert_int_equal(rig_read(&rig.rig, rig.bar + 0x0C, 4), 0x3F);
}

static void disk_identifies_itself(void **state)
{
    assert_true(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0xEC, .size = 512 }));
    assert_memory_equal(buffer(20), "1S  ", 4);
    assert_int_equal(*(const uint32_t *)buffer(120), IMAGE_SECTORS);
    assert_int_equal(*(const uint64_t *)buffer(200), IMAGE_SECTORS);
    assert_int_equal(port_read(&rig, DISK, P_IS) & 3, 2);               /* a PIO setup frame and no other */
    uint32_t moved;
    assert_true(ram_read(rig.rig.ram, AHCI_LIST + 4, &moved, 4));
    assert_int_equal(moved, 512);
    assert_int_equal(*ram_host(rig.rig.ram, AHCI_FIS + 0x20), 0x5F);
}

static void dma_reads_and_writes(void **state)
{
    assert_true(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x25, .lba = 7, .count = 3, .size = 3 * 512 }));
    assert_int_equal(buffer(0)[0], 7);
    assert_int_equal(buffer(512 * 3)[-1], 9);
    assert_int_equal(port_read(&rig, DISK, P_IS) & 3, 1);
    assert_int_equal(rig_read(&rig.rig, rig.bar + 8, 4), 1);            /* IS */
    assert_true(rig.rig.line[pci_intx_line(AHCI_DEVFN, 0)]);
    memset(ram_host(rig.rig.ram, AHCI_BUFFER), 0xA5, 512);
    assert_true(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x35, .lba = 100, .count = 1, .size = 512 }));
    assert_true(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0xEA }));
    uint8_t on_disk[512];
    assert_int_equal(pread(rig.fd, on_disk, 512, 100 * 512), 512);
    assert_memory_equal(on_disk, buffer(0), 512);
    port_write(&rig, DISK, P_IS, 0xFFFFFFFF);
    rig_write(&rig.rig, rig.bar + 8, 4, 1);
    assert_false(rig.rig.line[pci_intx_line(AHCI_DEVFN, 0)]);
}

static void queued_commands_end_in_any_order(void **state)
{
    for (unsigned slot = 0; slot < 8; slot++)
        ahci_put(&rig, DISK, slot, &(struct ahci_shot){ .command = 0x60, .lba = 20 + slot, .features = 1, .size = 512,
                                                        .count = (uint16_t)(slot << 3), .buffer = AHCI_BUFFER + slot * 512 });
    port_write(&rig, DISK, P_SACT, 0xFF);
    port_write(&rig, DISK, P_CI, 0xFF);
    assert_int_equal(port_read(&rig, DISK, P_CI), 0);                   /* all were taken at once */
    assert_true(ahci_wait(&rig, DISK, 0xFF));
    for (unsigned slot = 0; slot < 8; slot++)
        assert_int_equal(buffer(slot * 512)[511], 20 + slot);
    assert_true(port_read(&rig, DISK, P_IS) & 8);
}

static void errors_stop_the_port_until_software_restarts_it(void **state)
{
    assert_false(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x25, .lba = IMAGE_SECTORS, .count = 1, .size = 512 }));
    assert_int_equal(port_read(&rig, DISK, P_TFD), 0x1041);             /* IDNF */
    assert_true(port_read(&rig, DISK, P_IS) & 1u << 30);
    assert_int_equal(port_read(&rig, DISK, P_CI), 1);
    ahci_recover(&rig, DISK);
    assert_int_equal(port_read(&rig, DISK, P_CI), 0);
    assert_true(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x25, .lba = 1, .count = 1, .size = 512 }));
    assert_false(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x25, .lba = 1, .count = 2, .size = 512 }));   /* too little memory */
    assert_true(port_read(&rig, DISK, P_IS) & 1u << 24);
    ahci_recover(&rig, DISK);
    assert_false(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x99 }));
    ahci_recover(&rig, DISK);
    assert_false(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x25, .lba = 1, .count = 1, .size = 512, .buffer = 1ull << 40 }));
}

static bool packet(const uint8_t command[12], uint32_t size)
{
    return ahci_do(&rig, CD, &(struct ahci_shot){ .command = 0xA0, .features = 1, .packet = command, .size = size });
}

static void cd_answers_packets(void **state)
{
    static const uint8_t inquiry[12] = { 0x12, 0, 0, 0, 36 }, capacity[12] = { 0x25 }, toc[12] = { 0x43, 0, 0, 0, 0, 0, 0, 0, 20 };
    static const uint8_t read[12] = { 0x28, 0, 0, 0, 0, 3, 0, 0, 2 }, unknown[12] = { 0xFF }, sense[12] = { 3, 0, 0, 0, 18 };
    assert_true(ahci_do(&rig, CD, &(struct ahci_shot){ .command = 0xA1, .size = 512 }));
    assert_int_equal(*(const uint16_t *)buffer(0), 0x85C0);
    assert_true(packet(inquiry, 36));
    assert_int_equal(buffer(0)[0], 5);
    assert_memory_equal(buffer(8), "DOPPEL  CD-ROM", 14);
    assert_true(packet(capacity, 8));
    assert_int_equal(buffer(2)[0] << 8 | buffer(3)[0], IMAGE_SECTORS / 4 - 1);
    assert_true(packet(read, 4096));
    assert_int_equal(buffer(0)[0], 12);
    assert_int_equal(buffer(4095)[0], 19);
    assert_true(packet(toc, 20));
    assert_int_equal(buffer(14)[0], 0xAA);
    assert_false(packet(unknown, 0));
    assert_int_equal(port_read(&rig, CD, P_TFD) >> 12, 5);              /* illegal request */
    ahci_recover(&rig, CD);
    assert_true(packet(sense, 18));
    assert_int_equal(buffer(12)[0], 0x20);
}

static void cd_is_ejected_and_loaded_again(void **state)
{
    static const uint8_t eject[12] = { 0x1B, 0, 0, 0, 2 }, load[12] = { 0x1B, 0, 0, 0, 3 }, ready[12] = { 0 };
    static const uint8_t lock[12] = { 0x1E, 0, 0, 0, 1 }, unlock[12] = { 0x1E };
    assert_true(packet(ready, 0));
    assert_true(packet(lock, 0));
    assert_false(packet(eject, 0));
    ahci_recover(&rig, CD);
    assert_true(packet(unlock, 0));
    assert_true(packet(eject, 0));
    assert_false(packet(ready, 0));
    ahci_recover(&rig, CD);
    assert_true(packet(load, 0));
    assert_false(packet(ready, 0));                                     /* unit attention, once */
    ahci_recover(&rig, CD);
    assert_true(packet(ready, 0));
}

enum { NO_EVENT, EJECT_REQUEST, NEW_MEDIA, MEDIA_REMOVAL };

/* The media event, and in the byte above it the media status. */
static unsigned media_event(void)
{
    static const uint8_t get_event[12] = { 0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8 };
    assert_true(packet(get_event, 8));
    return buffer(4)[0] | (unsigned)buffer(5)[0] << 8;
}

static uint8_t first_byte_on_cd(void)
{
    static const uint8_t read[12] = { 0x28, 0, 0, 0, 0, 3, 0, 0, 1 };
    assert_true(packet(read, 2048));
    return buffer(0)[0];
}

static void assert_sense(const uint8_t command[12], unsigned key, unsigned asc)
{
    static const uint8_t sense[12] = { 3, 0, 0, 0, 18 };
    assert_false(packet(command, 0));
    ahci_recover(&rig, CD);
    assert_true(packet(sense, 18));
    assert_int_equal(buffer(2)[0], key);
    assert_int_equal(buffer(12)[0], asc);
}

static void the_host_changes_the_cd(void **state)
{
    static const uint8_t ready[12] = { 0 }, read[12] = { 0x28, 0, 0, 0, 0, 3, 0, 0, 1 };
    assert_int_equal(media_event(), NO_EVENT | 2 << 8);
    assert_int_equal(first_byte_on_cd(), 12);
    ahci_put(&rig, CD, 0, &(struct ahci_shot){ .command = 0xA0, .features = 1, .packet = read, .size = 2048 });
    memset(ram_host(rig.rig.ram, AHCI_BUFFER), 0, 2048);
    port_write(&rig, CD, P_CI, 1);
    ahci_change_medium(rig.ahci, CD, NULL);                             /* a read that is under way ends with the old one */
    assert_int_equal(port_read(&rig, CD, P_CI), 0);
    assert_int_equal(buffer(0)[0], 12);
    assert_sense(ready, 2, 0x3A);
    assert_int_equal(media_event(), MEDIA_REMOVAL | 1 << 8);
    assert_int_equal(media_event(), NO_EVENT | 1 << 8);
    uint8_t other[2048];
    memset(other, 0x77, sizeof(other));
    assert_int_equal(pwrite(rig.fd, other, sizeof(other), 3 * 2048), sizeof(other));
    ahci_change_medium(rig.ahci, CD, rig.disk);
    assert_int_equal(media_event(), NEW_MEDIA | 2 << 8);
    assert_sense(ready, 6, 0x28);                                       /* unit attention, once */
    assert_true(packet(ready, 0));
    assert_int_equal(media_event(), NO_EVENT | 2 << 8);
    assert_int_equal(first_byte_on_cd(), 0x77);
    ahci_change_medium(rig.ahci, CD, rig.cd);                           /* from one to the other at once */
    assert_sense(read, 6, 0x28);
    assert_int_equal(first_byte_on_cd(), 12);
}

static void a_locked_drive_asks_the_guest_for_the_cd(void **state)
{
    static const uint8_t lock[12] = { 0x1E, 0, 0, 0, 1 }, eject[12] = { 0x1B, 0, 0, 0, 2 }, unlock[12] = { 0x1E };
    struct ata_drive *drive = &rig.ahci->port[CD].drive;
    struct state_buffer saved = { 0 };
    size_t used;
    assert_false(atapi_medium_is_locked(drive));
    assert_true(packet(lock, 0));
    assert_true(atapi_medium_is_locked(drive));
    atapi_press_eject(drive);
    state_save(device_ahci.state, rig.ahci, &saved);
    assert_int_equal(media_event(), EJECT_REQUEST | 2 << 8);
    assert_int_equal(media_event(), NO_EVENT | 2 << 8);
    assert_true(state_load(device_ahci.state, rig.ahci, saved.data, saved.size, &used, NULL));
    assert_int_equal(media_event(), EJECT_REQUEST | 2 << 8);
    assert_true(packet(unlock, 0));
    assert_true(packet(eject, 0));
    assert_true(packet(lock, 0));
    assert_false(atapi_medium_is_locked(drive));                        /* nothing is in there that could be taken away */
    state_buffer_free(&saved);
}

static void soft_and_port_resets_bring_the_signature_back(void **state)
{
    uint8_t frame[0x90] = { 0x27, 0, [15] = 4 };
    uint32_t header[8] = { 5, 0, AHCI_TABLES, 0 };
    for (unsigned i = 0; i < 2; i++) {
        frame[15] = i ? 0 : 4;
        ram_write(rig.rig.ram, AHCI_LIST, header, sizeof(header));
        ram_write(rig.rig.ram, AHCI_TABLES, frame, sizeof(frame));
        port_write(&rig, DISK, P_CI, 1);
        assert_int_equal(port_read(&rig, DISK, P_CI), 0);
    }
    assert_int_equal(port_read(&rig, DISK, P_TFD), 0x150);
    port_write(&rig, DISK, P_CMD, 0x10);
    port_write(&rig, DISK, P_SCTL, 0x301);
    assert_int_equal(port_read(&rig, DISK, P_SSTS), 0);
    port_write(&rig, DISK, P_SCTL, 0x300);
    assert_int_equal(port_read(&rig, DISK, P_SSTS), 0x123);
    assert_int_equal(port_read(&rig, DISK, P_SIG), 0x101);
    rig_write(&rig.rig, rig.bar + 4, 4, 1);                             /* GHC.HR */
    assert_int_equal(rig_read(&rig.rig, rig.bar + 4, 4), 0x80000000);
    assert_int_equal(port_read(&rig, DISK, P_CMD), 6);
    ahci_start(&rig);
    assert_true(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x25, .lba = 7, .count = 1, .size = 512 }));
}

static void a_quiesced_adapter_is_saved_and_goes_on(void **state)
{
    struct state_buffer saved = { 0 };
    size_t used;
    ahci_put(&rig, DISK, 0, &(struct ahci_shot){ .command = 0x25, .lba = 9, .count = 1, .size = 512 });
    ahci_put(&rig, DISK, 1, &(struct ahci_shot){ .command = 0x25, .lba = 10, .count = 1, .size = 512, .buffer = AHCI_BUFFER + 512 });
    port_write(&rig, DISK, P_CI, 3);
    device_ahci.quiesce(&rig.ahci->pci.device);
    assert_int_equal(port_read(&rig, DISK, P_CI), 0);
    assert_int_equal(buffer(512)[0], 10);
    state_save(device_ahci.state, rig.ahci, &saved);
    device_ahci.reset(&rig.ahci->pci.device);
    assert_true(state_load(device_ahci.state, rig.ahci, saved.data, saved.size, &used, NULL));
    device_ahci.resume(&rig.ahci->pci.device);
    assert_true(ahci_do(&rig, DISK, &(struct ahci_shot){ .command = 0x25, .lba = 11, .count = 1, .size = 512 }));
    assert_int_equal(buffer(0)[0], 11);
    state_buffer_free(&saved);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(drives_show_their_signatures, setup, teardown),
        cmocka_unit_test_setup_teardown(disk_identifies_itself, setup, teardown),
        cmocka_unit_test_setup_teardown(dma_reads_and_writes, setup, teardown),
        cmocka_unit_test_setup_teardown(queued_commands_end_in_any_order, setup, teardown),
        cmocka_unit_test_setup_teardown(errors_stop_the_port_until_software_restarts_it, setup, teardown),
        cmocka_unit_test_setup_teardown(cd_answers_packets, setup, teardown),
        cmocka_unit_test_setup_teardown(cd_is_ejected_and_loaded_again, setup, teardown),
        cmocka_unit_test_setup_teardown(the_host_changes_the_cd, setup, teardown),
        cmocka_unit_test_setup_teardown(a_locked_drive_asks_the_guest_for_the_cd, setup, teardown),
        cmocka_unit_test_setup_teardown(soft_and_port_resets_bring_the_signature_back, setup, teardown),
        cmocka_unit_test_setup_teardown(a_quiesced_adapter_is_saved_and_goes_on, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
