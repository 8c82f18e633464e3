/*
 * A minimal user of /dev/kvm, for the guest of a guest: boots a bzImage by the 32-bit Linux boot protocol on one processor with KVM's
 * own interrupt controllers and PIT, and a UART whose output is ours.
 *   kvm_linux KERNEL INITRD COMMAND-LINE
 * Ends when the guest resets (status 0) or KVM gives up (1).
 */
#include <asm/bootparam.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    MEMORY = 192 << 20, BOOT_PARAMS = 0x7000, COMMAND_LINE = 0x20000, KERNEL = 0x100000, INITRD = 0x6000000,
    LOW_END = 0x9FC00, TSS = 0xFFFBD000u, IDENTITY_MAP = 0xFFFBC000u, UART = 0x3F8, UART_IRQ = 4, KEYBOARD = 0x64, RESET = 0xFE,
};

static int vm, vcpu;
static uint8_t *memory;

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static int ask(int fd, unsigned long request, void *argument, const char *what)
{
    int result = ioctl(fd, request, argument);
    if (result < 0)
        fail(what);
    return result;
}

/* --- loading --- */

static size_t read_file(const char *path, uint8_t **data)
{
    struct stat status;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &status) < 0)
        fail(path);
    *data = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (*data == MAP_FAILED)
        fail(path);
    close(fd);
    return (size_t)status.st_size;
}

static void load(const char *kernel_path, const char *initrd_path, const char *command_line)
{
    struct boot_params *params = (struct boot_params *)(memory + BOOT_PARAMS);
    uint8_t *kernel, *initrd;
    size_t kernel_size = read_file(kernel_path, &kernel), initrd_size = read_file(initrd_path, &initrd);
    memcpy(&params->hdr, kernel + offsetof(struct boot_params, hdr), sizeof(params->hdr));
    size_t setup = (params->hdr.setup_sects + 1u) * 512;
    memcpy(memory + KERNEL, kernel + setup, kernel_size - setup);
    memcpy(memory + INITRD, initrd, initrd_size);
    strcpy((char *)memory + COMMAND_LINE, command_line);
    params->hdr.type_of_loader = 0xFF;
    params->hdr.cmd_line_ptr = COMMAND_LINE;
    params->hdr.ramdisk_image = INITRD;
    params->hdr.ramdisk_size = (uint32_t)initrd_size;
    params->e820_entries = 2;
    params->e820_table[0] = (struct boot_e820_entry){ 0, LOW_END, 1 };
    params->e820_table[1] = (struct boot_e820_entry){ KERNEL, MEMORY - KERNEL, 1 };
}

/* --- the machine --- */

static void create(int kvm)
{
    uint64_t identity = IDENTITY_MAP;
    struct kvm_pit_config pit = { 0 };
    vm = ask(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    ask(vm, KVM_SET_TSS_ADDR, (void *)(uintptr_t)TSS, "KVM_SET_TSS_ADDR");
    ask(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity, "KVM_SET_IDENTITY_MAP_ADDR");
    ask(vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP");
    ask(vm, KVM_CREATE_PIT2, &pit, "KVM_CREATE_PIT2");
    memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct kvm_userspace_memory_region region = { .memory_size = MEMORY, .userspace_addr = (uintptr_t)memory };
    ask(vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
    vcpu = ask(vm, KVM_CREATE_VCPU, 0, "KVM_CREATE_VCPU");
}

static void set_cpuid(int kvm)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 128 * sizeof(cpuid->entries[0]));
    cpuid->nent = 128;
    ask(kvm, KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID");
    ask(vcpu, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
    free(cpuid);
}

static void set_registers(void)
{
    struct kvm_segment code = { .limit = 0xFFFFFFFF, .selector = 0x10, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1 };
    struct kvm_segment data = { .limit = 0xFFFFFFFF, .selector = 0x18, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1 };
    struct kvm_sregs sregs;
    ask(vcpu, KVM_GET_SREGS, &sregs, "KVM_GET_SREGS");
    sregs.cs = code;
    sregs.ds = sregs.es = sregs.ss = sregs.fs = sregs.gs = data;
    sregs.cr0 |= 1;
    ask(vcpu, KVM_SET_SREGS, &sregs, "KVM_SET_SREGS");
    struct kvm_regs regs = { .rip = KERNEL, .rsi = BOOT_PARAMS, .rflags = 2 };
    ask(vcpu, KVM_SET_REGS, &regs, "KVM_SET_REGS");
}

/* --- the UART: it is always ready to send, and never receives --- */

static uint8_t ier, lcr, mcr, scratch;
static bool thr_empty;

static void update_line(void)
{
    struct kvm_irq_level level = { .irq = UART_IRQ, .level = (ier & 2) && thr_empty };
    ask(vm, KVM_IRQ_LINE, &level, "KVM_IRQ_LINE");
}

static uint8_t uart_read(unsigned reg)
{
    uint8_t value = 0;
    switch (reg) {
    case 1: value = lcr & 0x80 ? 0 : ier; break;
    case 2:
        value = (ier & 2) && thr_empty ? 2 : 1;
        thr_empty = false;
        break;
    case 3: value = lcr; break;
    case 4: value = mcr; break;
    case 5: value = 0x60; break;
    case 6: value = 0xB0; break;
    case 7: value = scratch; break;
    }
    update_line();
    return value;
}

static void uart_write(unsigned reg, uint8_t value)
{
    switch (reg) {
    case 0:
        if (!(lcr & 0x80)) {
            putchar(value);
            if (value == '\n')
                fflush(stdout);
            thr_empty = true;
        }
        break;
    case 1:
        if (!(lcr & 0x80)) {
            thr_empty |= value & 2;
            ier = value & 15;
        }
        break;
    case 3: lcr = value; break;
    case 4: mcr = value; break;
    case 7: scratch = value; break;
    }
    update_line();
}

/* False: the guest wants a reset. */
static bool port_access(const struct kvm_run *run, uint8_t *data)
{
    for (unsigned i = 0; i < run->io.count; i++, data += run->io.size) {
        uint16_t port = run->io.port;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            if (port == KEYBOARD && *data == RESET)
                return false;
            if (port >= UART && port < UART + 8)
                uart_write(port - UART, *data);
        } else {
            memset(data, 0xFF, run->io.size);
            if (port >= UART && port < UART + 8)
                *data = uart_read(port - UART);
            else if (port == KEYBOARD)
                *data = 0;
        }
    }
    return true;
}

static int run_guest(struct kvm_run *run)
{
    for (;;) {
        if (ioctl(vcpu, KVM_RUN, 0) < 0)
            fail("KVM_RUN");
        switch (run->exit_reason) {
        case KVM_EXIT_IO:
            if (!port_access(run, (uint8_t *)run + run->io.data_offset))
                return 0;
            break;
        case KVM_EXIT_MMIO:
            if (!run->mmio.is_write)
                memset(run->mmio.data, 0xFF, sizeof(run->mmio.data));
            break;
        case KVM_EXIT_SHUTDOWN:
            return 0;
        default:
            fflush(stdout);
            fprintf(stderr, "kvm_linux: KVM ended with reason %u, %#llx\n", run->exit_reason,
                    (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
            return 1;
        }
    }
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: kvm_linux KERNEL INITRD COMMAND-LINE\n");
        return 2;
    }
    int kvm = open("/dev/kvm", O_RDWR);
    if (kvm < 0)
        fail("/dev/kvm");
    create(kvm);
    set_cpuid(kvm);
    load(argv[1], argv[2], argv[3]);
    set_registers();
    size_t size = (size_t)ask(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (run == MAP_FAILED)
        fail("mmap of the vCPU");
    int status = run_guest(run);
    fflush(stdout);
    return status;
}
