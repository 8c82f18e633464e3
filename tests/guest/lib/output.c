/* Text on the debug console, checks and the end: for 32- and 64-bit guests. */
#include "lib/output.h"

#include <stdarg.h>

enum { PORT_TEXT = 0xE9, PORT_END = 0xF4 };

static unsigned failures;

static void put(char c) { outb(PORT_TEXT, (uint8_t)c); }

static void put_string(const char *s)
{
    while (*s)
        put(*s++);
}

static void put_number(uint64_t v, unsigned base)
{
    char text[24];
    unsigned n = 0;
    /* Long division digit by digit of the base: 32-bit guests have no library for 64-bit division. */
    do {
        uint64_t quotient = 0, rest = 0;
        for (int bit = 63; bit >= 0; bit--) {
            rest = rest << 1 | (v >> bit & 1);
            quotient <<= 1;
            if (rest >= base) {
                rest -= base;
                quotient |= 1;
            }
        }
        text[n++] = "0123456789abcdef"[rest];
        v = quotient;
    } while (v);
    while (n)
        put(text[--n]);
}

void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        bool is_long = *++format == 'l';
        if (is_long)
            format++;
        switch (*format) {
        case 's': put_string(va_arg(args, const char *)); break;
        case 'c': put((char)va_arg(args, int)); break;
        case 'p': put_number((uintptr_t)va_arg(args, void *), 16); break;
        case 'x': put_number(is_long ? va_arg(args, uint64_t) : va_arg(args, uint32_t), 16); break;
        case 'u': put_number(is_long ? va_arg(args, uint64_t) : va_arg(args, uint32_t), 10); break;
        case 'd': {
            int64_t v = is_long ? va_arg(args, int64_t) : va_arg(args, int32_t);
            if (v < 0)
                put('-');
            put_number(v < 0 ? -(uint64_t)v : (uint64_t)v, 10);
            break;
        }
        default: put(*format);
        }
    }
    va_end(args);
}

void check(bool ok, const char *name)
{
    print(ok ? "PASS %s\n" : "FAIL %s\n", name);
    failures += !ok;
}

void check_equal(uint64_t got, uint64_t want, const char *name)
{
    if (got == want) {
        print("PASS %s\n", name);
        return;
    }
    print("FAIL %s: got %lx, want %lx\n", name, got, want);
    failures++;
}

void guest_exit(void)
{
    outl(PORT_END, failures > 127 ? 127 : failures);
    for (;;)
        __asm__ volatile("cli\n hlt");
}

void fail_and_exit(void)
{
    failures++;
    guest_exit();
}
