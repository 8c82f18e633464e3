#include "case.h"

#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>

#include "base/base.h"
#include "x86/flags.h"

static const char *const gpr_names[16] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                           "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15" };

/* Flags that user code can see change; IF, IOPL and RF are the kernel's. */
enum { FLAGS_COMPARED = RFLAGS_STATUS | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID };

static bool has_error_code(uint8_t vector)
{
    return vector == VEC_DF || (vector >= VEC_TS && vector <= VEC_PF) || vector == VEC_AC;
}

struct report {
    bool equal, print;
    const char *const *names;
};

static void differ(struct report *report, const char *what, uint64_t host, uint64_t guest)
{
    if (host == guest)
        return;
    report->equal = false;
    if (report->print)
        printf("  %-8s %s %#018lx  %s %#018lx\n", what, report->names[0], host, report->names[1], guest);
}

static void differ_bytes(struct report *report, const char *what, unsigned index, const void *host, const void *guest,
                         size_t size)
{
    if (!memcmp(host, guest, size))
        return;
    report->equal = false;
    if (!report->print)
        return;
    const uint8_t *h = host, *g = guest;
    printf("  %s%u", what, index);
    for (unsigned side = 0; side < 2; side++) {
        printf("\n    %-6s ", report->names[side]);
        for (size_t i = size; i-- > 0;)
            printf("%02x%s", (side ? g : h)[i], i % 8 == 0 ? " " : "");
    }
    printf("\n");
}

static void compare_x87(struct report *report, const uint8_t *host, const uint8_t *guest, bool amd)
{
    static const struct { const char *name; unsigned offset, size; } fields[] = {
        { "fcw", 0, 2 }, { "fsw", 2, 2 }, { "ftw", 4, 1 }, { "fop", 6, 2 }, { "fip", 8, 8 }, { "fdp", 16, 8 }, { "mxcsr", 24, 4 },
    };
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        uint64_t h = 0, g = 0;
        if (amd && fields[i].offset >= 6 && fields[i].offset < 24)
            continue;               /* FXSAVE leaves FOP, FIP and FDP out unless an exception waits */
        memcpy(&h, host + fields[i].offset, fields[i].size);
        memcpy(&g, guest + fields[i].offset, fields[i].size);
        differ(report, fields[i].name, h, g);
    }
    for (unsigned i = 0; i < 8; i++)
        differ_bytes(report, "st", i, host + 32 + 16 * i, guest + 32 + 16 * i, 10);
}

static void compare_memory(struct report *report, const char *what, uint64_t base, const uint8_t *host, const uint8_t *guest,
                           unsigned size)
{
    if (!memcmp(host, guest, size))
        return;
    for (unsigned i = 0; i < size && report->print; i++)
        if (host[i] != guest[i]) {
            printf("  %s first differs at %#lx: %s %02x %s %02x\n", what, base + i, report->names[0], host[i], report->names[1],
                   guest[i]);
            break;
        }
    report->equal = false;
}

static const uint8_t *opcode_at(const struct run *run, uint64_t rip)
{
    uint64_t offset = rip - run->start.rip;
    if (offset >= run->code_length)
        return NULL;
    const uint8_t *opcode = run->code + offset;
    while (*opcode == 0x66 || *opcode == 0x67 || (*opcode >= 0x40 && *opcode <= 0x4F) || *opcode == 0xF2 || *opcode == 0xF3)
        opcode++;
    return opcode;
}

/*
 * A CALL whose target is not canonical faults with the return address in memory on Intel's processors, without on AMD's: what is
 * there afterwards says nothing.
 */
static bool call_was_refused(const struct run *run, const struct outcome *host)
{
    for (unsigned i = 0; i < host->fault_count; i++) {
        const uint8_t *opcode = opcode_at(run, host->fault[i].rip);
        if (host->fault[i].vector == VEC_GP && opcode && opcode[0] == 0xFF && (opcode[1] >> 3 & 7) == 2)
            return true;
    }
    return false;
}

/*
 * Where a long x87 operand (FRSTOR, FSAVE, FLDENV, FSTENV) reaches into a page that faults, processors differ in which of its
 * bytes they name; AMD's and Intel's in the parts of a masked vector.
 */
static uint64_t cr2_slack(const struct run *run, const struct fault *fault, bool amd)
{
    const uint8_t *opcode = opcode_at(run, fault->rip);
    if (!opcode)
        return 0;
    if (amd && (*opcode == 0xC4 || *opcode == 0x62))
        return 63;
    return *opcode == 0xD9 || *opcode == 0xDD ? 0xFFF : 0;
}

/* In the upper half the host's kernel may have mapped what a guest has not: there the P bit says nothing. */
static uint32_t present_in_kernel(const struct fault *host)
{
    return host->vector == VEC_PF && host->cr2 >> 47 ? PF_P : 0;
}

/* A far return to another level: AMD's processors read the outer stack pointer before the descriptor, whose place the host's kernel hides. */
static bool is_far_return(const struct run *run, uint64_t rip)
{
    const uint8_t *opcode = opcode_at(run, rip);
    return opcode && (*opcode == 0xCA || *opcode == 0xCB || *opcode == 0xCF);
}

/* Where an instruction has several reasons to fault, Intel's and AMD's processors do not look at them in the same order. */
static bool same_but_for_priority(const struct run *run, const struct fault *host, const struct fault *guest)
{
    const uint32_t reasons = 1u << VEC_BR | 1u << VEC_UD | 1u << VEC_SS | 1u << VEC_GP | 1u << VEC_PF | 1u << VEC_MF |
                             1u << VEC_AC | 1u << VEC_XM;
    return host->rip == guest->rip && host->registers == guest->registers &&
           (host->vector != guest->vector || is_far_return(run, host->rip)) && (reasons >> host->vector & 1) && (reasons >> guest->vector & 1);
}

static bool faults_equal(const struct run *run, const struct fault *host, const struct fault *guest, bool amd)
{
    if (amd && same_but_for_priority(run, host, guest))
        return true;
    uint64_t slack = cr2_slack(run, host, amd);
    uint32_t present = present_in_kernel(host);
    return host->vector == guest->vector && host->rip == guest->rip && host->registers == guest->registers &&
           (!has_error_code(host->vector) || (host->error & ~present) == (guest->error & ~present)) &&
           (host->vector != VEC_PF || (host->cr2 & ~slack) == (guest->cr2 & ~slack));
}

static void print_fault(const char *who, unsigned i, const struct fault *fault)
{
    printf("  fault %u %s: vector %u at %#lx", i, who, fault->vector, fault->rip);
    if (has_error_code(fault->vector))
        printf(", error %#x", fault->error);
    if (fault->vector == VEC_PF)
        printf(", address %#lx", fault->cr2);
    printf(", registers %016lx\n", fault->registers);
}

/*
 * The faults up to the one with which the two went different ways, if there is one: where several reasons to fault were there, and one
 * ended its run by #UD.
 */
static unsigned common_faults(const struct run *run, const struct outcome *host, const struct outcome *guest, bool amd)
{
    unsigned count = (unsigned)min_u64(host->fault_count, guest->fault_count);
    for (unsigned i = 0; amd && i < count; i++)
        if (same_but_for_priority(run, &host->fault[i], &guest->fault[i]) && (host->fault[i].vector == VEC_UD) != (guest->fault[i].vector == VEC_UD))
            return i + 1;
    return 0;
}

static void compare_faults(struct report *report, const struct run *run, const struct outcome *host, const struct outcome *guest,
                           unsigned count, bool amd)
{
    for (unsigned i = 0; i < count; i++) {
        if (faults_equal(run, &host->fault[i], &guest->fault[i], amd))
            continue;
        report->equal = false;
        if (!report->print)
            return;
        print_fault(report->names[0], i, &host->fault[i]);
        print_fault(report->names[1], i, &guest->fault[i]);
    }
}

bool outcomes_equal(const struct run *run, const struct outcome *host, const struct outcome *guest, const char *const names[2],
                    const struct host_features *features, bool print)
{
    struct report report = { true, print, names };
    bool wide = run->mode == CODE_64;
    if (host->timed_out && guest->timed_out)
        return true;
    bool amd = features->amd && host->instructions == 0;
    unsigned common = common_faults(run, host, guest, amd);
    if (common) {
        compare_faults(&report, run, host, guest, common, amd);
        return report.equal;
    }
    differ(&report, "timeout", host->timed_out, guest->timed_out);
    differ(&report, "faults", host->fault_count, guest->fault_count);
    compare_faults(&report, run, host, guest, (unsigned)min_u64(host->fault_count, guest->fault_count), amd);
    for (unsigned i = 0; i < (wide ? 16u : 8u); i++)
        differ(&report, gpr_names[i], host->end.gpr[i], guest->end.gpr[i]);
    differ(&report, "rip", host->end.rip, guest->end.rip);
    differ(&report, "rflags", host->end.rflags & FLAGS_COMPARED, guest->end.rflags & FLAGS_COMPARED);
    compare_x87(&report, host->end.fxsave, guest->end.fxsave, amd);
    for (unsigned i = 0; i < 32; i++)
        differ_bytes(&report, "zmm", i, host->end.zmm[i], guest->end.zmm[i], 64);
    for (unsigned i = 0; i < 8; i++)
        differ_bytes(&report, "k", i, &host->end.k[i], &guest->end.k[i], 8);
    if (!features->amd || !call_was_refused(run, host))
        compare_memory(&report, "data", 0, host->data, guest->data, DATA_SIZE);
    compare_memory(&report, "code", run->start.rip, host->code, guest->code, run->code_length);
    if (host->instructions && guest->instructions)
        differ(&report, "count", host->instructions, guest->instructions);
    return report.equal;
}

void print_run(const struct run *run)
{
    for (unsigned at = 0; at < run->code_length;) {
        ZydisDisassembledInstruction insn;
        bool known = ZYAN_SUCCESS(ZydisDisassembleIntel(
            run->mode == CODE_64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LONG_COMPAT_32, run->start.rip + at,
            run->code + at, run->code_length - at, &insn));
        unsigned length = known ? insn.info.length : 1;
        printf("  %08lx ", run->start.rip + at);
        for (unsigned j = 0; j < length; j++)
            printf("%02x", run->code[at + j]);
        printf("  %s\n", known ? insn.text : "(bytes)");
        at += length;
    }
    for (unsigned i = 0; i < (run->mode == CODE_64 ? 16u : 8u); i++)
        printf("  %-3s %016lx%s", gpr_names[i], run->start.gpr[i], i % 4 == 3 ? "\n" : "");
    printf("  rflags %lx\n", run->start.rflags);
}
