/*
 * A guest that writes wherever it can: by its processor to physical memory and to ports, by the edu device's DMA engine. The
 * runner holds another machine in the same process, filled with SECRET, whose RAM and state must stay as they were; and what this
 * guest reads outside its own RAM must not be SECRET.
 *
 * Stores go to every 4 KiB page below 8 GiB but the guest's own image, then to every 2 MiB up to 64 GiB, where the last window of the
 * memory map ends, then around each single bit of a physical address up to the processor's width. With the parameter "sparse" beyond the
 * first 128 MiB only every 16th page below 8 GiB is tried, which is for hosts where each such store takes long.
 */
#include "lib/guest.h"

#define SECRET 0x0DD5EC2E7B0B5EC5ull
#define GiB (1ull << 30)

enum { EDU_DMA_SOURCE = 0x80, EDU_DMA_DESTINATION = 0x88, EDU_DMA_COUNT = 0x90, EDU_DMA_COMMAND = 0x98, EDU_BUFFER = 0x40000 };
enum { DMA_RUN = 1, DMA_TO_RAM = 2, PAGE = 4096 };

extern uint8_t image_end[];
static uint64_t own_end;                /* the image, tables and this: [1 MiB, own_end) */
static volatile uint64_t *edu;
static uint64_t secrets_seen, seed = 0x9E3779B97F4A7C15;

static uint64_t random(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed * 0x2545F4914F6CDD1D;
}

static bool own(uint64_t gpa) { return gpa >= 0x100000 && gpa < own_end; }

/* --- DMA --- */

static uint32_t config_read(unsigned slot, unsigned offset)
{
    outl(0xCF8, 1u << 31 | slot << 11 | offset);
    return inl(0xCFC);
}

static bool find_edu(void)
{
    for (unsigned slot = 0; slot < 32; slot++)
        if (config_read(slot, 0) == 0x11E81234) {
            edu = (volatile uint64_t *)(uint64_t)(config_read(slot, 0x10) & ~0xFu);
            outl(0xCF8, 1u << 31 | slot << 11 | 4);
            outl(0xCFC, 6);             /* memory, bus master */
            return true;
        }
    return false;
}

static void dma(uint64_t source, uint64_t destination, uint64_t count, uint64_t direction)
{
    edu[EDU_DMA_SOURCE / 8] = source;
    edu[EDU_DMA_DESTINATION / 8] = destination;
    edu[EDU_DMA_COUNT / 8] = count;
    edu[EDU_DMA_COMMAND / 8] = direction | DMA_RUN;
    while (edu[EDU_DMA_COMMAND / 8] & DMA_RUN)
        pause();
}

/* Reads the place into the device and looks at it by way of our own RAM, then writes over the place. */
static void attack_by_dma(uint64_t gpa, uint64_t *bounce)
{
    if (own(gpa & 0xFFFFFFF) || own((gpa + PAGE - 1) & 0xFFFFFFF))
        return;
    dma(gpa, EDU_BUFFER, PAGE, 0);
    dma(EDU_BUFFER, (uint64_t)bounce, PAGE, DMA_TO_RAM);
    for (unsigned i = 0; i < PAGE / 8; i++)
        secrets_seen += bounce[i] == SECRET;
    dma(EDU_BUFFER, gpa, PAGE, DMA_TO_RAM);
}

static void by_dma(void)
{
    uint64_t *bounce = alloc_page();
    own_end = (uint64_t)bounce + PAGE;
    for (uint64_t gpa = 0; gpa < 1ull << 28; gpa += 1 << 20)
        attack_by_dma(gpa, bounce);
    for (unsigned bit = 12; bit < 64; bit++)
        attack_by_dma((1ull << bit) - PAGE / 2, bounce);
    for (unsigned bit = 0; bit < 64; bit++) {           /* sizes and places that the device's buffer has not */
        dma(EDU_BUFFER, 0x8000, 1ull << bit, DMA_TO_RAM);
        dma(EDU_BUFFER + (1ull << bit) - 1, 0x8000, PAGE, DMA_TO_RAM);
        dma(0x8000, EDU_BUFFER - (1ull << bit), PAGE, 0);
    }
    check(true, "DMA to and from everywhere came to an end");
}

/* --- ports --- */

/* What ends or resets the machine, or spoils the report. */
static const struct { uint16_t first, last; } spared[] = {
    { 0x60, 0x60 }, { 0x64, 0x64 }, { 0x92, 0x92 }, { 0xE9, 0xE9 }, { 0xF4, 0xF7 }, { 0x402, 0x402 }, { 0x505, 0x505 }, { 0x604, 0x605 }, { 0xCF8, 0xCFF },
};

static bool is_spared(unsigned port, unsigned size)
{
    for (unsigned i = 0; i < sizeof(spared) / sizeof(spared[0]); i++)
        if (port <= spared[i].last && port + size > spared[i].first)
            return true;
    return false;
}

static void by_ports(void)
{
    for (unsigned round = 0; round < 2; round++)
        for (unsigned port = 0; port < 0x10000; port++) {
            if (!is_spared(port, 1))
                outb((uint16_t)port, (uint8_t)random());
            if (!is_spared(port, 2))
                outw((uint16_t)port, (uint16_t)random());
            if (!is_spared(port, 4))
                outl((uint16_t)port, (uint32_t)random());
        }
    check(true, "every port was written to");
}

/* --- stores --- */

static void attack(uint64_t gla, uint64_t gpa)
{
    volatile uint64_t *at = (volatile uint64_t *)gla;
    if (own(gpa))
        return;
    secrets_seen += at[0] == SECRET;
    at[0] = random();
    if (gpa >> 12 == 0xFEE00)
        return;                         /* an INIT to itself would end it */
    at[random() % (PAGE / 8)] = random();
}

static void by_stores(void)
{
    for (unsigned i = 4; i < 64; i++)
        boot_pdpt[i] = i * GiB | 0x83;
    uint64_t *far_pdpt = alloc_page();
    boot_pml4[1] = (uint64_t)far_pdpt | 3;
    own_end = (uint64_t)far_pdpt + PAGE;
    write_cr3(read_cr3());
    uint64_t far = has_parameter("sparse") ? 16 * PAGE : PAGE;
    for (uint64_t gpa = 0; gpa < 8 * GiB; gpa += gpa < GiB / 8 ? PAGE : far)
        attack(gpa, gpa);
    for (uint64_t gpa = 8 * GiB; gpa < 64 * GiB; gpa += 1 << 21)
        attack(gpa, gpa);
    uint32_t out[4];
    cpuid(0x80000008, 0, out);
    for (unsigned bit = 36; bit < (out[0] & 0xFF); bit++) {
        far_pdpt[0] = (1ull << bit) - GiB + 0x83;
        far_pdpt[1] = (1ull << bit) | 0x83;
        write_cr3(read_cr3());
        for (uint64_t offset = 0; offset < 2 * GiB; offset += 1 << 22)
            attack((1ull << 39) + offset, (1ull << bit) - GiB + offset);
    }
    check(true, "stores to all of physical memory came to an end");
}

void test_main(void)
{
    own_end = (uint64_t)alloc_page() + PAGE;
    if (find_edu())
        by_dma();
    else
        check(false, "there is an edu device");
    by_ports();
    by_stores();
    check_equal(secrets_seen, 0, "nothing of the other machine was seen");
}
