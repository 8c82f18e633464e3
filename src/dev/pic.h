/* The pair of 8259A interrupt controllers with ELCR. */
#ifndef DOPPEL_DEV_PIC_H
#define DOPPEL_DEV_PIC_H

#include "dev/device.h"

/* One of the two chips. */
struct i8259 {
    uint8_t irr, isr, imr;
    uint8_t lines;              /* levels of the inputs */
    uint8_t elcr;               /* 1: level-triggered */
    uint8_t icw2, icw4;
    uint8_t init_step;          /* 0: initialised; else the next ICW expected (2, 3, 4) */
    uint8_t lowest;             /* input of lowest priority: 7 unless rotated */
    bool ltim, single, need_icw4;
    bool read_isr, poll, special_mask, rotate_aeoi;
};

struct pic {
    struct device device;
    /* --- configuration --- */
    struct irq_line intr;       /* to the boot processor's LINT0 */
    /* --- state --- */
    struct i8259 chip[2];       /* master, slave */
    bool intr_level;
    /* --- not state --- */
    struct region port[2], elcr_port;
};

/* Board lock held. As an irq_line's `set`: sink is the struct pic, n 0 to 15. */
void pic_set_irq(void *sink, unsigned n, bool level);
/* The acknowledge cycle, as a struct extint_source wants it: takes the board lock itself. Always gives a vector. */
int pic_acknowledge(void *owner);

#endif
