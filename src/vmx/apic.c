/* The virtual APIC (SDM3 chapter 30 "APIC Virtualization and Virtual Interrupts"). */
#include "vmx/internal.h"

uint32_t vmx_vapic_read(struct vcpu *vcpu, unsigned offset)
{
    uint32_t value;
    mmu_phys_read(vcpu, FIELD(VIRTUAL_APIC_ADDRESS) + offset, &value, sizeof(value));
    return value;
}

void vmx_vapic_write(struct vcpu *vcpu, unsigned offset, uint32_t value)
{
    mmu_phys_write(vcpu, FIELD(VIRTUAL_APIC_ADDRESS) + offset, &value, sizeof(value));
}

void vmx_set_trap(struct vcpu *vcpu, enum vmx_reason reason, uint32_t qualification)
{
    vcpu->vmx.trap = reason;
    vcpu->vmx.trap_qualification = qualification;
    atomic_fetch_or(&vcpu->request, REQUEST_VMX);
}

/* --- virtual interrupts: SDM3 §30.1.3, §30.2 --- */

static uint8_t requesting_vector(const struct vcpu *vcpu) { return FIELD(GUEST_INTERRUPT_STATUS) & 0xFF; }
static uint8_t servicing_vector(const struct vcpu *vcpu) { return FIELD(GUEST_INTERRUPT_STATUS) >> 8; }

static void set_status(struct vcpu *vcpu, uint8_t requesting, uint8_t servicing)
{
    FIELD(GUEST_INTERRUPT_STATUS) = (uint32_t)servicing << 8 | requesting;
}

static unsigned bit_register(unsigned base, uint8_t vector) { return base + (vector >> 5) * 16u; }

static void change_bit(struct vcpu *vcpu, unsigned base, uint8_t vector, bool set)
{
    uint32_t bit = 1u << (vector & 31), old = vmx_vapic_read(vcpu, bit_register(base, vector));
    vmx_vapic_write(vcpu, bit_register(base, vector), set ? old | bit : old & ~bit);
}

/* 0 where none is set. */
static uint8_t highest_bit(struct vcpu *vcpu, unsigned base)
{
    for (unsigned i = 8; i-- > 0;) {
        uint32_t word = vmx_vapic_read(vcpu, base + i * 16);
        if (word)
            return i * 32 + 31 - (unsigned)__builtin_clz(word);
    }
    return 0;
}

static void ppr_virtualization(struct vcpu *vcpu)
{
    uint32_t tpr = vmx_vapic_read(vcpu, VAPIC_TPR) & 0xFF, servicing = servicing_vector(vcpu);
    vmx_vapic_write(vcpu, VAPIC_PPR, tpr >> 4 >= servicing >> 4 ? tpr : servicing & 0xF0);
}

void vmx_evaluate_virtual_interrupts(struct vcpu *vcpu)
{
    vcpu->vmx.virtual_interrupt = !vmx_proc(vcpu, PROC_INTERRUPT_WINDOW_EXITING) &&
                                  requesting_vector(vcpu) >> 4 > (vmx_vapic_read(vcpu, VAPIC_PPR) >> 4 & 15);
    vmx_update_awaits(vcpu);
}

void vmx_tpr_virtualization(struct vcpu *vcpu)
{
    if (vmx_proc2(vcpu, PROC2_VIRTUAL_INTERRUPT_DELIVERY)) {
        ppr_virtualization(vcpu);
        vmx_evaluate_virtual_interrupts(vcpu);
    } else if ((vmx_vapic_read(vcpu, VAPIC_TPR) >> 4 & 15) < (FIELD(TPR_THRESHOLD) & 15)) {
        vmx_set_trap(vcpu, REASON_TPR_BELOW_THRESHOLD, 0);
    }
}

static void eoi_virtualization(struct vcpu *vcpu)
{
    uint8_t vector = servicing_vector(vcpu);
    change_bit(vcpu, VAPIC_ISR, vector, false);
    set_status(vcpu, requesting_vector(vcpu), highest_bit(vcpu, VAPIC_ISR));
    ppr_virtualization(vcpu);
    if ((&FIELD(EOI_EXIT_BITMAP0))[vector / 64] >> (vector % 64) & 1)
        vmx_set_trap(vcpu, REASON_VIRTUALIZED_EOI, vector);
    else
        vmx_evaluate_virtual_interrupts(vcpu);
}

static void request_vector(struct vcpu *vcpu, uint8_t vector)
{
    change_bit(vcpu, VAPIC_IRR, vector, true);
    if (vector > requesting_vector(vcpu))
        set_status(vcpu, vector, servicing_vector(vcpu));
    vmx_evaluate_virtual_interrupts(vcpu);
}

/* SDM3 §30.2.2 "Virtual-Interrupt Delivery". */
void vmx_deliver_virtual_interrupt(struct vcpu *vcpu)
{
    uint8_t vector = requesting_vector(vcpu);
    struct event event = { .kind = EVENT_INTERRUPT, .vector = vector };
    change_bit(vcpu, VAPIC_ISR, vector, true);
    vmx_vapic_write(vcpu, VAPIC_PPR, vector & 0xF0);
    change_bit(vcpu, VAPIC_IRR, vector, false);
    set_status(vcpu, highest_bit(vcpu, VAPIC_IRR), vector);
    vcpu->vmx.virtual_interrupt = false;
    vmx_update_awaits(vcpu);
    vcpu->activity = ACTIVITY_ACTIVE;
    x86_deliver_event(vcpu, &event);
}

/* SDM3 §30.6: PIR goes into VIRR, word by word and atomically against whoever posts; ON is cleared first. */
void vmx_process_posted_interrupts(struct vcpu *vcpu)
{
    enum { PIR_WORDS = 4, CONTROL = 32, ON = 1 };
    uint64_t *descriptor = mmu_phys_host(vcpu, FIELD(POSTED_INTERRUPT_DESCRIPTOR), 64);
    if (!descriptor)
        return;
    uint8_t highest = requesting_vector(vcpu);
    __atomic_fetch_and(&descriptor[CONTROL / 8], ~(uint64_t)ON, __ATOMIC_SEQ_CST);
    for (unsigned i = 0; i < PIR_WORDS; i++) {
        uint64_t word = __atomic_exchange_n(&descriptor[i], 0, __ATOMIC_SEQ_CST);
        for (unsigned half = 0; half < 2; half++) {
            unsigned offset = VAPIC_IRR + (i * 2 + half) * 16;
            vmx_vapic_write(vcpu, offset, vmx_vapic_read(vcpu, offset) | (uint32_t)(word >> (32 * half)));
        }
        if (word && i * 64 + 63 - (unsigned)__builtin_clzll(word) > highest)
            highest = i * 64 + 63 - (unsigned)__builtin_clzll(word);
    }
    set_status(vcpu, highest, servicing_vector(vcpu));
    vmx_evaluate_virtual_interrupts(vcpu);
}

/* --- the APIC-access page: SDM3 §30.4 --- */

/* SDM3 table 28-6: how the page was reached. */
enum access_type { LINEAR_READ, LINEAR_WRITE, LINEAR_FETCH, DURING_DELIVERY, TABLE_DURING_DELIVERY = 10, TABLE = 15 };

static bool exit_access(struct vcpu *vcpu, unsigned offset, enum access_type type)
{
    return vmx_exit_now(vcpu, REASON_APIC_ACCESS, offset | (uint64_t)type << 12);
}

void vmx_exit_apic_table(struct vcpu *vcpu) { exit_access(vcpu, 0, vcpu->delivering ? TABLE_DURING_DELIVERY : TABLE); }

/* SDM3 §30.4.2 "Virtualizing Reads from the APIC-Access Page": with APIC-register virtualization, which registers. */
static bool read_is_virtualized(const struct vcpu *vcpu, unsigned offset, unsigned size)
{
    unsigned in_register = offset & 0xF, at = offset & 0xFF0;
    if (!vmx_proc(vcpu, PROC_USE_TPR_SHADOW) || size > 4 || in_register + size > 4)
        return false;
    if (!vmx_proc2(vcpu, PROC2_APIC_REGISTER_VIRTUALIZATION))
        return at == VAPIC_TPR;
    return at == 0x20 || at == 0x30 || at == 0x80 || at == 0xB0 || at == 0xD0 || at == 0xE0 || at == 0xF0 ||
           (at >= 0x100 && at <= 0x280) || at == 0x300 || at == 0x310 || (at >= 0x320 && at <= 0x380) || at == 0x3E0;
}

bool vmx_apic_read(struct vcpu *vcpu, unsigned offset, unsigned size, void *out, bool fetch)
{
    if (vcpu->delivering)
        return exit_access(vcpu, offset, DURING_DELIVERY);
    if (fetch || !read_is_virtualized(vcpu, offset, size))
        return exit_access(vcpu, offset, fetch ? LINEAR_FETCH : LINEAR_READ);
    mmu_phys_read(vcpu, FIELD(VIRTUAL_APIC_ADDRESS) + offset, out, size);
    return true;
}

/* SDM3 §30.4.3.1 "Determining Whether a Write Access is Virtualized". */
static bool write_is_virtualized(const struct vcpu *vcpu, unsigned offset, unsigned size)
{
    unsigned in_register = offset & 0xF, at = offset & 0xFF0;
    if (!vmx_proc(vcpu, PROC_USE_TPR_SHADOW) || size > 4 || in_register + size > 4)
        return false;
    if (at == VAPIC_TPR || (at == VAPIC_ICR && vmx_proc3(vcpu, PROC3_IPI_VIRTUALIZATION)))
        return true;
    if (!vmx_proc2(vcpu, PROC2_APIC_REGISTER_VIRTUALIZATION))
        return vmx_proc2(vcpu, PROC2_VIRTUAL_INTERRUPT_DELIVERY) && (at == VAPIC_EOI || at == VAPIC_ICR);
    return at == 0x20 || at == VAPIC_EOI || at == 0xD0 || at == 0xE0 || at == 0xF0 || at == 0x280 || at == VAPIC_ICR ||
           at == VAPIC_ICR_HIGH || (at >= 0x320 && at <= 0x370) || at == 0x380 || at == 0x3E0;
}

static bool is_self_ipi(uint32_t icr)
{
    enum { DELIVERY_STATUS = 1 << 12, SHORTHAND = 3 << 18, SHORTHAND_SELF = 1 << 18, TRIGGER = 1 << 15, MODE = 7 << 8 };
    const uint32_t reserved = 0xFFF32000;
    return !(icr & (reserved | MODE | TRIGGER | DELIVERY_STATUS)) && (icr & SHORTHAND) == SHORTHAND_SELF && (icr & 0xFF) >> 4;
}

/* --- IPI virtualization: SDM3 §30.1.6 --- */

enum { PID_VALID = 1, PID_CONTROL = 32, PID_ON = 1, PID_SN = 2 };      /* of the PID-pointer table, and of the posted-interrupt descriptor */

bool vmx_pid_pointer_table_valid(const struct vcpu *vcpu)
{
    uint64_t table = FIELD(PID_POINTER_TABLE_ADDRESS);
    return vmx_pointer_valid(vcpu, table, 8) && vmx_pointer_valid(vcpu, table + FIELD(LAST_PID_POINTER_INDEX) * 8, 8);
}

/* §30.4.3.2: fixed, edge, physical, no shorthand, and nothing reserved. */
static bool is_plain_ipi(uint32_t icr) { return !(icr & ~0xFFu & ~(1u << 14)) && (icr & 0xFF) >= 16; }

/* The notification, if the descriptor has not sent one and is not told to keep quiet. */
static void notify(struct vcpu *vcpu, uint64_t *control)
{
    uint64_t old = __atomic_load_n(control, __ATOMIC_SEQ_CST), base = 0;
    enum { MSR_APIC_BASE = 0x1B, EXTD = 1 << 10 };
    do
        if (old & (PID_ON | PID_SN))
            return;
    while (!__atomic_compare_exchange_n(control, &old, old | PID_ON, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
    vcpu->intc_ops->read_msr(vcpu->intc, MSR_APIC_BASE, &base);
    vcpu->intc_ops->send(vcpu->intc, base & EXTD ? (uint32_t)(old >> 32) : (uint32_t)bits(old, 47, 40), (uint8_t)bits(old, 23, 16));
}

/* False: nothing was posted, so that the monitor has to see to it. */
static bool send_virtual_ipi(struct vcpu *vcpu, uint32_t destination, uint8_t vector)
{
    uint64_t pointer;
    if (destination > FIELD(LAST_PID_POINTER_INDEX) || !vcpu->intc_ops)
        return false;
    mmu_phys_read(vcpu, FIELD(PID_POINTER_TABLE_ADDRESS) + destination * 8ull, &pointer, sizeof(pointer));
    if ((pointer & 0x3F) != PID_VALID || !vmx_pointer_valid(vcpu, pointer & ~0x3Full, 64))
        return false;
    uint64_t *descriptor = mmu_phys_host(vcpu, pointer & ~0x3Full, 64);
    if (!descriptor)
        return false;
    __atomic_fetch_or(&descriptor[vector / 64], 1ull << (vector % 64), __ATOMIC_SEQ_CST);
    notify(vcpu, &descriptor[PID_CONTROL / 8]);
    return true;
}

/* A write at the offset has put the ICR into its page. */
static void write_icr(struct vcpu *vcpu, unsigned offset, uint32_t icr, uint32_t destination)
{
    if (vmx_proc2(vcpu, PROC2_VIRTUAL_INTERRUPT_DELIVERY) && is_self_ipi(icr))
        request_vector(vcpu, (uint8_t)icr);
    else if (!vmx_proc3(vcpu, PROC3_IPI_VIRTUALIZATION) || !is_plain_ipi(icr) || !send_virtual_ipi(vcpu, destination, (uint8_t)icr))
        vmx_set_trap(vcpu, REASON_APIC_WRITE, offset);
}

/* SDM3 §30.4.3.2 "APIC-Write Emulation": after the instruction's write has reached the page. */
static void emulate_write(struct vcpu *vcpu, unsigned offset)
{
    bool delivery = vmx_proc2(vcpu, PROC2_VIRTUAL_INTERRUPT_DELIVERY);
    unsigned at = offset & 0xFF0;
    if (at == VAPIC_TPR) {
        vmx_vapic_write(vcpu, VAPIC_TPR, vmx_vapic_read(vcpu, VAPIC_TPR) & 0xFF);
        vmx_tpr_virtualization(vcpu);
    } else if (at == VAPIC_EOI && delivery) {
        vmx_vapic_write(vcpu, VAPIC_EOI, 0);
        eoi_virtualization(vcpu);
    } else if (at == VAPIC_ICR) {
        write_icr(vcpu, offset, vmx_vapic_read(vcpu, VAPIC_ICR), vmx_vapic_read(vcpu, VAPIC_ICR_HIGH) >> 24);
    } else if (at == VAPIC_ICR_HIGH) {
        vmx_vapic_write(vcpu, VAPIC_ICR_HIGH, vmx_vapic_read(vcpu, VAPIC_ICR_HIGH) & 0xFF000000);
    } else {
        vmx_set_trap(vcpu, REASON_APIC_WRITE, offset);
    }
}

/*
 * What follows a write may be a trap-like exit, due before the next instruction; so an instruction that writes here is run alone:
 * the first attempt is taken back.
 */
bool vmx_apic_write(struct vcpu *vcpu, unsigned offset, unsigned size, const void *in)
{
    if (vcpu->delivering)
        return exit_access(vcpu, offset, DURING_DELIVERY);
    if (!write_is_virtualized(vcpu, offset, size))
        return exit_access(vcpu, offset, LINEAR_WRITE);
    if (!vcpu->vmx.stepping) {
        vcpu->pending = (struct event){ .kind = EVENT_STEP };
        return false;
    }
    mmu_phys_write(vcpu, FIELD(VIRTUAL_APIC_ADDRESS) + offset, in, size);
    emulate_write(vcpu, offset);
    return true;
}

/* --- x2APIC mode: SDM3 §30.5 "Virtualizing MSR-Based APIC Accesses" --- */

enum { MSR_X2APIC = 0x800, MSR_X2APIC_TPR = 0x808, MSR_X2APIC_EOI = 0x80B, MSR_X2APIC_ICR = 0x830, MSR_X2APIC_SELF_IPI = 0x83F };

bool vmx_read_x2apic(struct vcpu *vcpu, uint32_t msr, uint64_t *value, bool *done)
{
    bool all = vmx_proc2(vcpu, PROC2_APIC_REGISTER_VIRTUALIZATION);
    *done = vmx_proc2(vcpu, PROC2_VIRTUALIZE_X2APIC_MODE) && msr >> 8 == MSR_X2APIC >> 8 && (all || msr == MSR_X2APIC_TPR);
    if (*done)
        mmu_phys_read(vcpu, FIELD(VIRTUAL_APIC_ADDRESS) + (msr & 0xFF) * 16, value, sizeof(*value));
    return true;
}

static bool write_x2apic_icr(struct vcpu *vcpu, uint64_t value)
{
    const uint32_t reserved = 0xFFF32000;       /* not the delivery status: with it set the write is for the monitor to see (§30.4.3.2) */
    if (value & reserved)
        return x86_raise_error(vcpu, VEC_GP, 0);
    mmu_phys_write(vcpu, FIELD(VIRTUAL_APIC_ADDRESS) + VAPIC_ICR, &value, sizeof(value));
    write_icr(vcpu, VAPIC_ICR, (uint32_t)value, (uint32_t)(value >> 32));
    return true;
}

bool vmx_write_x2apic(struct vcpu *vcpu, uint32_t msr, uint64_t value, bool *done)
{
    bool delivery = vmx_proc2(vcpu, PROC2_VIRTUAL_INTERRUPT_DELIVERY);
    if (vmx_proc2(vcpu, PROC2_VIRTUALIZE_X2APIC_MODE) && vmx_proc3(vcpu, PROC3_IPI_VIRTUALIZATION) && msr == MSR_X2APIC_ICR) {
        *done = true;
        return write_x2apic_icr(vcpu, value);
    }
    *done = vmx_proc2(vcpu, PROC2_VIRTUALIZE_X2APIC_MODE) &&
            (msr == MSR_X2APIC_TPR || (delivery && (msr == MSR_X2APIC_EOI || msr == MSR_X2APIC_SELF_IPI)));
    if (!*done)
        return true;
    if (msr == MSR_X2APIC_EOI ? value != 0 : value >> 8)
        return x86_raise_error(vcpu, VEC_GP, 0);
    mmu_phys_write(vcpu, FIELD(VIRTUAL_APIC_ADDRESS) + (msr & 0xFF) * 16, &value, sizeof(value));
    if (msr == MSR_X2APIC_TPR)
        vmx_tpr_virtualization(vcpu);
    else if (msr == MSR_X2APIC_EOI)
        eoi_virtualization(vcpu);
    else if (value >> 4)
        request_vector(vcpu, value);
    else
        vmx_set_trap(vcpu, REASON_APIC_WRITE, (msr & 0xFF) * 16);
    return true;
}
