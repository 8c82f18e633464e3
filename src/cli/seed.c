/*
 * The seed is kept under the cache directory by the hash of what is in it. Its instance id is made of that hash and the machine's name: cloud-init does its
 * work once for each id, so the same command line is the same instance at every boot.
 */
#include "cli/seed.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <xxhash.h>

#include "machine/seed.h"

enum { FILE_MAX = 1024 * 1024 };

/* --- reading --- */

static char *read_text(const char *path, const char *what, struct error *err)
{
    FILE *file = fopen(path, "re");
    if (!file) {
        error_errno(err, errno, "cannot read the %s in %s", what, path);
        return NULL;
    }
    char *text = malloc(FILE_MAX + 1);
    size_t size = text ? fread(text, 1, FILE_MAX + 1, file) : 0;
    bool failed = ferror(file);
    fclose(file);
    if (text && size && size <= FILE_MAX && !failed) {
        text[size] = 0;
        if (strlen(text) == size)
            return text;
    }
    free(text);
    error_set(err, "%s is no text of at most 1M: it cannot be %s", path, what);
    return NULL;
}

/* cloud-init knows by the first line what it has before it ("User-Data Formats"). */
static void check_user_data(const char *path, const char *text)
{
    static const char *const beginnings[] = { "#cloud-config", "#!", "#include", "#cloud-boothook", "#part-handler", "#upstart-job", "## template:",
                                              "Content-Type:", "MIME-Version:", "From nobody" };
    for (unsigned i = 0; i < sizeof(beginnings) / sizeof(beginnings[0]); i++)
        if (!strncmp(text, beginnings[i], strlen(beginnings[i])))
            return;
    fprintf(stderr, "doppel: warning: cloud-init will not understand %s: its first line should be '#cloud-config', or '#!' and a shell\n", path);
}

static bool looks_like_key(const char *line)
{
    return !strncmp(line, "ssh-", 4) || !strncmp(line, "ecdsa-", 6) || !strncmp(line, "sk-", 3);
}

/* The keys of a .pub or authorized_keys file as a list in JSON, which is YAML. */
static bool write_keys(FILE *out, const char *path, char *text, struct error *err)
{
    unsigned count = 0;
    if (strstr(text, "PRIVATE KEY"))
        return error_set(err, "%s is a private key, which no guest should have; name the public one, which ends in .pub", path);
    for (char *line = strtok(text, "\r\n"); line; line = strtok(NULL, "\r\n")) {
        if (!looks_like_key(line))
            continue;
        fprintf(out, "%s\"", count++ ? ", " : "public-keys: [");
        for (const char *c = line; *c; c++)
            fprintf(out, iscntrl((unsigned char)*c) ? " " : *c == '"' || *c == '\\' ? "\\%c" : "%c", *c);
        fputc('"', out);
    }
    if (!count)
        return error_set(err, "there is no public SSH key in %s", path);
    fprintf(out, "]\n");
    return true;
}

/* --- writing --- */

/* The directory, and those above it, for its owner alone. */
static bool make_directories(char *path)
{
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        bool made = mkdir(path, 0700) == 0 || errno == EEXIST;
        *slash = '/';
        if (!made)
            return false;
    }
    return true;
}

static bool seed_path(char path[PATH_MAX], uint64_t hash, struct error *err)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    bool absolute = cache && *cache == '/';
    if (!absolute && !home)
        return error_set(err, "neither XDG_CACHE_HOME nor HOME says where the seed of --user-data and --ssh-key can be kept");
    int used = snprintf(path, PATH_MAX, "%s%s/doppel/seeds/%016llx.iso", absolute ? cache : home, absolute ? "" : "/.cache", (unsigned long long)hash);
    return used < PATH_MAX || error_set(err, "the name of the cache directory is too long");
}

/* In one step, so that another run finds all of it or nothing. What is in it may be secret. */
static bool write_image(char *path, const uint8_t *image, size_t size, struct error *err)
{
    char temporary[PATH_MAX];
    if (!make_directories(path) || snprintf(temporary, sizeof(temporary), "%s.XXXXXX", path) >= (int)sizeof(temporary))
        return error_errno(err, errno, "cannot make the directory of %s", path);
    int fd = mkostemp(temporary, O_CLOEXEC);
    bool written = fd >= 0 && write(fd, image, size) == (ssize_t)size;
    if (fd >= 0)
        close(fd);
    if (written && rename(temporary, path) == 0)
        return true;
    error_errno(err, errno, "cannot write the seed %s", path);
    if (fd >= 0)
        unlink(temporary);
    return false;
}

static bool write_seed(struct options *options, const char *user, const char *keys, struct error *err)
{
    char meta[FILE_MAX / 2], path[PATH_MAX];
    const char *name = options->name ? options->name : "doppel";
    uint64_t hash = XXH3_64bits_withSeed(user, strlen(user), XXH3_64bits_withSeed(keys, strlen(keys), XXH3_64bits(name, strlen(name))));
    int length = snprintf(meta, sizeof(meta), "instance-id: %s-%016llx\nlocal-hostname: %s\n%s", name, (unsigned long long)hash, name, keys);
    if (length >= (int)sizeof(meta))
        return error_set(err, "these are too many SSH keys");
    const struct seed_file files[] = { { "meta-data", meta, (uint32_t)length }, { "user-data", user, (uint32_t)strlen(user) } };
    uint8_t *image = NULL;
    size_t size;
    bool done = seed_path(path, hash, err) && (seed_image("cidata", files, 2, &image, &size) || error_set(err, "no memory for the seed")) &&
                write_image(path, image, size, err);
    free(image);
    char *kept = done ? strdup(path) : NULL;
    if (!kept || !options_own(options, kept, err))
        return false;
    if (options->config.disk_count == MACHINE_DISKS_MAX)
        return error_set(err, "a machine has at most %d disks, and the seed is one", MACHINE_DISKS_MAX);
    options->config.disk[options->config.disk_count++] = (struct disk_config){ .path = kept,
        .image = { .format = DISK_FORMAT_RAW, .read_only = true } };
    return true;
}

bool seed_add(struct options *options, struct error *err)
{
    char *user = NULL, *keys = NULL, *list = NULL;
    size_t list_size = 0;
    if (!options->user_data && !options->ssh_key)
        return true;
    FILE *out = open_memstream(&list, &list_size);
    bool done = out || error_set(err, "no memory for the seed");
    if (done && options->user_data && (done = (user = read_text(options->user_data, "user data", err))))
        check_user_data(options->user_data, user);
    if (done && options->ssh_key)
        done = (keys = read_text(options->ssh_key, "public SSH key", err)) && write_keys(out, options->ssh_key, keys, err);
    if (out)
        fclose(out);
    done = done && write_seed(options, user ? user : "#cloud-config\n{}\n", list, err);
    free(user);
    free(keys);
    free(list);
    return done;
}
