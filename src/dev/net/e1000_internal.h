/* What the files of the Ethernet controller share with each other only. Sections are of the manual that e1000_registers.def names. */
#ifndef DOPPEL_DEV_NET_E1000_INTERNAL_H
#define DOPPEL_DEV_NET_E1000_INTERNAL_H

#include <string.h>

#include "backend/net.h"
#include "dev/net/e1000.h"

/* ICR, §13.4.17 */
enum { ICR_TXDW = 1 << 0, ICR_TXQE = 1 << 1, ICR_LSC = 1 << 2, ICR_RXDMT0 = 1 << 4, ICR_RXT0 = 1 << 7, ICR_MDAC = 1 << 9 };
/* RCTL, §13.4.22 */
enum { RCTL_EN = 1 << 1, RCTL_UPE = 1 << 3, RCTL_MPE = 1 << 4, RCTL_LPE = 1 << 5, RCTL_BAM = 1 << 15, RCTL_VFE = 1 << 18, RCTL_BSEX = 1 << 25,
       RCTL_SECRC = 1 << 26 };
/* TCTL, §13.4.33 */
enum { TCTL_EN = 1 << 1, TCTL_PSP = 1 << 3 };
/* CTRL, §13.4.1 */
enum { CTRL_RST = 1 << 26, CTRL_VME = 1 << 30 };
/* Statistics, §13.7, by their place from 0x4000 on */
enum { STAT_MPC = 0x10 / 4, STAT_GPRC = 0x74 / 4, STAT_BPRC = 0x78 / 4, STAT_MPRC = 0x7C / 4, STAT_GPTC = 0x80 / 4, STAT_GORC = 0x88 / 4,
       STAT_GOTC = 0x90 / 4, STAT_RNBC = 0xA0 / 4, STAT_TOR = 0xC0 / 4, STAT_TOT = 0xC8 / 4, STAT_TPR = 0xD0 / 4, STAT_TPT = 0xD4 / 4,
       STAT_TSCTC = 0xF8 / 4 };

enum { ETHERNET_HEADER = 14, ETHERNET_MIN = 60, ETHERNET_CRC = 4, ETHERNET_MAX = 1522, VLAN_TAG = 4, DESCRIPTOR_SIZE = 16 };

/* e1000.c */
void e1000_raise(struct e1000 *e1000, uint32_t causes);
void e1000_count(struct e1000 *e1000, unsigned statistic, uint32_t amount);
/* A count of 64 bits, in two places. */
void e1000_count_wide(struct e1000 *e1000, unsigned statistic, uint64_t amount);

/* e1000_eeprom.c: EECD, EERD and MDIC, §5 and §8 */
uint16_t e1000_eeprom_word(const struct e1000 *e1000, unsigned word);
void e1000_eeprom_pins(struct e1000 *e1000, uint32_t before);
void e1000_eeprom_read(struct e1000 *e1000);
void e1000_phy_reset(struct e1000 *e1000);
void e1000_phy_access(struct e1000 *e1000);

/* e1000_transmit.c: takes what the driver has put between head and tail */
void e1000_transmit(struct e1000 *e1000);

/* e1000_receive.c: net_client.receive */
bool e1000_receive(void *owner, const void *frame, uint32_t size, uint16_t segment_size);

static inline uint16_t get16(const uint8_t *at) { return (uint16_t)(at[0] | at[1] << 8); }
static inline uint16_t get16be(const uint8_t *at) { return (uint16_t)(at[0] << 8 | at[1]); }
static inline void put16be(uint8_t *at, uint16_t value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}
static inline uint32_t get32(const uint8_t *at) { return get16(at) | (uint32_t)get16(at + 2) << 16; }
static inline uint64_t get64(const uint8_t *at) { return get32(at) | (uint64_t)get32(at + 4) << 32; }

#endif
