/*
 * The host CPU as oracle. A child process maps the code and data areas at their fixed addresses, installs a seccomp filter that
 * leaves it little more than futex-free memory and signals, and runs cases from memory shared with the parent.
 *
 * A case is entered by a trampoline that loads vector state (XRSTOR), flags and general registers and jumps; it is left by the
 * signal that its last instruction, UD2, or an earlier fault raises. The handler copies the interrupted state out of the signal frame, which
 * is exact for every register, and jumps back to the harness. The case has no thread pointer: FS has base 0, as it has in the guests.
 */
#include "case.h"

#include <asm/prctl.h>
#include <cpuid.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>

enum {
    XSAVE_MAX = 16384,
    CASE_TIMEOUT_US = 200000,
    GATE_BASE = 0x0F000000,     /* a page with the jump targets of the trampoline, at an address that needs no register */
    USER_CS32 = 0x23, USER_DS = 0x2B,   /* Linux's selectors for compatibility mode */
};

struct gate {
    uint64_t target;            /* 64-bit code */
    uint32_t target32;          /* far pointer for 32-bit code */
    uint16_t selector;
};

struct shared {
    struct run runs[HOST_BATCH];
    struct outcome outcomes[HOST_BATCH];
    volatile unsigned done;
};

struct host {
    pid_t child;
    int socket;
    struct shared *shared;
    struct host_features features;
};

/* The child's own; one child runs one case at a time. Reached from a signal handler, hence at file scope. */
struct enter_frame {
    uint64_t gpr[16];
    uint64_t rflags;
};
static struct {
    struct host_features features;
    _Alignas(64) uint8_t xsave[XSAVE_MAX];
    struct enter_frame frame;
    const struct run *run;
    struct outcome *outcome;
    uint8_t *data;              /* DATA_SIZE, writable: the memory behind the pages of data */
    uint64_t thread_pointer;    /* FS base of what is compiled */
    sigjmp_buf back;
} child;

static void detect(struct host_features *features)
{
    unsigned a, b, c, d;
    *features = (struct host_features){ 0 };
    __cpuid(0, a, b, c, d);
    features->amd = b == signature_AMD_ebx;
    __cpuid_count(0xD, 0, a, b, c, d);
    uint32_t xcr0 = a;
    features->xsave_size = b;
    features->avx = xcr0 & 4;
    features->avx512 = (xcr0 & 0xE0) == 0xE0;
    uint32_t *offsets[] = { [2] = &features->ymm_offset, [5] = &features->k_offset, [6] = &features->zmm_hi256_offset,
                            [7] = &features->hi16_zmm_offset };
    for (unsigned i = 2; i < 8; i++) {
        if (!offsets[i] || !(xcr0 >> i & 1))
            continue;
        __cpuid_count(0xD, i, a, b, c, d);
        *offsets[i] = b;
    }
}

/* struct cpu_image to and from the standard XSAVE format. */
static void image_to_xsave(const struct cpu_image *image, uint8_t *xsave, const struct host_features *features)
{
    memset(xsave, 0, features->xsave_size);
    memcpy(xsave, image->fxsave, 160);
    for (unsigned i = 0; i < 16; i++) {
        memcpy(xsave + 160 + 16 * i, image->zmm[i], 16);
        if (features->avx)
            memcpy(xsave + features->ymm_offset + 16 * i, image->zmm[i] + 16, 16);
        if (features->avx512) {
            memcpy(xsave + features->zmm_hi256_offset + 32 * i, image->zmm[i] + 32, 32);
            memcpy(xsave + features->hi16_zmm_offset + 64 * i, image->zmm[16 + i], 64);
        }
    }
    uint64_t xstate_bv = 3 | (features->avx ? 4 : 0) | (features->avx512 ? 0xE0 : 0);
    if (features->avx512)
        memcpy(xsave + features->k_offset, image->k, 64);
    memcpy(xsave + 512, &xstate_bv, 8);
}

static void component(const uint8_t *xsave, uint64_t xstate_bv, unsigned bit, uint32_t offset, void *out, size_t size)
{
    if (xstate_bv >> bit & 1)
        memcpy(out, xsave + offset, size);
    else
        memset(out, 0, size);
}

static void xsave_to_image(const uint8_t *xsave, struct cpu_image *image, const struct host_features *features)
{
    uint64_t xstate_bv;
    memcpy(&xstate_bv, xsave + 512, 8);
    memset(image->fxsave, 0, sizeof(image->fxsave));
    memcpy(image->fxsave, xsave, 160);
    if (!(xstate_bv & 1)) {             /* x87 in its initial configuration */
        memset(image->fxsave, 0, 24);
        memset(image->fxsave + 32, 0, 128);
        image->fxsave[0] = 0x7F;
        image->fxsave[1] = 0x03;
    }
    for (unsigned i = 0; i < 16; i++) {
        component(xsave, xstate_bv, 1, 160 + 16 * i, image->zmm[i], 16);
        if (features->avx)
            component(xsave, xstate_bv, 2, features->ymm_offset + 16 * i, image->zmm[i] + 16, 16);
        if (features->avx512) {
            component(xsave, xstate_bv, 6, features->zmm_hi256_offset + 32 * i, image->zmm[i] + 32, 32);
            component(xsave, xstate_bv, 7, features->hi16_zmm_offset + 64 * i, image->zmm[16 + i], 64);
        }
    }
    if (features->avx512)
        component(xsave, xstate_bv, 5, features->k_offset, image->k, 64);
}

/* arch_prctl(ARCH_SET_FS, the operand), where the compiler may have nothing between. RAX, RCX, RDI, RSI and R11 are lost. */
#define SET_FS(operand) "mov " operand ", %%rsi\n mov %[set_fs], %%edi\n mov %[arch_prctl], %%eax\n syscall\n"
#define SET_FS_NUMBERS [set_fs] "i"(ARCH_SET_FS), [arch_prctl] "i"(SYS_arch_prctl)

/*
 * Naked: no compiler code between. The stack is switched to the case's own by loading RSP; the harness returns by siglongjmp.
 * RDI: frame, RSI: XSAVE area, EDX: nonzero for 32-bit code.
 */
__attribute__((naked, noreturn)) static void enter(const struct enter_frame *frame, const void *xsave, int code32)
{
    __asm__ volatile("push %%rdi\n push %%rsi\n" SET_FS("$0") "pop %%rsi\n pop %%rdi\n" :: SET_FS_NUMBERS);
    __asm__ volatile(
        "mov %edx, %r8d\n"
        "mov $-1, %eax\n mov $-1, %edx\n"
        "xrstor64 (%rsi)\n"
        "test %r8d, %r8d\n"
        "jnz 1f\n"
        "push 128(%rdi)\n popfq\n"
        "mov 0(%rdi), %rax\n mov 8(%rdi), %rcx\n mov 16(%rdi), %rdx\n mov 24(%rdi), %rbx\n"
        "mov 32(%rdi), %rsp\n mov 40(%rdi), %rbp\n mov 48(%rdi), %rsi\n"
        "mov 64(%rdi), %r8\n mov 72(%rdi), %r9\n mov 80(%rdi), %r10\n mov 88(%rdi), %r11\n"
        "mov 96(%rdi), %r12\n mov 104(%rdi), %r13\n mov 112(%rdi), %r14\n mov 120(%rdi), %r15\n"
        "mov 56(%rdi), %rdi\n"
        "jmp *0x0F000000\n"
        "1:\n"
        "mov $0x2b, %eax\n mov %eax, %ds\n mov %eax, %es\n"
        "push 128(%rdi)\n popfq\n"
        "mov 0(%rdi), %rax\n mov 8(%rdi), %rcx\n mov 16(%rdi), %rdx\n mov 24(%rdi), %rbx\n"
        "mov 32(%rdi), %rsp\n mov 40(%rdi), %rbp\n mov 48(%rdi), %rsi\n"
        "mov 64(%rdi), %r8\n mov 72(%rdi), %r9\n mov 80(%rdi), %r10\n mov 88(%rdi), %r11\n"
        "mov 96(%rdi), %r12\n mov 104(%rdi), %r13\n mov 112(%rdi), %r14\n mov 120(%rdi), %r15\n"
        "mov 56(%rdi), %rdi\n"
        "ljmpl *0x0F000008\n");
}

static uint8_t vector_of(const ucontext_t *context, int signal)
{
    if (signal == SIGALRM || signal == SIGVTALRM)
        return 0xFF;
    return (uint8_t)context->uc_mcontext.gregs[REG_TRAPNO];
}

__attribute__((used)) static void take_signal(int signal, siginfo_t *info, void *opaque)
{
    __asm__ volatile("pushfq\n andl $~0x40000, (%%rsp)\n popfq" ::: "memory", "cc");    /* AC off: libc is not aligned */
    ucontext_t *context = opaque;
    greg_t *gregs = context->uc_mcontext.gregs;
    static const int order[16] = { REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                   REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15 };
    struct outcome *outcome = child.outcome;
    if (!outcome)
        _exit(3);
    uint8_t vector = vector_of(context, signal);
    for (unsigned i = 0; i < 16; i++)
        outcome->end.gpr[i] = (uint64_t)gregs[order[i]];
    outcome->end.rip = (uint64_t)gregs[REG_RIP];
    outcome->end.rflags = (uint64_t)gregs[REG_EFL];
    outcome->timed_out = vector == 0xFF;
    uint64_t resume = 0;
    if (!outcome->timed_out) {
        add_fault(outcome, vector, (uint32_t)gregs[REG_ERR], (uint64_t)gregs[REG_CR2]);
        resume = resume_at(child.run, outcome, outcome->end.rip);
    }
    if (resume) {
        gregs[REG_RIP] = (greg_t)resume;
        return;
    }
    xsave_to_image((const uint8_t *)context->uc_mcontext.fpregs, &outcome->end, &child.features);
    siglongjmp(child.back, 1);
}

/* What is compiled has the thread pointer, which may be where a stack's canary is; what goes on has none. */
__attribute__((naked)) static void on_signal(int signal, siginfo_t *info, void *opaque)
{
    __asm__ volatile("push %%rdi\n push %%rsi\n push %%rdx\n"
                     SET_FS("%[pointer]")
                     "pop %%rdx\n pop %%rsi\n pop %%rdi\n"
                     "sub $8, %%rsp\n call %P[take]\n add $8, %%rsp\n"
                     SET_FS("$0")
                     "ret\n"
                     :: SET_FS_NUMBERS, [pointer] "m"(child.thread_pointer), [take] "i"(take_signal));
}

static void install_handlers(void)
{
    stack_t stack = { .ss_size = 256 * 1024 };
    stack.ss_sp = mmap(NULL, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sigaltstack(&stack, NULL);
    struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER };
    static const int signals[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGVTALRM };
    for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++)
        sigaction(signals[i], &action, NULL);
}

static void *map(void *address, size_t size, int protection, int flags, int fd, off_t offset)
{
    void *at = mmap(address, size, protection, flags | MAP_POPULATE | (address ? MAP_FIXED_NOREPLACE : 0), fd, offset);
    if (at == MAP_FAILED)
        _exit(4);
    return at;
}

static void *map_fixed(uint64_t address, size_t size, int protection)
{
    return map((void *)address, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
}

/* The pages of data, and all of their memory once more where it can be written. */
static uint8_t *map_data(void)
{
    int fd = memfd_create("data", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, DATA_SIZE))
        _exit(4);
    uint8_t *all = map(NULL, DATA_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset(all, 1, DATA_SIZE);
    for (unsigned i = 0; i < DATA_PAGES; i++) {
        const struct data_page *p = &data_page[i];
        map((void *)(uintptr_t)(DATA_BASE + p->page * 0x1000), 0x1000, PROT_READ | (p->writable ? PROT_WRITE : 0), MAP_SHARED, fd,
            p->backing * 0x1000);
    }
    close(fd);
    return all;
}

/* What is left to the child: signals, its thread pointer, its socket, its timer, the end. */
static void install_filter(void)
{
    static const struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 6, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_arch_prctl, 5, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_read, 4, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_setitimer, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof(filter) / sizeof(filter[0]), (struct sock_filter *)filter };
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
        _exit(5);
}

static void run_one(const struct run *run, struct outcome *outcome)
{
    memset((void *)CODE_BASE, CODE_FILL, CODE_SIZE);
    memcpy((void *)run->start.rip, run->code, run->code_length);
    fill_run_data(run, child.data);
    image_to_xsave(&run->start, child.xsave, &child.features);
    memcpy(child.frame.gpr, run->start.gpr, sizeof(child.frame.gpr));
    child.frame.rflags = run->start.rflags;
    *(struct gate *)GATE_BASE = (struct gate){ run->start.rip, (uint32_t)run->start.rip, USER_CS32 };
    child.run = run;
    child.outcome = outcome;
    outcome->fault_count = 0;
    if (sigsetjmp(child.back, 0) == 0)
        enter(&child.frame, child.xsave, run->mode == CODE_32);
    __asm__ volatile("cld\n fninit\n emms");
    uint32_t mxcsr = 0x1F80;
    __asm__ volatile("ldmxcsr %0" :: "m"(mxcsr));
    memcpy(outcome->data, child.data, DATA_SIZE);
    memcpy(outcome->code, (const void *)run->start.rip, run->code_length);
    child.outcome = NULL;
}

static void set_timer(long us)
{
    struct itimerval timer = { .it_value.tv_usec = us };
    setitimer(ITIMER_VIRTUAL, &timer, NULL);
}

static void child_main(struct shared *shared, int fd, const struct host_features *features)
{
    child.features = *features;
    map_fixed(CODE_BASE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
    child.data = map_data();
    map_fixed(GATE_BASE, 4096, PROT_READ | PROT_WRITE);
    syscall(SYS_arch_prctl, ARCH_SET_GS, 0);    /* an engine in the parent may have left something there */
    syscall(SYS_arch_prctl, ARCH_GET_FS, &child.thread_pointer);
    install_handlers();
    install_filter();
    uint32_t count;
    while (read(fd, &count, sizeof(count)) == sizeof(count)) {
        for (uint32_t i = 0; i < count && i < HOST_BATCH; i++) {
            set_timer(CASE_TIMEOUT_US);
            run_one(&shared->runs[i], &shared->outcomes[i]);
            shared->done = i + 1;
        }
        set_timer(0);
        if (write(fd, &count, sizeof(count)) != sizeof(count))
            break;
    }
    _exit(0);
}

static void spawn(struct host *host)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        perror("socketpair");
        exit(1);
    }
    host->child = fork();
    if (host->child == 0) {
        close(pair[0]);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        child_main(host->shared, pair[1], &host->features);
    }
    close(pair[1]);
    host->socket = pair[0];
}

struct host *host_start(void)
{
    struct host *host = calloc(1, sizeof(*host));
    host->shared = mmap(NULL, sizeof(*host->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    detect(&host->features);
    spawn(host);
    return host;
}

const struct host_features *host_features(const struct host *host) { return &host->features; }

bool host_run(struct host *host, const struct run *runs, unsigned count, struct outcome *outcomes)
{
    memcpy(host->shared->runs, runs, count * sizeof(*runs));
    host->shared->done = 0;
    uint32_t message = count;
    bool ok = write(host->socket, &message, sizeof(message)) == sizeof(message) &&
              read(host->socket, &message, sizeof(message)) == sizeof(message);
    memcpy(outcomes, host->shared->outcomes, count * sizeof(*outcomes));
    if (ok)
        return true;
    for (unsigned i = host->shared->done; i < count; i++)
        outcomes[i].timed_out = true;
    close(host->socket);
    kill(host->child, SIGKILL);
    waitpid(host->child, NULL, 0);
    spawn(host);
    return false;
}

void host_stop(struct host *host)
{
    close(host->socket);
    waitpid(host->child, NULL, 0);
    munmap(host->shared, sizeof(*host->shared));
    free(host);
}
