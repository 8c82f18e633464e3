/* A name's owner: the process of the virtual machine. */
#include "api/instance.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "api/instance_private.h"
#include "base/base.h"
#include "base/error.h"
#include "base/listen.h"

struct instance {
    char name[INSTANCE_NAME_MAX + 1];
    int runtime, directory, lock;
    bool keep;
    long long started;
};

/*
 * Where a crash is written down, plus one; 0: nowhere. State of the process and not of a machine, because a signal handler has no
 * argument (as in backend/terminal.h).
 */
static volatile int crash_fd_plus_one;

bool instance_name_is_valid(const char *name)
{
    size_t size = strlen(name);
    if (!size || size > INSTANCE_NAME_MAX || !isalnum((unsigned char)*name))
        return false;
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("._-", *name))
            return false;
    return true;
}

void instance_empty(int directory)
{
    static const char *const files[] = { INSTANCE_SOCKET, INSTANCE_CONSOLE, INSTANCE_CONSOLE ".1", INSTANCE_MESSAGES, INSTANCE_MESSAGES ".1",
                                         INSTANCE_RECORD, INSTANCE_RECORD ".new", INSTANCE_CRASH };
    for (unsigned i = 0; i < ARRAY_SIZE(files); i++)
        unlinkat(directory, files[i], 0);
}

/* --- the lock --- */

/*
 * A record lock, not flock: it belongs to this process alone, whatever children inherit, and others can ask who holds it. It
 * would be lost if this process closed another descriptor of the same file, so nothing here looks at its own.
 */
static bool take_lock(struct instance *instance)
{
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    struct stat ours, there;
    instance->lock = openat(instance->directory, INSTANCE_LOCK, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (instance->lock < 0 || fcntl(instance->lock, F_SETLK, &lock) != 0)
        return false;
    /* Somebody may have removed the directory between our opening and locking. */
    errno = ESTALE;
    return fstat(instance->lock, &ours) == 0 && fstatat(instance->directory, INSTANCE_LOCK, &there, AT_SYMLINK_NOFOLLOW) == 0 &&
           ours.st_ino == there.st_ino;
}

static void close_directory(struct instance *instance)
{
    if (instance->lock >= 0)
        close(instance->lock);
    if (instance->directory >= 0)
        close(instance->directory);
    instance->lock = instance->directory = -1;
}

static bool is_to_be_kept(int directory)
{
    json_t *record = instance_read_record(directory);
    bool keep = json_is_true(json_object_get(record, "keep"));
    json_decref(record);
    return keep;
}

/* unnamed: not if something is kept there. Errno: EEXIST (so it is), EAGAIN and EACCES (it runs), ESTALE (try again). */
static bool try_name(struct instance *instance, const char *name, bool unnamed)
{
    if (mkdirat(instance->runtime, name, 0700) != 0 && errno != EEXIST)
        return false;
    *stpncpy(instance->name, name, sizeof(instance->name) - 1) = 0;
    instance->directory = openat(instance->runtime, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    bool locked = instance->directory >= 0 && take_lock(instance);
    if (locked && !(unnamed && is_to_be_kept(instance->directory)))
        return true;
    int why = locked ? EEXIST : errno == ENOENT ? ESTALE : errno;       /* ENOENT: removed under our feet */
    close_directory(instance);
    errno = why;
    return false;
}

static bool claim_name(struct instance *instance, const char *name, struct error *err)
{
    enum { TRIES = 100 };
    for (unsigned i = 0; i < TRIES; i++) {
        if (try_name(instance, name, false))
            return true;
        if (errno != ESTALE)
            break;
    }
    if (errno == EAGAIN || errno == EACCES)
        return error_set(err, "a machine '%s' runs already; 'doppel ps' lists them", name);
    return error_errno(err, errno, "cannot make the directory of the machine '%s'", name);
}

static bool claim_any(struct instance *instance, struct error *err)
{
    enum { NUMBERS = 100000 };
    for (unsigned i = 1; i < NUMBERS; i++) {
        char name[16];
        snprintf(name, sizeof(name), "vm%u", i);
        if (try_name(instance, name, true))
            return true;
        if (errno != EEXIST && errno != ESTALE && errno != EAGAIN && errno != EACCES)
            break;
    }
    return error_errno(err, errno, "cannot make a directory for the machine");
}

/* --- the record --- */

/* Under another name first, so that nobody reads half of it. A full disk loses the record, not the machine. */
static void write_record(struct instance *instance, json_t *record)
{
    static const char fresh[] = INSTANCE_RECORD ".new";
    int fd = openat(instance->directory, fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return;
    bool written = json_dumpfd(record, fd, JSON_INDENT(2)) == 0;
    close(fd);
    if (written)
        renameat(instance->directory, fresh, instance->directory, INSTANCE_RECORD);
    else
        unlinkat(instance->directory, fresh, 0);
}

static void record_start(struct instance *instance)
{
    instance->started = time(NULL);
    json_t *record = json_pack("{s:i, s:b, s:I}", "pid", (int)getpid(), "keep", instance->keep, "started", (json_int_t)instance->started);
    write_record(instance, record);
    json_decref(record);
}

void instance_record_end(struct instance *instance, int exit_status, const char *reason)
{
    json_t *record = json_pack("{s:i, s:b, s:I, s:I, s:i, s:s}", "pid", (int)getpid(), "keep", instance->keep, "started",
                               (json_int_t)instance->started, "ended", (json_int_t)time(NULL), "exit_status", exit_status, "reason",
                               reason);
    write_record(instance, record);
    json_decref(record);
}

void instance_record_crash(int signal_number)
{
    char text[3] = { (char)('0' + signal_number / 10), (char)('0' + signal_number % 10), '\n' };
    if (crash_fd_plus_one) {
        ssize_t written = write(crash_fd_plus_one - 1, text, sizeof(text));
        (void)written;
    }
}

/* --- life --- */

struct instance *instance_claim(const char *name, bool keep, struct error *err)
{
    if (name && !instance_name_is_valid(name)) {
        error_set(err, "'%s' is not a name for a machine: up to %d letters, digits, '.', '_' and '-', the first a letter or digit", name,
                  INSTANCE_NAME_MAX);
        return NULL;
    }
    struct instance *instance = calloc(1, sizeof(*instance));
    if (!instance) {
        error_set(err, "no memory for a machine");
        return NULL;
    }
    instance->directory = instance->lock = -1;
    instance->keep = keep;
    instance->runtime = instance_open_runtime(true, err);
    if (instance->runtime < 0 || !(name ? claim_name(instance, name, err) : claim_any(instance, err))) {
        if (instance->runtime >= 0)
            close(instance->runtime);
        free(instance);
        return NULL;
    }
    instance_empty(instance->directory);
    record_start(instance);
    crash_fd_plus_one = 1 + openat(instance->directory, INSTANCE_CRASH, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    return instance;
}

const char *instance_name(const struct instance *instance)
{
    return instance->name;
}

int instance_directory(const struct instance *instance)
{
    return instance->directory;
}

void instance_path(const struct instance *instance, const char *file, char *path, size_t size)
{
    char link[32];
    snprintf(link, sizeof(link), "/proc/self/fd/%d", instance->directory);
    ssize_t length = readlink(link, path, size);
    length = length < 0 || (size_t)length >= size ? 0 : length;
    snprintf(path + length, size - (size_t)length, "/%s", file);
}

int instance_listen(struct instance *instance, struct error *err)
{
    struct sockaddr_un address;
    instance_address(instance->directory, INSTANCE_SOCKET, &address);
    int fd = listen_unix(address.sun_path, 0, SOMAXCONN, NULL);
    if (fd < 0)
        error_errno(err, errno, "cannot make the control socket of the machine '%s'", instance->name);
    return fd;
}

void instance_release(struct instance *instance, bool started)
{
    if (!instance)
        return;
    if (crash_fd_plus_one)
        close(crash_fd_plus_one - 1);
    crash_fd_plus_one = 0;
    unlinkat(instance->directory, INSTANCE_SOCKET, 0);
    if (!started || !instance->keep) {
        instance_empty(instance->directory);
        unlinkat(instance->directory, INSTANCE_LOCK, 0);
        unlinkat(instance->runtime, instance->name, AT_REMOVEDIR);
    }
    close_directory(instance);
    close(instance->runtime);
    free(instance);
}

/* With the lock held, so that no new machine takes the name meanwhile. */
bool instance_remove(const char *name, struct error *err)
{
    struct instance instance = { .directory = -1, .lock = -1 };
    struct instance_status status;
    if (!instance_look(name, &status))
        return error_set(err, "there is no machine '%s'; 'doppel ps' lists them", name);
    instance.runtime = instance_open_runtime(false, err);
    if (instance.runtime < 0)
        return false;
    bool locked = claim_name(&instance, name, err);
    if (locked) {
        instance_empty(instance.directory);
        unlinkat(instance.directory, INSTANCE_LOCK, 0);
        unlinkat(instance.runtime, name, AT_REMOVEDIR);
    }
    close_directory(&instance);
    close(instance.runtime);
    return locked;
}
