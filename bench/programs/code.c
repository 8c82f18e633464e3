/*
 * Code that changes while it runs. jump: one instruction of a warm function becomes a jump and a NOP again, as a kernel's
 * static keys do it; immediate: a constant in a warm function is rewritten before each call; jit: functions are written, each
 * run some times and thrown away, as a just-in-time compiler does.
 */
#define _GNU_SOURCE
#include "unit.h"
#include <sys/mman.h>

enum { SIZE = 1 << 16 };

static unsigned char *code;

typedef uint64_t function(uint64_t);

static function *at(size_t offset) { return (function *)(void *)(code + offset); }

/* rax = rdi + 1, with five bytes before the addition that a jump over it fits into. */
static const unsigned char switched[] = {
    0x48, 0x89, 0xF8,                   /* mov rax, rdi */
    0x0F, 0x1F, 0x44, 0x00, 0x00,       /* nop, or jmp over the next */
    0x48, 0xFF, 0xC0,                   /* inc rax */
    0xC3,
};

static uint64_t jump(void)
{
    static const unsigned char nop[8] = { 0x48, 0x89, 0xF8, 0x0F, 0x1F, 0x44, 0x00, 0x00 };
    static const unsigned char jmp[8] = { 0x48, 0x89, 0xF8, 0xE9, 0x03, 0x00, 0x00, 0x00 };
    uint64_t sum = 0;
    for (int i = 0; i < 200; i++) {
        memcpy(code, i & 1 ? jmp : nop, 8);
        for (uint64_t k = 0; k < 500; k++)
            sum += at(0)(k);
    }
    return sum;
}

static uint64_t immediate(void)
{
    static const unsigned char constant[] = { 0xB8, 0, 0, 0, 0, 0x01, 0xF8, 0xC3 };     /* mov eax, imm; add eax, edi; ret */
    uint64_t sum = 0;
    memcpy(code + 256, constant, sizeof(constant));
    for (uint32_t i = 0; i < 2000; i++) {
        memcpy(code + 257, &i, sizeof(i));
        for (uint64_t k = 0; k < 20; k++)
            sum += at(256)(k);
    }
    return sum;
}

/* A loop that adds up a function of its index which the seed decides. Returns the size of the code. */
static size_t compile(unsigned char *to, uint32_t seed)
{
    static const unsigned char head[] = { 0x31, 0xC0, 0x89, 0xF9 };                     /* xor eax, eax; mov ecx, edi */
    static const unsigned char tail[] = { 0x01, 0xD0, 0xFF, 0xC9 };                     /* add eax, edx; dec ecx */
    unsigned char *p = to;
    memcpy(p, head, sizeof(head)), p += sizeof(head);
    unsigned char *loop = p;
    *p++ = 0x89, *p++ = 0xCA;                                                           /* mov edx, ecx */
    for (int i = 0; i < 12; i++) {
        seed = seed * 1664525 + 1013904223;
        *p++ = 0x81, *p++ = (seed >> 30) & 1 ? 0xF2 : 0xC2;                             /* xor or add edx, imm */
        memcpy(p, &seed, 4), p += 4;
        *p++ = 0xC1, *p++ = 0xC2, *p++ = (unsigned char)(1 + i % 7);                    /* rol edx, n */
    }
    memcpy(p, tail, sizeof(tail)), p += sizeof(tail);
    int32_t back = (int32_t)(loop - (p + 6));
    *p++ = 0x0F, *p++ = 0x85, memcpy(p, &back, 4), p += 4;                              /* jnz loop */
    *p++ = 0xC3;
    return (size_t)(p - to);
}

static uint64_t jit(void)
{
    uint64_t sum = 0;
    for (uint32_t round = 0; round < 10; round++) {
        size_t end = 4096;
        for (uint32_t i = 0; i < 100; i++) {
            size_t begin = end;
            end += (compile(code + begin, round * 1000 + i) + 15) & ~(size_t)15;
            sum += at(begin)(100);
        }
    }
    return sum;
}

int main(int argc, char **argv)
{
    static const char *const words[] = { "jump", "immediate", "jit", NULL };
    static uint64_t (*const units[])(void) = { jump, immediate, jit };
    int which = chosen(argc, argv, words);
    code = mmap(NULL, SIZE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (code == MAP_FAILED)
        give_up("mmap");
    memcpy(code, switched, sizeof(switched));
    return measure(units[which]);
}
