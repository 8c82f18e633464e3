/* ACPI power management: PM1 event and control, PM timer, GPE0, port 0x92. */
#ifndef DOPPEL_DEV_ACPI_PM_H
#define DOPPEL_DEV_ACPI_PM_H

#include "dev/device.h"
#include "dev/system_signal.h"

/* The value of SLP_TYPx that means S5, as \_S5 in the DSDT says; the timer has 32 bits (FADT: TMR_VAL_EXT). */
enum { ACPI_PM_SLP_TYP_S5 = 5, ACPI_PM_SLP_TYP_OFF = 0 /* EDK II's, which reads no DSDT */, ACPI_PM_TIMER_HZ = 3579545 };

struct acpi_pm {
    struct device device;
    /* --- configuration --- */
    struct irq_line sci;
    struct system_signal signal;
    uint64_t base;              /* 0: port 0x600 */
    /* --- state --- */
    uint16_t pm1_status, pm1_enable, pm1_control;
    uint16_t gpe0_status, gpe0_enable;
    uint8_t port92;
    uint64_t carry_ns;          /* the timer's bit 31 has been looked at until here */
    /* --- not state --- */
    struct region region, port92_region;
    struct timer timer;         /* next change of the timer's bit 31, while TMR_EN */
};

/* Board lock held. */
void acpi_pm_power_button(struct acpi_pm *pm);
/* Raises GPE0 status bit n (0 to 15): hot-plug and the like. */
void acpi_pm_gpe(struct acpi_pm *pm, unsigned n);
/* As an irq_line's `set`: a rising level raises GPE0 status bit n. sink: struct acpi_pm. */
void acpi_pm_gpe_line(void *sink, unsigned n, bool level);
/* As an irq_line's `set`: a rising level asks for a reset (port 0xCF9 in the host bridge). sink: struct acpi_pm. */
void acpi_pm_reset_line(void *sink, unsigned n, bool level);

#endif
