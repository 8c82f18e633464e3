#include "case.h"

#include <Zydis/Zydis.h>
#include <stdio.h>
#include <string.h>

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
};

static void differ(struct report *report, const char *what, uint64_t host, uint64_t guest)
{
    if (host == guest)
        return;
    report->equal = false;
    if (report->print)
        printf("  %-8s host %#018lx  guest %#018lx\n", what, host, guest);
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
        printf("\n    %s ", side ? "guest" : "host ");
        for (size_t i = size; i-- > 0;)
            printf("%02x%s", (side ? g : h)[i], i % 8 == 0 ? " " : "");
    }
    printf("\n");
}

static void compare_x87(struct report *report, const uint8_t *host, const uint8_t *guest)
{
    static const struct { const char *name; unsigned offset, size; } fields[] = {
        { "fcw", 0, 2 }, { "fsw", 2, 2 }, { "ftw", 4, 1 }, { "fop", 6, 2 }, { "fip", 8, 8 }, { "fdp", 16, 8 }, { "mxcsr", 24, 4 },
    };
    for (unsigned i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        uint64_t h = 0, g = 0;
        memcpy(&h, host + fields[i].offset, fields[i].size);
        memcpy(&g, guest + fields[i].offset, fields[i].size);
        differ(report, fields[i].name, h, g);
    }
    for (unsigned i = 0; i < 8; i++)
        differ_bytes(report, "st", i, host + 32 + 16 * i, guest + 32 + 16 * i, 10);
}

static void compare_data(struct report *report, const struct outcome *host, const struct outcome *guest)
{
    if (!memcmp(host->data, guest->data, DATA_SIZE))
        return;
    for (unsigned i = 0; i < DATA_SIZE && report->print; i++)
        if (host->data[i] != guest->data[i]) {
            printf("  memory first differs at %#x: host %02x guest %02x\n", DATA_BASE + i, host->data[i], guest->data[i]);
            break;
        }
    report->equal = false;
}

/*
 * Where a long x87 operand (FRSTOR, FSAVE, FLDENV, FSTENV) reaches into a page that faults, processors differ in which of its
 * bytes they name.
 */
static uint64_t cr2_slack(const struct test_case *test, const struct outcome *host)
{
    uint64_t at = test->start.rip;
    for (unsigned i = 0; i < test->insn_count; at += test->insn[i++].length) {
        const uint8_t *opcode = test->insn[i].bytes;
        if (at != host->end.rip)
            continue;
        while (*opcode == 0x66 || *opcode == 0x67 || (*opcode >= 0x40 && *opcode <= 0x4F) || *opcode == 0xF2 || *opcode == 0xF3)
            opcode++;
        if (*opcode == 0xD9 || *opcode == 0xDD)
            return 0xFFF;
    }
    return 0;
}

/* In the upper half the host's kernel may have mapped what a guest has not: there the P bit says nothing. */
static uint32_t present_in_kernel(const struct outcome *host)
{
    return host->vector == VEC_PF && host->cr2 >> 47 ? PF_P : 0;
}

bool outcomes_equal(const struct test_case *test, const struct outcome *host, const struct outcome *guest, bool print)
{
    struct report report = { true, print };
    bool wide = test->mode == CODE_64;
    if (host->timed_out && guest->timed_out)
        return true;
    differ(&report, "timeout", host->timed_out, guest->timed_out);
    differ(&report, "vector", host->vector, guest->vector);
    if (host->vector == guest->vector && has_error_code(host->vector))
        differ(&report, "error", host->error & ~present_in_kernel(host), guest->error & ~present_in_kernel(host));
    if (host->vector == VEC_PF && guest->vector == VEC_PF)
        differ(&report, "cr2", host->cr2 & ~cr2_slack(test, host), guest->cr2 & ~cr2_slack(test, host));
    for (unsigned i = 0; i < (wide ? 16u : 8u); i++)
        differ(&report, gpr_names[i], host->end.gpr[i], guest->end.gpr[i]);
    differ(&report, "rip", host->end.rip, guest->end.rip);
    differ(&report, "rflags", host->end.rflags & FLAGS_COMPARED, guest->end.rflags & FLAGS_COMPARED);
    compare_x87(&report, host->end.fxsave, guest->end.fxsave);
    for (unsigned i = 0; i < 32; i++)
        differ_bytes(&report, "zmm", i, host->end.zmm[i], guest->end.zmm[i], 64);
    for (unsigned i = 0; i < 8; i++)
        differ_bytes(&report, "k", i, &host->end.k[i], &guest->end.k[i], 8);
    compare_data(&report, host, guest);
    return report.equal;
}

void print_case(const struct test_case *test)
{
    printf("case seed %#lx, %s\n", test->seed, test->mode == CODE_64 ? "64-bit" : "32-bit");
    uint64_t rip = test->start.rip;
    for (unsigned i = 0; i < test->insn_count; i++) {
        ZydisDisassembledInstruction insn;
        ZydisDisassembleIntel(test->mode == CODE_64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LONG_COMPAT_32, rip,
                              test->insn[i].bytes, test->insn[i].length, &insn);
        printf("  %08lx ", rip);
        for (unsigned j = 0; j < test->insn[i].length; j++)
            printf("%02x", test->insn[i].bytes[j]);
        printf("  %s\n", insn.text);
        rip += test->insn[i].length;
    }
    for (unsigned i = 0; i < (test->mode == CODE_64 ? 16u : 8u); i++)
        printf("  %-3s %016lx%s", gpr_names[i], test->start.gpr[i], i % 4 == 3 ? "\n" : "");
    printf("  rflags %lx\n", test->start.rflags);
}
