/* NVMe: two disks seen through the controller, with a driver's eyes. */
#include "dev/nvme_driver.h"

enum { FLUSH = 0x00, WRITE = 0x01, READ = 0x02, WRITE_ZEROES = 0x08, DATASET = 0x09, IDENTIFY = 0x06, SET_FEATURES = 0x09,
       GET_FEATURES = 0x0A, LOG_PAGE = 0x02, EVENT_REQUEST = 0x0C };

static struct nvme_rig rig;

static int setup(void **state)
{
    nvme_rig_create(&rig);
    return 0;
}

static int teardown(void **state)
{
    nvme_rig_destroy(&rig);
    return 0;
}

static uint8_t *buffer(unsigned at) { return ram_host(rig.rig.ram, NVME_BUFFER) + at; }

static unsigned identify(unsigned what, unsigned namespace_id)
{
    return nvme_do(&rig, 0, (struct nvme_command){ .opcode = IDENTIFY, .namespace_id = namespace_id, .prp1 = NVME_BUFFER, .dword10 = what });
}

static struct nvme_command transfer(unsigned opcode, uint64_t first, unsigned sectors)
{
    return (struct nvme_command){ .opcode = (uint8_t)opcode, .namespace_id = 1, .prp1 = NVME_BUFFER, .prp2 = NVME_BUFFER + 0x1000,
                                  .dword10 = (uint32_t)first, .dword11 = (uint32_t)(first >> 32), .dword12 = sectors - 1 };
}

static void registers_are_as_the_table_says(void **state)
{
    assert_int_equal(nvme_get(&rig, R_VS), 0x10400);
    assert_int_equal(rig_read(&rig.rig, rig.bar + R_CAP, 8), 0x000000201E0103FF);
    assert_int_equal(nvme_get(&rig, R_CSTS), 1);
    nvme_set(&rig, R_INTMS, 5);
    nvme_set(&rig, R_INTMC, 4);
    assert_int_equal(nvme_get(&rig, R_INTMS), 1);
    assert_int_equal(nvme_get(&rig, R_INTMC), 1);
    nvme_set(&rig, R_CC, 0);
    assert_int_equal(nvme_get(&rig, R_CSTS), 0);
    nvme_set(&rig, R_CC, CC_ENABLE | 1 << 7);                   /* pages of 8 KiB */
    assert_int_equal(nvme_get(&rig, R_CSTS), 2);                /* fatal */
}

static void controller_and_namespaces_identify_themselves(void **state)
{
    assert_int_equal(identify(1, 0), 0);
    assert_memory_equal(buffer(4), "S1                  DOPPEL NVMe ", 32);
    assert_int_equal(*(uint32_t *)buffer(516), NVME_NAMESPACES);
    assert_int_equal(identify(0, 1), 0);
    assert_int_equal(*(uint64_t *)buffer(0), NVME_IMAGE_SECTORS);
    assert_int_equal(buffer(99)[0], 0);
    assert_int_equal(identify(0, 2), 0);
    assert_int_equal(buffer(99)[0], 1);                         /* write-protected */
    assert_int_equal(buffer(127)[0], 2);                        /* EUI-64's last byte */
    assert_int_equal(identify(0, 3), 0);
    assert_int_equal(*(uint64_t *)buffer(0), 0);                /* there could be one */
    assert_int_equal(identify(0, 17), 0x00B);
    assert_int_equal(identify(2, 0), 0);
    assert_memory_equal(buffer(0), ((uint32_t[]){ 1, 2, 0 }), 12);
    assert_int_equal(identify(2, 1), 0);
    assert_memory_equal(buffer(0), ((uint32_t[]){ 2, 0 }), 8);
    assert_int_equal(identify(3, 2), 0);
    assert_memory_equal(buffer(0), "\x01\x08", 2);
    assert_int_equal(identify(0x77, 1), 0x002);
}

static void sectors_are_read_and_written(void **state)
{
    nvme_make_queues(&rig, 1, 0);
    assert_int_equal(nvme_do(&rig, 1, transfer(READ, 7, 3)), 0);
    assert_int_equal(buffer(0)[0], 7);
    assert_int_equal(buffer(3 * 512)[-1], 9);
    memset(buffer(0), 0xA5, 8192);
    assert_int_equal(nvme_do(&rig, 1, transfer(WRITE, 100, 16)), 0);
    assert_int_equal(nvme_do(&rig, 1, (struct nvme_command){ .opcode = FLUSH, .namespace_id = 1 }), 0);
    uint8_t on_disk[8192];
    assert_int_equal(pread(rig.fd, on_disk, 8192, 100 * 512), 8192);
    assert_memory_equal(on_disk, buffer(0), 8192);
    assert_int_equal(nvme_do(&rig, 1, transfer(WRITE_ZEROES, 101, 2)), 0);
    assert_int_equal(pread(rig.fd, on_disk, 2048, 100 * 512), 2048);
    assert_int_equal(on_disk[511], 0xA5);
    assert_int_equal(on_disk[512], 0);
    assert_int_equal(on_disk[1535], 0);
    assert_int_equal(on_disk[1536], 0xA5);
}

/* 40 pages from an odd place, by a list that begins two entries before the end of its page. */
static void lists_of_pages_are_followed(void **state)
{
    struct nvme_command command = transfer(READ, 0, 320);
    uint64_t list[40], first = NVME_LIST + 0x1000 - 16;
    command.prp1 = NVME_BUFFER + 0xE00;
    command.prp2 = first;
    for (unsigned i = 0; i < 40; i++)
        list[i] = NVME_BUFFER + 0x1000 * (60 - i);
    ram_write(rig.rig.ram, first, list, 8);
    ram_write(rig.rig.ram, first + 8, &(uint64_t){ NVME_LIST + 0x2000 }, 8);
    ram_write(rig.rig.ram, NVME_LIST + 0x2000, list + 1, sizeof(list) - 8);
    nvme_make_queues(&rig, 1, 0);
    assert_int_equal(nvme_do(&rig, 1, command), 0);
    assert_int_equal(buffer(0xE00)[0], 0);
    for (unsigned i = 0; i < 39; i++)
        assert_int_equal(buffer(0x1000 * (60 - i))[0], (uint8_t)(1 + 8 * i));
    list[20] += 8;                                              /* not a page */
    ram_write(rig.rig.ram, NVME_LIST + 0x2000, list + 1, sizeof(list) - 8);
    assert_int_equal(nvme_do(&rig, 1, command), 0x013);
    command.prp2 = 0xFFFFFFFF00000000;                          /* nowhere */
    assert_int_equal(nvme_do(&rig, 1, command), 0x004);
}

static void bad_commands_are_refused(void **state)
{
    nvme_make_queues(&rig, 1, 0);
    struct nvme_command command = transfer(READ, NVME_IMAGE_SECTORS - 1, 2);
    assert_int_equal(nvme_do(&rig, 1, command), 0x080);
    assert_int_equal(nvme_do(&rig, 1, transfer(READ, UINT64_MAX, 1)), 0x080);
    command = transfer(WRITE, 0, 1);
    command.namespace_id = 2;
    assert_int_equal(nvme_do(&rig, 1, command), 0x020);         /* write-protected */
    command.namespace_id = 3;
    assert_int_equal(nvme_do(&rig, 1, command), 0x00B);
    assert_int_equal(nvme_do(&rig, 1, transfer(0x77, 0, 1)), 0x001);
    assert_int_equal(nvme_do(&rig, 1, transfer(READ, 0, 2048)), 0x002);         /* more than MDTS */
    command = transfer(READ, 0, 1);
    command.prp1 = RIG_RAM;
    assert_int_equal(nvme_do(&rig, 1, command), 0x004);
    command.prp1 = NVME_BUFFER + 2;
    assert_int_equal(nvme_do(&rig, 1, command), 0x013);
    assert_int_equal(nvme_do(&rig, 0, (struct nvme_command){ .opcode = 0x7F }), 0x001);
}

static void queues_are_made_and_deleted_by_the_rules(void **state)
{
    struct nvme_command command = { .opcode = 0x01, .prp1 = nvme_sq(1), .dword10 = 7 << 16 | 1, .dword11 = 1 << 16 | 1 };
    assert_int_equal(nvme_do(&rig, 0, command), 0x100);         /* its completion queue is not there */
    nvme_make_queues(&rig, 1, 0);
    assert_int_equal(nvme_do(&rig, 0, command), 0x101);         /* there already */
    command.dword10 = 1 << 16 | 17;
    assert_int_equal(nvme_do(&rig, 0, command), 0x101);
    command.dword10 = 1024 << 16 | 2;
    assert_int_equal(nvme_do(&rig, 0, command), 0x102);
    command = (struct nvme_command){ .opcode = 0x05, .prp1 = nvme_cq(2), .dword10 = 7 << 16 | 2, .dword11 = 30 << 16 | 3 };
    assert_int_equal(nvme_do(&rig, 0, command), 0x108);         /* no such vector */
    assert_int_equal(nvme_do(&rig, 0, (struct nvme_command){ .opcode = 0x04, .dword10 = 1 }), 0x10C);
    assert_int_equal(nvme_do(&rig, 0, (struct nvme_command){ .opcode = 0x00, .dword10 = 1 }), 0);
    assert_int_equal(nvme_do(&rig, 0, (struct nvme_command){ .opcode = 0x04, .dword10 = 1 }), 0);
    assert_int_equal(nvme_do(&rig, 0, (struct nvme_command){ .opcode = 0x04, .dword10 = 1 }), 0x101);
}

/* A guest that reads no completions gets no more of them than fit, and all later. */
static void full_completion_queues_wait(void **state)
{
    nvme_make_queues(&rig, 1, 0);
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < NVME_QUEUE - 1; i++)
            nvme_put(&rig, 1, transfer(READ, i, 1));
        nvme_ring(&rig, 1);
        for (unsigned i = 0; round == 1 && i < 200; i++)
            loop_run_once(rig.rig.loop, 1);
        if (round == 1) {                                       /* seven answers lie there: nothing of these is begun */
            for (unsigned i = 0; i < NVME_QUEUE - 1; i++)
                nvme_wait(&rig, 1);
        }
        if (round == 2)
            for (unsigned i = 0; i < 2 * (NVME_QUEUE - 1); i++)
                assert_int_equal(nvme_wait(&rig, 1).status >> 1, 0);
    }
    assert_int_equal(rig.nvme->under_way, 0);
    assert_int_equal(rig.nvme->completion[1].promised, 0);
}

static void queues_have_their_own_vectors(void **state)
{
    unsigned capability = rig_capability(&rig.rig, NVME_DEVFN, PCI_CAP_ID_MSIX, 0);
    uint64_t table = rig_bar(&rig.rig, NVME_DEVFN, 4);
    assert_int_equal((rig_config_read(&rig.rig, NVME_DEVFN, capability + 2, 2) & 0x7FF) + 1, NVME_QUEUES);
    rig_config_write(&rig.rig, NVME_DEVFN, capability + 2, 2, PCI_MSIX_FLAGS_ENABLE);
    for (unsigned i = 0; i < 4; i++) {
        rig_write(&rig.rig, table + 16 * i, 4, 0xFEE00000);
        rig_write(&rig.rig, table + 16 * i + 8, 4, 0x40 + i);
        rig_write(&rig.rig, table + 16 * i + 12, 4, 0);
    }
    nvme_make_queues(&rig, 1, 1);
    nvme_make_queues(&rig, 2, 3);
    for (unsigned queue = 1; queue <= 2; queue++) {
        rig.rig.msi_count = 0;
        assert_int_equal(nvme_do(&rig, queue, transfer(READ, 1, 1)), 0);
        assert_int_equal(rig.rig.msi_count, 1);
        assert_int_equal(rig.rig.msi[0].data, queue == 1 ? 0x41 : 0x43);
    }
}

static void the_pin_is_high_while_answers_wait(void **state)
{
    struct nvme_answer answer;
    unsigned line = pci_intx_line(NVME_DEVFN, 0);
    nvme_put(&rig, 0, (struct nvme_command){ .opcode = GET_FEATURES, .dword10 = 7 });
    nvme_ring(&rig, 0);
    assert_true(rig.rig.line[line]);
    nvme_set(&rig, R_INTMS, 1);
    assert_false(rig.rig.line[line]);
    nvme_set(&rig, R_INTMC, 1);
    assert_true(rig.rig.line[line]);
    assert_true(nvme_next(&rig, 0, &answer));
    assert_int_equal(answer.result, 0x000F000F);
    assert_false(rig.rig.line[line]);
}

static void features_are_kept_as_far_as_they_can_be_changed(void **state)
{
    struct nvme_command command = { .opcode = SET_FEATURES, .dword10 = 6, .dword11 = 0xFFFFFFFE };
    assert_int_equal(nvme_do(&rig, 0, command), 0);
    assert_int_equal(rig.nvme->feature[NVME_FEATURE_VOLATILE_WRITE_CACHE], 0);
    command.dword10 |= 1u << 31;
    assert_int_equal(nvme_do(&rig, 0, command), 0x10D);
    command.dword10 = 0x55;
    assert_int_equal(nvme_do(&rig, 0, command), 0x002);
    nvme_make_queues(&rig, 1, 0);
    assert_int_equal(nvme_do(&rig, 1, transfer(WRITE, 0, 1)), 0);       /* and a flush, with no volatile cache */
    nvme_set(&rig, R_CC, 0);
    assert_int_equal(rig.nvme->feature[NVME_FEATURE_VOLATILE_WRITE_CACHE], 1);
}

static void health_counts_what_was_read(void **state)
{
    nvme_make_queues(&rig, 1, 0);
    assert_int_equal(nvme_do(&rig, 1, transfer(READ, 1, 2)), 0);
    assert_int_equal(nvme_do(&rig, 0, (struct nvme_command){ .opcode = LOG_PAGE, .prp1 = NVME_BUFFER, .dword10 = 127 << 16 | 2 }), 0);
    assert_int_equal(*(uint64_t *)buffer(32), 1);
    assert_int_equal(*(uint64_t *)buffer(64), 1);
    assert_int_equal(nvme_do(&rig, 0, (struct nvme_command){ .opcode = LOG_PAGE, .prp1 = NVME_BUFFER, .dword10 = 127 << 16 | 0x70 }), 0x109);
}

static void a_wrong_doorbell_is_an_event(void **state)
{
    struct nvme_answer answer;
    for (unsigned i = 0; i < 5; i++)
        nvme_put(&rig, 0, (struct nvme_command){ .opcode = EVENT_REQUEST });
    nvme_ring(&rig, 0);
    assert_true(nvme_next(&rig, 0, &answer));
    assert_int_equal(answer.status >> 1 & 0x7FF, 0x105);        /* four may wait */
    assert_false(nvme_next(&rig, 0, &answer));
    nvme_set(&rig, R_DOORBELL + 8 * 5, 1);                      /* no such queue */
    assert_true(nvme_next(&rig, 0, &answer));
    assert_int_equal(answer.result, 0x0000);
    nvme_set(&rig, R_DOORBELL, NVME_QUEUE);                     /* no such entry */
    assert_true(nvme_next(&rig, 0, &answer));
    assert_int_equal(answer.result, 0x0100);
}

static void ranges_are_deallocated_one_after_the_other(void **state)
{
    struct { uint32_t attributes, sectors; uint64_t first; } range[3] = { { 0, 8, 8 }, { 0, 8, 32 }, { 0, 0, 0 } };
    struct nvme_command command = { .opcode = DATASET, .namespace_id = 1, .prp1 = NVME_BUFFER, .dword10 = 2, .dword11 = 4 };
    uint8_t on_disk[512];
    nvme_make_queues(&rig, 1, 0);
    ram_write(rig.rig.ram, NVME_BUFFER, range, sizeof(range));
    assert_int_equal(nvme_do(&rig, 1, command), 0);
    assert_int_equal(pread(rig.fd, on_disk, 512, 35 * 512), 512);
    assert_int_equal(on_disk[0], block_can_discard(rig.disk) ? 0 : 35);
    range[1].first = NVME_IMAGE_SECTORS;
    ram_write(rig.rig.ram, NVME_BUFFER, range, sizeof(range));
    assert_int_equal(nvme_do(&rig, 1, command), 0x080);
}

static void a_shutdown_waits_for_the_disks_caches(void **state)
{
    nvme_set(&rig, R_CC, CC_ENABLE | CC_SHUTDOWN);
    for (unsigned i = 0; i < 1000 && (nvme_get(&rig, R_CSTS) & 0xC) != 8; i++)
        loop_run_once(rig.rig.loop, 10);
    assert_int_equal(nvme_get(&rig, R_CSTS) & 0xC, 8);
}

/* Saved with commands in the queue that wait for room, loaded into another: nothing is lost or done twice. */
static void state_is_carried_over(void **state)
{
    struct state_buffer saved = { 0 };
    size_t used = 0;
    struct error err;
    nvme_make_queues(&rig, 1, 0);
    assert_int_equal(nvme_do(&rig, 1, transfer(READ, 1, 1)), 0);
    device_nvme.quiesce(&rig.nvme->pci.device);
    state_save(device_nvme.state, rig.nvme, &saved);
    device_nvme.reset(&rig.nvme->pci.device);
    assert_true(state_load(device_nvme.state, rig.nvme, saved.data, saved.size, &used, &err));
    device_nvme.resume(&rig.nvme->pci.device);
    assert_int_equal(nvme_do(&rig, 1, transfer(READ, 2, 1)), 0);
    assert_int_equal(buffer(0)[0], 2);
    state_buffer_free(&saved);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(registers_are_as_the_table_says),
        TEST(controller_and_namespaces_identify_themselves),
        TEST(sectors_are_read_and_written),
        TEST(lists_of_pages_are_followed),
        TEST(bad_commands_are_refused),
        TEST(queues_are_made_and_deleted_by_the_rules),
        TEST(full_completion_queues_wait),
        TEST(queues_have_their_own_vectors),
        TEST(the_pin_is_high_while_answers_wait),
        TEST(features_are_kept_as_far_as_they_can_be_changed),
        TEST(health_counts_what_was_read),
        TEST(a_wrong_doorbell_is_an_event),
        TEST(ranges_are_deallocated_one_after_the_other),
        TEST(a_shutdown_waits_for_the_disks_caches),
        TEST(state_is_carried_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
