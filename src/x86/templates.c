#include "x86/templates.h"

#include <string.h>
#include <sys/mman.h>

#include "base/base.h"
#include "x86/x86.h"

enum {
    TEMPLATES = 2047,
    NUMBER_BITS = 11, SHAPE_BITS = 18,
    INDEX_BITS = 12,
    OPERANDS_MOST = 6,
    LENGTH_MOST = 15,
    CACHE_LINE = 64,
};

/* Where a value in an operand comes from. */
enum source { FROM_REG, FROM_RM, FROM_OPCODE, FROM_ADDRESS, FROM_IMMEDIATE };

struct varying {
    uint8_t operand, source;
    uint16_t first;                     /* register 0 of the class, or number of the immediate */
};

/* What code that runs seldom is decoded with: two lines of the processor's cache. */
struct template {
    bool fits;                          /* else Zydis is asked each time */
    bool modrm;
    bool segment_by_base;               /* of insn: SS or DS */
    uint8_t varying_count;
    struct { uint8_t size; bool is_signed; } constant[2];       /* bytes; 0: there is none */
    struct varying varying[OPERANDS_MOST];
    struct insn insn;
};
static_assert(sizeof(struct template) == 2 * CACHE_LINE, "no more than it needs");

/* Zydis's own. */
struct records {
    ZydisDecodedInstruction z;
    ZydisDecodedOperand operand[OPERANDS_MOST];
};

struct templates {
    ZydisDecoder decoder;
    unsigned count;
    uint32_t index[1 << INDEX_BITS];    /* by hash of the shape or behind that place: the shape, a template's number + 1; 0: none */
    _Alignas(CACHE_LINE) struct template template[TEMPLATES];
    struct records records[TEMPLATES];  /* of the same numbers */
};

struct templates *templates_create(const ZydisDecoder *decoder)
{
    struct templates *templates = mmap(NULL, sizeof(*templates), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (templates == MAP_FAILED)
        return NULL;
    templates->decoder = *decoder;
    return templates;
}

void templates_destroy(struct templates *templates)
{
    if (templates)
        munmap(templates, sizeof(*templates));
}

/* --- shapes --- */

/* An instruction taken apart. */
struct pieces {
    const uint8_t *bytes, *end;
    unsigned prefix;                    /* number by prefix_number */
    unsigned rex;                       /* 0: none */
    unsigned map, opcode;
    const uint8_t *at;                  /* what follows the opcode */
    unsigned modrm;                     /* 0 if there is no byte */
};

static unsigned prefix_number(uint8_t byte)
{
    switch (byte) {
    case 0x66: return 1;
    case 0xF2: return 2;
    case 0xF3: return 3;
    case 0x64: return 4;
    case 0x65: return 5;
    case 0xF0: return 6;
    default: return 0;
    }
}

static unsigned modrm_mod(unsigned modrm) { return modrm >> 6; }
static unsigned modrm_reg(unsigned modrm) { return modrm >> 3 & 7; }
static unsigned modrm_rm(unsigned modrm) { return modrm & 7; }

/* Does ModRM.reg choose the instruction? */
static bool is_group(const struct pieces *p)
{
    unsigned o = p->opcode;
    if (p->map == ZYDIS_OPCODE_MAP_DEFAULT)
        return (o >= 0x80 && o <= 0x83) || o == 0x8F || o == 0xC0 || o == 0xC1 || o == 0xC6 || o == 0xC7 || (o >= 0xD0 && o <= 0xD3) ||
               o == 0xF6 || o == 0xF7 || o >= 0xFE;
    return o == 0x00 || o == 0x0D || (o >= 0x18 && o <= 0x1F) || (o >= 0x71 && o <= 0x73) || o == 0x78 || o == 0xB9 || o == 0xBA;
}

/*
 * Of these the shape does not tell enough: other prefixes and encodings, other maps, NOP, which is XCHG with REX.B, and where
 * ModRM.rm chooses.
 */
static bool is_irregular(const struct pieces *p)
{
    switch (p->map << 8 | p->opcode) {
    case 0x26: case 0x2E: case 0x36: case 0x3E: case 0x64: case 0x65: case 0x66: case 0x67: case 0xF0: case 0xF2: case 0xF3:
    case 0x62: case 0x8F: case 0x90: case 0xC4: case 0xC5:
    case 0xD8: case 0xD9: case 0xDA: case 0xDB: case 0xDC: case 0xDD: case 0xDE: case 0xDF:
    case 0x101: case 0x10F: case 0x11A: case 0x11B: case 0x11C: case 0x11E: case 0x138: case 0x13A: case 0x1A6: case 0x1A7: case 0x1AE: case 0x1C7:
        return true;
    case 0xC6: case 0xC7:
        return modrm_reg(p->modrm) == 7;                /* XABORT, XBEGIN */
    default:
        return (p->opcode & 0xF0) == 0x40 && p->map == ZYDIS_OPCODE_MAP_DEFAULT;        /* another REX */
    }
}
static_assert(ZYDIS_OPCODE_MAP_DEFAULT == 0 && ZYDIS_OPCODE_MAP_0F == 1, "cases above");

/* False: too few bytes, or irregular. */
static bool take_apart(const uint8_t *bytes, size_t size, struct pieces *p)
{
    *p = (struct pieces){ .bytes = bytes, .end = bytes + min_u64(size, LENGTH_MOST), .at = bytes };
    if (p->at < p->end && (p->prefix = prefix_number(*p->at)))
        p->at++;
    if (p->at < p->end && (*p->at & 0xF0) == 0x40)
        p->rex = *p->at++;
    if (p->at < p->end && *p->at == 0x0F) {
        p->map = ZYDIS_OPCODE_MAP_0F;
        p->at++;
    }
    if (p->at >= p->end)
        return false;
    p->opcode = *p->at++;
    p->modrm = p->at < p->end ? *p->at : 0;
    return !is_irregular(p);
}

static uint32_t shape_of(const struct pieces *p)
{
    return p->opcode | p->map << 8 | (modrm_mod(p->modrm) == 3) << 9 | (is_group(p) ? modrm_reg(p->modrm) : 0) << 10 | p->prefix << 13 |
           (p->rex ? 1u : 0) << 16 | (p->rex >> 3 & 1) << 17;
}

/* Where the template of the shape is, or where it will be. */
static unsigned index_of(const struct templates *templates, uint32_t shape)
{
    unsigned i = (shape * 0x9E3779B1u) >> (32 - INDEX_BITS);
    while (templates->index[i] && templates->index[i] >> NUMBER_BITS != shape)
        i = (i + 1) % ARRAY_SIZE(templates->index);
    return i;
}
static_assert(TEMPLATES < 1 << INDEX_BITS && TEMPLATES < 1 << NUMBER_BITS && NUMBER_BITS + SHAPE_BITS <= 32, "there is always an empty place");

/* --- making a template --- */

/* False: not registers that are numbered in one row. */
static bool register_class(ZydisRegister reg, uint16_t *first)
{
    switch (ZydisRegisterGetClass(reg)) {
    case ZYDIS_REGCLASS_GPR8: *first = ZYDIS_REGISTER_AL; return true;
    case ZYDIS_REGCLASS_GPR16: *first = ZYDIS_REGISTER_AX; return true;
    case ZYDIS_REGCLASS_GPR32: *first = ZYDIS_REGISTER_EAX; return true;
    case ZYDIS_REGCLASS_GPR64: *first = ZYDIS_REGISTER_RAX; return true;
    case ZYDIS_REGCLASS_MMX: *first = ZYDIS_REGISTER_MM0; return true;
    case ZYDIS_REGCLASS_XMM: *first = ZYDIS_REGISTER_XMM0; return true;
    default: return false;
    }
}

/* False: Zydis must be asked each time. */
static bool add_operand(struct template *t, const ZydisDecodedOperand *o, unsigned i, unsigned *immediates)
{
    struct varying v = { .operand = (uint8_t)i };
    switch (o->encoding) {
    case ZYDIS_OPERAND_ENCODING_NONE:
        return true;
    case ZYDIS_OPERAND_ENCODING_MODRM_REG:
        v.source = FROM_REG;
        break;
    case ZYDIS_OPERAND_ENCODING_MODRM_RM:
        v.source = o->type == ZYDIS_OPERAND_TYPE_MEMORY ? FROM_ADDRESS : FROM_RM;
        break;
    case ZYDIS_OPERAND_ENCODING_OPCODE:
        v.source = FROM_OPCODE;
        break;
    default:
        if (o->type != ZYDIS_OPERAND_TYPE_IMMEDIATE || *immediates == ARRAY_SIZE(t->constant))
            return false;
        v.source = FROM_IMMEDIATE;
        v.first = (uint16_t)(*immediates)++;
        break;
    }
    bool is_register = v.source == FROM_REG || v.source == FROM_RM || v.source == FROM_OPCODE;
    if (is_register && (o->type != ZYDIS_OPERAND_TYPE_REGISTER || !register_class(o->reg.value, &v.first)))
        return false;
    if (v.source == FROM_ADDRESS && o->mem.type != ZYDIS_MEMOP_TYPE_MEM && o->mem.type != ZYDIS_MEMOP_TYPE_AGEN)
        return false;
    t->varying[t->varying_count++] = v;
    return true;
}

static bool fits(struct template *t, const struct records *r)
{
    unsigned immediates = 0;
    if (r->z.encoding != ZYDIS_INSTRUCTION_ENCODING_LEGACY || r->z.address_width != 64 || r->z.operand_count > OPERANDS_MOST)
        return false;
    for (unsigned i = 0; i < r->z.operand_count; i++)
        if (!add_operand(t, &r->operand[i], i, &immediates))
            return false;
    return true;
}

/* Not one that a prefix or the instruction chose. */
static bool segment_is_default(const ZydisDecodedOperandMem *m) { return m->segment == ZYDIS_REGISTER_DS || m->segment == ZYDIS_REGISTER_SS; }

static void keep(struct templates *templates, unsigned place, uint32_t shape, const ZydisDecodedInstruction *z, const ZydisDecodedOperand *operands,
                 const uint8_t *bytes)
{
    if (templates->count == TEMPLATES)
        return;
    struct records *r = &templates->records[templates->count];
    struct template *t = &templates->template[templates->count++];
    r->z = *z;
    memcpy(r->operand, operands, min_u64(z->operand_count, OPERANDS_MOST) * sizeof(*operands));
    t->modrm = z->attributes & ZYDIS_ATTRIB_HAS_MODRM;
    t->fits = fits(t, r);
    for (unsigned i = 0; i < ARRAY_SIZE(t->constant); i++) {
        t->constant[i].size = z->raw.imm[i].size / 8;
        t->constant[i].is_signed = z->raw.imm[i].is_signed;
    }
    insn_from_records(&t->insn, z, operands, bytes);
    for (unsigned i = 0; t->fits && i < t->varying_count; i++)
        t->segment_by_base |= t->varying[i].source == FROM_ADDRESS && segment_is_default(&r->operand[t->varying[i].operand].mem);
    templates->index[place] = shape << NUMBER_BITS | templates->count;
}

/* --- filling one in --- */

/* Little-endian, sign-extended. */
static int64_t read_signed(const uint8_t *at, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, at, size);
    unsigned unused = 64 - 8 * size;
    return size ? (int64_t)(value << unused) >> unused : 0;
}

static uint64_t read_unsigned(const uint8_t *at, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, at, size);
    return value;
}

/* ModRM, SIB and displacement. */
struct address {
    unsigned mod, reg, rm;
    const uint8_t *sib;                 /* NULL: none */
    const uint8_t *disp;
    unsigned disp_size;                 /* bytes; 0: none */
    const uint8_t *end;
};

static unsigned sib_base(const struct address *a) { return *a->sib & 7; }
static unsigned sib_index(const struct address *a) { return *a->sib >> 3 & 7; }
static unsigned sib_scale(const struct address *a) { return *a->sib >> 6; }

/* SDM2 §2.1.5 "Addressing-Mode Encoding". False: too few bytes. */
static bool read_address(const struct pieces *p, struct address *a)
{
    const uint8_t *at = p->at + 1;
    *a = (struct address){ .mod = modrm_mod(p->modrm), .reg = modrm_reg(p->modrm), .rm = modrm_rm(p->modrm) };
    if (at > p->end)
        return false;
    a->disp_size = a->mod == 1 ? 1 : a->mod == 2 ? 4 : 0;
    if (a->mod != 3 && a->rm == 4) {
        if (at >= p->end)
            return false;
        a->sib = at++;
    }
    if (a->mod == 0 && (a->rm == 5 || (a->sib && sib_base(a) == 5)))
        a->disp_size = 4;
    a->disp = at;
    a->end = at + a->disp_size;
    return a->end <= p->end;
}

/* SDM2 §2.2.1.6 "RIP-Relative Addressing". */
static bool is_relative(const struct address *a) { return a->mod == 0 && a->rm == 5; }
static bool has_no_base(const struct address *a) { return a->mod == 0 && a->sib && sib_base(a) == 5; }

enum { NO_INDEX = 4 };

static unsigned base_number(const struct address *a, const struct pieces *p) { return (a->sib ? sib_base(a) : a->rm) | (p->rex & 1) << 3; }
static unsigned index_number(const struct address *a, const struct pieces *p) { return a->sib ? sib_index(a) | (p->rex & 2) << 2 : NO_INDEX; }

static void fill_address(const struct pieces *p, const struct address *a, ZydisDecodedInstruction *z)
{
    z->raw.modrm.mod = (uint8_t)a->mod;
    z->raw.modrm.reg = (uint8_t)a->reg;
    z->raw.modrm.rm = (uint8_t)a->rm;
    z->raw.sib.scale = a->sib ? (uint8_t)sib_scale(a) : 0;
    z->raw.sib.index = a->sib ? (uint8_t)sib_index(a) : 0;
    z->raw.sib.base = a->sib ? (uint8_t)sib_base(a) : 0;
    z->raw.sib.offset = a->sib ? (uint8_t)(a->sib - p->bytes) : 0;
    if (a->sib)
        z->attributes |= ZYDIS_ATTRIB_HAS_SIB;
    else
        z->attributes &= ~ZYDIS_ATTRIB_HAS_SIB;
    z->raw.disp.value = read_signed(a->disp, a->disp_size);
    z->raw.disp.size = (uint8_t)(8 * a->disp_size);
    z->raw.disp.offset = a->disp_size ? (uint8_t)(a->disp - p->bytes) : 0;
}

/* The constants that a template has, into value[2]. NULL: too few bytes; else what follows them. */
static const uint8_t *read_immediates(const struct template *t, const struct pieces *p, const uint8_t *at, uint64_t *value)
{
    for (unsigned i = 0; i < ARRAY_SIZE(t->constant) && t->constant[i].size; i++) {
        unsigned size = t->constant[i].size;
        if (at + size > p->end)
            return NULL;
        value[i] = t->constant[i].is_signed ? (uint64_t)read_signed(at, size) : read_unsigned(at, size);
        at += size;
    }
    return at;
}

static void fill_immediates(const struct pieces *p, ZydisDecodedInstruction *z, const uint8_t *at, const uint64_t *value)
{
    for (unsigned i = 0; i < ARRAY_SIZE(z->raw.imm) && z->raw.imm[i].size; i++) {
        z->raw.imm[i].offset = (uint8_t)(at - p->bytes);
        z->raw.imm[i].value.u = value[i];
        at += z->raw.imm[i].size / 8u;
    }
}

/* As it is encoded. */
static unsigned number_of(const struct varying *v, const struct pieces *p)
{
    switch (v->source) {
    case FROM_REG: return modrm_reg(p->modrm) | (p->rex & 4) << 1;
    case FROM_RM: return modrm_rm(p->modrm) | (p->rex & 1) << 3;
    default: return (p->opcode & 7) | (p->rex & 1) << 3;
    }
}

static ZydisRegister register_of(const struct varying *v, const struct pieces *p, unsigned number)
{
    if (v->first == ZYDIS_REGISTER_MM0)
        return (ZydisRegister)(v->first + (number & 7));
    if (v->first == ZYDIS_REGISTER_AL && p->rex && number >= 4)
        return (ZydisRegister)(ZYDIS_REGISTER_SPL + number - 4);
    return (ZydisRegister)(v->first + number);
}

static void fill_memory(const struct pieces *p, const struct address *a, ZydisDecodedInstruction *z, ZydisDecodedOperandMem *m)
{
    unsigned index = index_number(a, p);
    m->base = is_relative(a) ? ZYDIS_REGISTER_RIP : has_no_base(a) ? ZYDIS_REGISTER_NONE : (ZydisRegister)(ZYDIS_REGISTER_RAX + base_number(a, p));
    m->index = index == NO_INDEX ? ZYDIS_REGISTER_NONE : (ZydisRegister)(ZYDIS_REGISTER_RAX + index);
    m->scale = index == NO_INDEX ? 0 : (uint8_t)(1u << sib_scale(a));
    m->disp.has_displacement = z->raw.disp.size != 0;
    m->disp.value = z->raw.disp.value;
    if (segment_is_default(m))
        m->segment = m->base == ZYDIS_REGISTER_RSP || m->base == ZYDIS_REGISTER_RBP ? ZYDIS_REGISTER_SS : ZYDIS_REGISTER_DS;
    if (is_relative(a))
        z->attributes |= ZYDIS_ATTRIB_IS_RELATIVE;
    else
        z->attributes &= ~ZYDIS_ATTRIB_IS_RELATIVE;
}

static void fill_operand(const struct varying *v, const struct pieces *p, const struct address *a, ZydisDecodedInstruction *z, ZydisDecodedOperand *o)
{
    switch (v->source) {
    case FROM_ADDRESS:
        fill_memory(p, a, z, &o->mem);
        break;
    case FROM_IMMEDIATE:
        o->imm.value.u = z->raw.imm[v->first].value.u;
        break;
    default:
        o->reg.value = register_of(v, p, number_of(v, p));
    }
}

/* For a known size of some hundred bytes the compiler would take REP MOVS, which takes long to begin. */
static void copy_by_call(void *to, const void *from, size_t size)
{
    __asm__("" : "+r"(size));
    memcpy(to, from, size);
}

/* What stands behind the opcode. */
struct operands {
    struct address address;             /* if there is ModRM */
    const uint8_t *constants, *end;
    uint64_t immediate[2];
};

/* False: too few bytes. */
static bool read_operands(const struct template *t, const struct pieces *p, struct operands *o)
{
    o->constants = p->at;
    if (t->modrm) {
        if (!read_address(p, &o->address))
            return false;
        o->constants = o->address.end;
    }
    o->end = read_immediates(t, p, o->constants, o->immediate);
    return o->end;
}

static void fill(const struct template *t, const struct records *r, const struct pieces *p, const struct operands *o, ZydisDecodedInstruction *z,
                 ZydisDecodedOperand *operands)
{
    copy_by_call(z, &r->z, sizeof(*z));
    memcpy(operands, r->operand, r->z.operand_count * sizeof(*operands));
    if (p->rex)
        z->raw.prefixes[z->raw.prefix_count - 1].value = (uint8_t)p->rex;
    z->raw.rex.R = p->rex >> 2 & 1;
    z->raw.rex.X = p->rex >> 1 & 1;
    z->raw.rex.B = p->rex & 1;
    if (t->modrm)
        fill_address(p, &o->address, z);
    fill_immediates(p, z, o->constants, o->immediate);
    z->length = (uint8_t)(o->end - p->bytes);
    for (unsigned i = 0; i < t->varying_count; i++)
        fill_operand(&t->varying[i], p, &o->address, z, &operands[t->varying[i].operand]);
}

/* --- the compact record --- */

static void fill_insn_register(const struct varying *v, const struct pieces *p, struct insn_operand *o)
{
    unsigned number = number_of(v, p);
    o->high = v->first == ZYDIS_REGISTER_AL && !p->rex && number >= 4;
    o->reg = (uint8_t)(o->high ? number - 4 : v->first == ZYDIS_REGISTER_MM0 ? number & 7 : number);
}

static void fill_insn_memory(const struct template *t, const struct pieces *p, const struct address *a, struct insn_memory *m)
{
    unsigned index = index_number(a, p);
    m->base = is_relative(a) ? REG_RIP : has_no_base(a) ? REG_NONE : (uint8_t)base_number(a, p);
    m->index = index == NO_INDEX ? REG_NONE : (uint8_t)index;
    m->scale = index == NO_INDEX ? 0 : (uint8_t)sib_scale(a);
    m->disp = read_signed(a->disp, a->disp_size);
    if (t->segment_by_base)
        m->segment = m->base == RSP || m->base == RBP ? SS : DS;
}

/* The first constant is the instruction's own, a second one ENTER's level or the like. */
static void fill_insn(const struct template *t, const struct pieces *p, const struct operands *o, struct insn *insn)
{
    unsigned immediates = 0;
    *insn = t->insn;
    insn->length = (uint8_t)(o->end - p->bytes);
    if (t->modrm) {
        insn->modrm_mod = (uint8_t)o->address.mod;
        insn->modrm_reg = (uint8_t)o->address.reg;
        insn->modrm_rm = (uint8_t)o->address.rm;
    }
    for (unsigned i = 0; i < t->varying_count; i++) {
        const struct varying *v = &t->varying[i];
        if (v->operand >= insn->operand_count)
            break;
        if (v->source == FROM_ADDRESS)
            fill_insn_memory(t, p, &o->address, &insn->memory);
        else if (v->source != FROM_IMMEDIATE)
            fill_insn_register(v, p, &insn->operand[v->operand]);
        else if (immediates++ == 0)
            insn->imm = o->immediate[v->first];
        else
            insn->imm2 = o->immediate[v->first];
    }
    memset(insn->bytes, 0, sizeof(insn->bytes));
    memcpy(insn->bytes, p->bytes, insn->length);
}

/* --- looking one up --- */

/* NULL: none yet. */
static const struct template *template_of(const struct templates *templates, unsigned place)
{
    unsigned number = templates->index[place] & ((1u << NUMBER_BITS) - 1);
    return number ? &templates->template[number - 1] : NULL;
}

bool templates_insn(const struct templates *templates, const uint8_t *bytes, size_t size, struct insn *insn)
{
    struct pieces p;
    if (!take_apart(bytes, size, &p))
        return false;
    const struct template *t = template_of(templates, index_of(templates, shape_of(&p)));
    struct operands found;
    if (!t || !t->fits || !read_operands(t, &p, &found))
        return false;
    fill_insn(t, &p, &found, insn);
    return true;
}

ZyanStatus templates_decode(struct templates *templates, const uint8_t *bytes, size_t size, ZydisDecodedInstruction *z,
                            ZydisDecodedOperand *operands)
{
    struct pieces p;
    if (!take_apart(bytes, size, &p))
        return ZydisDecoderDecodeFull(&templates->decoder, bytes, size, z, operands);
    uint32_t shape = shape_of(&p);
    unsigned place = index_of(templates, shape);
    const struct template *t = template_of(templates, place);
    struct operands found;
    if (t && t->fits && read_operands(t, &p, &found)) {
        fill(t, &templates->records[t - templates->template], &p, &found, z, operands);
        return ZYAN_STATUS_SUCCESS;
    }
    ZyanStatus status = ZydisDecoderDecodeFull(&templates->decoder, bytes, size, z, operands);
    if (!t && ZYAN_SUCCESS(status))
        keep(templates, place, shape, z, operands, bytes);
    return status;
}
