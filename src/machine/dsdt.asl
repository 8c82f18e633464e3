/*
 * The differentiated system description table: what the operating system cannot find by itself. Compiled by iasl when
 * Doppel is built. Addresses are those of layout.def; acpi.c checks the ones that matter with static assertions.
 */
DefinitionBlock ("", "DSDT", 2, "DOPPEL", "DOPPEL  ", 1)
{
    /* Soft off: the value of SLP_TYP that the power-management chip takes for S5. */
    Name (\_S5, Package (4) { 5, 5, 0, 0 })

    Scope (\_SB)
    {
        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_SEG, 0)
            Name (_BBN, 0)
            Name (_CRS, ResourceTemplate ()
            {
                WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0xFF, 0, 0x100)
                IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0000, 0x0CF7, 0, 0x0CF8)
                WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
                DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                    0, 0xC0000000, 0xDFFFFFFF, 0, 0x20000000)
                QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                    0, 0x800000000, 0xFFFFFFFFF, 0, 0x800000000)
            })

            /* PCI Firmware Specification 3.2 §4.5: everything that is asked for is granted. */
            Method (_OSC, 4, NotSerialized)
            {
                If (LEqual (Arg0, ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766"))) { Return (Arg3) }
                CreateDWordField (Arg3, 0, ERRS)
                Or (ERRS, 4, ERRS)
                Return (Arg3)
            }

            /*
             * Legacy interrupt of pin P (0 is INTA) of device D: global interrupt 16 + ((D + P) & 7), fixed wires to the I/O APIC.
             * src/dev/pci routes by the same rule.
             */
            Name (_PRT, Package ()
            {
                Package (4) { 0x0000FFFF, 0, 0, 16 }, Package (4) { 0x0000FFFF, 1, 0, 17 }, Package (4) { 0x0000FFFF, 2, 0, 18 }, Package (4) { 0x0000FFFF, 3, 0, 19 },
                Package (4) { 0x0001FFFF, 0, 0, 17 }, Package (4) { 0x0001FFFF, 1, 0, 18 }, Package (4) { 0x0001FFFF, 2, 0, 19 }, Package (4) { 0x0001FFFF, 3, 0, 20 },
                Package (4) { 0x0002FFFF, 0, 0, 18 }, Package (4) { 0x0002FFFF, 1, 0, 19 }, Package (4) { 0x0002FFFF, 2, 0, 20 }, Package (4) { 0x0002FFFF, 3, 0, 21 },
                Package (4) { 0x0003FFFF, 0, 0, 19 }, Package (4) { 0x0003FFFF, 1, 0, 20 }, Package (4) { 0x0003FFFF, 2, 0, 21 }, Package (4) { 0x0003FFFF, 3, 0, 22 },
                Package (4) { 0x0004FFFF, 0, 0, 20 }, Package (4) { 0x0004FFFF, 1, 0, 21 }, Package (4) { 0x0004FFFF, 2, 0, 22 }, Package (4) { 0x0004FFFF, 3, 0, 23 },
                Package (4) { 0x0005FFFF, 0, 0, 21 }, Package (4) { 0x0005FFFF, 1, 0, 22 }, Package (4) { 0x0005FFFF, 2, 0, 23 }, Package (4) { 0x0005FFFF, 3, 0, 16 },
                Package (4) { 0x0006FFFF, 0, 0, 22 }, Package (4) { 0x0006FFFF, 1, 0, 23 }, Package (4) { 0x0006FFFF, 2, 0, 16 }, Package (4) { 0x0006FFFF, 3, 0, 17 },
                Package (4) { 0x0007FFFF, 0, 0, 23 }, Package (4) { 0x0007FFFF, 1, 0, 16 }, Package (4) { 0x0007FFFF, 2, 0, 17 }, Package (4) { 0x0007FFFF, 3, 0, 18 },
                Package (4) { 0x0008FFFF, 0, 0, 16 }, Package (4) { 0x0008FFFF, 1, 0, 17 }, Package (4) { 0x0008FFFF, 2, 0, 18 }, Package (4) { 0x0008FFFF, 3, 0, 19 },
                Package (4) { 0x0009FFFF, 0, 0, 17 }, Package (4) { 0x0009FFFF, 1, 0, 18 }, Package (4) { 0x0009FFFF, 2, 0, 19 }, Package (4) { 0x0009FFFF, 3, 0, 20 },
                Package (4) { 0x000AFFFF, 0, 0, 18 }, Package (4) { 0x000AFFFF, 1, 0, 19 }, Package (4) { 0x000AFFFF, 2, 0, 20 }, Package (4) { 0x000AFFFF, 3, 0, 21 },
                Package (4) { 0x000BFFFF, 0, 0, 19 }, Package (4) { 0x000BFFFF, 1, 0, 20 }, Package (4) { 0x000BFFFF, 2, 0, 21 }, Package (4) { 0x000BFFFF, 3, 0, 22 },
                Package (4) { 0x000CFFFF, 0, 0, 20 }, Package (4) { 0x000CFFFF, 1, 0, 21 }, Package (4) { 0x000CFFFF, 2, 0, 22 }, Package (4) { 0x000CFFFF, 3, 0, 23 },
                Package (4) { 0x000DFFFF, 0, 0, 21 }, Package (4) { 0x000DFFFF, 1, 0, 22 }, Package (4) { 0x000DFFFF, 2, 0, 23 }, Package (4) { 0x000DFFFF, 3, 0, 16 },
                Package (4) { 0x000EFFFF, 0, 0, 22 }, Package (4) { 0x000EFFFF, 1, 0, 23 }, Package (4) { 0x000EFFFF, 2, 0, 16 }, Package (4) { 0x000EFFFF, 3, 0, 17 },
                Package (4) { 0x000FFFFF, 0, 0, 23 }, Package (4) { 0x000FFFFF, 1, 0, 16 }, Package (4) { 0x000FFFFF, 2, 0, 17 }, Package (4) { 0x000FFFFF, 3, 0, 18 },
                Package (4) { 0x0010FFFF, 0, 0, 16 }, Package (4) { 0x0010FFFF, 1, 0, 17 }, Package (4) { 0x0010FFFF, 2, 0, 18 }, Package (4) { 0x0010FFFF, 3, 0, 19 },
                Package (4) { 0x0011FFFF, 0, 0, 17 }, Package (4) { 0x0011FFFF, 1, 0, 18 }, Package (4) { 0x0011FFFF, 2, 0, 19 }, Package (4) { 0x0011FFFF, 3, 0, 20 },
                Package (4) { 0x0012FFFF, 0, 0, 18 }, Package (4) { 0x0012FFFF, 1, 0, 19 }, Package (4) { 0x0012FFFF, 2, 0, 20 }, Package (4) { 0x0012FFFF, 3, 0, 21 },
                Package (4) { 0x0013FFFF, 0, 0, 19 }, Package (4) { 0x0013FFFF, 1, 0, 20 }, Package (4) { 0x0013FFFF, 2, 0, 21 }, Package (4) { 0x0013FFFF, 3, 0, 22 },
                Package (4) { 0x0014FFFF, 0, 0, 20 }, Package (4) { 0x0014FFFF, 1, 0, 21 }, Package (4) { 0x0014FFFF, 2, 0, 22 }, Package (4) { 0x0014FFFF, 3, 0, 23 },
                Package (4) { 0x0015FFFF, 0, 0, 21 }, Package (4) { 0x0015FFFF, 1, 0, 22 }, Package (4) { 0x0015FFFF, 2, 0, 23 }, Package (4) { 0x0015FFFF, 3, 0, 16 },
                Package (4) { 0x0016FFFF, 0, 0, 22 }, Package (4) { 0x0016FFFF, 1, 0, 23 }, Package (4) { 0x0016FFFF, 2, 0, 16 }, Package (4) { 0x0016FFFF, 3, 0, 17 },
                Package (4) { 0x0017FFFF, 0, 0, 23 }, Package (4) { 0x0017FFFF, 1, 0, 16 }, Package (4) { 0x0017FFFF, 2, 0, 17 }, Package (4) { 0x0017FFFF, 3, 0, 18 },
                Package (4) { 0x0018FFFF, 0, 0, 16 }, Package (4) { 0x0018FFFF, 1, 0, 17 }, Package (4) { 0x0018FFFF, 2, 0, 18 }, Package (4) { 0x0018FFFF, 3, 0, 19 },
                Package (4) { 0x0019FFFF, 0, 0, 17 }, Package (4) { 0x0019FFFF, 1, 0, 18 }, Package (4) { 0x0019FFFF, 2, 0, 19 }, Package (4) { 0x0019FFFF, 3, 0, 20 },
                Package (4) { 0x001AFFFF, 0, 0, 18 }, Package (4) { 0x001AFFFF, 1, 0, 19 }, Package (4) { 0x001AFFFF, 2, 0, 20 }, Package (4) { 0x001AFFFF, 3, 0, 21 },
                Package (4) { 0x001BFFFF, 0, 0, 19 }, Package (4) { 0x001BFFFF, 1, 0, 20 }, Package (4) { 0x001BFFFF, 2, 0, 21 }, Package (4) { 0x001BFFFF, 3, 0, 22 },
                Package (4) { 0x001CFFFF, 0, 0, 20 }, Package (4) { 0x001CFFFF, 1, 0, 21 }, Package (4) { 0x001CFFFF, 2, 0, 22 }, Package (4) { 0x001CFFFF, 3, 0, 23 },
                Package (4) { 0x001DFFFF, 0, 0, 21 }, Package (4) { 0x001DFFFF, 1, 0, 22 }, Package (4) { 0x001DFFFF, 2, 0, 23 }, Package (4) { 0x001DFFFF, 3, 0, 16 },
                Package (4) { 0x001EFFFF, 0, 0, 22 }, Package (4) { 0x001EFFFF, 1, 0, 23 }, Package (4) { 0x001EFFFF, 2, 0, 16 }, Package (4) { 0x001EFFFF, 3, 0, 17 },
                Package (4) { 0x001FFFFF, 0, 0, 23 }, Package (4) { 0x001FFFFF, 1, 0, 16 }, Package (4) { 0x001FFFFF, 2, 0, 17 }, Package (4) { 0x001FFFFF, 3, 0, 18 },
            })

            /* The low-pin-count bridge: the chips of the old PC behind it. */
            Device (ISA)
            {
                Name (_ADR, 0x001F0000)

                Device (RTC)
                {
                    Name (_HID, EisaId ("PNP0B00"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0070, 0x0070, 1, 2)
                        IRQNoFlags () { 8 }
                    })
                }

                Device (COM1)
                {
                    Name (_HID, EisaId ("PNP0501"))
                    Name (_UID, 1)
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x03F8, 0x03F8, 1, 8)
                        IRQNoFlags () { 4 }
                    })
                }
            }
        }

        /* Ranges that nothing else may be put in: ECAM (PCI Firmware Specification 3.2 §4.1.2), HPET, APICs, power management. */
        Device (RES)
        {
            Name (_HID, EisaId ("PNP0C02"))
            Name (_UID, 1)
            Name (_CRS, ResourceTemplate ()
            {
                Memory32Fixed (ReadWrite, 0xB0000000, 0x10000000)
                Memory32Fixed (ReadWrite, 0xFEC00000, 0x00001000)
                Memory32Fixed (ReadWrite, 0xFED00000, 0x00000400)
                Memory32Fixed (ReadWrite, 0xFEE00000, 0x00100000)
                IO (Decode16, 0x0600, 0x0600, 1, 0x40)
                IO (Decode16, 0x04D0, 0x04D0, 1, 2)
            })
        }
    }
}
