/* Names for the rows of layout.def: NAME_BASE and NAME_SIZE. */
#ifndef DOPPEL_MACHINE_LAYOUT_H
#define DOPPEL_MACHINE_LAYOUT_H

#include <stdint.h>

#define LAYOUT(name, base, size, text) static const uint64_t name##_BASE = base, name##_SIZE = size;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-const-variable"
#include "machine/layout.def"
#pragma GCC diagnostic pop
#undef LAYOUT

/* Interrupt lines (I/O APIC inputs; the first 16 are the 8259s', IRQ 0 is input 2). */
enum { IRQ_PIT = 0, IRQ_KEYBOARD = 1, IRQ_UART0 = 4, IRQ_RTC = 8, IRQ_SCI = 9, IRQ_MOUSE = 12, IRQ_PCI_FIRST = 16, IRQ_PCI_COUNT = 8 };

/* Events of the GPE0 block, as in the DSDT. */
enum { GPE_VMGENID = 5, GPE_PCI_HOTPLUG = 6 };

#endif
