#include "machine/image.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/base.h"
#include "base/io.h"
#include "machine/acpi_tables.h"
#include "machine/boot.h"
#include "machine/layout.h"
#include "machine/pc.h"
#include "vcpu/vcpu.h"

struct images {
    struct blob kernel;
    struct blob initrd[MACHINE_INITRDS_MAX];
    unsigned initrd_count;
    bool later;                 /* not read yet */
};

enum { IMAGE_SIZE_MAX = 2047 * MiB };

/* Large pages where the host has them: images are megabytes, and touched once. */
static uint8_t *allocate(size_t size)
{
    size_t whole = align_up(size, 2 * MiB);
    uint8_t *data = aligned_alloc(2 * MiB, whole);
    if (data)
        madvise(data, whole, MADV_HUGEPAGE);
    return data;
}

/* Reads a whole regular file. `path` may carry arguments after a space (Multiboot modules): only the file's part is opened. */
bool image_read(const char *what, const char *path, struct blob *blob, struct error *err)
{
    char name[4096];
    size_t length = strcspn(path, " ");
    if (access(path, F_OK) == 0)
        length = strlen(path);
    if (length >= sizeof(name))
        return error_set(err, "the path of the %s is too long", what);
    memcpy(name, path, length);
    name[length] = 0;
    int fd = open(name, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, errno, "cannot open the %s '%s'", what, name);
    struct stat st;
    bool ok = false;
    uint8_t *data = NULL;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        error_set(err, "the %s '%s' is not a regular file", what, name);
    else if (st.st_size == 0)
        error_set(err, "the %s '%s' is empty", what, name);
    else if ((uint64_t)st.st_size > IMAGE_SIZE_MAX)
        error_set(err, "the %s '%s' is larger than 2 GiB", what, name);
    else if (!(data = allocate((size_t)st.st_size)))
        error_set(err, "no memory to read the %s '%s'", what, name);
    else if (!io_read_all(fd, data, (size_t)st.st_size))
        error_set(err, "cannot read the %s '%s'", what, name);
    else
        ok = true;
    close(fd);
    if (!ok) {
        free(data);
        return false;
    }
    *blob = (struct blob){ data, (size_t)st.st_size, path };
    return true;
}

static struct images *create(struct error *err)
{
    struct images *images = calloc(1, sizeof(*images));
    if (!images)
        error_set(err, "no memory for a machine");
    return images;
}

static bool read_images(struct images *images, const struct machine_config *config, struct error *err)
{
    bool ok = !config->kernel || image_read("kernel", config->kernel, &images->kernel, err);
    for (unsigned i = 0; ok && i < config->initrd_count; i++) {
        ok = image_read("initrd", config->initrd[i], &images->initrd[i], err);
        images->initrd_count += ok;
    }
    return ok;
}

struct images *images_open(const struct machine_config *config, struct error *err)
{
    struct images *images = create(err);
    if (!images || read_images(images, config, err))
        return images;
    images_close(images);
    return NULL;
}

struct images *images_later(struct error *err)
{
    struct images *images = create(err);
    if (images)
        images->later = true;
    return images;
}

void images_close(struct images *images)
{
    if (!images)
        return;
    free((void *)images->kernel.data);
    for (unsigned i = 0; i < images->initrd_count; i++)
        free((void *)images->initrd[i].data);
    free(images);
}

static uint64_t place_acpi(struct machine *machine)
{
    struct acpi_config config = { .cpus = machine->config.cpus, .ecam_base = ECAM_BASE, .hpet = true, .vga = machine->vga };
    for (unsigned i = 0; i < config.cpus; i++)
        config.apic_id[i] = machine->vcpu[i]->apic_id;
    struct acpi_blob blob;
    return acpi_build(&config, &blob) ? acpi_place(&blob, machine->ram, ACPI_TABLES_BASE, ACPI_TABLES_SIZE) : 0;
}

bool images_load(struct machine *machine, struct error *err)
{
    if (machine->firmware)
        return true;
    pc_prepare(machine);
    uint64_t low = min_u64(machine->config.memory, LOW_RAM_MAX_BASE);
    struct boot_target target = {
        .ram = machine->ram,
        .low_ram_end = low,
        .high_ram_end = HIGH_RAM_BASE + machine->config.memory - low,
        .rsdp = place_acpi(machine),
        .log = &machine->log,
    };
    if (machine->images->later) {
        if (!read_images(machine->images, &machine->config, err))
            return false;
        machine->images->later = false;
    }
    if (!machine->config.kernel)
        return true;
    struct boot_entry entry = { 0 };
    if (!boot_load(&machine->config, &machine->images->kernel, machine->images->initrd, &target, &entry, err))
        return false;
    boot_apply(&entry, machine->vcpu[0]);
    return true;
}
