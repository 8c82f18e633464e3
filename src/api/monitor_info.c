/* `info`: the machine's state, read where it lives: processors on their own threads, devices under the board lock. */
#include <fnmatch.h>
#include <string.h>

#include "api/monitor_internal.h"
#include "bus/bus.h"
#include "dev/device.h"
#include "dev/pci/pci.h"
#include "engine/engine.h"
#include "mem/ram.h"
#include "mmu/window.h"
#include "state/state.h"
#include "vmx/vmx.h"
#include "x86/x86.h"

/* --- processors --- */

static const char *mode_name(const struct vcpu *vcpu)
{
    static const char *const names[] = { [MODE_REAL] = "real", [MODE_V86] = "virtual-8086", [MODE_PROTECTED16] = "16-bit protected",
                                         [MODE_PROTECTED32] = "32-bit protected", [MODE_COMPAT16] = "16-bit compatibility",
                                         [MODE_COMPAT32] = "32-bit compatibility", [MODE_LONG64] = "64-bit" };
    return vcpu->mode < ARRAY_SIZE(names) ? names[vcpu->mode] : "?";
}

static const char *activity_name(const struct vcpu *vcpu)
{
    static const char *const names[] = { [ACTIVITY_ACTIVE] = "runs", [ACTIVITY_HLT] = "halted", [ACTIVITY_SHUTDOWN] = "shut down",
                                         [ACTIVITY_WAIT_SIPI] = "waits for SIPI" };
    return vcpu->activity < ARRAY_SIZE(names) ? names[vcpu->activity] : "?";
}

static void print_segment(FILE *out, const char *name, const struct segment *segment)
{
    fprintf(out, "%-4s %04x  base %016" PRIx64 "  limit %08x  attr %05x\n", name, segment->selector, segment->base,
            segment->limit, segment->attr);
}

static void print_registers(struct vcpu *vcpu, void *argument)
{
    static const char *const gpr[] = { "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                       "r8 ", "r9 ", "r10", "r11", "r12", "r13", "r14", "r15" };
    static const char *const seg[] = { "es", "cs", "ss", "ds", "fs", "gs" };
    FILE *out = argument;
    for (unsigned i = 0; i < 16; i++)
        fprintf(out, "%s %016" PRIx64 "%s", gpr[i], vcpu->gpr[i], i % 4 == 3 ? "\n" : "  ");
    fprintf(out, "rip %016" PRIx64 "  rflags %08" PRIx64 "  cpl %u  %s, %s%s%s%s\n", vcpu->rip, vcpu->rflags, vcpu->cpl, mode_name(vcpu),
            activity_name(vcpu), vcpu->shadow & SHADOW_STI ? ", after STI" : "", vcpu->shadow & SHADOW_MOV_SS ? ", after MOV SS" : "",
            vcpu->shadow & SHADOW_NMI ? ", NMI blocked" : "");
    for (unsigned i = 0; i < SEG_COUNT; i++)
        print_segment(out, seg[i], &vcpu->seg[i]);
    print_segment(out, "ldtr", &vcpu->ldtr);
    print_segment(out, "tr", &vcpu->tr);
    fprintf(out, "gdtr base %016" PRIx64 " limit %04x  idtr base %016" PRIx64 " limit %04x\n", vcpu->gdtr.base, vcpu->gdtr.limit,
            vcpu->idtr.base, vcpu->idtr.limit);
    fprintf(out, "cr0 %08" PRIx64 "  cr2 %016" PRIx64 "  cr3 %016" PRIx64 "  cr4 %08" PRIx64 "  efer %04" PRIx64 "  xcr0 %" PRIx64 "\n",
            vcpu->cr0, vcpu->cr2, vcpu->cr3, vcpu->cr4, vcpu->efer, vcpu->xcr0);
    fprintf(out, "dr0 %" PRIx64 "  dr1 %" PRIx64 "  dr2 %" PRIx64 "  dr3 %" PRIx64 "  dr6 %" PRIx64 "  dr7 %" PRIx64 "\n", vcpu->dr[0],
            vcpu->dr[1], vcpu->dr[2], vcpu->dr[3], vcpu->dr6, vcpu->dr7);
}

static void info_registers(struct monitor_command *command)
{
    monitor_on_vcpu(command->machine, monitor_vcpu(command), print_registers, command->out);
}

static void print_cpu(struct vcpu *vcpu, void *argument)
{
    fprintf(argument, "processor %u  apic id %u  cs:rip %04x:%016" PRIx64 "  cpl %u  %s, %s  %" PRIu64 " instructions\n", vcpu->index,
            vcpu->apic_id, vcpu->seg[CS].selector, vcpu->rip, vcpu->cpl, mode_name(vcpu), activity_name(vcpu),
            counter_get(&vcpu->counters, COUNTER_instructions));
}

static void info_cpus(struct monitor_command *command)
{
    for (unsigned i = 0; i < command->machine->config.cpus; i++)
        monitor_on_vcpu(command->machine, command->machine->vcpu[i], print_cpu, command->out);
}

/* One table of the TLB: linear page, guest-physical page, and for what uses the entry is there. */
static unsigned print_tlb_table(const struct tlb_table *table, const char *class, FILE *out)
{
    unsigned count = 0;
    for (unsigned i = 0; i < TLB_SIZE; i++) {
        const struct tlb_entry *entry = &table->entry[i];
        char uses[4] = "---";
        uint64_t tag = TLB_INVALID;
        for (unsigned use = 0; use < 3; use++)
            if (entry->tag[use] != TLB_INVALID) {
                uses[use] = "rwx"[use];
                tag = entry->tag[use];
            }
        if (tag == TLB_INVALID)
            continue;
        fprintf(out, "%-10s %016" PRIx64 " -> %012" PRIx64 " %s%s%s\n", class, (uint64_t)(tag & ~PAGE_MASK), (uint64_t)(table->info[i] & ~PAGE_MASK), uses,
                table->info[i] & TLB_GLOBAL ? " global" : "", tag & TLB_MMIO ? " mmio" : "");
        count++;
    }
    return count;
}

static void print_tlb(struct vcpu *vcpu, void *argument)
{
    static const char *const classes[] = { [MMU_SUPERVISOR] = "supervisor", [MMU_SUPERVISOR_SMAP] = "smap", [MMU_USER] = "user" };
    unsigned count = 0;
    const struct mmu *mmu = vcpu->mmu;
    for (unsigned class = 0; mmu->context && class < MMU_CLASSES; class++)
        count += print_tlb_table(&mmu->context->table[class], classes[class], argument);
    fprintf(argument, "%u entries in the present context; paging is %s\n", count, mmu->format.name ? mmu->format.name : "none");
}

static void info_tlb(struct monitor_command *command)
{
    monitor_on_vcpu(command->machine, monitor_vcpu(command), print_tlb, command->out);
}

static void print_windows(struct vcpu *vcpu, void *argument)
{
    struct window_info info[WINDOW_SPACES];
    unsigned count = window_info(vcpu, info);
    fprintf(argument, "%-12s %-12s      windows      pages   mappings  instructions          cost     threshold\n", "table", "EPT");
    for (unsigned i = 0; i < count; i++)
        fprintf(argument, "%012" PRIx64 " %012" PRIx64 " %-4s %7u %10" PRIu64 " %10" PRIu64 " %13" PRIu64 " %13" PRIu64 " %13" PRIu64 "%s\n", info[i].root,
                (uint64_t)(info[i].eptp & ~PAGE_MASK), info[i].hot ? "hot" : "cold", info[i].windows, info[i].pages, info[i].mappings, info[i].run,
                info[i].cost, info[i].threshold, info[i].present ? "  present" : "");
}

static void info_windows(struct monitor_command *command)
{
    monitor_on_vcpu(command->machine, monitor_vcpu(command), print_windows, command->out);
}

static void print_sites(struct vcpu *vcpu, void *argument)
{
    if (vcpu->engine && vcpu->engine->print_sites)
        vcpu->engine->print_sites(vcpu, argument);
    else
        fputs("the engine runs every instruction in the same way\n", argument);
}

static void info_sites(struct monitor_command *command)
{
    monitor_on_vcpu(command->machine, monitor_vcpu(command), print_sites, command->out);
}

static void print_vmcs(struct vcpu *vcpu, void *argument) { vmx_print(vcpu, argument); }

static void info_vmcs(struct monitor_command *command)
{
    monitor_on_vcpu(command->machine, monitor_vcpu(command), print_vmcs, command->out);
}

/* --- memory and devices --- */

static void info_mem(struct monitor_command *command)
{
    const struct ram *ram = command->machine->ram;
    for (unsigned i = 0; i < ram->slot_count; i++)
        fprintf(command->out, "%012" PRIx64 "-%012" PRIx64 "  %8" PRIu64 " KiB  %s\n", ram->slot[i].gpa,
                ram->slot[i].gpa + ram->slot[i].size - 1, (uint64_t)(ram->slot[i].size / KiB), ram->slot[i].name);
    fprintf(command->out, "%" PRIu64 " of %" PRIu64 " MiB granted\n", (uint64_t)(ram_granted(ram) / MiB),
            (uint64_t)(ram_total(ram) / MiB));
}

static void print_region(const struct region *region, void *opaque)
{
    fprintf(opaque, "  %012" PRIx64 "-%012" PRIx64 "  %s\n", region->base, region->base + region->size - 1,
            region->name ? region->name : "?");
}

static void info_mtree(struct monitor_command *command)
{
    fputs("memory\n", command->out);
    bus_for_each(command->machine->mmio, print_region, command->out);
    fputs("ports\n", command->out);
    bus_for_each(command->machine->ports, print_region, command->out);
}

static void info_devices(struct monitor_command *command)
{
    for (const struct device *device = command->machine->devices; device; device = device->next)
        fprintf(command->out, "%-16s %-16s %s\n", device->name, device->type->name, device->type->text ? device->type->text : "");
}

/* A part of the state may be in the host's kernel while processors run. */
static void dump_device(struct monitor_command *command, const struct device *device)
{
    char prefix[48];
    snprintf(prefix, sizeof(prefix), "%s.", device->name);
    machine_pause(command->machine);
    pthread_mutex_lock(&command->machine->lock);
    state_dump(device->type->state, device, prefix, command->out);
    pthread_mutex_unlock(&command->machine->lock);
    machine_resume(command->machine);
}

static void info_device(struct monitor_command *command)
{
    const char *name = command->count > 2 ? command->word[2] : "";
    for (const struct device *device = command->machine->devices; device; device = device->next)
        if (!strcmp(device->name, name)) {
            dump_device(command, device);
            return;
        }
    monitor_refuse(command, "there is no device '%s'; 'info devices' lists them", name);
}

static void info_irq(struct monitor_command *command)
{
    static const char *const controllers[] = { "pic", "ioapic", "lapic" };
    for (const struct device *device = command->machine->devices; device; device = device->next)
        for (unsigned i = 0; i < ARRAY_SIZE(controllers); i++)
            if (!strcmp(device->type->name, controllers[i]))
                dump_device(command, device);
}

/* PCI Local Bus 3.0 §6.1: offsets in configuration space. */
enum { PCI_VENDOR = 0, PCI_DEVICE = 2, PCI_CLASS = 9, PCI_BAR0 = 0x10, PCI_LINE = 0x3C, PCI_PIN = 0x3D };

static void print_function(const struct pci_function *function, FILE *out)
{
    const uint8_t *config = function->config;
    fprintf(out, "00:%02x.%u  %02x%02x:%02x%02x  class %02x%02x%02x  %s\n", function->devfn >> 3, function->devfn & 7,
            config[PCI_VENDOR + 1], config[PCI_VENDOR], config[PCI_DEVICE + 1], config[PCI_DEVICE], config[PCI_CLASS + 2],
            config[PCI_CLASS + 1], config[PCI_CLASS], function->device.name);
    for (unsigned i = 0; i < PCI_BARS; i++) {
        const struct pci_bar *bar = &function->bar[i];
        if (bar->size)
            fprintf(out, "  bar %u  %s  %012" PRIx64 "  size %" PRIx64 "%s\n", i, bar->io ? "ports " : bar->is64 ? "mem 64" : "mem 32",
                    bar->region.base, bar->size, bar->region.mapped ? "" : "  not mapped");
    }
    if (config[PCI_PIN])
        fprintf(out, "  INT%c, line %u\n", 'A' + config[PCI_PIN] - 1, config[PCI_LINE]);
}

static void info_pci(struct monitor_command *command)
{
    struct machine *machine = command->machine;
    pthread_mutex_lock(&machine->lock);
    for (unsigned devfn = 0; machine->pci && devfn < 256; devfn++) {
        const struct pci_function *function = pci_bus_find(machine->pci, (uint8_t)devfn);
        if (function)
            print_function(function, command->out);
    }
    pthread_mutex_unlock(&machine->lock);
}

/* --- counters and traces --- */

void monitor_print_counters(const struct machine *machine, const char *glob, FILE *out)
{
    for (unsigned i = 0; i < COUNTER_COUNT; i++) {
        uint64_t value = machine_counter(machine, (enum counter)i);
        if (value && !fnmatch(glob, counter_name((enum counter)i), 0))
            fprintf(out, "%16" PRIu64 "  %-20s %s\n", value, counter_name((enum counter)i), counter_text((enum counter)i));
    }
}

static void info_counters(struct monitor_command *command)
{
    monitor_print_counters(command->machine, command->count > 2 ? command->word[2] : "*", command->out);
}

void monitor_print_trace(const struct log *log, FILE *out)
{
    for (unsigned i = 0; i < TRACE_COUNT; i++)
        fprintf(out, "%-3s  %-16s %s\n", trace_on(log, (enum trace_point)i) ? "on" : "off", trace_name((enum trace_point)i),
                trace_text((enum trace_point)i));
}

static void info_trace(struct monitor_command *command)
{
    monitor_print_trace(&command->machine->log, command->out);
}

/* --- the table --- */

static const struct {
    const char *name, *text;
    void (*print)(struct monitor_command *command);
} subjects[] = {
#define MONITOR_INFO(name, text) { #name, text, info_##name },
#include "api/monitor_info.def"
#undef MONITOR_INFO
};

void monitor_info_help(FILE *out)
{
    for (unsigned i = 0; i < ARRAY_SIZE(subjects); i++)
        fprintf(out, "info %-25s %s\n", subjects[i].name, subjects[i].text);
}

void monitor_info(struct monitor_command *command)
{
    for (unsigned i = 0; command->count > 1 && i < ARRAY_SIZE(subjects); i++)
        if (!strcmp(subjects[i].name, command->word[1])) {
            subjects[i].print(command);
            return;
        }
    if (command->count > 1)
        monitor_refuse(command, "there is nothing called '%s' to show", command->word[1]);
    monitor_info_help(command->out);
}
