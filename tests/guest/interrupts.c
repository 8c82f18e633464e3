/* Interrupt controllers and timers: local APIC (xAPIC, x2APIC, three timer modes), I/O APIC, 8259, PIT, HPET, RTC, PM timer. */
#include "lib/guest.h"

enum { MSR_APIC_BASE = 0x1B, MSR_TSC_DEADLINE = 0x6E0, X2APIC = 0x800 };
enum { APIC_TPR = 0x80, APIC_EOI = 0xB0, APIC_SVR = 0xF0, APIC_ISR = 0x100, APIC_IRR = 0x200, APIC_ICR = 0x300, APIC_TIMER = 0x320,
       APIC_LINT0 = 0x350, APIC_INITIAL = 0x380, APIC_CURRENT = 0x390, APIC_DIVIDE = 0x3E0 };

static volatile unsigned hits[256];

static void on_apic(struct trap_frame *frame)
{
    hits[frame->vector]++;
    *apic(APIC_EOI) = 0;
}

static void on_x2apic(struct trap_frame *frame)
{
    hits[frame->vector]++;
    wrmsr(X2APIC + APIC_EOI / 16, 0);
}

static void on_pic(struct trap_frame *frame)
{
    hits[frame->vector]++;
    outb(0x20, 0x20);
}

/* Runs with interrupts on until the vector was seen `count` times, or much TSC time has passed. */
static bool wait_hits(unsigned vector, unsigned count)
{
    uint64_t start = rdtsc();
    while (hits[vector] < count && rdtsc() - start < 40000000000ull) {
        sti();
        for (volatile unsigned i = 0; i < 20; i++)
            pause();
        cli();
    }
    return hits[vector] >= count;
}

static void apic_timer(void)
{
    set_handler(0x60, on_apic);
    *apic(APIC_SVR) = 0x1FF;
    *apic(APIC_DIVIDE) = 0xB;
    *apic(APIC_TIMER) = 0x60;
    *apic(APIC_INITIAL) = 100000;
    check(*apic(APIC_CURRENT) <= 100000, "the current count starts from the initial one");
    check(wait_hits(0x60, 1), "a one-shot timer fires");
    check_equal(*apic(APIC_CURRENT), 0, "and stands at 0");
    *apic(APIC_TIMER) = 0x20060;
    *apic(APIC_INITIAL) = 100000;
    check(wait_hits(0x60, 5), "a periodic timer fires again and again");
    *apic(APIC_TIMER) = 0x10060;
    *apic(APIC_INITIAL) = 0;
    sti();
    for (uint64_t until = rdtsc() + 100000; rdtsc() < until;)
        pause();                                /* one that was on its way arrives */
    cli();
    unsigned before = hits[0x60];
    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    if (!(leaf[2] >> 24 & 1))
        return;
    *apic(APIC_TIMER) = 0x40060;
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + (1ull << 50));
    check(rdmsr(MSR_TSC_DEADLINE) != 0, "a deadline is armed");
    wrmsr(MSR_TSC_DEADLINE, rdtsc() + 1000000);
    check(wait_hits(0x60, before + 1), "the TSC deadline fires");
    check_equal(rdmsr(MSR_TSC_DEADLINE), 0, "and is disarmed");
    wrmsr(MSR_TSC_DEADLINE, 1);
    check(wait_hits(0x60, before + 2), "a deadline in the past fires at once");
    *apic(APIC_TIMER) = 0x10060;
}

static void skip_rdmsr(struct trap_frame *frame) { frame->rip += 2; }

/* None that the APIC has handed over may get lost beside an exception. */
static void beside_faults(void)
{
    enum { ABSENT_MSR = 0x4FFFFFFF, FAULTS = 2000 };
    set_handler(13, skip_rdmsr);
    *apic(APIC_TIMER) = 0x20060;
    *apic(APIC_INITIAL) = 25000;
    sti();
    for (unsigned i = 0; i < FAULTS; i++)
        __asm__ volatile("rdmsr" :: "c"(ABSENT_MSR) : "eax", "edx");
    cli();
    *apic(APIC_TIMER) = 0x60;
    set_handler(13, NULL);
    check_equal(*apic(APIC_ISR + 0x30), 0, "interrupts between faulting instructions end");
    unsigned before = hits[0x60];
    *apic(APIC_INITIAL) = 100000;
    check(wait_hits(0x60, before + 1), "and others follow them");
}

static void priorities(void)
{
    set_handler(0x70, on_apic);
    hits[0x70] = 0;
    *apic(APIC_TPR) = 0x80;
    *apic(APIC_ICR) = 0x44070;
    sti();
    for (volatile unsigned i = 0; i < 2000; i++)
        ;
    cli();
    check_equal(hits[0x70], 0, "the task priority holds a lower vector back");
    check_equal(*apic(APIC_IRR + 0x30) >> 16 & 1, 1, "it waits in the IRR");
    __asm__ volatile("mov %0, %%cr8" :: "r"(0ull));
    check_equal(*apic(APIC_TPR), 0, "CR8 is the TPR");
    check(wait_hits(0x70, 1), "a lower CR8 lets it through");
    *apic(APIC_SVR) = 0xFF;
    *apic(APIC_ICR) = 0x44070;
    *apic(APIC_SVR) = 0x1FF;
    sti();
    cli();
    check_equal(hits[0x70], 1, "a software-disabled APIC accepts nothing");
}

static void base_and_x2apic(void)
{
    uint64_t base = rdmsr(MSR_APIC_BASE);
    check_equal(base & 0xFFFFFF00, 0xFEE00900, "APIC base: enabled, boot processor");
    wrmsr(MSR_APIC_BASE, base & ~0x800ull);
    uint32_t leaf[4];
    cpuid(1, 0, leaf);
    check_equal(leaf[3] >> 9 & 1, 0, "CPUID hides a disabled APIC");
    wrmsr(MSR_APIC_BASE, base);
    cpuid(1, 0, leaf);
    check_equal(leaf[3] >> 9 & 1, 1, "it can be enabled again");
    *apic(APIC_SVR) = 0x1FF;
    set_handler(0x71, on_apic);
    *apic(APIC_ICR) = 0x44071;
    check(wait_hits(0x71, 1), "and works");
    if (!(leaf[2] >> 21 & 1))
        return;
    wrmsr(MSR_APIC_BASE, base | 0x400);
    check_equal(rdmsr(X2APIC + 2), 0, "x2APIC: the ID of the boot processor");
    wrmsr(X2APIC + APIC_SVR / 16, 0x1FF);
    set_handler(0x72, on_x2apic);
    wrmsr(X2APIC + 0x3F, 0x72);
    check(wait_hits(0x72, 1), "x2APIC: a self IPI");
    wrmsr(X2APIC + APIC_ICR / 16, 0x72);
    check(wait_hits(0x72, 2), "x2APIC: an IPI to ID 0");
    wrmsr(MSR_APIC_BASE, base & ~0x800ull);
    wrmsr(MSR_APIC_BASE, base);
    *apic(APIC_SVR) = 0x1FF;
}

static void ioapic_write(unsigned index, uint32_t value)
{
    *(volatile uint32_t *)0xFEC00000 = index;
    *(volatile uint32_t *)0xFEC00010 = value;
}

static void route(unsigned pin, uint32_t low)
{
    ioapic_write(0x11 + 2 * pin, 0);
    ioapic_write(0x10 + 2 * pin, low);
}

static void pit_periodic(unsigned divisor)
{
    outb(0x43, 0x34);
    outb(0x40, (uint8_t)divisor);
    outb(0x40, (uint8_t)(divisor >> 8));
}

static void mask_pics(void)
{
    outb(0x21, 0xFF);
    outb(0xA1, 0xFF);
}

static void pit(void)
{
    set_handler(0x61, on_apic);
    mask_pics();
    pit_periodic(1193);
    route(2, 0x61);
    check(wait_hits(0x61, 3), "the PIT interrupts through I/O APIC input 2");
    route(2, 0x10061);
    unsigned seen = hits[0x61];
    uint64_t start = rdtsc();
    while (rdtsc() - start < 10000000) {
        sti();
        cli();
    }
    check(hits[0x61] <= seen + 1, "a masked input is silent");
    set_handler(0x20, on_pic);
    outb(0x20, 0x11);
    outb(0x21, 0x20);
    outb(0x21, 4);
    outb(0x21, 1);
    outb(0x21, 0xFE);
    *apic(APIC_LINT0) = 0x700;
    check(wait_hits(0x20, 3), "the PIT interrupts through the 8259 and LINT0 as ExtINT");
    mask_pics();
    *apic(APIC_LINT0) = 0x10000;
    outb(0x43, 0x00);
    uint16_t last = 0xFFFF;
    unsigned steps = 0;
    outb(0x43, 0x30);
    outb(0x40, 0xFF);
    outb(0x40, 0xFF);
    for (unsigned i = 0; i < 2000 && steps < 5; i++) {
        outb(0x43, 0x00);
        uint16_t now = inb(0x40);
        now |= (uint16_t)(inb(0x40) << 8);
        steps += now < last;
        last = now;
    }
    check(steps >= 5, "the latched count of the PIT goes down");
}

/* Its comparator is set to a moment that may have passed before it is written, on a busy host; then there is no match. */
static bool hpet_one_shot(volatile uint64_t *reg, uint64_t period_fs)
{
    const uint64_t ms_fs = 1000000000000;
    for (uint64_t ms = 1; ms <= 1024; ms *= 4) {
        uint64_t length = ms * ms_fs / period_fs, start = reg[0xF0 / 8];
        reg[0x108 / 8] = start + length;
        while (!hits[0x62] && reg[0xF0 / 8] - start < 2 * length) {
            sti();
            pause();
            cli();
        }
        if (hits[0x62])
            return true;
    }
    return wait_hits(0x62, 1);
}

static void hpet(void)
{
    volatile uint64_t *reg = (volatile uint64_t *)0xFED00000;
    check_equal(reg[0] & 0xFFFF0000, 0x80860000, "the HPET's vendor is Intel's");
    reg[2] = 0;
    uint64_t frozen = reg[0xF0 / 8];
    check_equal(reg[0xF0 / 8], frozen, "a stopped counter stands");
    reg[0xF0 / 8] = 0;
    reg[2] = 1;
    uint64_t first = reg[0xF0 / 8];
    while (reg[0xF0 / 8] == first)
        pause();
    check(reg[0xF0 / 8] > first, "a running counter counts");
    uint64_t period_fs = reg[0] >> 32;
    uint64_t caps = reg[0x100 / 8];
    unsigned pin = 0;
    while (pin < 32 && !(caps >> (32 + pin) & 1))
        pin++;
    check(pin < 24, "timer 0 can be routed to the I/O APIC");
    set_handler(0x62, on_apic);
    route(pin, 0x62);
    reg[0x100 / 8] = (uint64_t)pin << 9 | 4;
    check(hpet_one_shot(reg, period_fs), "an HPET one-shot interrupt arrives");
    reg[0x100 / 8] = 0;
    reg[2] = 0;
    route(pin, 0x10062);
}

static uint8_t cmos(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

static void on_rtc(struct trap_frame *frame)
{
    hits[frame->vector]++;
    cmos(0x0C);
    *apic(APIC_EOI) = 0;
}

static void rtc(void)
{
    set_handler(0x63, on_rtc);
    route(8, 0x63);
    uint8_t b = cmos(0x0B);
    outb(0x70, 0x0A);
    outb(0x71, 0x26);                   /* 1024 Hz */
    outb(0x70, 0x0B);
    outb(0x71, b | 0x40);
    cmos(0x0C);
    check(wait_hits(0x63, 3), "the RTC's periodic interrupt arrives on input 8");
    outb(0x70, 0x0B);
    outb(0x71, b);
    route(8, 0x10063);
    check(cmos(0x32) == 0x20 || cmos(0x32) == 20, "the century is the twenty-first");
}

void test_main(void)
{
    mask_pics();
    apic_timer();
    beside_faults();
    priorities();
    base_and_x2apic();
    pit();
    hpet();
    rtc();
}
