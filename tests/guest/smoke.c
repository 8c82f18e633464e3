/* The bare minimum: 64-bit mode, exceptions with the right frame, user mode and back. */
#include "lib/guest.h"

static void divide(void *argument)
{
    __asm__ volatile("xor %%edx, %%edx\n xor %%ecx, %%ecx\n mov $1, %%eax\n div %%ecx" ::: "rax", "rcx", "rdx", "cc");
}

static void read_at(void *argument) { (void)*(volatile uint8_t *)argument; }
static void privileged(void *argument) { __asm__ volatile("cli"); }
static void nothing(void *argument) {}

void test_main(void)
{
    check_equal(guarded(divide, NULL).vector, 0, "division by zero is #DE");
    struct trap trap = guarded(read_at, (void *)0x123456789000);
    check_equal(trap.vector, 14, "an unmapped read is #PF");
    check_equal(trap.error, 0, "its error code says supervisor read, not present");
    check_equal(trap.cr2, 0x123456789000, "CR2 is the address");
    check_equal(guarded(read_at, (void *)0x8000000000000000).vector, 13, "a non-canonical read is #GP");
    map_user_all();
    check_equal(guarded_user(nothing, NULL).vector, NO_TRAP, "user mode is entered and left");
    check_equal(guarded_user(privileged, NULL).vector, 13, "CLI in user mode is #GP");
}
