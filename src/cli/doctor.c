/*
 * `doppel doctor`: what this host offers and lacks. One check a function; each prints one line and, where it matters, what
 * follows from it. Nothing here changes the host.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <liburing.h>
#include <linux/perf_event.h>
#include <linux/userfaultfd.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/base.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/version.h"
#include "cli/commands.h"
#include "cli/exit_status.h"
#include "engine/kvm/host.h"

/* How a line begins. Only BAD keeps machines from running. */
enum verdict { GOOD, NOTE, BAD };

static bool report(enum verdict verdict, const char *what, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static bool report(enum verdict verdict, const char *what, const char *format, ...)
{
    static const char *const words[] = { "ok  ", "note", "BAD " };
    va_list args;
    va_start(args, format);
    printf("%s  %-14s ", words[verdict], what);
    vprintf(format, args);
    putchar('\n');
    va_end(args);
    return verdict != BAD;
}

static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
    __asm__("cpuid" : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3]) : "a"(leaf), "c"(subleaf));
}

static void processor_name(char name[49])
{
    uint32_t words[4];
    memset(name, 0, 49);
    cpuid(0x80000000, 0, words);
    for (uint32_t leaf = 0; leaf < 3 && words[0] >= 0x80000004; leaf++) {
        uint32_t part[4];
        cpuid(0x80000002 + leaf, 0, part);
        memcpy(name + 16 * leaf, part, sizeof(part));
    }
    if (!*name)
        strcpy(name, "unnamed");
}

/* The levels of the x86-64 psABI, §3.1.1 "Processor Architecture" table 3.1, by the features that mark them. */
static unsigned processor_level(void)
{
    bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("ssse3");
    bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
              __builtin_cpu_supports("fma");
    bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return 1 + v2 + v3 + v4;
}

static bool check_processor(void)
{
    char name[49];
    processor_name(name);
    unsigned level = processor_level();
    report(GOOD, "processor", "%s, %ld online, level x86-64-v%u", name, sysconf(_SC_NPROCESSORS_ONLN), level);
    return level >= 3 || report(NOTE, "cpu model", "the default guest model x86-64-v3 is more than this processor has; "
                                                   "guests get x86-64-v%u", level);
}

static bool check_tsc(void)
{
    struct error err;
    if (clock_host_tsc_good(&err))
        return report(GOOD, "time stamp", "constant rate, does not stop");
    return report(NOTE, "time stamp", "%s: guests' time is the kernel's, and RDTSC takes longer", err.text);
}

static bool check_kvm(void)
{
    struct error err;
    double nanoseconds;
    if (!kvm_usable(&err))
        return report(NOTE, "kvm", "%s; not needed, guests run in software (--engine dbt)", err.text);
    if (!kvm_fast(&nanoseconds, &err))
        return report(NOTE, "kvm", "%s, and stays the default; --engine kvm works all the same", err.text);
    return report(GOOD, "kvm", "%.1f ns for an instruction of a guest's kernel: guests run on it, unless --engine says otherwise; local APICs are %s",
                  nanoseconds, kvm_has_apics() ? "in the host's kernel" : "this program's: this KVM has no split irqchip");
}

static bool check_memory(void)
{
    char line[128];
    uint64_t kib = 0;
    FILE *file = fopen("/proc/meminfo", "re");
    while (file && fgets(line, sizeof(line), file) && sscanf(line, "MemAvailable: %" SCNu64, &kib) != 1)
        kib = 0;
    if (file)
        fclose(file);
    return report(kib < 512 * 1024 ? NOTE : GOOD, "memory", "%" PRIu64 " MiB available", kib / 1024);
}

static bool check_memfd(void)
{
    int fd = memfd_create("doppel-doctor", MFD_CLOEXEC);
    if (fd < 0)
        return report(BAD, "memfd", "guest memory cannot be made: memfd_create: %s", strerror(errno));
    close(fd);
    return report(GOOD, "memfd", "available");
}

static bool check_limit(int resource, const char *what, rlim_t enough, const char *consequence)
{
    struct rlimit limit;
    if (getrlimit(resource, &limit))
        return report(NOTE, what, "cannot be read: %s", strerror(errno));
    if (limit.rlim_cur == RLIM_INFINITY)
        return report(GOOD, what, "unlimited");
    return report(limit.rlim_cur < enough ? NOTE : GOOD, what, "%llu%s%s", (unsigned long long)limit.rlim_cur,
                  limit.rlim_cur < enough ? "; " : "", limit.rlim_cur < enough ? consequence : "");
}

static bool check_limits(void)
{
    check_limit(RLIMIT_AS, "address space", RLIM_INFINITY, "a guest's memory must fit in it: see ulimit -v");
    check_limit(RLIMIT_MEMLOCK, "locked memory", 64 * 1024, "io_uring may be refused: see ulimit -l");
    check_limit(RLIMIT_NOFILE, "open files", 256, "few for many disks and connections: see ulimit -n");
    return check_limit(RLIMIT_NPROC, "processes", 64, "few for a thread per guest processor: see ulimit -u");
}

static bool check_uring(void)
{
    struct io_uring ring;
    int status = io_uring_queue_init(2, &ring, 0);
    if (status < 0)
        return report(NOTE, "io_uring", "%s; disks use a thread pool instead", strerror(-status));
    io_uring_queue_exit(&ring);
    return report(GOOD, "io_uring", "available");
}

static bool check_userfaultfd(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (fd < 0)
        return report(NOTE, "userfaultfd", "%s; not used yet", strerror(errno));
    close(fd);
    return report(GOOD, "userfaultfd", "available, for user-mode faults");
}

static bool check_executable_memory(void)
{
    void *page = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    bool done = page != MAP_FAILED && !mprotect(page, PAGE_SIZE, PROT_READ | PROT_EXEC);
    int saved = errno;
    if (page != MAP_FAILED)
        munmap(page, PAGE_SIZE);
    if (!done)
        return report(BAD, "generated code", "not allowed: %s; vector and floating-point instructions need it", strerror(saved));
    return report(GOOD, "generated code", "allowed");
}

static bool check_tap(void)
{
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return report(NOTE, "tap", "/dev/net/tun: %s; --net user needs no such thing", strerror(errno));
    close(fd);
    return report(GOOD, "tap", "/dev/net/tun opens; making an interface also takes CAP_NET_ADMIN");
}

static bool check_perf(void)
{
    struct perf_event_attr attr = { .size = sizeof(attr), .type = PERF_TYPE_HARDWARE, .config = PERF_COUNT_HW_INSTRUCTIONS,
                                    .exclude_kernel = 1, .exclude_hv = 1 };
    int fd = (int)syscall(SYS_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
    if (fd < 0)
        return report(NOTE, "perf", "no hardware counters: %s; only benchmarks would use them", strerror(errno));
    close(fd);
    return report(GOOD, "perf", "hardware counters available");
}

int command_doctor(int argc, char **argv)
{
    static bool (*const checks[])(void) = {
        check_processor, check_tsc, check_kvm, check_memory, check_memfd, check_executable_memory, check_limits,
        check_uring, check_userfaultfd, check_tap, check_perf,
    };
    bool usable = true;
    __builtin_cpu_init();
    printf("doppel %s on this host:\n", DOPPEL_VERSION);
    for (unsigned i = 0; i < ARRAY_SIZE(checks); i++)
        usable &= checks[i]();
    puts(usable ? "virtual machines can run here" : "virtual machines cannot run here, for what is marked BAD");
    return usable ? EXIT_DONE : EXIT_HOST_ERROR;
}
