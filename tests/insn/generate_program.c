/*
 * Generator of small programs. What it is after is what a translator can get wrong between instructions: registers that it keeps
 * elsewhere (r10, r11, r14, r15, rsp as operands and in addresses), flags that live on over accesses which miss or fault and over
 * the borders of blocks, vector and x87 state over the same, accesses that straddle pages with different rights, calls whose
 * returns do not go where they came from, jumps through tables, loops that get hot, code that changes itself.
 *
 * So that programs come to an end and mostly hit memory that is there, some registers are never written by what is generated: a few
 * pointers into the data, a small index, a loop counter. Branches go forward, but for the one that closes a loop.
 */
#include "forms.h"
#include "generate.h"
#include "program.h"
#include "vendors.h"

#include <string.h>

#include "base/base.h"
#include "x86/flags.h"

enum { BLOCKS_MAX = 24, END_BLOCK = BLOCKS_MAX, AGAIN = 2 * BLOCKS_MAX, LOOP_RUNS = 24, NO_LOOP = -1 };
enum { RCX_ = 1, RSP_ = 4, RSI_ = 6, RDI_ = 7, NO_INDEX = 4 };

struct generating {
    struct program *program;
    const struct host_features *features;
    struct making random;           /* of generate.c; its `random` is ours, too */
    struct test_case scratch;
    uint32_t pointers, fixed;       /* registers: with pointers; never written (pointers, index, counter, RSP) */
    unsigned index, counter;
    bool aligned, self_modifying, vectors, x87;
    unsigned block_count;
    int block_unit[BLOCKS_MAX];     /* first unit of each block */
    int block_again[BLOCKS_MAX];    /* of a loop: behind what sets its counter */
    int block_loop[BLOCKS_MAX];     /* first block of the loop that it is in, or NO_LOOP */
    unsigned main_blocks;           /* the rest are functions */
};

static unsigned any(struct generating *g, unsigned n) { return pick(&g->random.random, n); }
static bool now_and_then(struct generating *g, unsigned percent) { return chance(&g->random.random, percent); }

/* --- registers and addresses --- */

static const uint8_t awkward[] = { 10, 11, 14, 15 };

static unsigned any_register(struct generating *g)
{
    return now_and_then(g, 45) ? awkward[any(g, 4)] : any(g, 16);
}

static unsigned a_pointer(struct generating *g)
{
    unsigned reg;
    if (now_and_then(g, 15))
        return RSP_;
    do
        reg = any(g, 16);
    while (!(g->pointers >> reg & 1));
    return reg;
}

static unsigned unreserved(struct generating *g)
{
    unsigned reg;
    do
        reg = any_register(g);
    while (g->fixed >> reg & 1 || reg == RSP_);
    return reg;
}

/* An address in the data: mostly in pages that can be written, at times across a page's end, in the page that cannot, or beside. */
static uint32_t data_address(struct generating *g)
{
    static const uint8_t good[] = { 0, 1, 3, 5, 6 };
    uint32_t page = DATA_BASE + 0x1000u * good[any(g, 5)], kind = any(g, 100), offset = any(g, 0xF00);
    if (g->aligned)
        offset &= ~15u;
    if (kind < 4)
        return DATA_BASE + TABLE_AT + offset;                   /* not writable */
    if (kind < 7)
        return page + 0x1000 - any(g, 64);
    if (kind < 9)
        return DATA_BASE + 0x3000 - 8 - any(g, 24);             /* towards a page that is not there */
    if (kind < 10)
        return DATA_BASE + 0x2000 + offset;
    return page + offset;
}

static void random_start(struct generating *g)
{
    struct program *program = g->program;
    random_state(&g->random, g->features);
    program->start = g->scratch.start;
    uint64_t *gpr = program->start.gpr;
    while (__builtin_popcount(g->pointers) < 3) {
        unsigned reg = any_register(g);
        if (reg == RSP_)
            continue;
        g->pointers |= 1u << reg;
        gpr[reg] = data_address(g);
        if (now_and_then(g, 85))
            gpr[reg] = (gpr[reg] & ~0xFFFull) + 0x200 + (gpr[reg] & 0x7F0);
    }
    g->fixed = g->pointers | 1u << RSP_;
    g->index = unreserved(g);
    g->fixed |= 1u << g->index;
    gpr[g->index] = g->aligned ? 16 * any(g, 4) : any(g, 40);
    g->counter = unreserved(g);
    g->fixed |= 1u << g->counter;
    gpr[g->counter] = 1 + any(g, LOOP_RUNS);
    gpr[RSP_] = DATA_BASE + (now_and_then(g, 10) ? 0x3000 + 8 * any(g, 16) : 0x1400 + 8 * any(g, 64));
    gpr[RSP_] += now_and_then(g, 5) ? any(g, 8) : 0;
    program->start.rflags = 2 | (program->start.rflags & (RFLAGS_STATUS | RFLAGS_IF)) | (now_and_then(g, 8) ? RFLAGS_DF : 0);
    if (now_and_then(g, 92)) {      /* nothing unmasked */
        program->start.fxsave[0] |= 0x3F;
        program->start.fxsave[24] |= 0x80;
        program->start.fxsave[25] |= 0x1F;
    }
}

/* --- units --- */

static struct unit *add(struct generating *g, const void *bytes, unsigned length)
{
    struct program *program = g->program;
    if (program->unit_count == UNITS_MAX)
        program->unit_count--;      /* the program is too long: given up by generate_program */
    struct unit *unit = &program->unit[program->unit_count++];
    *unit = (struct unit){ .insn.length = (uint8_t)length };
    memcpy(unit->insn.bytes, bytes, length);
    return unit;
}
#define ADD(g, ...) add(g, (const uint8_t[]){ __VA_ARGS__ }, sizeof((const uint8_t[]){ __VA_ARGS__ }))

static void put32(uint8_t *at, uint32_t value) { memcpy(at, &value, 4); }

/* Bytes of an instruction in the making. */
struct encoding {
    uint8_t bytes[24];
    unsigned length;
    unsigned rex;                   /* bits R X B as 4 2 1 */
    uint8_t modrm[6];               /* ModRM, SIB, displacement */
    unsigned modrm_length;
    bool rip;                       /* the displacement is RIP-relative to `address` */
    uint32_t address;
};

static void encode_register(struct encoding *e, unsigned reg, unsigned rm)
{
    e->modrm[0] = (uint8_t)(0xC0 | (reg & 7) << 3 | (rm & 7));
    e->modrm_length = 1;
    e->rex = (reg & 8 ? 4u : 0) | (rm & 8 ? 1u : 0);
}

static void encode_disp32(struct encoding *e, uint32_t value)
{
    put32(e->modrm + e->modrm_length, value);
    e->modrm_length += 4;
}

static void encode_memory(struct generating *g, struct encoding *e, unsigned reg)
{
    unsigned kind = any(g, 100), base = a_pointer(g), scale = any(g, g->aligned ? 1 : 3);
    int32_t disp = (int32_t)any(g, 256) - 128;
    if (g->aligned)
        disp &= ~15;
    e->rex = reg & 8 ? 4 : 0;
    e->modrm_length = 1;
    if (kind < 3)
        base = any(g, 16);                                      /* anywhere */
    if (kind < 15) {                                            /* [rip + disp32] */
        e->modrm[0] = (uint8_t)((reg & 7) << 3 | 5);
        e->rip = true;
        e->address = data_address(g);
        encode_disp32(e, 0);
        return;
    }
    if (kind < 27) {                                            /* [disp32], [index*scale + disp32] */
        unsigned index = kind < 20 ? NO_INDEX : g->index;
        e->modrm[0] = (uint8_t)((reg & 7) << 3 | 4);
        e->modrm[e->modrm_length++] = (uint8_t)(scale << 6 | (index & 7) << 3 | 5);
        e->rex |= index & 8 ? 2 : 0;
        encode_disp32(e, data_address(g));
        return;
    }
    bool indexed = kind >= 75, sib = indexed || (base & 7) == 4;
    bool wide = now_and_then(g, 20), none = !wide && kind < 45 && (base & 7) != 5;
    e->rex |= base & 8 ? 1 : 0;
    e->modrm[0] = (uint8_t)((none ? 0 : wide ? 0x80 : 0x40) | (reg & 7) << 3 | (sib ? 4 : base & 7));
    if (sib) {
        unsigned index = indexed ? g->index : NO_INDEX;
        e->modrm[e->modrm_length++] = (uint8_t)(scale << 6 | (index & 7) << 3 | (base & 7));
        e->rex |= index & 8 ? 2 : 0;
    }
    if (wide)
        encode_disp32(e, (uint32_t)disp);
    else if (!none)
        e->modrm[e->modrm_length++] = (uint8_t)disp;
}

static void push_byte(struct encoding *e, unsigned byte) { e->bytes[e->length++] = (uint8_t)byte; }

static void encode_vex(struct generating *g, struct encoding *e, const struct form *form, bool w)
{
    static const uint8_t pp[] = { [0x66 & 3] = 1, [0xF3 & 3] = 2 };
    unsigned vvvv = form->how & NO_VVVV ? 0 : any(g, 16), l = form->how & WIDE ? 0 : any(g, 2);
    unsigned prefix = form->prefix == 0 ? 0 : form->prefix == 0xF2 ? 3 : pp[form->prefix & 3];
    push_byte(e, 0xC4);
    push_byte(e, (~e->rex & 7) << 5 | form->map);
    push_byte(e, (w ? 0x80u : 0) | (~vvvv & 15) << 3 | l << 2 | prefix);
}

/* Prefixes, opcode. */
static void encode_legacy(struct generating *g, struct encoding *e, const struct form *form, bool memory, unsigned size)
{
    bool byte_rex = form->how & BYTE && now_and_then(g, 80);
    if (form->how & LOCKS && memory && now_and_then(g, 20))
        push_byte(e, 0xF0);
    if (memory && now_and_then(g, 2))
        push_byte(e, 0x67);
    if (memory && now_and_then(g, 2))
        push_byte(e, 0x65);                                     /* GS, whose base is 0 */
    if (size == 2)
        push_byte(e, 0x66);
    if (form->prefix)
        push_byte(e, form->prefix);
    if (e->rex || size == 8 || byte_rex)
        push_byte(e, 0x40 | e->rex | (size == 8 ? 8 : 0));
    if (form->map)
        push_byte(e, 0x0F);
    if (form->map > MAP_0F)
        push_byte(e, form->map == MAP_0F38 ? 0x38 : 0x3A);
}

static unsigned a_size(struct generating *g, const struct form *form)
{
    if (form->how & W1)
        return 8;
    if (!(form->how & (SIZES | WIDE)))
        return 4;
    unsigned kind = any(g, 10);
    return kind < 2 && form->how & SIZES ? 2 : kind < 5 ? 4 : 8;
}

/* Would the instruction write a register that must keep its value, or is it none? */
static bool acceptable(struct generating *g, const uint8_t *bytes, unsigned length)
{
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    if (!ZYAN_SUCCESS(ZydisDecoderDecodeFull(&g->random.decoder, bytes, length, &insn, operands)) || insn.length != length)
        return false;
    if (g->features->amd && insn.mnemonic == ZYDIS_MNEMONIC_FSTP && vendors_differ(&insn, operands))
        return false;
    for (unsigned i = 0; i < insn.operand_count; i++) {
        if (operands[i].type != ZYDIS_OPERAND_TYPE_REGISTER || !(operands[i].actions & ZYDIS_OPERAND_ACTION_MASK_WRITE))
            continue;
        int reg = gpr_number(operands[i].reg.value);
        bool stack = operands[i].visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN && reg == RSP_;
        if (reg >= 0 && g->fixed >> reg & 1 && !stack)
            return false;
    }
    return true;
}

static bool try_form(struct generating *g, const struct form *form)
{
    struct encoding e = { .length = 0 };
    bool memory = form->how & MEM || (!(form->how & REG) && now_and_then(g, 55));
    unsigned reg = form->digit == ANY_REG ? any_register(g) : (unsigned)form->digit, size = a_size(g, form);
    if (form->opcode >= 0xD8 && form->opcode <= 0xDF && form->map == MAP_NONE)
        reg &= 7;
    if (memory)
        encode_memory(g, &e, reg);
    else
        encode_register(&e, reg, any_register(g));
    if (form->how & VEX)
        encode_vex(g, &e, form, size == 8);
    else
        encode_legacy(g, &e, form, memory, size);
    push_byte(&e, form->opcode);
    unsigned field = e.length + e.modrm_length - 4, immediate = form->immediate == 4 && size == 2 ? 2 : form->immediate;
    memcpy(e.bytes + e.length, e.modrm, e.modrm_length);
    e.length += e.modrm_length;
    uint64_t value = random_value(&g->random.random);
    memcpy(e.bytes + e.length, &value, immediate);
    e.length += immediate;
    if (e.length > 15 || !acceptable(g, e.bytes, e.length))
        return false;
    struct unit *unit = add(g, e.bytes, e.length);
    unit->immediate = (uint8_t)immediate;
    if (e.rip)
        unit->fix = FIX_DATA_RIP, unit->fix_at = (uint8_t)field, unit->fix_size = 4, unit->addend = (int32_t)e.address;
    return true;
}
#define ANY_FORM(g, forms) try_form(g, &(forms)[any(g, ARRAY_SIZE(forms))])

/* Any instruction at all, as `random` makes them. */
static bool try_random(struct generating *g)
{
    struct insn_bytes out;
    ZydisDecodedInstruction insn;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    struct making *m = &g->random;
    m->pinned = g->pointers | 1u << RSP_;
    m->small = 1u << g->index;
    m->written = ~(m->pinned | m->small);
    m->aligned = g->aligned;
    if (!make_insn(m, 0, &out, g->features) || !acceptable(g, out.bytes, out.length))
        return false;
    ZydisDecoderDecodeFull(&m->decoder, out.bytes, out.length, &insn, operands);
    if (insn.meta.branch_type != ZYDIS_BRANCH_TYPE_NONE || insn.mnemonic == ZYDIS_MNEMONIC_UD2 || insn.mnemonic == ZYDIS_MNEMONIC_HLT)
        return false;
    bool rip = false;
    for (unsigned i = 0; i < insn.operand_count; i++) {
        if (operands[i].type != ZYDIS_OPERAND_TYPE_MEMORY)
            continue;
        rip |= operands[i].mem.base == ZYDIS_REGISTER_RIP;
        if (operands[i].mem.base == ZYDIS_REGISTER_EIP || ZydisRegisterGetClass(operands[i].mem.index) > ZYDIS_REGCLASS_GPR64)
            return false;
        if (operands[i].mem.base == ZYDIS_REGISTER_RSI || operands[i].mem.base == ZYDIS_REGISTER_RDI)
            return false;                                       /* strings: add_string */
    }
    struct unit *unit = add(g, out.bytes, out.length);
    if (rip)
        unit->fix = FIX_DATA_RIP, unit->fix_at = insn.raw.disp.offset, unit->fix_size = 4,
        unit->addend = (int32_t)(insn.raw.disp.value + insn.length);
    return true;
}

/* --- several instructions that belong together --- */

/* `free`: a store into the code may change the constant. */
static struct unit *add_move_constant(struct generating *g, unsigned reg, uint32_t value, bool free)
{
    uint8_t bytes[6] = { 0x40 | reg >> 3, (uint8_t)(0xB8 | (reg & 7)) };
    put32(bytes + 2, value);
    struct unit *unit = add(g, bytes, 6);
    unit->immediate = free ? 4 : 0;
    return unit;
}

/*
 * After a fault in the middle of a repeated CMPS or SCAS Intel's processors have the flags of before, AMD's those of the last
 * comparison, and where both addresses fault, Intel's name that of RDI, AMD's at times that of RSI: on the latter it should not come to that.
 */
static bool compares(unsigned opcode) { return opcode == 0xA6 || opcode == 0xA7 || opcode >= 0xAE; }

static bool add_string(struct generating *g)
{
    static const uint8_t opcodes[] = { 0xA4, 0xA5, 0xAA, 0xAB, 0xAC, 0xAD, 0xA6, 0xA7, 0xAE, 0xAF };
    if (g->fixed & (1u << RSI_ | 1u << RDI_ | 1u << RCX_))
        return false;
    unsigned opcode = opcodes[any(g, ARRAY_SIZE(opcodes))];
    bool safe = g->features->amd && compares(opcode);
    unsigned count = safe || any(g, 4) ? any(g, 24) : any(g, 300);
    uint8_t bytes[4], n = 0;
    add_move_constant(g, RSI_, safe ? DATA_BASE + 0x800 + any(g, 64) : data_address(g), !safe);
    add_move_constant(g, RDI_, safe ? DATA_BASE + 0x800 + any(g, 64) : data_address(g), !safe);
    add_move_constant(g, RCX_, count, !safe);
    if (now_and_then(g, 30))
        add(g, now_and_then(g, 50) ? "\xFD" : "\xFC", 1);       /* STD, CLD */
    if (now_and_then(g, 70))
        bytes[n++] = now_and_then(g, 30) ? 0xF2 : 0xF3;
    if (now_and_then(g, 40))
        bytes[n++] = 0x48;
    bytes[n++] = (uint8_t)opcode;
    if (acceptable(g, bytes, n))                                /* else LODS into a register that must keep its value */
        add(g, bytes, n);
    return true;
}

static bool add_stack(struct generating *g)
{
    unsigned from = any_register(g), to = unreserved(g);
    switch (any(g, 9)) {
    case 0: case 1:
        ADD(g, (uint8_t)(0x40 | from >> 3), (uint8_t)(0x50 | (from & 7)));
        if (now_and_then(g, 80))
            ADD(g, (uint8_t)(0x40 | to >> 3), (uint8_t)(0x58 | (to & 7)));
        return true;
    case 2:
        ADD(g, 0x68, 0x11, 0x22, 0x33, 0x84)->immediate = 4;                                /* push imm32 */
        return true;
    case 3:
        ADD(g, 0x9C);                                                                       /* pushfq */
        ADD(g, (uint8_t)(0x40 | to >> 3), (uint8_t)(0x58 | (to & 7)));
        return true;
    case 4: {
        uint8_t bytes[5] = { 0x68 };
        put32(bytes + 1, (uint32_t)next_random(&g->random.random) & (RFLAGS_STATUS | (now_and_then(g, 5) ? RFLAGS_DF : 0)));
        add(g, bytes, 5);
        ADD(g, 0x9D);                                                                       /* popfq */
        return true;
    }
    case 5:
        ADD(g, 0x48, 0x83, now_and_then(g, 50) ? 0xC4 : 0xEC, (uint8_t)(8 * any(g, 5)));    /* add or sub rsp, n */
        return true;
    case 6:
        ADD(g, 0x48, 0x8D, 0x64, 0x24, (uint8_t)(8 * any(g, 4) - 16));                      /* lea rsp, [rsp+n] */
        return true;
    case 7:
        ADD(g, (uint8_t)(0x48 | to >> 3), 0x89, (uint8_t)(0xE0 | (to & 7)));                /* mov to, rsp */
        if (now_and_then(g, 50))
            ADD(g, (uint8_t)(0x48 | to >> 3 << 2), 0x89, (uint8_t)(0xC4 | (to & 7) << 3));  /* mov rsp, to */
        return true;
    default:
        ADD(g, 0x54);                                                                       /* push rsp */
        ADD(g, 0x5C);                                                                       /* pop rsp */
        return true;
    }
}

/* MXCSR to memory, a bit of it changed, and back. */
static void add_mxcsr(struct generating *g)
{
    ADD(g, 0x0F, 0xAE, 0x5C, 0x24, 0xC0);                               /* stmxcsr [rsp-64] */
    ADD(g, 0x81, 0x74, 0x24, 0xC0, 0, (uint8_t)(any(g, 4) << 5), 0, 0); /* xor dword [rsp-64], rounding */
    ADD(g, 0x0F, 0xAE, 0x54, 0x24, 0xC0);                               /* ldmxcsr [rsp-64] */
}

/* Some of the running code is overwritten; which, link_stores finds when all is there. */
static void add_store_to_code(struct generating *g)
{
    unsigned reg = any_register(g) & 7;
    bool byte = now_and_then(g, 50);
    struct unit *unit = ADD(g, byte ? 0x88 : 0x89, (uint8_t)(reg << 3 | 5), 0, 0, 0, 0);
    unit->fix = FIX_CODE_RIP;
    unit->fix_at = 2;
    unit->fix_size = 4;
    unit->target = -1;
    unit->addend = byte ? -1 : -4;
}

static void link_stores(struct generating *g)
{
    struct program *program = g->program;
    for (unsigned i = 0; i < program->unit_count; i++) {
        struct unit *unit = &program->unit[i];
        if (unit->fix != FIX_CODE_RIP)
            continue;
        for (unsigned try = 0; try < 40 && unit->target < 0; try++) {
            unsigned near = i + any(g, 24), target = near < 8 ? any(g, 16) : near - 8;
            if (target < program->unit_count && program->unit[target].immediate >= -unit->addend)
                unit->target = (int16_t)target;
        }
        if (unit->target >= 0)
            continue;
        unit->fix = FIX_DATA_RIP;               /* there is none: to the data */
        unit->addend = (int32_t)data_address(g);
    }
}

static void add_short(struct generating *g)
{
    const uint8_t *form = short_forms[any(g, ARRAY_SIZE(short_forms))];
    if (acceptable(g, form + 1, form[0]))
        add(g, form + 1, form[0]);
}

static void add_something(struct generating *g);

/* A short branch (Jcc, LOOPcc, JRCXZ) over something. */
static void add_skip(struct generating *g)
{
    unsigned kind = any(g, 20), index = g->program->unit_count;
    uint8_t bytes[2] = { (uint8_t)(kind < 16 ? 0x70 + kind : 0xE0 + kind - 16), 0 };
    if (!acceptable(g, bytes, 2))
        return;
    struct unit *unit = add(g, bytes, 2);
    unit->fix = FIX_BRANCH;
    unit->fix_at = unit->fix_size = 1;
    add_something(g);
    unit->target = (int16_t)g->program->unit_count;
    if (g->program->unit_count > index + 6)
        g->program->unit_count = index;
}

/* AMD's processors keep less of the last instruction, and leave TOP alone where MMX stores. */
static void add_x87(struct generating *g)
{
    if (now_and_then(g, 20))
        ANY_FORM(g, mmx_forms);
    else if (!g->features->amd && now_and_then(g, 8))
        ANY_FORM(g, x87_control_forms);
    else
        ANY_FORM(g, x87_forms);
}

static void add_something(struct generating *g)
{
    unsigned kind = any(g, 100), limit = g->program->unit_count;
    while (g->program->unit_count == limit) {
        if (kind < 3 && add_string(g))
            return;
        if (kind == 19 || kind == 20)
            add_skip(g);
        else if (kind < 12)
            add_stack(g);
        else if (kind < 16)
            add_short(g);
        else if (kind < 18 && g->self_modifying)
            add_store_to_code(g);
        else if (kind < 19 && g->vectors)
            add_mxcsr(g);
        else if (kind < 40 && g->vectors)
            g->features->avx && now_and_then(g, 30) ? ANY_FORM(g, avx_forms) : ANY_FORM(g, sse_forms);
        else if (kind < 55 && g->x87)
            add_x87(g);
        else if (kind >= 92)
            try_random(g);
        else
            ANY_FORM(g, integer_forms);
        if (g->program->unit_count == limit)
            kind = any(g, 100);
    }
}

/* --- control flow --- */

static void to_block(struct unit *unit, unsigned block) { unit->target = (int16_t)(-2 - (int)block); }

static struct unit *add_branch(struct generating *g, const void *bytes, unsigned length, unsigned block)
{
    uint8_t all[8] = { 0 };
    memcpy(all, bytes, length);
    struct unit *unit = add(g, all, length + 4);
    unit->fix = FIX_BRANCH;
    unit->fix_at = (uint8_t)length;
    unit->fix_size = 4;
    to_block(unit, block);
    return unit;
}

/* mov reg, address of a block */
static void add_move_address(struct generating *g, unsigned reg, unsigned block)
{
    struct unit *unit = add_move_constant(g, reg, 0, false);
    unit->fix = FIX_CODE;
    unit->fix_at = 2;
    unit->fix_size = 4;
    to_block(unit, block);
}

/* A block further on that may be entered from this one: not the middle of a loop that this one is not in. */
static unsigned forward(struct generating *g, unsigned block, unsigned end)
{
    for (unsigned try = 0; try < 20; try++) {
        unsigned to = block + 1 + any(g, end - block < 5 ? end - block : 5);
        if (to > end)
            to = end;
        if (to == end)
            return END_BLOCK;
        int loop = g->block_loop[to];
        if (loop == NO_LOOP || loop == g->block_loop[block] || loop == (int)to)
            return to;
    }
    return block + 1 == end ? END_BLOCK : block + 1;
}

static void add_table_jump(struct generating *g, unsigned block, unsigned end)
{
    struct program *program = g->program;
    unsigned reg = unreserved(g), slot = program->table_count;
    if (slot + 2 > TABLE_MAX)
        return;
    program->table_count += 2;
    program->table[slot] = (int16_t)(-2 - (int)forward(g, block, end));
    program->table[slot + 1] = (int16_t)(-2 - (int)forward(g, block, end));
    ADD(g, (uint8_t)(0x40 | reg >> 3), 0x83, (uint8_t)(0xE0 | (reg & 7)), 1);                       /* and reg, 1 */
    uint8_t jump[8] = { (uint8_t)(0x40 | reg >> 3 << 1), 0xFF, 0x24, (uint8_t)(0xC5 | (reg & 7) << 3) };
    put32(jump + 4, DATA_BASE + TABLE_AT + 8 * slot);
    add(g, jump, 8);                                                                                /* jmp [reg*8 + table] */
}

static void add_call(struct generating *g)
{
    if (g->main_blocks == g->block_count)
        return;
    unsigned to = g->main_blocks + any(g, g->block_count - g->main_blocks), reg = unreserved(g);
    if (now_and_then(g, 60)) {
        add_branch(g, "\xE8", 1, to);
        return;
    }
    add_move_address(g, reg, to);
    ADD(g, (uint8_t)(0x40 | reg >> 3), 0xFF, (uint8_t)(0xD0 | (reg & 7)));                          /* call reg */
}

static void add_loop_end(struct generating *g, unsigned block)
{
    unsigned first = (unsigned)g->block_loop[block], c = g->counter;
    switch (any(g, 3)) {
    case 0:
        ADD(g, (uint8_t)(0x48 | c >> 3), 0xFF, (uint8_t)(0xC8 | (c & 7)));                          /* dec */
        break;
    case 1:
        ADD(g, (uint8_t)(0x48 | c >> 3), 0x83, (uint8_t)(0xE8 | (c & 7)), 1);                       /* sub */
        break;
    default:
        ADD(g, (uint8_t)(0x48 | (c >> 3) * 5), 0x8D, (uint8_t)(0x40 | (c & 7) * 9), 0xFF);          /* lea c, [c-1] */
        if ((c & 7) == 4) {                                                                         /* r12 wants a SIB byte */
            g->program->unit_count--;
            ADD(g, 0x4D, 0x8D, 0x64, 0x24, 0xFF);
        }
        ADD(g, (uint8_t)(0x48 | (c >> 3) * 5), 0x85, (uint8_t)(0xC0 | (c & 7) * 9));                /* test c, c */
        break;
    }
    add_branch(g, "\x0F\x85", 2, AGAIN + first);                                                            /* jnz */
}

static void add_end_of_block(struct generating *g, unsigned block, unsigned end)
{
    unsigned kind = any(g, 100), reg = unreserved(g), to = forward(g, block, end);
    if (kind < 45) {
        uint8_t jcc[2] = { 0x0F, (uint8_t)(0x80 | any(g, 16)) };
        add_branch(g, jcc, 2, to);
    } else if (kind < 53) {
        add_branch(g, "\xE9", 1, to);
    } else if (kind < 65) {
        add_call(g);
    } else if (kind < 71) {
        add_table_jump(g, block, end);
    } else if (kind < 75) {
        add_move_address(g, reg, to);
        ADD(g, (uint8_t)(0x40 | reg >> 3), 0xFF, (uint8_t)(0xE0 | (reg & 7)));                      /* jmp reg */
    } else if (kind < 79) {
        add_move_address(g, reg, to);
        ADD(g, (uint8_t)(0x40 | reg >> 3), (uint8_t)(0x50 | (reg & 7)));                            /* push reg */
        ADD(g, 0xC3);                                                                               /* ret */
    } else if (kind < 82) {
        add_branch(g, "\xE8", 1, to);                                                               /* never to return */
    }
}

static void add_return(struct generating *g)
{
    unsigned reg = unreserved(g);
    if (now_and_then(g, 10)) {                          /* not to where it came from */
        add_move_address(g, reg, END_BLOCK);
        ADD(g, (uint8_t)(0x48 | reg >> 3 << 2), 0x89, (uint8_t)(0x04 | (reg & 7) << 3), 0x24);      /* mov [rsp], reg */
    }
    ADD(g, 0xC3);
}

static void add_block(struct generating *g, unsigned block)
{
    bool function = block >= g->main_blocks, first_of_loop = g->block_loop[block] == (int)block;
    bool last_of_loop = !function && g->block_loop[block] != NO_LOOP &&
                        (block + 1 == g->main_blocks || g->block_loop[block + 1] != g->block_loop[block]);
    g->block_unit[block] = (int)g->program->unit_count;
    if (first_of_loop)
        add_move_constant(g, g->counter, 1 + any(g, LOOP_RUNS), false);
    g->block_again[block] = (int)g->program->unit_count;
    for (unsigned i = 1 + any(g, any(g, 4) ? 6 : 14); i; i--)
        add_something(g);
    g->program->unit[g->block_unit[block]].block = true;
    if (last_of_loop)
        add_loop_end(g, block);
    else if (function && now_and_then(g, 60))
        add_return(g);
    else
        add_end_of_block(g, block, function ? g->block_count : g->main_blocks);
    if (function && block + 1 == g->block_count)
        add_return(g);
}

/* Single-stepping from here on: pushfq; or dword [rsp], TF; popfq. */
static void add_trap_flag(struct generating *g)
{
    ADD(g, 0x9C);
    ADD(g, 0x81, 0x0C, 0x24, 0, 1, 0, 0);
    ADD(g, 0x9D);
}

static void plan_blocks(struct generating *g)
{
    g->main_blocks = 2 + any(g, 9);
    g->block_count = g->main_blocks + any(g, 4);
    for (unsigned i = 0; i < g->block_count; i++)
        g->block_loop[i] = NO_LOOP;
    for (unsigned i = 0; i < g->main_blocks; i++) {
        if (!now_and_then(g, 25))
            continue;
        unsigned end = i + 1 + any(g, 3);
        for (unsigned j = i; j < end && j < g->main_blocks; j++)
            g->block_loop[j] = (int)i;
        i = end;
    }
}

/* Block numbers become unit numbers. */
static void resolve(struct generating *g, int16_t *target)
{
    if (*target >= -1)
        return;
    unsigned block = (unsigned)(-2 - *target);
    *target = (int16_t)(block == END_BLOCK ? (int)g->program->unit_count
                        : block >= AGAIN ? g->block_again[block - AGAIN] : g->block_unit[block]);
}

bool generate_program(uint64_t seed, const struct host_features *features, struct program *program)
{
    struct host_features free = *features;
    struct generating g = { .program = program, .features = features };
    program->seed = seed;
    program->unit_count = program->table_count = 0;
    g.random.random = seed;
    g.random.test = &g.scratch;
    g.scratch.mode = CODE_64;
    ZydisDecoderInit(&g.random.decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    program->data_seed = next_random(&g.random.random);
    program->engines_only = features->amd && now_and_then(&g, 15);
    if (program->engines_only) {
        free.amd = false;
        g.features = &free;
    }
    g.aligned = now_and_then(&g, 60);
    g.self_modifying = now_and_then(&g, 15);
    g.vectors = now_and_then(&g, 50);
    g.x87 = now_and_then(&g, 25);
    random_start(&g);
    plan_blocks(&g);
    unsigned trap = now_and_then(&g, 3) ? any(&g, g.main_blocks) : BLOCKS_MAX;
    for (unsigned block = 0; block < g.block_count; block++) {
        if (block == trap)
            add_trap_flag(&g);
        add_block(&g, block);
        if (block + 1 == g.main_blocks)
            ADD(&g, 0x0F, 0x0B);
        if (program->unit_count >= UNITS_MAX - 40)
            return false;
    }
    for (unsigned i = 0; i < program->unit_count; i++)
        resolve(&g, &program->unit[i].target);
    for (unsigned i = 0; i < program->table_count; i++)
        resolve(&g, &program->table[i]);
    program->block_count = g.block_count;
    link_stores(&g);
    program->start.rip = CODE_BASE + (now_and_then(&g, 35) ? 0x1000 - any(&g, 400) : any(&g, 0xA00));
    return true;
}
