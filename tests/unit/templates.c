/* Templates give what Zydis gives, for every opcode: all that Zydis says of an instruction is compared, and what decode() makes of it. */
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "cmocka_all.h"
#include "x86/templates.h"

/* Those of which instructions have templates, and those of which Zydis is asked each time: with them it is only compared with itself. */
static const struct {
    uint8_t byte;                       /* 0: none */
    bool templates;
} prefixes[] = { { 0, true }, { 0x66, true }, { 0xF2, true }, { 0xF3, true }, { 0x64, true }, { 0x65, true }, { 0xF0, true }, { 0x67, false }, { 0x2E, false } };
enum { PREFIXES = sizeof(prefixes) / sizeof(*prefixes) };

struct fixture {
    ZydisDecoder decoder;
    struct templates *templates;
    uint64_t random;
    unsigned long compared, compact, different;
};

static uint64_t next(struct fixture *f)
{
    f->random ^= f->random << 13;
    f->random ^= f->random >> 7;
    f->random ^= f->random << 17;
    return f->random;
}

static void show(const uint8_t *bytes, size_t size, const char *what)
{
    char text[3 * 16 + 1] = "";
    for (size_t i = 0; i < size && i < 16; i++)
        snprintf(text + 3 * i, 4, "%02x ", bytes[i]);
    print_error("%s: %s\n", text, what);
}

static const char *difference(struct fixture *f, const uint8_t *bytes, size_t size)
{
    static ZydisDecodedInstruction want, got;
    static ZydisDecodedOperand want_operands[ZYDIS_MAX_OPERAND_COUNT], operands[ZYDIS_MAX_OPERAND_COUNT];
    ZyanStatus wanted = ZydisDecoderDecodeFull(&f->decoder, bytes, size, &want, want_operands);
    ZyanStatus status = templates_decode(f->templates, bytes, size, &got, operands);
    if (status != wanted)
        return "another status";
    struct insn want_insn, insn;
    bool compact = templates_insn(f->templates, bytes, size, &insn);
    if (!ZYAN_SUCCESS(status))
        return compact ? "it is none" : NULL;
    if (memcmp(&want, &got, sizeof(want)))
        return "the instruction differs";
    if (memcmp(want_operands, operands, want.operand_count * sizeof(*operands)))
        return "operands differ";
    insn_from_records(&want_insn, &want, want_operands, bytes);
    f->compact += compact;
    return compact && memcmp(&want_insn, &insn, sizeof(insn)) ? "the compact record differs" : NULL;
}

static void compare(struct fixture *f, const uint8_t *bytes, size_t size)
{
    const char *what = difference(f, bytes, size);
    f->compared++;
    if (what && f->different++ < 20)
        show(bytes, size, what);
}

/* One instruction with each ModRM byte; what follows, and REX, is random. */
static void each_modrm(struct fixture *f, unsigned prefix, bool rex, bool map, unsigned opcode)
{
    for (unsigned modrm = 0; modrm < 256; modrm++) {
        uint8_t bytes[24];
        unsigned n = 0;
        if (prefix)
            bytes[n++] = prefixes[prefix].byte;
        if (rex)
            bytes[n++] = (uint8_t)(0x40 | (next(f) & 15));
        if (map)
            bytes[n++] = 0x0F;
        bytes[n++] = (uint8_t)opcode;
        bytes[n++] = (uint8_t)modrm;
        for (unsigned i = 0; i < 16 && n < sizeof(bytes); i += 8, n += 8) {
            uint64_t tail = next(f);
            memcpy(bytes + n, &tail, sizeof(tail) < sizeof(bytes) - n ? sizeof(tail) : sizeof(bytes) - n);
        }
        compare(f, bytes, next(f) % 8 ? 15 : 1 + next(f) % 14);
    }
}

/* Of all shapes there are more than there is room for: what comes later would have none. */
static void new_templates(struct fixture *f)
{
    templates_destroy(f->templates);
    assert_non_null(f->templates = templates_create(&f->decoder));
}

/* What is compared is worth something only where templates are used; the others are no instructions, or have VEX, EVEX or x87 opcodes. */
static void every_opcode_of(struct fixture *f, unsigned prefix, bool rex, bool map)
{
    f->compact = 0;
    new_templates(f);
    for (unsigned opcode = 0; opcode < 256; opcode++)
        each_modrm(f, prefix, rex, map, opcode);
    if ((f->compact != 0) != prefixes[prefix].templates)
        fail_msg("prefix %02x, map %d, %s REX: %lu instructions have templates", prefixes[prefix].byte, map, rex ? "with" : "without", f->compact);
}

static void every_opcode(void **state)
{
    struct fixture *f = *state;
    for (unsigned round = 0; round < 2; round++)
        for (unsigned prefix = 0; prefix < PREFIXES; prefix++)
            for (unsigned rex = 0; rex < 2; rex++)
                for (unsigned map = 0; map < 2; map++)
                    every_opcode_of(f, prefix, rex, map);
    if (f->different)
        fail_msg("%lu of %lu instructions differ", f->different, f->compared);
}

static void random_bytes(void **state)
{
    struct fixture *f = *state;
    for (unsigned i = 0; i < 500000; i++) {
        uint64_t bytes[2] = { next(f), next(f) };
        compare(f, (const uint8_t *)bytes, 1 + next(f) % 15);
    }
    if (f->different)
        fail_msg("%lu of %lu instructions differ", f->different, f->compared);
}

static int setup(void **state)
{
    static struct fixture f;
    f = (struct fixture){ .random = 0x9E3779B97F4A7C15u };
    ZydisDecoderInit(&f.decoder, ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderEnableMode(&f.decoder, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
    ZydisDecoderEnableMode(&f.decoder, ZYDIS_DECODER_MODE_CET, ZYAN_FALSE);
    ZydisDecoderEnableMode(&f.decoder, ZYDIS_DECODER_MODE_CLDEMOTE, ZYAN_FALSE);
    f.templates = templates_create(&f.decoder);
    *state = &f;
    return f.templates ? 0 : -1;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    templates_destroy(f->templates);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_opcode, setup, teardown),
        cmocka_unit_test_setup_teardown(random_bytes, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
