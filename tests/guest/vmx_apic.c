/* VT-x: the virtual APIC's registers and algorithms (SDM3 chapter 30), each over a range of values. */
#include "lib/vmx.h"

enum { TPR = 0x80, PPR = 0xA0, EOI = 0xB0, ISR = 0x100, IRR = 0x200, ICR = 0x300, ICR_HIGH = 0x310, SELF_IPI = 0x3F0 };
enum { IF = 0x202, WRITE_ACCESS = 1 << 12, GP = 1 << 13 };
enum { REGISTERS = PROC2_APIC_REGISTER_VIRTUALIZATION, DELIVERY = PROC2_VIRTUAL_INTERRUPT_DELIVERY };

static const uint64_t page = 5ull << 30;        /* where the guest has its APIC-access page */
static uint8_t *virtual_apic;
static void *access_page;

static uint32_t get(unsigned offset) { return *(volatile uint32_t *)(virtual_apic + offset); }
static void put(unsigned offset, uint32_t value) { *(volatile uint32_t *)(virtual_apic + offset) = value; }
static bool has(unsigned base, unsigned vector) { return get(base + vector / 32 * 16) >> vector % 32 & 1; }
static void request(unsigned base, unsigned vector) { put(base + vector / 32 * 16, get(base + vector / 32 * 16) | 1u << vector % 32); }

static void prepare(void (*code)(void), uint32_t secondary)
{
    vmcs_prepare(code);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_TPR_SHADOW);
    if (secondary & DELIVERY)
        control_set(VMCS_PIN_BASED_CONTROLS, PIN_EXTERNAL_INTERRUPT_EXITING);
    secondary_set(secondary);
    vmwrite(VMCS_VIRTUAL_APIC_ADDRESS, (uint64_t)virtual_apic);
    vmwrite(VMCS_APIC_ACCESS_ADDRESS, (uint64_t)access_page);
    for (unsigned i = 0; i < 4096; i += 4)
        put(i, 0);
}

static void prepare_page(void (*code)(void), uint32_t secondary) { prepare(code, secondary | PROC2_VIRTUALIZE_APIC_ACCESSES); }

/* --- which registers are virtual: SDM3 §30.4.2, §30.4.3 --- */

static volatile uint64_t at, got;
static void guest_read(void) { got = *(volatile uint32_t *)at; vmcall(); }
static void guest_write(void) { *(volatile uint32_t *)at = 0x12345678; __asm__ volatile("nop"); vmcall(); }
static void guest_read_64(void) { got = *(volatile uint64_t *)at; vmcall(); }
static void guest_read_byte(void) { got = *(volatile uint8_t *)at; vmcall(); }

static bool one_of(unsigned offset, const uint16_t *list)
{
    while (*list && *list != offset)
        list++;
    return *list;
}

static bool reads_virtually(unsigned offset, uint32_t secondary)
{
    static const uint16_t more[] = { 0x20, 0x30, 0x80, 0xB0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360,
                                     0x370, 0x380, 0x3E0, 0 };
    return offset == TPR || ((secondary & REGISTERS) && (one_of(offset, more) || (offset >= ISR && offset < 0x280)));
}

static bool writes_virtually(unsigned offset, uint32_t secondary)
{
    static const uint16_t more[] = { 0x20, 0xB0, 0xD0, 0xE0, 0xF0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360, 0x370, 0x380,
                                     0x3E0, 0 };
    return offset == TPR || ((secondary & REGISTERS) && one_of(offset, more)) ||
           ((secondary & DELIVERY) && (offset == EOI || offset == ICR));
}

/* Of those, what ends in an APIC-write exit: all but TPR, ICR's upper half, and EOI where interrupts are delivered virtually. */
static uint32_t reason_of_write(unsigned offset, uint32_t secondary)
{
    if (!writes_virtually(offset, secondary))
        return REASON_APIC_ACCESS;
    bool silent = offset == TPR || offset == ICR_HIGH || (offset == EOI && (secondary & DELIVERY));
    return silent ? REASON_VMCALL : REASON_APIC_WRITE;
}

static bool try_read(unsigned offset, uint32_t secondary)
{
    bool is_virtual = reads_virtually(offset, secondary);
    prepare_page(guest_read, secondary);
    put(offset, 0xCAFE0000 | offset);
    at = page + offset;
    got = 0;
    uint32_t reason = vmx_run_reason();
    return is_virtual ? reason == REASON_VMCALL && got == (0xCAFE0000 | offset)
                      : reason == REASON_APIC_ACCESS && vmread(VMCS_EXIT_QUALIFICATION) == offset;
}

static bool try_write(unsigned offset, uint32_t secondary)
{
    uint32_t want = reason_of_write(offset, secondary), value = offset == TPR ? 0x78 : offset == ICR_HIGH ? 0x12000000 : 0x12345678;
    prepare_page(guest_write, secondary);
    at = page + offset;
    uint32_t reason = vmx_run_reason();
    if (reason != want)
        return false;
    if (reason == REASON_APIC_ACCESS)
        return vmread(VMCS_EXIT_QUALIFICATION) == (offset | WRITE_ACCESS) && get(offset) == 0;
    if (offset == EOI && (secondary & DELIVERY))
        value = 0;
    return get(offset) == value && (reason == REASON_VMCALL || vmread(VMCS_EXIT_QUALIFICATION) == offset);
}

static void registers(void)
{
    static const struct { uint32_t secondary; const char *reads, *writes; } kinds[] = {
        { 0, "reads with a TPR shadow", "writes with a TPR shadow" },
        { REGISTERS, "reads with APIC-register virtualization", "writes with APIC-register virtualization" },
        { DELIVERY, "reads with virtual-interrupt delivery", "writes with virtual-interrupt delivery" },
        { REGISTERS | DELIVERY, "reads with both", "writes with both" },
    };
    for (unsigned i = 0; i < 4; i++) {
        unsigned wrong_reads = 0, wrong_writes = 0;
        for (unsigned offset = 0; offset < 0x400; offset += 16) {
            bool read = try_read(offset, kinds[i].secondary), write = try_write(offset, kinds[i].secondary);
            if (!read || !write)
                print("%s of %x\n", read ? "write" : "read", offset);
            wrong_reads += !read;
            wrong_writes += !write;
        }
        check_equal(wrong_reads, 0, kinds[i].reads);
        check_equal(wrong_writes, 0, kinds[i].writes);
    }
    at = page + TPR;
    prepare_page(guest_read_64, 0);
    check_equal(vmx_run_reason(), REASON_APIC_ACCESS, "8 bytes are not virtual");
    at = page + TPR + 2;
    prepare_page(guest_read_byte, 0);
    put(TPR, 0x00560000);
    check_equal(vmx_run_reason(), REASON_VMCALL, "a byte within a register is");
    check_equal(got, 0x56, "and is that byte");
    at = page + TPR + 3;
    prepare_page(guest_read, 0);
    check_equal(vmx_run_reason(), REASON_APIC_ACCESS, "4 bytes from within a register are not");
    at = page + TPR + 4;
    prepare_page(guest_read_byte, 0);
    check_equal(vmx_run_reason(), REASON_APIC_ACCESS, "nor is what lies between registers");
}

/* --- instructions with more than one access --- */

static uint32_t place[2];
static void guest_or(void) { __asm__ volatile("orl $0x11, %0" : "+m"(*(volatile uint32_t *)(page + TPR))); vmcall(); }
static void guest_xchg(void) { got = 0x35; __asm__ volatile("xchg %k0, %1" : "+r"(got), "+m"(*(volatile uint32_t *)(page + TPR))); vmcall(); }
static void guest_push(void) { __asm__ volatile("pushw %1; popw %w0" : "=r"(got) : "m"(*(volatile uint16_t *)(page + TPR))); vmcall(); }

static void guest_copy_from(void)
{
    uint64_t from = page + TPR;
    uint32_t *to = place;
    __asm__ volatile("movsl" : "+S"(from), "+D"(to) :: "memory");
    vmcall();
}

static void guest_copy_to(void)
{
    uint64_t to = page + TPR, count = 2;
    uint32_t *from = place;
    __asm__ volatile("rep movsl" : "+S"(from), "+D"(to), "+c"(count) :: "memory");
    vmcall();
}

static void several_accesses(void)
{
    prepare_page(guest_or, 0);
    put(TPR, 0x60);
    check_equal(vmx_run_reason(), REASON_VMCALL, "OR into TPR");
    check_equal(get(TPR), 0x71, "reads and writes it");
    vmx_restart(guest_xchg);
    check_equal(vmx_run_reason(), REASON_VMCALL, "XCHG with TPR");
    check_equal(get(TPR), 0x35, "writes it");
    check_equal((uint32_t)got, 0x71, "and has what it was");
    vmx_restart(guest_push);
    check_equal(vmx_run_reason(), REASON_VMCALL, "PUSH of TPR");
    check_equal(got & 0xFFFF, 0x35, "reads it");
    vmx_restart(guest_copy_from);
    check_equal(vmx_run_reason(), REASON_VMCALL, "MOVS from TPR");
    check_equal(place[0], 0x35, "reads it");
    place[0] = 0x52;
    vmx_restart(guest_copy_to);
    check_equal(vmx_run_reason(), REASON_APIC_ACCESS, "REP MOVS to TPR and what lies behind it exits");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), (TPR + 4) | 1 << 12, "with the second write");
    check_equal(get(TPR), 0x52, "after the first has been done");
    check_equal(guest_registers.rcx, 1, "and counted");
}

/* --- PPR virtualization, §30.1.3; evaluation and delivery, §30.2 --- */

static volatile unsigned delivered, delivered_vector;
static void on_interrupt(struct trap_frame *frame) { delivered++; delivered_vector = frame->vector; }

static void guest_set_tpr(void) { *(volatile uint32_t *)(page + TPR) = at; vmcall(); }
static void guest_wait(void) { sti(); __asm__ volatile("nop; nop"); vmcall(); }
static void guest_eoi(void) { *(volatile uint32_t *)(page + EOI) = 1; __asm__ volatile("nop; nop"); vmcall(); }
static void guest_icr(void) { *(volatile uint32_t *)(page + ICR) = at; __asm__ volatile("nop; nop"); vmcall(); }

static const uint8_t classes[] = { 0x00, 0x1F, 0x20, 0x2F, 0x30, 0x51, 0x5E, 0xE0, 0xFF };
enum { CLASSES = sizeof(classes) };

static uint32_t priority(unsigned tpr, unsigned servicing) { return tpr >> 4 >= servicing >> 4 ? tpr : servicing & 0xF0; }

static void priorities(void)
{
    unsigned wrong = 0;
    for (unsigned i = 0; i < CLASSES; i++)
        for (unsigned j = 0; j < CLASSES; j++) {
            prepare_page(guest_set_tpr, DELIVERY);
            vmwrite(VMCS_GUEST_INTERRUPT_STATUS, classes[j] << 8);
            at = classes[i];
            wrong += vmx_run_reason() != REASON_VMCALL || get(PPR) != priority(classes[i], classes[j]);
        }
    check_equal(wrong, 0, "PPR follows TPR and the vector in service");
}

static bool try_delivery(unsigned tpr, unsigned requested)
{
    enum { LOWER = 0x21 };              /* waits as well */
    bool due = requested >> 4 > tpr >> 4;
    prepare_page(guest_wait, DELIVERY);
    put(TPR, tpr);
    request(IRR, LOWER);
    request(IRR, requested);
    vmwrite(VMCS_GUEST_INTERRUPT_STATUS, requested);
    delivered = 0;
    if (vmx_run_reason() != REASON_VMCALL || delivered != due)
        return false;
    if (!due)
        return has(IRR, requested) && !has(ISR, requested);
    return delivered_vector == requested && !has(IRR, requested) && has(ISR, requested) && has(IRR, LOWER) && get(PPR) == (requested & 0xF0) &&
           vmread(VMCS_GUEST_INTERRUPT_STATUS) == (requested << 8 | LOWER);
}

static void delivery(void)
{
    static const uint8_t vectors[] = { 0x3F, 0x40, 0x51, 0x5E, 0x60, 0xFE };
    unsigned wrong = 0;
    for (unsigned i = 0; i < sizeof(vectors); i++)
        set_handler(vectors[i], on_interrupt);
    for (unsigned i = 0; i < CLASSES; i++)
        for (unsigned j = 0; j < sizeof(vectors); j++)
            wrong += classes[i] >= 0x20 && !try_delivery(classes[i], vectors[j]);
    check_equal(wrong, 0, "a vector is delivered where its class is above PPR's, and the next one becomes the requesting one");
    prepare_page(guest_wait, DELIVERY);
    request(IRR, 0x51);
    vmwrite(VMCS_GUEST_INTERRUPT_STATUS, 0x51);
    vmwrite(VMCS_GUEST_ACTIVITY_STATE, 1);
    vmwrite(VMCS_GUEST_RFLAGS, IF);
    delivered = 0;
    check_equal(vmx_run_reason(), REASON_VMCALL, "a virtual interrupt wakes a halted guest");
    check_equal(delivered, 1, "which takes it");
    prepare_page(guest_wait, DELIVERY);
    request(IRR, 0x51);
    vmwrite(VMCS_GUEST_INTERRUPT_STATUS, 0x51);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_INTERRUPT_WINDOW_EXITING);
    delivered = 0;
    check_equal(vmx_run_reason(), REASON_INTERRUPT_WINDOW, "with interrupt-window exiting");
    check_equal(delivered, 0, "none is recognized");
}

/* --- EOI virtualization: §30.1.4 --- */

static void ends(void)
{
    static const uint8_t vectors[] = { 0x21, 0x51, 0x90, 0xFE };
    for (unsigned i = 0; i < 4; i++) {
        prepare_page(guest_eoi, DELIVERY);
        request(ISR, vectors[i]);
        request(ISR, 0x10);
        put(TPR, 0x07);
        vmwrite(VMCS_GUEST_INTERRUPT_STATUS, vectors[i] << 8);
        vmwrite(VMCS_EOI_EXIT_BITMAP0 + 2 * i, 1ull << vectors[i] % 64);
        check_equal(vmx_run_reason(), REASON_VIRTUALIZED_EOI, "an EOI exits by its vector's bit");
        check_equal(vmread(VMCS_EXIT_QUALIFICATION), vectors[i], "which it names");
        check(!has(ISR, vectors[i]) && has(ISR, 0x10), "it has ended that one");
        check_equal(vmread(VMCS_GUEST_INTERRUPT_STATUS), 0x1000, "the next one is in service");
        check_equal(get(PPR), 0x10, "and makes PPR");
        check_equal(get(EOI), 0, "EOI reads as 0");
    }
    set_handler(0x51, on_interrupt);
    prepare_page(guest_eoi, DELIVERY);
    request(ISR, 0x61);
    request(IRR, 0x51);
    vmwrite(VMCS_GUEST_INTERRUPT_STATUS, 0x6151);
    vmwrite(VMCS_GUEST_RFLAGS, IF);
    delivered = 0;
    check_equal(vmx_run_reason(), REASON_VMCALL, "an EOI");
    check_equal(delivered, 1, "lets the one that waited come");
}

/* --- self-IPIs: §30.1.5, and which values of ICR are one: §30.4.3.2 --- */

static void self_ipis(void)
{
    static const struct { uint32_t icr; bool is_self; const char *name; } values[] = {
        { 0x40051, true, "fixed, edge, to self" }, { 0x44051, true, "with the level bit" }, { 0x40851, true, "with the destination mode" },
        { 0x40008, false, "a vector below 16" }, { 0x00051, false, "no shorthand" }, { 0x80051, false, "all" }, { 0xC0051, false, "all but self" },
        { 0x40451, false, "an NMI" }, { 0x40151, false, "lowest priority" }, { 0x48051, false, "level-triggered" },
        { 0x41051, false, "delivery status" }, { 0x42051, false, "reserved bit 13" }, { 0x50051, false, "reserved bit 16" },
        { 0x60051, false, "reserved bit 17" }, { 0x140051, false, "reserved bit 20" }, { 0x80040051, false, "reserved bit 31" },
    };
    for (unsigned i = 0; i < sizeof(values) / sizeof(values[0]); i++) {
        prepare_page(guest_icr, DELIVERY);
        vmwrite(VMCS_GUEST_RFLAGS, IF);
        at = values[i].icr;
        delivered = 0;
        check_equal(vmx_run_reason(), values[i].is_self ? REASON_VMCALL : REASON_APIC_WRITE, values[i].name);
        check_equal(delivered, values[i].is_self, "delivered or not");
    }
}

/* --- x2APIC mode: §30.5 --- */

static void guest_rdmsr(void) { got = rdmsr(at); vmcall(); }
static volatile uint64_t msr_value;
static void guest_wrmsr(void) { wrmsr(at, msr_value); __asm__ volatile("nop; nop"); vmcall(); }

static uint32_t write_msr(uint32_t msr, uint64_t value)
{
    static uint8_t *bitmap;
    if (!bitmap)
        bitmap = alloc_page();
    prepare(guest_wrmsr, PROC2_VIRTUALIZE_X2APIC_MODE | DELIVERY);
    control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_MSR_BITMAPS);
    vmwrite(VMCS_MSR_BITMAP, (uint64_t)bitmap);
    vmwrite(VMCS_EXCEPTION_BITMAP, GP);
    vmwrite(VMCS_GUEST_RFLAGS, IF);
    vmwrite(VMCS_GUEST_INTERRUPT_STATUS, 0x6100);
    request(ISR, 0x61);
    at = msr;
    msr_value = value;
    delivered = 0;
    return vmx_run_reason();
}

static void x2apic(void)
{
    uint8_t *bitmap = alloc_page();
    unsigned wrong = 0;
    for (uint32_t msr = 0x800; msr < 0x900; msr++) {
        prepare(guest_rdmsr, PROC2_VIRTUALIZE_X2APIC_MODE | REGISTERS);
        control_set(VMCS_PROCESSOR_BASED_CONTROLS, PROC_USE_MSR_BITMAPS);
        vmwrite(VMCS_MSR_BITMAP, (uint64_t)bitmap);
        put((msr & 0xFF) * 16, msr);
        put((msr & 0xFF) * 16 + 4, ~msr);
        at = msr;
        wrong += vmx_run_reason() != REASON_VMCALL || got != ((uint64_t)~msr << 32 | msr);
    }
    check_equal(wrong, 0, "each MSR of the x2APIC reads as its place in the page");
    check_equal(write_msr(0x808, 0x35), REASON_VMCALL, "TPR");
    check_equal(get(TPR), 0x35, "is written");
    check_equal(get(PPR), 0x60, "and PPR follows");
    check_equal(write_msr(0x808, 0x135), REASON_EXCEPTION_OR_NMI, "its upper bits must be 0");
    check_equal(write_msr(0x80B, 0), REASON_VMCALL, "EOI");
    check(!has(ISR, 0x61), "ends what is in service");
    check_equal(write_msr(0x80B, 1), REASON_EXCEPTION_OR_NMI, "and takes 0 only");
    check_equal(write_msr(0x83F, 0xFE), REASON_VMCALL, "a self-IPI");
    check_equal(delivered_vector, 0xFE, "is delivered");
    check_equal(write_msr(0x83F, 0x51), REASON_VMCALL, "one of a lower class");
    check(!delivered && has(IRR, 0x51), "waits");
    check_equal(write_msr(0x83F, 0x1FE), REASON_EXCEPTION_OR_NMI, "the value is a vector");
    check_equal(write_msr(0x83F, 8), REASON_APIC_WRITE, "and one below 16 exits");
    check_equal(vmread(VMCS_EXIT_QUALIFICATION), SELF_IPI, "with the register's offset");
}

/* --- the threshold: §30.1.2, §27.7.7 --- */

static void guest_cr8(void) { __asm__ volatile("mov %0, %%cr8" :: "r"(at)); vmcall(); }

static void threshold(void)
{
    unsigned wrong = 0;
    for (unsigned tpr = 0; tpr < 16; tpr++)
        for (unsigned threshold = 0; threshold < 16; threshold++) {
            prepare(guest_cr8, 0);
            put(TPR, 0xF0);
            vmwrite(VMCS_TPR_THRESHOLD, threshold);
            at = tpr;
            wrong += vmx_run_reason() != (tpr < threshold ? REASON_TPR_BELOW_THRESHOLD : REASON_VMCALL) || get(TPR) != tpr << 4;
        }
    check_equal(wrong, 0, "MOV to CR8 exits where TPR comes below the threshold");
    prepare_page(guest_read, 0);
    vmwrite(VMCS_TPR_THRESHOLD, 1);
    check_equal(vmx_run_reason(), REASON_TPR_BELOW_THRESHOLD, "with APIC accesses virtualized that may be so at entry");
    check_equal(vmread(VMCS_GUEST_RIP), (uint64_t)guest_read, "before the first instruction");
}

void test_main(void)
{
    vmx_switch_on();
    virtual_apic = alloc_page();
    access_page = alloc_page();
    map_page(page, (uint64_t)access_page, 3);
    registers();
    several_accesses();
    priorities();
    delivery();
    ends();
    self_ipis();
    x2apic();
    threshold();
}
