/* Text on the debug console, checks and the end: for 32- and 64-bit guests. */
#ifndef DOPPEL_TESTS_GUEST_OUTPUT_H
#define DOPPEL_TESTS_GUEST_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Output. print knows %s %d %u %x %lx %lu %c %p and %%. */
void print(const char *format, ...);
void check(bool ok, const char *name);
/* Passes if got == want; else prints both. */
void check_equal(uint64_t got, uint64_t want, const char *name);
__attribute__((noreturn)) void guest_exit(void);
__attribute__((noreturn)) void fail_and_exit(void);

static inline void outb(uint16_t port, uint8_t v) { __asm__ volatile("outb %0, %1" :: "a"(v), "Nd"(port)); }
static inline void outw(uint16_t port, uint16_t v) { __asm__ volatile("outw %0, %1" :: "a"(v), "Nd"(port)); }
static inline void outl(uint16_t port, uint32_t v) { __asm__ volatile("outl %0, %1" :: "a"(v), "Nd"(port)); }
static inline uint8_t inb(uint16_t port) { uint8_t v; __asm__ volatile("inb %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint16_t inw(uint16_t port) { uint16_t v; __asm__ volatile("inw %1, %0" : "=a"(v) : "Nd"(port)); return v; }
static inline uint32_t inl(uint16_t port) { uint32_t v; __asm__ volatile("inl %1, %0" : "=a"(v) : "Nd"(port)); return v; }

#endif
