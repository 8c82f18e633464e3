/* The Gigabit Ethernet controller that most systems have a driver for. */
#ifndef DOPPEL_DEV_NET_E1000_H
#define DOPPEL_DEV_NET_E1000_H

#include "dev/pci/pci.h"

struct net;

enum e1000_register {
#define REG(name, offset, reset, rw, w1c, section) E1000_##name,
#include "dev/net/e1000_registers.def"
    E1000_REGISTERS
};

enum { E1000_MULTICAST = 128, E1000_ADDRESSES = 32, E1000_VLANS = 128, E1000_STATISTICS = 64, E1000_PHY = 32, E1000_EEPROM = 64,
       E1000_FRAME_MAX = 65536 + 14 };

/* What a context descriptor says (§3.3.6); one is kept for checksums, one for segmentation. */
struct e1000_context {
    uint8_t ip_start, ip_field, tu_start, tu_field, header, command;
    uint16_t ip_end, tu_end, segment;
    uint32_t payload;
};

struct e1000 {
    struct pci_function pci;
    /* --- configuration --- */
    struct net *net;            /* NULL: no cable is plugged in */
    uint8_t mac[6];
    /* --- state --- */
    uint32_t reg[E1000_REGISTERS];
    uint32_t multicast[E1000_MULTICAST];        /* MTA, §13.4.46 */
    uint32_t address[E1000_ADDRESSES];          /* RAL and RAH in turn, §13.4.47 */
    uint32_t vlan[E1000_VLANS];                 /* VFTA, §13.4.51 */
    uint32_t statistics[E1000_STATISTICS];      /* §13.7: from 0x4000 on; reading clears */
    uint16_t phy[E1000_PHY];
    uint32_t io_address;
    uint32_t eeprom_in;         /* bits that came by the serial interface, the newest lowest */
    uint16_t eeprom_out;        /* what it answers, the next bit highest */
    uint8_t eeprom_bits;        /* how many of them there are */
    bool eeprom_reading;
    bool link_up;
    struct e1000_context checksum, segmentation;
    uint32_t frame_size;        /* of the frame that is being gathered */
    bool frame_lost;            /* it does not fit, or cannot be read */
    uint8_t frame_options;      /* POPTS of its first descriptor */
    uint8_t frame[E1000_FRAME_MAX];
    /* --- not state --- */
    struct timer more;          /* the rest of a long list of descriptors */
};

#endif
