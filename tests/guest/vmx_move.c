/* A VMCS that goes from one processor to another and back: what was written or saved by the one is there for the other (SDM3 §25.11.1). */
#include "lib/vmx.h"

enum { RUNS = 100 };

static uint64_t result;
static volatile uint64_t counted;
static void guest_count(void) { for (;;) { counted++; vmcall(); } }

static volatile unsigned turn;                  /* of which processor it is */
static void *other_vmxon_region;

static void pass_to(unsigned number)
{
    vmcs_release();
    turn = number;
}

static void await_turn(unsigned number)
{
    while (turn != number)
        pause();
    result |= (uint64_t)vmptrld((uint64_t)vmcs_region);
}

/* The guest goes on where it was, behind its VMCALL; the host it comes back to is this processor's. */
static bool runs_on(unsigned run)
{
    vmwrite(VMCS_HOST_CR0, read_cr0());
    vmwrite(VMCS_HOST_CR4, read_cr4());
    uint32_t reason = vmx_run_reason();
    vmx_skip();
    return reason == REASON_VMCALL && counted == run;
}

static volatile unsigned wrong_there;

static void other_processor(unsigned number)
{
    wrmsr(0x3A, 5);
    write_cr0(read_cr0() | 1 << 5);
    write_cr4(read_cr4() | CR4_VMXE);
    result |= (uint64_t)vmxon((uint64_t)other_vmxon_region);
    for (unsigned i = 0; i < RUNS; i++) {
        await_turn(1);
        wrong_there += !runs_on(2 * i + 2) || vmread(VMCS_CR3_TARGET_VALUE0) != i;
        vmwrite(VMCS_CR3_TARGET_VALUE1, i);
        pass_to(0);
    }
    for (;;)
        __asm__ volatile("cli; hlt");
}

void test_main(void)
{
    unsigned wrong_here = 0;
    vmx_switch_on();
    other_vmxon_region = alloc_page();
    *(uint32_t *)other_vmxon_region = vmcs_revision();
    start_processors(1, other_processor);
    vmcs_prepare(guest_count);
    for (unsigned i = 0; i < RUNS; i++) {
        wrong_here += !runs_on(2 * i + 1);
        vmwrite(VMCS_CR3_TARGET_VALUE0, i);
        pass_to(1);
        await_turn(0);
        wrong_here += vmread(VMCS_CR3_TARGET_VALUE1) != i;
    }
    check_equal(result, VMX_OK, "VMXON, and VMPTRLD of what another processor has cleared");
    check_equal(wrong_here, 0, "the guest goes on, and fields are as the other processor has left them");
    check_equal(wrong_there, 0, "and there");
}
