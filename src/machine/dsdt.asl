/*
 * The differentiated system description table: what the operating system cannot find by itself. Compiled by iasl when
 * Doppel is built. Addresses are those of layout.def; acpi.c checks the ones that matter with static assertions.
 */
DefinitionBlock ("", "DSDT", 2, "DOPPEL", "DOPPEL  ", 1)
{
    /* Soft off: the value of SLP_TYP that the power-management chip takes for S5. */
    Name (\_S5, Package (4) { 5, 5, 0, 0 })

    /* Where ECAM is: in an SSDT, for it is known only once firmware has run. */
    External (\ECAM, IntObj)
    /* Whether a keyboard and a mouse are plugged in: beside it. */
    External (\PS2P, IntObj)

    /* The interrupt model that the operating system has chosen: 0 is the 8259s. */
    Name (\PICF, 0)
    Method (\_PIC, 1) { PICF = Arg0 }

    Scope (\_GPE)
    {
        Method (_E05) { Notify (\_SB.VGEN, 0x80) }
        Method (_E06) { \_SB.PCI0.PCNT () }
    }

    Scope (\_SB)
    {
        /* The generation id; operating systems look for the _CID. */
        Device (VGEN)
        {
            Name (_HID, "DPPL0001")
            Name (_CID, "VM_Gen_Counter")
            Name (_DDN, "VM_Gen_Counter")
            Name (ADDR, Package (2) { 0xFEDFF000, 0 })
        }

        Device (PCI0)
        {
            Name (_HID, EisaId ("PNP0A08"))
            Name (_CID, EisaId ("PNP0A03"))
            Name (_UID, 0)
            Name (_SEG, 0)
            Name (_BBN, 0)
            /* The windows around ECAM, which firmware places: its base E is \ECAM (acpi.c), its length 256 MiB. */
            Method (_CRS, 0, Serialized)
            {
                Name (RSRC, ResourceTemplate ()
                {
                    WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, 0, 0xFF, 0, 0x100)
                    IO (Decode16, 0x0CF8, 0x0CF8, 1, 8)
                    WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0000, 0x0CF7, 0, 0x0CF8)
                    WordIO (ResourceProducer, MinFixed, MaxFixed, PosDecode, EntireRange, 0, 0x0D00, 0xFFFF, 0, 0xF300)
                    DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                        0, 0x000A0000, 0x000BFFFF, 0, 0x00020000)
                    DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                        0, 0x80000000, 0xAFFFFFFF, 0, 0x30000000, , , LOWW)
                    DWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite,
                        0, 0xC0000000, 0xFEBFFFFF, 0, 0x3EC00000, , , HIGH)
                    QWordMemory (ResourceProducer, PosDecode, MinFixed, MaxFixed, Cacheable, ReadWrite,
                        0, 0x800000000, 0xFFFFFFFFF, 0, 0x800000000)
                })
                CreateDWordField (RSRC, LOWW._MAX, LMAX)
                CreateDWordField (RSRC, LOWW._LEN, LLEN)
                CreateDWordField (RSRC, HIGH._MIN, HMIN)
                CreateDWordField (RSRC, HIGH._LEN, HLEN)
                LMAX = \ECAM - 1
                LLEN = \ECAM - 0x80000000
                HMIN = \ECAM + 0x10000000
                HLEN = 0xFEC00000 - HMIN
                Return (RSRC)
            }

            /* PCI Firmware Specification 3.2 §4.5: everything that is asked for is granted. */
            Method (_OSC, 4, NotSerialized)
            {
                If (LEqual (Arg0, ToUUID ("33DB4D5B-1FF7-401C-9657-7441C03DD766"))) { Return (Arg3) }
                CreateDWordField (Arg3, 0, ERRS)
                Or (ERRS, 4, ERRS)
                Return (Arg3)
            }

            /*
             * Legacy interrupt of pin P (0 is INTA) of device D: line (D + P) & 7 up to device 24, line P above it. With I/O APICs
             * line L is global interrupt 16 + L; with the 8259s it goes where link L is set to. src/dev/pci routes by the same rule.
             */
            Method (_PRT, 0, Serialized)
            {
                Local0 = Package (128) {}
                Local1 = 0
                While (Local1 < 128)
                {
                    Local2 = Local1 >> 2
                    Local3 = Local1 & 3
                    If (Local2 <= 24) { Local4 = (Local2 + Local3) & 7 } Else { Local4 = Local3 }
                    If (\PICF) { Local5 = Package (4) { 0, 0, 0, 0 } Local5 [3] = 16 + Local4 }
                    ElseIf (Local4 == 0) { Local5 = Package (4) { 0, 0, ^ISA.LNKA, 0 } }
                    ElseIf (Local4 == 1) { Local5 = Package (4) { 0, 0, ^ISA.LNKB, 0 } }
                    ElseIf (Local4 == 2) { Local5 = Package (4) { 0, 0, ^ISA.LNKC, 0 } }
                    ElseIf (Local4 == 3) { Local5 = Package (4) { 0, 0, ^ISA.LNKD, 0 } }
                    ElseIf (Local4 == 4) { Local5 = Package (4) { 0, 0, ^ISA.LNKE, 0 } }
                    ElseIf (Local4 == 5) { Local5 = Package (4) { 0, 0, ^ISA.LNKF, 0 } }
                    ElseIf (Local4 == 6) { Local5 = Package (4) { 0, 0, ^ISA.LNKG, 0 } }
                    Else { Local5 = Package (4) { 0, 0, ^ISA.LNKH, 0 } }
                    Local5 [0] = (Local2 << 16) | 0xFFFF
                    Local5 [1] = Local3
                    Local0 [Local1] = Local5
                    Local1++
                }
                Return (Local0)
            }

            /* Slots whose devices come and go: src/dev/pci_hotplug.c. 1 is a device check, 3 an eject request (ACPI 6.4 §5.6.6). */
            OperationRegion (HOTP, SystemIO, 0x0640, 0x10)
            Field (HOTP, DWordAcc, NoLock, WriteAsZeros) { CAME, 32, LEAV, 32, EJCT, 32 }
            Device (S01) { Name (_ADR, 0x00010000) Name (_SUN, 1) Method (_EJ0, 1) { EJCT = 0x2 } }
            Device (S02) { Name (_ADR, 0x00020000) Name (_SUN, 2) Method (_EJ0, 1) { EJCT = 0x4 } }
            Device (S03) { Name (_ADR, 0x00030000) Name (_SUN, 3) Method (_EJ0, 1) { EJCT = 0x8 } }
            Device (S04) { Name (_ADR, 0x00040000) Name (_SUN, 4) Method (_EJ0, 1) { EJCT = 0x10 } }
            Device (S05) { Name (_ADR, 0x00050000) Name (_SUN, 5) Method (_EJ0, 1) { EJCT = 0x20 } }
            Device (S06) { Name (_ADR, 0x00060000) Name (_SUN, 6) Method (_EJ0, 1) { EJCT = 0x40 } }
            Device (S07) { Name (_ADR, 0x00070000) Name (_SUN, 7) Method (_EJ0, 1) { EJCT = 0x80 } }
            Device (S08) { Name (_ADR, 0x00080000) Name (_SUN, 8) Method (_EJ0, 1) { EJCT = 0x100 } }
            Device (S09) { Name (_ADR, 0x00090000) Name (_SUN, 9) Method (_EJ0, 1) { EJCT = 0x200 } }
            Device (S0A) { Name (_ADR, 0x000A0000) Name (_SUN, 10) Method (_EJ0, 1) { EJCT = 0x400 } }
            Device (S0B) { Name (_ADR, 0x000B0000) Name (_SUN, 11) Method (_EJ0, 1) { EJCT = 0x800 } }
            Device (S0C) { Name (_ADR, 0x000C0000) Name (_SUN, 12) Method (_EJ0, 1) { EJCT = 0x1000 } }
            Device (S0D) { Name (_ADR, 0x000D0000) Name (_SUN, 13) Method (_EJ0, 1) { EJCT = 0x2000 } }
            Device (S0E) { Name (_ADR, 0x000E0000) Name (_SUN, 14) Method (_EJ0, 1) { EJCT = 0x4000 } }
            Device (S0F) { Name (_ADR, 0x000F0000) Name (_SUN, 15) Method (_EJ0, 1) { EJCT = 0x8000 } }
            Device (S10) { Name (_ADR, 0x00100000) Name (_SUN, 16) Method (_EJ0, 1) { EJCT = 0x10000 } }
            Device (S11) { Name (_ADR, 0x00110000) Name (_SUN, 17) Method (_EJ0, 1) { EJCT = 0x20000 } }
            Device (S12) { Name (_ADR, 0x00120000) Name (_SUN, 18) Method (_EJ0, 1) { EJCT = 0x40000 } }
            Device (S13) { Name (_ADR, 0x00130000) Name (_SUN, 19) Method (_EJ0, 1) { EJCT = 0x80000 } }
            Device (S14) { Name (_ADR, 0x00140000) Name (_SUN, 20) Method (_EJ0, 1) { EJCT = 0x100000 } }
            Device (S15) { Name (_ADR, 0x00150000) Name (_SUN, 21) Method (_EJ0, 1) { EJCT = 0x200000 } }
            Device (S16) { Name (_ADR, 0x00160000) Name (_SUN, 22) Method (_EJ0, 1) { EJCT = 0x400000 } }
            Device (S17) { Name (_ADR, 0x00170000) Name (_SUN, 23) Method (_EJ0, 1) { EJCT = 0x800000 } }
            Device (S18) { Name (_ADR, 0x00180000) Name (_SUN, 24) Method (_EJ0, 1) { EJCT = 0x1000000 } }
            Device (S19) { Name (_ADR, 0x00190000) Name (_SUN, 25) Method (_EJ0, 1) { EJCT = 0x2000000 } }
            Device (S1A) { Name (_ADR, 0x001A0000) Name (_SUN, 26) Method (_EJ0, 1) { EJCT = 0x4000000 } }
            Device (S1B) { Name (_ADR, 0x001B0000) Name (_SUN, 27) Method (_EJ0, 1) { EJCT = 0x8000000 } }
            Device (S1C) { Name (_ADR, 0x001C0000) Name (_SUN, 28) Method (_EJ0, 1) { EJCT = 0x10000000 } }
            Device (S1D) { Name (_ADR, 0x001D0000) Name (_SUN, 29) Method (_EJ0, 1) { EJCT = 0x20000000 } }
            Device (S1E) { Name (_ADR, 0x001E0000) Name (_SUN, 30) Method (_EJ0, 1) { EJCT = 0x40000000 } }
            Method (PNOT, 2)
            {
                If (Arg0 & 0x2) { Notify (S01, Arg1) }
                If (Arg0 & 0x4) { Notify (S02, Arg1) }
                If (Arg0 & 0x8) { Notify (S03, Arg1) }
                If (Arg0 & 0x10) { Notify (S04, Arg1) }
                If (Arg0 & 0x20) { Notify (S05, Arg1) }
                If (Arg0 & 0x40) { Notify (S06, Arg1) }
                If (Arg0 & 0x80) { Notify (S07, Arg1) }
                If (Arg0 & 0x100) { Notify (S08, Arg1) }
                If (Arg0 & 0x200) { Notify (S09, Arg1) }
                If (Arg0 & 0x400) { Notify (S0A, Arg1) }
                If (Arg0 & 0x800) { Notify (S0B, Arg1) }
                If (Arg0 & 0x1000) { Notify (S0C, Arg1) }
                If (Arg0 & 0x2000) { Notify (S0D, Arg1) }
                If (Arg0 & 0x4000) { Notify (S0E, Arg1) }
                If (Arg0 & 0x8000) { Notify (S0F, Arg1) }
                If (Arg0 & 0x10000) { Notify (S10, Arg1) }
                If (Arg0 & 0x20000) { Notify (S11, Arg1) }
                If (Arg0 & 0x40000) { Notify (S12, Arg1) }
                If (Arg0 & 0x80000) { Notify (S13, Arg1) }
                If (Arg0 & 0x100000) { Notify (S14, Arg1) }
                If (Arg0 & 0x200000) { Notify (S15, Arg1) }
                If (Arg0 & 0x400000) { Notify (S16, Arg1) }
                If (Arg0 & 0x800000) { Notify (S17, Arg1) }
                If (Arg0 & 0x1000000) { Notify (S18, Arg1) }
                If (Arg0 & 0x2000000) { Notify (S19, Arg1) }
                If (Arg0 & 0x4000000) { Notify (S1A, Arg1) }
                If (Arg0 & 0x8000000) { Notify (S1B, Arg1) }
                If (Arg0 & 0x10000000) { Notify (S1C, Arg1) }
                If (Arg0 & 0x20000000) { Notify (S1D, Arg1) }
                If (Arg0 & 0x40000000) { Notify (S1E, Arg1) }
            }
            Method (PCNT, 0, Serialized)
            {
                Local0 = CAME
                CAME = Local0
                PNOT (Local0, 1)
                Local0 = LEAV
                LEAV = Local0
                PNOT (Local0, 3)
            }

            /* The low-pin-count bridge: the chips of the old PC behind it. */
            Device (ISA)
            {
                Name (_ADR, 0x001F0000)

                /* PIRQx_ROUT: ICH9 datasheet §13.1.17 and §13.1.19. */
                OperationRegion (ROUT, PCI_Config, 0x60, 0x0C)
                Field (ROUT, ByteAcc, NoLock, Preserve)
                {
                    PRQA, 8, PRQB, 8, PRQC, 8, PRQD, 8,
                    Offset (8),
                    PRQE, 8, PRQF, 8, PRQG, 8, PRQH, 8
                }
                Name (POSS, ResourceTemplate () { IRQ (Level, ActiveLow, Shared) { 5, 10, 11 } })
                Method (LSTA, 1) { If (Arg0 & 0x80) { Return (9) } Return (0x0B) }
                Method (LCRS, 1, Serialized)
                {
                    Name (RSRC, ResourceTemplate () { IRQ (Level, ActiveLow, Shared) { } })
                    CreateWordField (RSRC, 1, MASK)
                    If (Arg0 & 0x80) { MASK = 0 } Else { MASK = 1 << (Arg0 & 0x0F) }
                    Return (RSRC)
                }
                Method (LSRS, 1, Serialized)
                {
                    CreateWordField (Arg0, 1, MASK)
                    FindSetRightBit (MASK, Local0)
                    Return (Local0 - 1)
                }

                Device (LNKA)
                {
                    Name (_HID, EisaId ("PNP0C0F"))
                    Name (_UID, 1)
                    Method (_STA) { Return (LSTA (PRQA)) }
                    Method (_DIS) { PRQA |= 0x80 }
                    Method (_PRS) { Return (POSS) }
                    Method (_CRS) { Return (LCRS (PRQA)) }
                    Method (_SRS, 1) { PRQA = LSRS (Arg0) }
                }
                Device (LNKB)
                {
                    Name (_HID, EisaId ("PNP0C0F"))
                    Name (_UID, 2)
                    Method (_STA) { Return (LSTA (PRQB)) }
                    Method (_DIS) { PRQB |= 0x80 }
                    Method (_PRS) { Return (POSS) }
                    Method (_CRS) { Return (LCRS (PRQB)) }
                    Method (_SRS, 1) { PRQB = LSRS (Arg0) }
                }
                Device (LNKC)
                {
                    Name (_HID, EisaId ("PNP0C0F"))
                    Name (_UID, 3)
                    Method (_STA) { Return (LSTA (PRQC)) }
                    Method (_DIS) { PRQC |= 0x80 }
                    Method (_PRS) { Return (POSS) }
                    Method (_CRS) { Return (LCRS (PRQC)) }
                    Method (_SRS, 1) { PRQC = LSRS (Arg0) }
                }
                Device (LNKD)
                {
                    Name (_HID, EisaId ("PNP0C0F"))
                    Name (_UID, 4)
                    Method (_STA) { Return (LSTA (PRQD)) }
                    Method (_DIS) { PRQD |= 0x80 }
                    Method (_PRS) { Return (POSS) }
                    Method (_CRS) { Return (LCRS (PRQD)) }
                    Method (_SRS, 1) { PRQD = LSRS (Arg0) }
                }
                Device (LNKE)
                {
                    Name (_HID, EisaId ("PNP0C0F"))
                    Name (_UID, 5)
                    Method (_STA) { Return (LSTA (PRQE)) }
                    Method (_DIS) { PRQE |= 0x80 }
                    Method (_PRS) { Return (POSS) }
                    Method (_CRS) { Return (LCRS (PRQE)) }
                    Method (_SRS, 1) { PRQE = LSRS (Arg0) }
                }
                Device (LNKF)
                {
                    Name (_HID, EisaId ("PNP0C0F"))
                    Name (_UID, 6)
                    Method (_STA) { Return (LSTA (PRQF)) }
                    Method (_DIS) { PRQF |= 0x80 }
                    Method (_PRS) { Return (POSS) }
                    Method (_CRS) { Return (LCRS (PRQF)) }
                    Method (_SRS, 1) { PRQF = LSRS (Arg0) }
                }
                Device (LNKG)
                {
                    Name (_HID, EisaId ("PNP0C0F"))
                    Name (_UID, 7)
                    Method (_STA) { Return (LSTA (PRQG)) }
                    Method (_DIS) { PRQG |= 0x80 }
                    Method (_PRS) { Return (POSS) }
                    Method (_CRS) { Return (LCRS (PRQG)) }
                    Method (_SRS, 1) { PRQG = LSRS (Arg0) }
                }
                Device (LNKH)
                {
                    Name (_HID, EisaId ("PNP0C0F"))
                    Name (_UID, 8)
                    Method (_STA) { Return (LSTA (PRQH)) }
                    Method (_DIS) { PRQH |= 0x80 }
                    Method (_PRS) { Return (POSS) }
                    Method (_CRS) { Return (LCRS (PRQH)) }
                    Method (_SRS, 1) { PRQH = LSRS (Arg0) }
                }

                Device (RTC)
                {
                    Name (_HID, EisaId ("PNP0B00"))
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0070, 0x0070, 1, 2)
                        IRQNoFlags () { 8 }
                    })
                }

                /* Where a kernel says that it panicked; Linux looks for the id. */
                Device (PEVT)
                {
                    Name (_HID, "QEMU0001")
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0505, 0x0505, 1, 1)
                    })
                }

                Device (KBD)
                {
                    Name (_HID, EisaId ("PNP0303"))
                    Method (_STA) { If (\PS2P) { Return (0x0F) } Return (0) }
                    Name (_CRS, ResourceTemplate ()
                    {
                        IO (Decode16, 0x0060, 0x0060, 1, 1)
                        IO (Decode16, 0x0064, 0x0064, 1, 1)
                        IRQNoFlags () { 1 }
                    })
                }

                Device (MOU)
                {
                    Name (_HID, EisaId ("PNP0F13"))
                    Method (_STA) { If (\PS2P) { Return (0x0F) } Return (0) }
                    Name (_CRS, ResourceTemplate () { IRQNoFlags () { 12 } })
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
            Method (_CRS, 0, Serialized)
            {
                Name (RSRC, ResourceTemplate ()
                {
                    Memory32Fixed (ReadWrite, 0xB0000000, 0x10000000, CFGW)
                    Memory32Fixed (ReadWrite, 0xFEC00000, 0x00001000)
                    Memory32Fixed (ReadWrite, 0xFED00000, 0x00000400)
                    Memory32Fixed (ReadOnly, 0xFEDFF000, 0x00001000)
                    Memory32Fixed (ReadWrite, 0xFEE00000, 0x00100000)
                    IO (Decode16, 0x0600, 0x0600, 1, 0x50)
                    IO (Decode16, 0x04D0, 0x04D0, 1, 2)
                })
                CreateDWordField (RSRC, CFGW._BAS, EBAS)
                EBAS = \ECAM
                Return (RSRC)
            }
        }
    }
}
