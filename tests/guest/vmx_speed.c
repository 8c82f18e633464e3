/*
 * How long is a VM exit? A minimal hypervisor, whose guest executes CPUID for ever: the round trip from the guest to the monitor and
 * back, the best of many batches, since the host may do other things meanwhile. Printed for bench/vmx.py; checked is that they exit.
 */
#include "lib/vmx.h"

enum { BATCHES = 300, ROUND_TRIPS = 100 };

static void guest_cpuid_loop(void)
{
    uint32_t out[4];
    for (;;)
        cpuid(1, 0, out);
}

static uint64_t batch(unsigned *others)
{
    uint64_t start = rdtsc();
    for (unsigned i = 0; i < ROUND_TRIPS; i++) {
        *others += vmx_run_reason() != REASON_CPUID;
        vmx_skip();
    }
    return rdtsc() - start;
}

static uint64_t tsc_khz(void)
{
    uint32_t out[4];
    cpuid(0x40000010, 0, out);
    return out[0];
}

void test_main(void)
{
    unsigned others = 0;
    uint64_t best = ~0ull;
    vmx_switch_on();
    vmcs_prepare(guest_cpuid_loop);
    secondary_set(PROC2_ENABLE_VPID);
    vmwrite(VMCS_VPID, 1);
    for (unsigned i = 0; i < BATCHES; i++) {
        uint64_t ticks = batch(&others);
        best = ticks < best ? ticks : best;
    }
    check_equal(others, 0, "every exit is that of CPUID");
    print("CPUID exit, round trip: %u ns\n", (unsigned)(best * 1000000 / ROUND_TRIPS / tsc_khz()));
}
