/* Memory as a processor sees it: dumps, the walk of its tables, disassembly. Nothing here has side effects in the guest. */
#include <Zydis/Zydis.h>
#include <ctype.h>
#include <string.h>

#include "api/monitor_internal.h"
#include "mem/ram.h"
#include "mmu/mmu.h"
#include "mmu/walk.h"
#include "x86/x86.h"

#define NOT_THERE "%016" PRIx64 "  is not mapped, or not RAM"

enum { DUMP_MAX = 4096, CODE_MAX = 15, COUNT_MAX = 256 };

/* --- reading --- */

struct peek {
    uint64_t gla;
    uint8_t *bytes;
    size_t size, got;           /* got: bytes before the first that is not mapped or not RAM */
};

static void peek_on_vcpu(struct vcpu *vcpu, void *argument)
{
    struct peek *peek = argument;
    while (peek->got < peek->size) {
        uint64_t gla = peek->gla + peek->got, gpa;
        size_t part = (size_t)min_u64(peek->size - peek->got, PAGE_SIZE - (gla & PAGE_MASK));
        if (!mmu_translate(vcpu, gla, &gpa) || !ram_read(vcpu->ram, gpa, peek->bytes + peek->got, part))
            return;
        peek->got += part;
    }
}

static size_t peek(const struct monitor_command *command, uint64_t gla, uint8_t *bytes, size_t size)
{
    struct peek wanted = { .gla = gla, .bytes = bytes, .size = size };
    monitor_on_vcpu(command->machine, monitor_vcpu(command), peek_on_vcpu, &wanted);
    return wanted.got;
}

static void dump(FILE *out, uint64_t address, const uint8_t *bytes, size_t size)
{
    enum { ROW = 16 };
    for (size_t at = 0; at < size; at += ROW) {
        fprintf(out, "%016" PRIx64 " ", address + at);
        for (size_t i = at; i < at + ROW; i++)
            i < size ? fprintf(out, " %02x", bytes[i]) : fprintf(out, "   ");
        fputs("  ", out);
        for (size_t i = at; i < at + ROW && i < size; i++)
            fputc(isprint(bytes[i]) ? bytes[i] : '.', out);
        fputc('\n', out);
    }
}

void monitor_x(struct monitor_command *command)
{
    uint8_t bytes[DUMP_MAX];
    uint64_t address, count;
    if (!monitor_number(command, 1, &address) || !monitor_count(command, 2, 64, DUMP_MAX, &count))
        return;
    size_t got = peek(command, address, bytes, count);
    dump(command->out, address, bytes, got);
    if (!got)
        monitor_refuse(command, NOT_THERE, address);
    else if (got < count)
        fprintf(command->out, NOT_THERE "\n", address + got);
}

void monitor_xp(struct monitor_command *command)
{
    uint8_t bytes[DUMP_MAX];
    uint64_t address, count;
    if (!monitor_number(command, 1, &address) || !monitor_count(command, 2, 64, DUMP_MAX, &count))
        return;
    if (ram_read(command->machine->ram, address, bytes, count))
        dump(command->out, address, bytes, count);
    else
        monitor_refuse(command, "not all of that is RAM");
}

/* --- translation --- */

struct translation {
    struct walk walk;
    FILE *out;
    bool mapped;
};

/* Bits of an entry by the manual's names (SDM3 §4.5, table 4-20). */
static void print_level(void *owner, unsigned level, uint64_t entry_gpa, uint64_t entry)
{
    static const struct { uint64_t bit; const char *name; } flags[] = {
        { PTE_P, "P" }, { PTE_W, "R/W" }, { PTE_U, "U/S" }, { 1 << 3, "PWT" }, { 1 << 4, "PCD" }, { PTE_A, "A" }, { PTE_D, "D" },
        { PTE_PS, "PS/PAT" }, { PTE_G, "G" }, { PTE_NX, "XD" },
    };
    struct translation *translation = owner;
    fprintf(translation->out, "level %u  entry at %012" PRIx64 "  %016" PRIx64 " ", level + 1, entry_gpa, entry);
    for (unsigned i = 0; i < ARRAY_SIZE(flags); i++)
        if (entry & flags[i].bit)
            fprintf(translation->out, " %s", flags[i].name);
    fputc('\n', translation->out);
}

static void translate_on_vcpu(struct vcpu *vcpu, void *argument)
{
    struct translation *translation = argument;
    fprintf(translation->out, "cr3 %016" PRIx64 ", paging is %s\n", vcpu->cr3, vcpu->mmu->format.name ? vcpu->mmu->format.name : "none");
    translation->mapped = mmu_walk(vcpu, &translation->walk);
}

void monitor_translate(struct monitor_command *command)
{
    uint64_t gla;
    if (!monitor_number(command, 1, &gla))
        return;
    struct translation translation = {
        .walk = { .gla = gla, .use = MMU_READ, .class = MMU_SUPERVISOR, .peek = true, .report = print_level,
                  .report_owner = &translation },
        .out = command->out,
    };
    monitor_on_vcpu(command->machine, monitor_vcpu(command), translate_on_vcpu, &translation);
    if (translation.mapped)
        fprintf(command->out, "%016" PRIx64 " -> %012" PRIx64 ", in a page of %" PRIu64 " KiB%s%s\n", gla, translation.walk.gpa,
                (uint64_t)(BIT(translation.walk.page_shift) / KiB), ram_find(command->machine->ram, translation.walk.gpa) ? "" : ", not RAM",
                translation.walk.user ? ", user" : "");
    else
        fprintf(command->out, "%016" PRIx64 " is not mapped%s\n", gla, translation.walk.error & PF_RSVD ? ": a reserved bit is set" : "");
}

/* --- code --- */

uint64_t monitor_code_address(const struct vcpu *vcpu)
{
    return vcpu->mode == MODE_LONG64 ? vcpu->rip : (uint32_t)(vcpu->seg[CS].base + vcpu->rip);
}

static void init_decoder(const struct vcpu *vcpu, ZydisDecoder *decoder)
{
    switch ((enum x86_mode)vcpu->mode) {
    case MODE_LONG64:
        ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
        break;
    case MODE_PROTECTED32:
    case MODE_COMPAT32:
        ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
        break;
    default:
        ZydisDecoderInit(decoder, ZYDIS_MACHINE_MODE_LEGACY_16, ZYDIS_STACK_WIDTH_16);
    }
}

/* Prints one instruction; returns its length, 1 where there is none. */
static unsigned print_instruction(FILE *out, const ZydisDecoder *decoder, const ZydisFormatter *formatter, uint64_t address,
                                  const uint8_t *bytes, size_t size)
{
    ZydisDecodedInstruction instruction;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    char text[128] = "(bad)";
    unsigned length = 1;
    if (ZYAN_SUCCESS(ZydisDecoderDecodeFull(decoder, bytes, size, &instruction, operands))) {
        length = instruction.length;
        ZydisFormatterFormatInstruction(formatter, &instruction, operands, instruction.operand_count_visible, text, sizeof(text),
                                        address, NULL);
    }
    fprintf(out, "%016" PRIx64 "  ", address);
    for (unsigned i = 0; i < 10; i++)
        i < length ? fprintf(out, "%02x", bytes[i]) : fprintf(out, "  ");
    fprintf(out, "%s %s\n", length > 10 ? "+" : " ", text);
    return length;
}

void monitor_print_code(const struct monitor_command *command, uint64_t address, uint64_t count)
{
    uint8_t bytes[COUNT_MAX * CODE_MAX];
    ZydisDecoder decoder;
    ZydisFormatter formatter;
    init_decoder(monitor_vcpu(command), &decoder);
    ZydisFormatterInit(&formatter, ZYDIS_FORMATTER_STYLE_INTEL);
    size_t size = peek(command, address, bytes, count * CODE_MAX), at = 0;
    for (uint64_t i = 0; i < count && at < size; i++)
        at += print_instruction(command->out, &decoder, &formatter, address + at, bytes + at, size - at);
    if (!size)
        fprintf(command->out, NOT_THERE "\n", address);
}

void monitor_disassemble(struct monitor_command *command)
{
    uint64_t address = monitor_code_address(monitor_vcpu(command)), count;
    if ((command->count > 1 && !monitor_number(command, 1, &address)) || !monitor_count(command, 2, 10, COUNT_MAX, &count))
        return;
    monitor_print_code(command, address, count);
}
