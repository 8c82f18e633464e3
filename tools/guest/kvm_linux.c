/*
 * A minimal user of /dev/kvm, for the guest of a guest: boots a bzImage by the 32-bit Linux boot protocol with KVM's own interrupt
 * controllers and PIT, which ACPI tables tell of, and a UART whose output is ours.
 *   kvm_linux PROCESSORS MEBIBYTES KERNEL INITRD COMMAND-LINE
 * Ends when the guest resets (status 0) or KVM gives up (1).
 */
#include <asm/bootparam.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
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
    MEMORY_MIN = 128, MEMORY_MAX = 2048, BOOT_PARAMS = 0x7000, COMMAND_LINE = 0x20000, KERNEL = 0x100000, INITRD = 0x6000000,
    LOW_END = 0x9FC00, ACPI_TABLES = 0xE0000, TSS = 0xFFFBD000u, IDENTITY_MAP = 0xFFFBC000u,
    UART = 0x3F8, UART_IRQ = 4, KEYBOARD = 0x64, RESET = 0xFE, CMOS_DATA = 0x71,
    PM_EVENT = 0x600, PM_CONTROL = 0x604, PM_END = 0x606,
    PROCESSORS_MAX = 8,
};

static int vm;
static uint8_t *memory;
static size_t memory_size;
static unsigned processors;
static struct virtual_processor {
    int fd;
    struct kvm_run *run;
} processor[PROCESSORS_MAX];

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
    if (INITRD + initrd_size > memory_size) {
        fprintf(stderr, "kvm_linux: %s does not fit into the guest's memory\n", initrd_path);
        exit(1);
    }
    memcpy(memory + INITRD, initrd, initrd_size);
    strcpy((char *)memory + COMMAND_LINE, command_line);
    params->hdr.type_of_loader = 0xFF;
    params->hdr.cmd_line_ptr = COMMAND_LINE;
    params->hdr.ramdisk_image = INITRD;
    params->hdr.ramdisk_size = (uint32_t)initrd_size;
    params->e820_entries = 2;
    params->e820_table[0] = (struct boot_e820_entry){ 0, LOW_END, 1 };
    params->e820_table[1] = (struct boot_e820_entry){ KERNEL, memory_size - KERNEL, 1 };
}

/* --- ACPI tables: ACPI 6.3, §5.2; nothing but what Linux needs to find processors and the I/O APIC --- */

enum { TABLE_HEADER = 36, RSDP_SIZE = 36, FADT_SIZE = 244, MADT_FIXED = 44, MADT_PROCESSOR = 8, MADT_IOAPIC = 12 };

static uint8_t *table_end;

static void put(uint8_t *place, uint64_t value, size_t size) { memcpy(place, &value, size); }

static void put_checksum(uint8_t *bytes, size_t size, size_t place)
{
    uint8_t sum = 0;
    for (size_t i = 0; i < size; i++)
        sum += bytes[i];
    bytes[place] = (uint8_t)-sum;
}

static uint64_t address_of(const uint8_t *place) { return (uint64_t)(place - memory); }

/* Its contents are zero; finish_table when they have been written. */
static uint8_t *add_table(const char *signature, uint8_t revision, size_t size)
{
    uint8_t *table = table_end;
    table_end += (size + 15) & ~15ul;
    memcpy(table, signature, 4);
    put(table + 4, size, 4);
    table[8] = revision;
    memcpy(table + 10, "DOPPELGUEST   ", 14);
    put(table + 24, 1, 4);
    memcpy(table + 28, "DPPL", 4);
    put(table + 32, 1, 4);
    return table;
}

static uint64_t finish_table(uint8_t *table)
{
    uint32_t size;
    memcpy(&size, table + 4, sizeof(size));
    put_checksum(table, size, 9);
    return address_of(table);
}

/* §5.2.9: power management has two registers, which read as zero; there are no buttons. */
static uint64_t make_fadt(void)
{
    enum { WBINVD = 1 << 0, NO_POWER_BUTTON = 1 << 4, NO_SLEEP_BUTTON = 1 << 5, LEGACY_DEVICES = 1, SCI = 9 };
    uint64_t dsdt = finish_table(add_table("DSDT", 2, TABLE_HEADER));
    uint8_t *fadt = add_table("FACP", 3, FADT_SIZE);
    put(fadt + 40, dsdt, 4);
    put(fadt + 46, SCI, 2);
    put(fadt + 56, PM_EVENT, 4);
    put(fadt + 64, PM_CONTROL, 4);
    fadt[88] = 4;
    fadt[89] = 2;
    put(fadt + 109, LEGACY_DEVICES, 2);
    put(fadt + 112, WBINVD | NO_POWER_BUTTON | NO_SLEEP_BUTTON, 4);
    return finish_table(fadt);
}

/* §5.2.12: KVM's default routing connects ISA interrupt N with pin N of its I/O APIC. */
static uint64_t make_madt(void)
{
    enum { LOCAL_APIC = 0, IOAPIC = 1, ENABLED = 1, PC_AT = 1 };
    uint8_t *madt = add_table("APIC", 3, MADT_FIXED + processors * MADT_PROCESSOR + MADT_IOAPIC), *entry = madt + MADT_FIXED;
    put(madt + 36, 0xFEE00000, 4);
    put(madt + 40, PC_AT, 4);
    for (unsigned i = 0; i < processors; i++, entry += MADT_PROCESSOR) {
        entry[0] = LOCAL_APIC;
        entry[1] = MADT_PROCESSOR;
        entry[2] = entry[3] = (uint8_t)i;
        put(entry + 4, ENABLED, 4);
    }
    entry[0] = IOAPIC;
    entry[1] = MADT_IOAPIC;
    entry[2] = PROCESSORS_MAX;
    put(entry + 4, 0xFEC00000, 4);
    return finish_table(madt);
}

static void make_acpi_tables(void)
{
    uint8_t *rsdp = memory + ACPI_TABLES;
    table_end = rsdp + 48;
    uint64_t fadt = make_fadt(), madt = make_madt();
    uint8_t *xsdt = add_table("XSDT", 1, TABLE_HEADER + 16);
    put(xsdt + TABLE_HEADER, fadt, 8);
    put(xsdt + TABLE_HEADER + 8, madt, 8);
    memcpy(rsdp, "RSD PTR ", 8);
    memcpy(rsdp + 9, "DOPPEL", 6);
    rsdp[15] = 2;
    put(rsdp + 20, RSDP_SIZE, 4);
    put(rsdp + 24, finish_table(xsdt), 8);
    put_checksum(rsdp, 20, 8);
    put_checksum(rsdp, RSDP_SIZE, 32);
}

/* --- the machine --- */

static void create(int kvm)
{
    uint64_t identity = IDENTITY_MAP;
    struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
    vm = ask(kvm, KVM_CREATE_VM, NULL, "KVM_CREATE_VM");
    ask(vm, KVM_SET_TSS_ADDR, (void *)(uintptr_t)TSS, "KVM_SET_TSS_ADDR");
    ask(vm, KVM_SET_IDENTITY_MAP_ADDR, &identity, "KVM_SET_IDENTITY_MAP_ADDR");
    ask(vm, KVM_CREATE_IRQCHIP, NULL, "KVM_CREATE_IRQCHIP");
    ask(vm, KVM_CREATE_PIT2, &pit, "KVM_CREATE_PIT2");
    memory = mmap(NULL, memory_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        fail("memory for the guest");
    struct kvm_userspace_memory_region region = { .memory_size = memory_size, .userspace_addr = (uintptr_t)memory };
    ask(vm, KVM_SET_USER_MEMORY_REGION, &region, "KVM_SET_USER_MEMORY_REGION");
}

/* The guest learns from KVM's clock how fast its TSC is, without which a KVM of its own does not run. */
static void finish_cpuid(struct kvm_cpuid2 *cpuid, unsigned id)
{
    const uint32_t hypervisor = 1u << 31;
    for (unsigned i = 0; i < cpuid->nent; i++) {
        struct kvm_cpuid_entry2 *entry = &cpuid->entries[i];
        if (entry->function == 1) {
            entry->ebx = (entry->ebx & 0xFFFFFF) | id << 24;
            entry->ecx |= hypervisor;
        } else if (entry->function == 0xB || entry->function == 0x1F) {
            entry->edx = id;
        }
    }
}

static void set_cpuid(int kvm, unsigned id)
{
    struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + 128 * sizeof(cpuid->entries[0]));
    cpuid->nent = 128;
    ask(kvm, KVM_GET_SUPPORTED_CPUID, cpuid, "KVM_GET_SUPPORTED_CPUID");
    finish_cpuid(cpuid, id);
    ask(processor[id].fd, KVM_SET_CPUID2, cpuid, "KVM_SET_CPUID2");
    free(cpuid);
}

/* Of the boot processor; the others wait for its start-up IPI. */
static void set_registers(int vcpu)
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

static void create_processor(int kvm, unsigned id)
{
    size_t size = (size_t)ask(kvm, KVM_GET_VCPU_MMAP_SIZE, NULL, "KVM_GET_VCPU_MMAP_SIZE");
    processor[id].fd = ask(vm, KVM_CREATE_VCPU, (void *)(uintptr_t)id, "KVM_CREATE_VCPU");
    set_cpuid(kvm, id);
    processor[id].run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, processor[id].fd, 0);
    if (processor[id].run == MAP_FAILED)
        fail("mmap of the vCPU");
}

/* --- the UART: it is always ready to send, and never receives --- */

static pthread_mutex_t uart_lock = PTHREAD_MUTEX_INITIALIZER;
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
    bool goes_on = true;
    pthread_mutex_lock(&uart_lock);
    for (unsigned i = 0; i < run->io.count; i++, data += run->io.size) {
        uint16_t port = run->io.port;
        if (run->io.direction == KVM_EXIT_IO_OUT) {
            if (port == KEYBOARD && *data == RESET)
                goes_on = false;
            if (port >= UART && port < UART + 8)
                uart_write(port - UART, *data);
        } else {
            memset(data, 0xFF, run->io.size);
            if (port >= UART && port < UART + 8)
                *data = uart_read(port - UART);
            else if (port == KEYBOARD || port == CMOS_DATA || (port >= PM_EVENT && port < PM_END))
                memset(data, 0, run->io.size);
        }
    }
    pthread_mutex_unlock(&uart_lock);
    return goes_on;
}

static int run_guest(struct virtual_processor *p)
{
    struct kvm_run *run = p->run;
    for (;;) {
        if (ioctl(p->fd, KVM_RUN, 0) < 0) {
            if (errno == EAGAIN || errno == EINTR)      /* a processor that was started comes back once */
                continue;
            fail("KVM_RUN");
        }
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

/* The first processor that ends ends all. */
static void *run_processor(void *argument)
{
    int status = run_guest(argument);
    fflush(stdout);
    _exit(status);
}

int main(int argc, char **argv)
{
    processors = argc == 6 ? (unsigned)atoi(argv[1]) : 0;
    memory_size = argc == 6 ? (size_t)atoi(argv[2]) << 20 : 0;
    if (processors < 1 || processors > PROCESSORS_MAX || memory_size >> 20 < MEMORY_MIN || memory_size >> 20 > MEMORY_MAX) {
        fprintf(stderr, "usage: kvm_linux PROCESSORS MEBIBYTES KERNEL INITRD COMMAND-LINE (1 to %d processors, %d to %d MiB)\n",
                PROCESSORS_MAX, MEMORY_MIN, MEMORY_MAX);
        return 2;
    }
    int kvm = open("/dev/kvm", O_RDWR);
    if (kvm < 0)
        fail("/dev/kvm");
    create(kvm);
    load(argv[3], argv[4], argv[5]);
    make_acpi_tables();
    for (unsigned i = 0; i < processors; i++)
        create_processor(kvm, i);
    set_registers(processor[0].fd);
    for (unsigned i = 1; i < processors; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run_processor, &processor[i]))
            fail("pthread_create");
    }
    run_processor(&processor[0]);
}
