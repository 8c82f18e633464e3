/*
 * The machine owns everything: RAM, buses, clock, event loop, vCPUs, devices, backends. machine_create reads a
 * configuration and builds it (pc.c is the parts list); nothing is half-started: on an error all is undone.
 */
#ifndef DOPPEL_MACHINE_MACHINE_H
#define DOPPEL_MACHINE_MACHINE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "backend/disk_image.h"
#include "base/error.h"
#include "base/log.h"
#include "base/stats.h"
#include "bus/handles.h"
#include "machine/state_log.h"
#include "mmu/mmu.h"
#include "vcpu/vcpu.h"
#include "x86/model.h"

enum { MACHINE_DISKS_MAX = 16, MACHINE_NETS_MAX = 8, MACHINE_EXTRA_MAX = 8, MACHINE_CPUS_MAX = MODEL_CPUS_MAX, MACHINE_INITRDS_MAX = 8 };

enum boot_method { BOOT_AUTO, BOOT_LINUX, BOOT_PVH, BOOT_MULTIBOOT, BOOT_FLAT };

/* What a disk is to the guest. */
enum disk_bus { DISK_VIRTIO, DISK_AHCI, DISK_CDROM, DISK_NVME, DISK_USB };

/* By the names that users give them: virtio, ahci, cdrom, nvme. False: it is none of these. */
bool disk_bus_parse(const char *name, enum disk_bus *bus);
const char *disk_bus_name(enum disk_bus bus);

struct disk_config {
    const char *id;             /* the host's name for it; NULL: _disk and its index */
    bool absent;                /* it was removed; the place in the array stays, as others are called after theirs */
    uint8_t slot;               /* PCI device number; 0: the lowest that is free, which is then noted here; on AHCI 0 */
    const char *path;           /* NULL: a CD-ROM drive without a medium */
    enum disk_bus bus;
    const char *serial;         /* NULL: none */
    struct disk_image_options image;            /* strings in it borrowed, too */
    int engine;                 /* enum in block.h */
};

/* As machine_config.firmware: UEFI where the first disk has nothing that a BIOS could boot, else the BIOS. */
#define FIRMWARE_BY_DISK "auto"

/* What a network card is to the guest. */
enum net_model { NET_MODEL_VIRTIO, NET_MODEL_E1000 };

struct net_config {
    const char *id;             /* NULL: _net and its index */
    bool absent;                /* as a disk's */
    uint8_t slot;
    const char *backend;        /* text for net_open */
    enum net_model model;
    uint8_t mac[6];             /* all zero: derived from the index */
    bool boot;                  /* it has a boot ROM, and firmware tries it after the disks */
};

/* What becomes of a machine whose guest is in trouble. */
enum machine_action { MACHINE_ACTION_END, MACHINE_ACTION_RESET, MACHINE_ACTION_NONE };

/*
 * Strings are borrowed and must live as long as the machine. Zero-initialise, then machine_config_defaults. What the board
 * depends on also has a row in snapshot_config.c.
 */
struct machine_config {
    uint64_t memory;            /* bytes */
    unsigned cpus;
    const char *cpu_model;      /* NULL: default */
    const char *engine;         /* NULL: default */
    bool engine_was_default;    /* nobody chose `engine`: it was the default where a snapshot was taken, and the translator will do where it cannot be had */
    uint64_t clock_instructions;        /* a microsecond is so many instructions; 0: time is the host's */
    enum boot_method boot;
    const char *kernel;         /* path; NULL: nothing is loaded (tests place code themselves) */
    const char *firmware;       /* "bios", "uefi" or a path, instead of a kernel; FIRMWARE_BY_DISK: machine_create settles it; NULL: none */
    const char *uefi_variables; /* the file that keeps them; NULL: one beside the first disk */
    const char *initrd[MACHINE_INITRDS_MAX];    /* Linux: the first; Multiboot: modules, "FILE ARGS" */
    unsigned initrd_count;
    const char *append;
    uint64_t flat_address;      /* BOOT_FLAT: load and start address */
    struct disk_config disk[MACHINE_DISKS_MAX];
    unsigned disk_count;
    struct net_config net[MACHINE_NETS_MAX];
    unsigned net_count;
    const char *console;        /* chardev text of the first UART; NULL: none */
    const char *virtio_console; /* chardev text of a virtio console; NULL: no such device */
    const char *debug_console;  /* chardev text of ports 0xE9 and 0x402; NULL: none */
    const char *extra[MACHINE_EXTRA_MAX];       /* --device NAME[,key=value]: testdev, edu */
    unsigned extra_count;
    bool debug_exit;            /* port 0xF4 */
    bool no_reboot;
    bool perf_map;              /* write a map of translated code for perf */
    const char *jitdump;        /* directory for a dump of translated code for perf; NULL: none */
    bool board_apic;            /* the kvm engine leaves the local APICs to the board, too */
    enum mmu_policy tlb;        /* how long cached translations are kept (mmu/mmu.h) */
    uint64_t code_cache;        /* bytes of translated code for each vCPU at most; 0: default */
    const char *translations;   /* directory of translations that are kept for later runs; "memory": for this run; NULL: none are */
    bool translations_try;      /* where the directory cannot be used, say so and keep them for this run */
    bool rng;                   /* a virtio entropy device */
    bool watchdog;              /* a watchdog timer */
    enum machine_action on_watchdog;    /* when it runs out */
    enum machine_action on_panic;       /* when the guest's kernel says that it panicked */
    bool display;               /* a VGA, keyboard and mouse also without firmware */
    bool no_display;            /* none even with firmware, and the BIOS talks on the serial line */
    bool usb;                   /* a USB host controller with a keyboard and a tablet */
    const char *vnc;            /* text for vnc_open; NULL: no VNC server */
    struct state_log_config state_log;
    FILE *log;
};

/* How a machine ended; also the exit status of `doppel run` (cli/exit_status.h maps it). */
enum machine_end { END_NONE, END_POWER_OFF, END_REBOOT, END_TRIPLE_FAULT, END_DEBUG_EXIT, END_PANIC, END_WATCHDOG,
                   END_HOST_ERROR, END_QUIT };

struct device;
struct chardev;
struct pci_bus;
struct loop;
struct clock;
struct ram;
struct bus;
struct cpu_model;
struct images;
struct firmware;
struct pc;
struct screen_vnc;

/* Texts of the configuration that came about while the machine ran. */
struct machine_text {
    struct machine_text *next;
    char text[];
};

struct machine {
    struct machine_config config;
    struct machine_text *texts;         /* until its end, as others may be reading them */
    struct log log;
    struct counters counters;           /* devices' shared set */
    struct loop *loop;
    struct clock *clock;
    struct ram *ram;
    struct bus *mmio, *ports;
    pthread_mutex_t lock;               /* the board lock */
    struct cpu_model *model;
    struct vcpu **vcpu;
    struct code_drops *code_drops;      /* machine/code_drops.h; of each vCPU */
    const struct engine *first_engine;  /* of every vCPU, until machine_set_engine */
    struct device *devices;             /* in the order of creation */
    struct pci_bus *pci;
    struct dma dma;                     /* the machine's own: for MSIs and devices without a requester id */
    struct device *ioapic, *pic, *uart, *acpi_pm, *host_bridge, *lpc, *rtc, *vmgenid, *pci_hotplug;
    struct device *fw_cfg;              /* NULL: no firmware */
    struct device *i8042;
    struct device *vga;                 /* NULL: no display */
    struct device *xhci;                /* NULL: no USB */
    struct device *ahci;                /* NULL: no disk is on it */
    struct device *net_device[MACHINE_NETS_MAX];
    struct device *disk_device[MACHINE_DISKS_MAX];      /* the PCI function that each is on */
    struct device *lapic[MACHINE_CPUS_MAX];
    struct chardev *console, *virtio_console, *debug_console;
    void *block[MACHINE_DISKS_MAX], *net[MACHINE_NETS_MAX];
    pthread_t loop_thread;
    pthread_mutex_t state_lock;         /* guards what follows */
    pthread_cond_t state_changed;
    enum machine_end end;
    uint32_t end_code;                  /* END_DEBUG_EXIT: the value */
    bool running, paused;
    bool reset_wanted;
    unsigned vcpus_stopped;
    unsigned threads;                   /* vCPU threads that run */
    pthread_mutex_t pause_lock;         /* one pause or resume at a time */
    unsigned pause_depth;
    pthread_mutex_t snapshot_lock;      /* one snapshot at a time; taken before pause_lock */
    char snapshot_id[33];               /* since which DIRTY_SNAPSHOT marks pages (machine/snapshot.h); empty: none */
    struct perf *perf;                  /* engine/dbt/perf.h; NULL: none */
    struct store *translations;         /* engine/dbt/store.h; NULL: none */
    struct beside *beside;              /* engine/dbt/beside.h; NULL: none */
    struct images *images;              /* machine/image.h */
    struct firmware *firmware;          /* machine/firmware.h; NULL: none */
    struct disk_image *first_image;     /* of the first disk, from the choice of firmware until the disk is made; NULL: it is still to be opened */
    struct state_log *state_log;        /* NULL: none */
    struct screen_vnc *vnc;             /* NULL: none */
    bool restored;                      /* its first state is a snapshot's, and so is its memory, which comes once all is built */
    struct pc *pc;                      /* pc_internal.h: what connects the parts of the board */
};

void machine_config_defaults(struct machine_config *config);

/* NULL: err tells why. */
struct machine *machine_create(const struct machine_config *config, struct error *err);

/* Where a machine's first state comes from, if not from its images. */
struct machine_origin {
    uint64_t tsc_hz;                    /* what the guest believes the frequency of its TSC to be */
    /* Fills memory, processors and devices of a machine that is built and has not run; its clock stands still. */
    bool (*load)(void *owner, struct machine *machine, struct error *err);
    void *owner;
};
/* As machine_create; the images are only read when the guest resets itself. */
struct machine *machine_create_from(const struct machine_config *config, const struct machine_origin *origin, struct error *err);
void machine_destroy(struct machine *machine);
/* A copy that lives as long as the machine; NULL: no memory. One thread at a time. */
const char *machine_keep_text(struct machine *machine, const char *text);
void machine_free_texts(struct machine_text *texts);

/* Starts the loop and vCPU threads. False: all has been stopped again. */
bool machine_start(struct machine *machine, struct error *err);
/* Waits for the end; then all threads have stopped. */
enum machine_end machine_wait(struct machine *machine);

/* Any thread but a vCPU's, board lock not held; pauses nest. Pause waits until every vCPU stands at a block border. */
void machine_pause(struct machine *machine);
void machine_resume(struct machine *machine);
/* While paused: runs `count` instructions on one vCPU, events included. */
void machine_step(struct machine *machine, unsigned index, uint64_t count);
/* As machine_pause: every vCPU goes on with another engine. False: err tells why, and some may have kept the old one. */
bool machine_set_engine(struct machine *machine, const char *name, struct error *err);
/* Any thread, returns at once: asks everything to stop; the first reason given wins. */
void machine_end(struct machine *machine, enum machine_end end, uint32_t code);
/* Any thread, returns at once: full reset (or the end, with no_reboot). */
void machine_reset(struct machine *machine);
/* Presses the ACPI power button. */
void machine_power_button(struct machine *machine);

/* Sum of every vCPU's and the devices' counters. */
uint64_t machine_counter(const struct machine *machine, enum counter counter);

#endif
