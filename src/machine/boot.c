#include "machine/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/boot_elf.h"
#include "machine/boot_place.h"

static const size_t file_size_max = 4 * GiB;

const char *boot_command_line(const struct machine_config *config)
{
    if (config->append)
        return config->append;
    return config->console ? "console=ttyS0" : "";
}

/* Grows with what comes, so that a pipe works as well as a file. */
static bool read_all(int fd, const char *path, size_t size_hint, struct blob *blob, struct error *err)
{
    size_t capacity = size_hint + 1, size = 0;
    uint8_t *data = malloc(capacity);
    for (;;) {
        if (data && size == capacity) {
            uint8_t *more = realloc(data, capacity *= 2);
            if (!more)
                free(data);
            data = more;
        }
        if (!data || size > file_size_max) {
            free(data);
            return error_set(err, "%s is too large", path);
        }
        ssize_t got = read(fd, data + size, capacity - size);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            free(data);
            return error_errno(err, errno, "cannot read %s", path);
        }
        if (!got)
            break;
        size += (size_t)got;
    }
    *blob = (struct blob){ data, size, path };
    return true;
}

bool boot_read_file(const char *path, struct blob *blob, struct error *err)
{
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status)) {
        int saved = errno;
        if (fd >= 0)
            close(fd);
        return error_errno(err, saved, "cannot open %s", path);
    }
    bool done = false;
    if (S_ISDIR(status.st_mode))
        error_set(err, "%s is a directory", path);
    else if (status.st_size < 0 || (uint64_t)status.st_size > file_size_max)
        error_set(err, "%s is too large", path);
    else if (S_ISREG(status.st_mode) && !status.st_size)
        error_set(err, "%s is empty", path);
    else
        done = read_all(fd, path, S_ISREG(status.st_mode) ? (size_t)status.st_size : 65536, blob, err);
    close(fd);
    return done;
}

void boot_free_file(struct blob *blob)
{
    free((void *)blob->data);
    *blob = (struct blob){ 0 };
}

/* An initrd's text is "FILE" or, for a Multiboot module, "FILE ARGUMENTS". A file whose name has a space wins. */
static bool read_initrd(const char *text, struct blob *blob, struct error *err)
{
    const char *space = strchr(text, ' ');
    if (!space || !access(text, F_OK))
        return boot_read_file(text, blob, err);
    char *path = strndup(text, (size_t)(space - text));
    bool done = path && boot_read_file(path, blob, err);
    blob->name = text;
    free(path);
    return done;
}

bool boot_from_files(const struct machine_config *config, const struct boot_target *target, struct boot_entry *entry,
                     struct error *err)
{
    struct blob kernel = { 0 }, initrd[MACHINE_INITRDS_MAX] = { 0 };
    bool done = boot_read_file(config->kernel, &kernel, err);
    for (unsigned i = 0; done && i < config->initrd_count; i++)
        done = read_initrd(config->initrd[i], &initrd[i], err);
    done = done && boot_load(config, &kernel, initrd, target, entry, err);
    boot_free_file(&kernel);
    for (unsigned i = 0; i < MACHINE_INITRDS_MAX; i++)
        boot_free_file(&initrd[i]);
    return done;
}

/* The first that fits; an ELF kernel with a PVH note may carry a Multiboot header too. */
static enum boot_method recognise(const struct blob *kernel)
{
    if (boot_linux_probe(kernel))
        return BOOT_LINUX;
    if (boot_pvh_probe(kernel))
        return BOOT_PVH;
    if (boot_multiboot_probe(kernel))
        return BOOT_MULTIBOOT;
    return elf_probe(kernel) ? BOOT_LINUX : BOOT_AUTO;
}

bool boot_load(const struct machine_config *config, const struct blob *kernel, const struct blob *initrd,
               const struct boot_target *target, struct boot_entry *entry, struct error *err)
{
    enum boot_method method = config->boot == BOOT_AUTO ? recognise(kernel) : config->boot;
    switch (method) {
    case BOOT_LINUX:
        return boot_linux(config, kernel, initrd, target, entry, err);
    case BOOT_PVH:
        return boot_pvh(config, kernel, initrd, target, entry, err);
    case BOOT_MULTIBOOT:
        return boot_multiboot(config, kernel, initrd, target, entry, err);
    case BOOT_FLAT:
        return boot_flat(config, kernel, initrd, target, entry, err);
    case BOOT_AUTO:
        break;
    }
    return error_set(err, "%s is not a kernel that Doppel recognises (bzImage, ELF or Multiboot; for anything else say "
                          "--boot flat=ADDRESS)", kernel->name);
}
