/* What an NVMe controller says about itself (NVM Express 1.4 §5.15 "Identify command", §5.14 "Get Log Page command"). */
#include <stdio.h>
#include <string.h>

#include "backend/block.h"
#include "dev/storage/nvme_internal.h"

enum { CNS_NAMESPACE = 0x00, CNS_CONTROLLER = 0x01, CNS_ACTIVE_NAMESPACES = 0x02, CNS_NAMESPACE_DESCRIPTORS = 0x03 };
enum { LOG_ERRORS = 0x01, LOG_HEALTH = 0x02, LOG_FIRMWARE_SLOTS = 0x03 };
enum { KELVIN = 273 + 37, SPARE_PERCENT = 100, SPARE_THRESHOLD_PERCENT = 10, SECTORS_PER_DATA_UNIT = 1000 };

/* Of a kind that nobody was given: bit 1 of the first byte marks an address of local making. */
uint64_t nvme_eui64(unsigned namespace_id) { return 0x02D0770000000000ull | namespace_id; }

static void put(uint8_t *answer, unsigned offset, uint64_t value, unsigned size)
{
    memcpy(answer + offset, &value, size);
}

static void put_text(uint8_t *answer, unsigned offset, unsigned size, const char *text)
{
    memset(answer + offset, ' ', size);
    memcpy(answer + offset, text, strnlen(text, size));
}

static void put_eui64(uint8_t *answer, unsigned offset, unsigned namespace_id)
{
    put(answer, offset, __builtin_bswap64(nvme_eui64(namespace_id)), 8);
}

/* Figure 247 */
static void controller(const struct nvme *nvme, uint8_t *answer)
{
    enum { MDTS = 7 /* 128 pages */, AERL = NVME_EVENT_COMMANDS - 1, ONCS_DATASET = 1 << 2, ONCS_WRITE_ZEROES = 1 << 3 };
    const char *serial = nvme->serial ? nvme->serial : "DP00001";
    put(answer, 0, 0x1AF4, 2);                          /* VID */
    put(answer, 2, 0x1AF4, 2);                          /* SSVID */
    put_text(answer, 4, 20, serial);                    /* SN */
    put_text(answer, 24, 40, "DOPPEL NVMe");            /* MN */
    put_text(answer, 64, 8, "1.0");                     /* FR */
    put(answer, 72, 6, 1);                              /* RAB */
    put(answer, 77, MDTS, 1);
    put(answer, 80, nvme->reg[NVME_VS], 4);             /* VER */
    put(answer, 258, 3, 1);                             /* ACL */
    put(answer, 259, AERL, 1);
    put(answer, 260, 1 | 1 << 1, 1);                    /* FRMW: one slot, which is read-only */
    put(answer, 266, KELVIN + 40, 2);                   /* WCTEMP */
    put(answer, 268, KELVIN + 60, 2);                   /* CCTEMP */
    put(answer, 512, 0x66, 1);                          /* SQES: 64 bytes */
    put(answer, 513, 0x44, 1);                          /* CQES: 16 bytes */
    put(answer, 516, NVME_NAMESPACES, 4);               /* NN */
    put(answer, 520, ONCS_DATASET | ONCS_WRITE_ZEROES, 2);
    put(answer, 525, 1, 1);                             /* VWC */
    snprintf((char *)answer + 768, 256, "nqn.2014-08.org.nvmexpress:1af41af4%-20.20s%-40.40s", serial, "DOPPEL NVMe");  /* SUBNQN, §7.9 */
    put(answer, 2048, 2500, 2);                         /* PSD0: 25 W */
}

/* Figure 245 */
static void namespace(const struct nvme *nvme, unsigned id, uint8_t *answer)
{
    enum { NSATTR_WRITE_PROTECTED = 1 << 0, LBADS = 9 };
    const struct block *block = nvme->namespace[id - 1];
    for (unsigned offset = 0; offset < 24; offset += 8)         /* NSZE, NCAP, NUSE */
        put(answer, offset, block_size(block) / NVME_SECTOR, 8);
    put(answer, 24, block_can_discard(block), 1);               /* NSFEAT: thin */
    put(answer, 99, block_read_only(block) ? NSATTR_WRITE_PROTECTED : 0, 1);
    put_eui64(answer, 120, id);
    put(answer, 128, LBADS << 16, 4);                           /* LBAF0: sectors of 512 bytes */
}

/* Figure 249: its EUI-64, and which command set it takes is not asked before 2.0. */
static void descriptors(unsigned id, uint8_t *answer)
{
    enum { NIDT_EUI64 = 1 };
    put(answer, 0, NIDT_EUI64 | 8 << 8, 2);
    put_eui64(answer, 4, id);
}

uint32_t nvme_identify(const struct nvme *nvme, const struct nvme_command *command, uint8_t *answer)
{
    unsigned id = command->namespace_id, listed = 0;
    switch (command->dword10 & 0xFF) {
    case CNS_CONTROLLER: controller(nvme, answer); return NVME_SUCCESS;
    case CNS_ACTIVE_NAMESPACES:
        if (id >= 0xFFFFFFFE)
            return NVME_INVALID_NAMESPACE | NVME_DO_NOT_RETRY;
        for (unsigned n = 1; n <= NVME_NAMESPACES; n++)
            if (n > id && nvme_in_use(nvme, n))
                put(answer, 4 * listed++, n, 4);
        return NVME_SUCCESS;
    case CNS_NAMESPACE: case CNS_NAMESPACE_DESCRIPTORS:
        if (id < 1 || id > NVME_NAMESPACES)
            return NVME_INVALID_NAMESPACE | NVME_DO_NOT_RETRY;
        if (!nvme_in_use(nvme, id))
            return (command->dword10 & 0xFF) == CNS_NAMESPACE ? NVME_SUCCESS : NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
        if ((command->dword10 & 0xFF) == CNS_NAMESPACE)
            namespace(nvme, id, answer);
        else
            descriptors(id, answer);
        return NVME_SUCCESS;
    default: return NVME_INVALID_FIELD | NVME_DO_NOT_RETRY;
    }
}

/* Figure 196 */
static void health(const struct nvme *nvme, uint8_t *answer)
{
    put(answer, 1, KELVIN, 2);
    put(answer, 3, SPARE_PERCENT, 1);
    put(answer, 4, SPARE_THRESHOLD_PERCENT, 1);
    put(answer, 32, (nvme->sectors_read + SECTORS_PER_DATA_UNIT - 1) / SECTORS_PER_DATA_UNIT, 8);
    put(answer, 48, (nvme->sectors_written + SECTORS_PER_DATA_UNIT - 1) / SECTORS_PER_DATA_UNIT, 8);
    put(answer, 64, nvme->reads, 8);
    put(answer, 80, nvme->writes, 8);
}

uint32_t nvme_log_page(const struct nvme *nvme, unsigned page, uint8_t *answer)
{
    switch (page) {
    case LOG_ERRORS: return NVME_SUCCESS;       /* none are kept: all entries are 0 */
    case LOG_HEALTH: health(nvme, answer); return NVME_SUCCESS;
    case LOG_FIRMWARE_SLOTS:
        put(answer, 0, 1, 1);                   /* slot 1 is active */
        put_text(answer, 8, 8, "1.0");
        return NVME_SUCCESS;
    default: return NVME_INVALID_LOG_PAGE | NVME_DO_NOT_RETRY;
    }
}
