/* Where the directories of virtual machines are, and looking into them from outside. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "api/instance_private.h"
#include "base/base.h"
#include "base/error.h"

/* --- the runtime directory --- */

static bool is_directory_of_ours(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0 && S_ISDIR(st.st_mode) && st.st_uid == geteuid();
}

/* $XDG_RUNTIME_DIR, else where systemd would have put it, else a directory of our own in /tmp. */
static void runtime_path(char *path, size_t size)
{
    const char *given = getenv("XDG_RUNTIME_DIR");
    char standard[64];
    snprintf(standard, sizeof(standard), "/run/user/%u", geteuid());
    if (given && *given == '/')
        snprintf(path, size, "%s/doppel", given);
    else if (is_directory_of_ours(standard))
        snprintf(path, size, "%s/doppel", standard);
    else
        snprintf(path, size, "/tmp/doppel-%u", geteuid());
}

/* Others must not be able to put a directory there before us: what is not ours alone is refused. */
int instance_open_runtime(bool create, struct error *err)
{
    char path[4096];
    struct stat st;
    runtime_path(path, sizeof(path));
    if (create && mkdir(path, 0700) != 0 && errno != EEXIST) {
        error_errno(err, errno, "cannot make the runtime directory %s (XDG_RUNTIME_DIR may name another place)", path);
        return -1;
    }
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        error_errno(err, errno, "cannot open the runtime directory %s", path);
        return -1;
    }
    if (fstat(fd, &st) == 0 && st.st_uid == geteuid() && !(st.st_mode & 077))
        return fd;
    error_set(err, "the runtime directory %s must belong to this user, with mode 0700", path);
    close(fd);
    errno = EPERM;
    return -1;
}

int instance_open_directory(const char *name)
{
    if (!instance_name_is_valid(name)) {
        errno = ENOENT;
        return -1;
    }
    int runtime = instance_open_runtime(false, NULL);
    if (runtime < 0)
        return -1;
    int fd = openat(runtime, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), why = errno;
    close(runtime);
    errno = why;
    return fd;
}

int instance_open(const char *name, const char *file)
{
    int directory = instance_open_directory(name);
    if (directory < 0)
        return -1;
    int fd = openat(directory, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC), why = errno;
    close(directory);
    errno = why;
    return fd;
}

/* --- sockets --- */

/* The address holds 107 characters; through /proc/self/fd every directory is near. */
void instance_address(int directory, const char *file, struct sockaddr_un *address)
{
    *address = (struct sockaddr_un){ .sun_family = AF_UNIX };
    snprintf(address->sun_path, sizeof(address->sun_path), "/proc/self/fd/%d/%s", directory, file);
}

static int connect_at(int directory, unsigned seconds)
{
    struct timeval limit = { .tv_sec = seconds };
    struct sockaddr_un address;
    instance_address(directory, INSTANCE_SOCKET, &address);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0)
        return fd;
    int why = errno;
    close(fd);
    errno = why;
    return -1;
}

int instance_connect(const char *name, unsigned seconds, struct error *err)
{
    struct instance_status status;
    if (!instance_look(name, &status)) {
        error_set(err, "there is no machine '%s'; 'doppel ps' lists them", name);
        return -1;
    }
    int directory = instance_open_directory(name), fd = -1;
    if (status.state != INSTANCE_RUNS)
        error_set(err, "the machine '%s' does not run: %s", name, status.reason);
    else if (directory < 0 || (fd = connect_at(directory, seconds)) < 0)
        error_errno(err, errno, "cannot reach the machine '%s'", name);
    if (directory >= 0)
        close(directory);
    return fd;
}

/* --- looking --- */

pid_t instance_lock_holder(int directory)
{
    int fd = openat(directory, INSTANCE_LOCK, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return -1;
    struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
    bool held = fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK;
    close(fd);
    return held ? lock.l_pid : 0;
}

json_t *instance_read_record(int directory)
{
    int fd = openat(directory, INSTANCE_RECORD, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    json_t *record = fd < 0 ? NULL : json_loadfd(fd, 0, NULL);
    if (fd >= 0)
        close(fd);
    return record;
}

static void read_record(int directory, struct instance_status *status, bool *has_ended)
{
    json_t *record = instance_read_record(directory);
    const char *reason = json_string_value(json_object_get(record, "reason"));
    status->started = json_integer_value(json_object_get(record, "started"));
    status->ended = json_integer_value(json_object_get(record, "ended"));
    status->exit_status = (int)json_integer_value(json_object_get(record, "exit_status"));
    snprintf(status->reason, sizeof(status->reason), "%s", reason ? reason : "");
    *has_ended = status->ended != 0;
    json_decref(record);
}

/* It left no record of its end: by a signal that it could still write down, or without a word. */
static void explain_crash(int directory, struct instance_status *status)
{
    char text[16] = "";
    int fd = openat(directory, INSTANCE_CRASH, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    ssize_t size = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (fd >= 0)
        close(fd);
    if (size > 0)
        snprintf(status->reason, sizeof(status->reason), "Doppel crashed: %s; see 'doppel logs --messages %s'", strsignal(atoi(text)),
                 status->name);
    else
        snprintf(status->reason, sizeof(status->reason),
                 "its process was killed (SIGKILL), by somebody or by the host when memory ran out");
}

bool instance_look(const char *name, struct instance_status *status)
{
    int directory = instance_open_directory(name);
    bool has_ended;
    *status = (struct instance_status){ 0 };
    if (directory < 0)
        return false;
    snprintf(status->name, sizeof(status->name), "%s", name);
    pid_t holder = instance_lock_holder(directory);
    read_record(directory, status, &has_ended);
    if (holder > 0) {
        status->state = INSTANCE_RUNS;
        status->pid = holder;
    } else if (has_ended) {
        status->state = INSTANCE_ENDED;
    } else {
        status->state = INSTANCE_CRASHED;
        explain_crash(directory, status);
    }
    close(directory);
    return true;
}

bool instance_list(void (*visit)(const struct instance_status *status, void *owner), void *owner, struct error *err)
{
    struct error problem;
    struct dirent **entry = NULL;
    int runtime = instance_open_runtime(false, &problem);
    if (runtime < 0)
        return errno == ENOENT || error_set(err, "%s", problem.text);
    int count = scandirat(runtime, ".", &entry, NULL, versionsort);
    for (int i = 0; i < count; i++) {
        struct instance_status status;
        if (instance_look(entry[i]->d_name, &status))
            visit(&status, owner);
        free(entry[i]);
    }
    free(entry);
    close(runtime);
    return true;
}
