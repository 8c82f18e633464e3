/*
 * The serial EEPROM and the PHY of the Ethernet controller (§5 "EEPROM Interface", §11 "PHY Functionality"; the PHY is a Marvell 88E1011 as far as drivers
 * look). The EEPROM holds what the card is, and cannot be written: it answers as one that is write-protected.
 */
#include "dev/net/e1000_internal.h"

/* EECD, §13.4.3 */
enum { EECD_SK = 1 << 0, EECD_CS = 1 << 1, EECD_DI = 1 << 2, EECD_DO = 1 << 3, EECD_REQ = 1 << 6, EECD_GNT = 1 << 7 };
/* EERD, §13.4.4 */
enum { EERD_START = 1 << 0, EERD_DONE = 1 << 4, EERD_ADDRESS_SHIFT = 8, EERD_DATA_SHIFT = 16 };
/* Microwire: a start bit, two of the operation, six of the address; READ is 110b with the start bit. */
enum { MICROWIRE_BITS = 9, MICROWIRE_READ = 6, MICROWIRE_ADDRESS = 0x3F };
/* §5.6.19 "Checksum Word": all words together make this sum. */
enum { EEPROM_SUM = 0xBABA, WORD_CHECKSUM = 0x3F };

/* --- EEPROM --- */

static uint16_t fixed_word(const struct e1000 *e1000, unsigned word)
{
    switch (word) {
    case 0: case 1: case 2: return get16(e1000->mac + 2 * word);
    case 0x0A: return 0x4408;           /* §5.6.8: the subsystem's ids are in words 0x0B and 0x0C */
    case 0x0B: return 0x001E;           /* PRO/1000 MT Desktop Adapter */
    case 0x0C: return 0x8086;
    case 0x0D: return 0x100E;
    case 0x0E: return 0x8086;
    case 0x0F: return 0x3040;           /* §5.6.12 */
    default: return 0;
    }
}

uint16_t e1000_eeprom_word(const struct e1000 *e1000, unsigned word)
{
    uint16_t sum = EEPROM_SUM;
    if (word != WORD_CHECKSUM)
        return fixed_word(e1000, word);
    for (unsigned i = 0; i < WORD_CHECKSUM; i++)
        sum -= fixed_word(e1000, i);
    return sum;
}

/* A bit in and a bit out with each rising clock; the first that goes out after the address is a 0. */
static void clock_rises(struct e1000 *e1000, bool in)
{
    if (e1000->eeprom_reading) {
        bool out = e1000->eeprom_out >> 15;
        e1000->eeprom_out = (uint16_t)(e1000->eeprom_out << 1);
        e1000->reg[E1000_EECD] = (e1000->reg[E1000_EECD] & ~(uint32_t)EECD_DO) | (out ? EECD_DO : 0);
        return;
    }
    if (!e1000->eeprom_bits && !in)
        return;                         /* waits for the start bit */
    e1000->eeprom_in = e1000->eeprom_in << 1 | in;
    if (++e1000->eeprom_bits < MICROWIRE_BITS)
        return;
    e1000->eeprom_reading = (e1000->eeprom_in >> 6 & 7) == MICROWIRE_READ;
    e1000->eeprom_out = e1000->eeprom_reading ? e1000_eeprom_word(e1000, e1000->eeprom_in & MICROWIRE_ADDRESS) : 0;
    e1000->eeprom_bits = 0;
    e1000->eeprom_in = 0;
    e1000->reg[E1000_EECD] &= ~(uint32_t)EECD_DO;
}

void e1000_eeprom_pins(struct e1000 *e1000, uint32_t before)
{
    uint32_t *eecd = &e1000->reg[E1000_EECD];
    *eecd = (*eecd & ~(uint32_t)EECD_GNT) | (*eecd & EECD_REQ ? EECD_GNT : 0);
    if (!(*eecd & EECD_CS)) {
        e1000->eeprom_bits = 0;
        e1000->eeprom_in = 0;
        e1000->eeprom_reading = false;
        *eecd |= EECD_DO;               /* ready: nothing is being written */
    } else if (*eecd & ~before & EECD_SK) {
        clock_rises(e1000, *eecd & EECD_DI);
    }
}

void e1000_eeprom_read(struct e1000 *e1000)
{
    unsigned word = bits(e1000->reg[E1000_EERD], 15, 8);
    e1000->reg[E1000_EERD] = word << EERD_ADDRESS_SHIFT | EERD_DONE |
                             (uint32_t)e1000_eeprom_word(e1000, word & (E1000_EEPROM - 1)) << EERD_DATA_SHIFT;
}

/* --- PHY --- */

/* §13.4.7 MDIC */
enum { MDIC_WRITE = 1, MDIC_READ = 2, MDIC_INTERRUPT = 1 << 29, MDIC_ERROR = 1 << 30, PHY_ADDRESS = 1 };
/* IEEE 802.3 §22.2.4, and §13.6 of the manual */
enum phy_register { PHY_CONTROL, PHY_STATUS, PHY_ID1, PHY_ID2, PHY_ADVERTISEMENT, PHY_PARTNER, PHY_EXPANSION, PHY_NEXT_PAGE,
                    PHY_1000_CONTROL = 9, PHY_1000_STATUS, PHY_EXTENDED_STATUS = 15, PHY_SPECIFIC_CONTROL, PHY_SPECIFIC_STATUS, PHY_INTERRUPT_ENABLE,
                    PHY_INTERRUPT_STATUS, PHY_EXTENDED_CONTROL, PHY_PAGE = 29, PHY_PAGE_DATA };
enum { PHY_RESET = 0x8000, PHY_RESTART = 0x0200, PHY_LINK = 0x0004, PHY_NEGOTIATED = 0x0020, PHY_SPECIFIC_LINK = 0x0400 };

static const struct { uint16_t reset, rw; } phy_row[E1000_PHY] = {
    [PHY_CONTROL] = { 0x1140, 0x7DC0 },
    [PHY_STATUS] = { 0x7949, 0 },
    [PHY_ID1] = { 0x0141, 0 },
    [PHY_ID2] = { 0x0C20, 0 },
    [PHY_ADVERTISEMENT] = { 0x0DE1, 0xEFFF },
    [PHY_PARTNER] = { 0x45E1, 0 },
    [PHY_EXPANSION] = { 0x0007, 0 },
    [PHY_NEXT_PAGE] = { 0x2001, 0xBFFF },
    [PHY_1000_CONTROL] = { 0x0E00, 0xFF00 },
    [PHY_1000_STATUS] = { 0x3C00, 0 },
    [PHY_EXTENDED_STATUS] = { 0x3000, 0 },
    [PHY_SPECIFIC_CONTROL] = { 0x0360, 0xFFFF },
    [PHY_SPECIFIC_STATUS] = { 0xA800, 0 },              /* 1000 Mbit/s, full duplex, resolved */
    [PHY_INTERRUPT_ENABLE] = { 0, 0xFFFF },
    [PHY_EXTENDED_CONTROL] = { 0x0D60, 0xFFFF },
    [PHY_PAGE] = { 0, 0xFFFF },
    [PHY_PAGE_DATA] = { 0, 0xFFFF },
};

void e1000_phy_reset(struct e1000 *e1000)
{
    for (unsigned i = 0; i < E1000_PHY; i++)
        e1000->phy[i] = phy_row[i].reset;
}

static uint16_t phy_read(const struct e1000 *e1000, unsigned n)
{
    uint16_t link = !e1000->link_up ? 0 : n == PHY_STATUS ? PHY_LINK | PHY_NEGOTIATED : n == PHY_SPECIFIC_STATUS ? PHY_SPECIFIC_LINK : 0;
    return e1000->phy[n] | link;
}

/* A reset and a negotiation are over at once. */
static void phy_write(struct e1000 *e1000, unsigned n, uint16_t value)
{
    if (n == PHY_CONTROL && value & PHY_RESET)
        e1000_phy_reset(e1000);
    else
        e1000->phy[n] = (uint16_t)((e1000->phy[n] & ~phy_row[n].rw) | (value & phy_row[n].rw));
    if (n == PHY_CONTROL && value & (PHY_RESET | PHY_RESTART) && e1000->link_up)
        e1000_raise(e1000, ICR_LSC);
}

void e1000_phy_access(struct e1000 *e1000)
{
    uint32_t *mdic = &e1000->reg[E1000_MDIC];
    unsigned n = bits(*mdic, 20, 16), operation = bits(*mdic, 27, 26);
    *mdic &= ~(uint32_t)MDIC_ERROR;
    if (bits(*mdic, 25, 21) != PHY_ADDRESS)
        *mdic |= MDIC_ERROR;
    else if (operation == MDIC_READ)
        *mdic = (*mdic & 0xFFFF0000) | phy_read(e1000, n);
    else if (operation == MDIC_WRITE)
        phy_write(e1000, n, (uint16_t)*mdic);
    if (*mdic & MDIC_INTERRUPT)
        e1000_raise(e1000, ICR_MDAC);
}
