#include "base/listen.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"

/* The address holds 107 characters; through /proc/self/fd every directory is near. */
static struct sockaddr_un near(int directory, const char *file)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    snprintf(address.sun_path, sizeof(address.sun_path), "/proc/self/fd/%d/%s", directory, file);
    return address;
}

/* A socket that nobody listens on is left over from a process that was killed. One with a full queue is in use (EAGAIN). */
static void remove_left_over(int directory, const char *file)
{
    struct sockaddr_un address = near(directory, file);
    struct stat st;
    if (fstatat(directory, file, &st, AT_SYMLINK_NOFOLLOW) != 0 || !S_ISSOCK(st.st_mode))
        return;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    if (connect(fd, (struct sockaddr *)&address, sizeof(address)) != 0 && errno == ECONNREFUSED)
        unlinkat(directory, file, 0);
    close(fd);
}

/*
 * Its mode is set before it has a name, and its name is its last after listen(). The one before that is random: one that a killed process
 * left there, maybe of the same number in another container, is in nobody's way.
 */
static bool listen_in(int directory, const char *file, int fd, int backlog)
{
    char temporary[32];
    uint64_t number;
    if (getrandom(&number, sizeof(number), 0) != sizeof(number))
        return false;
    snprintf(temporary, sizeof(temporary), ".listen-%016llx", (unsigned long long)number);
    struct sockaddr_un address = near(directory, temporary);
    if (fchmod(fd, 0600) != 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0)
        return false;
    remove_left_over(directory, file);
    if (listen(fd, backlog) == 0 && renameat2(directory, temporary, directory, file, RENAME_NOREPLACE) == 0)
        return true;
    int why = errno == EEXIST ? EADDRINUSE : errno;
    unlinkat(directory, temporary, 0);
    errno = why;
    return false;
}

/* Connecting goes by the whole path, so that one is what must fit. */
static bool fits(const char *path)
{
    return *path && strlen(path) < sizeof(((struct sockaddr_un *)0)->sun_path);
}

int listen_unix(const char *path, int flags, int backlog, struct error *err)
{
    char of_directory[PATH_MAX], of_file[PATH_MAX];
    if (!fits(path)) {
        error_set(err, "a socket's path has 1 to %zu characters", sizeof(((struct sockaddr_un *)0)->sun_path) - 1);
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(of_directory, path);
    strcpy(of_file, path);
    int directory = open(dirname(of_directory), O_PATH | O_DIRECTORY | O_CLOEXEC);
    int fd = directory < 0 ? -1 : socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    bool done = fd >= 0 && listen_in(directory, basename(of_file), fd, backlog);
    int why = errno;
    if (!done && fd >= 0)
        close(fd);
    if (directory >= 0)
        close(directory);
    if (!done)
        error_errno(err, why, "cannot listen on the socket %s", path);
    errno = why;
    return done ? fd : -1;
}
