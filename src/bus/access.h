/* The single currency between engines, buses and devices. */
#ifndef DOPPEL_BUS_ACCESS_H
#define DOPPEL_BUS_ACCESS_H

#include <stdbool.h>
#include <stdint.h>

struct access {
    uint64_t address;       /* on entry to a device: offset from its region's base */
    uint64_t value;         /* write: the value, zero-extended; read: filled in by the device */
    uint16_t requester;     /* PCI bus/device/function of a DMA master; REQUESTER_CPU for a processor */
    uint8_t size;           /* bytes: 1, 2, 4 or 8 */
    bool write;
};

enum { REQUESTER_CPU = 0xFFFF };

enum access_result {
    ACCESS_OK,
    ACCESS_UNHANDLED,       /* nobody there: reads give all ones, writes go nowhere */
    ACCESS_FAULT,           /* refused (IOMMU, abort): the requester decides what that means */
};

#endif
