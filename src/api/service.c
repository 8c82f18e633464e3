#include "api/service.h"

#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/listen.h"

int service_listeners(void)
{
    enum { COUNT_MAX = 64 };
    const char *pid = getenv("LISTEN_PID"), *count = getenv("LISTEN_FDS");
    int found = pid && count && atoi(pid) == getpid() ? atoi(count) : 0;
    unsetenv("LISTEN_PID");
    unsetenv("LISTEN_FDS");
    unsetenv("LISTEN_FDNAMES");
    if (found < 0 || found > COUNT_MAX)
        return 0;
    for (int fd = SERVICE_FIRST_FD; fd < SERVICE_FIRST_FD + found; fd++)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return found;
}

static int socket_option(int fd, int option)
{
    int value = -1;
    socklen_t size = sizeof(value);
    return getsockopt(fd, SOL_SOCKET, option, &value, &size) == 0 ? value : -1;
}

bool service_check_listener(int fd, struct error *err)
{
    return (socket_option(fd, SO_DOMAIN) == AF_UNIX && socket_option(fd, SO_TYPE) == SOCK_STREAM &&
            socket_option(fd, SO_ACCEPTCONN) == 1) ||
           error_set(err, "descriptor %d is not a listening Unix stream socket", fd);
}

static int inherited(const char *number, struct error *err)
{
    char *end;
    long fd = strtol(number, &end, 10);
    if (!*number || *end || fd < 0 || fd > INT_MAX) {
        error_set(err, "--api-socket fd=%s: that is not a descriptor's number", number);
        return -1;
    }
    if (!service_check_listener((int)fd, err))
        return -1;
    fcntl((int)fd, F_SETFD, FD_CLOEXEC);
    return (int)fd;
}

int service_open_listener(const char *text, const char **path, struct error *err)
{
    *path = NULL;
    if (!strncmp(text, "fd=", 3))
        return inherited(text + 3, err);
    const char *name = strncmp(text, "path=", 5) ? text : text + 5;
    int fd = listen_unix(name, 0, SOMAXCONN, err);
    if (fd >= 0)
        *path = name;
    return fd;
}

/* A name that begins with @ is in the abstract space: its first byte is zero, and its length counts. */
void service_notify(const char *state)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    const char *name = getenv("NOTIFY_SOCKET");
    size_t length = name ? strlen(name) : 0;
    if (length < 2 || length >= sizeof(address.sun_path) || (*name != '/' && *name != '@'))
        return;
    memcpy(address.sun_path, name, length);
    if (*name == '@')
        address.sun_path[0] = 0;
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return;
    sendto(fd, state, strlen(state), MSG_NOSIGNAL, (struct sockaddr *)&address,
           (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
    close(fd);
}
