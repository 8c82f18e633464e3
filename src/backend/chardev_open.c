/* How each kind of character backend opens and closes. */
#include "backend/chardev_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <termios.h>
#include <unistd.h>

#include "backend/terminal.h"
#include "base/listen.h"
#include "base/log.h"

static void set_nonblocking(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

/* --- stdio --- */

/*
 * Standard descriptors are shared with the shell and whoever else: making them non-blocking would reach them all. A terminal
 * or a pipe can be opened anew, with a mode of its own; all else is duplicated and written to with care.
 */
static int open_anew(int fd, int flags, bool *shared)
{
    struct stat st;
    char path[32];
    int result = -1;
    if (fstat(fd, &st) == 0 && (isatty(fd) || S_ISFIFO(st.st_mode))) {
        snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
        result = open(path, flags | O_NONBLOCK | O_NOCTTY | O_CLOEXEC);
    }
    *shared = result < 0;
    return result >= 0 ? result : fcntl(fd, F_DUPFD_CLOEXEC, 3);
}

static bool open_stdio(struct chardev *chardev, struct error *err)
{
    bool shared;
    chardev->kind = CHARDEV_STDIO;
    chardev->in_fd = open_anew(STDIN_FILENO, O_RDONLY, &shared);
    chardev->out_fd = open_anew(STDOUT_FILENO, O_WRONLY, &chardev->out_blocks);
    if (chardev->out_fd < 0)
        return error_errno(err, errno, "standard output cannot be used as the console");
    struct stat st;
    if (fstat(chardev->out_fd, &st) == 0 && S_ISREG(st.st_mode))
        chardev->out_blocks = false;    /* a file takes everything at once */
    if (chardev->in_fd >= 0) {
        chardev->is_terminal = isatty(chardev->in_fd);
        terminal_make_raw(chardev->in_fd);
    }
    struct sigaction old;
    if (sigaction(SIGPIPE, NULL, &old) == 0 && old.sa_handler == SIG_DFL)
        signal(SIGPIPE, SIG_IGN);       /* a reader that goes away must not end the machine */
    return true;
}

/* --- pty --- */

static void make_slave_raw(int fd)
{
    struct termios settings;
    if (tcgetattr(fd, &settings) != 0)
        return;
    cfmakeraw(&settings);
    tcsetattr(fd, TCSANOW, &settings);
}

/* We keep the slave side open ourselves: without it the master would report a hang-up for ever until someone connects. */
static bool open_pty(struct chardev *chardev, struct error *err)
{
    chardev->kind = CHARDEV_PTY;
    int fd = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, errno, "cannot make a pseudo-terminal");
    chardev->in_fd = fd;
    chardev->out_fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (chardev->out_fd < 0 || grantpt(fd) != 0 || unlockpt(fd) != 0 || ptsname_r(fd, chardev->name, sizeof(chardev->name)) != 0)
        return error_errno(err, errno, "cannot make a pseudo-terminal");
    chardev->other_fd = open(chardev->name, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (chardev->other_fd < 0)
        return error_errno(err, errno, "cannot open %s", chardev->name);
    make_slave_raw(chardev->other_fd);
    set_nonblocking(fd);
    return true;
}

/* --- file --- */

static bool open_file(struct chardev *chardev, const char *path, struct error *err)
{
    chardev->kind = CHARDEV_FILE;
    if (!*path)
        return error_set(err, "file: needs a path, as in file:console.log");
    chardev->out_fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    return chardev->out_fd >= 0 || error_errno(err, errno, "cannot write the file %s", path);
}

/* --- socket --- */

static void client_arrived(void *owner, uint32_t events)
{
    struct chardev *chardev = owner;
    int fd = accept4(chardev->other_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    if (chardev->lock)
        pthread_mutex_lock(chardev->lock);
    bool taken = chardev->in_fd >= 0;
    if (!taken) {
        chardev->in_fd = chardev->in_event.fd = fd;
        chardev->out_fd = chardev->out_event.fd = fcntl(fd, F_DUPFD_CLOEXEC, 3);
        chardev->in_ended = false;
        chardev->pending = 0;
    }
    if (chardev->lock)
        pthread_mutex_unlock(chardev->lock);
    if (taken)
        close(fd);              /* one at a time */
    else
        chardev_accept_input(chardev);
}

void chardev_socket_hung_up(struct chardev *chardev)
{
    if (chardev->lock)
        pthread_mutex_lock(chardev->lock);
    if (chardev->out_watched)
        loop_remove(chardev->loop, &chardev->out_event);
    chardev->out_watched = false;
    if (chardev->out_fd >= 0)
        close(chardev->out_fd);
    close(chardev->in_fd);
    chardev->in_fd = chardev->out_fd = -1;
    chardev->pending = 0;
    if (chardev->lock)
        pthread_mutex_unlock(chardev->lock);
}

static bool open_socket(struct chardev *chardev, const char *path, struct error *err)
{
    chardev->kind = CHARDEV_SOCKET;
    chardev->other_fd = listen_unix(path, SOCK_NONBLOCK, 1, err);
    if (chardev->other_fd < 0)
        return false;
    strcpy(chardev->name, path);
    chardev->listen_event = (struct loop_fd){ .fd = chardev->other_fd, .events = EPOLLIN, .ready = client_arrived,
                                              .owner = chardev };
    loop_add(chardev->loop, &chardev->listen_event);
    return true;
}
_Static_assert(sizeof(((struct sockaddr_un *)0)->sun_path) <= sizeof(((struct chardev *)0)->name), "a socket's path fits");

/* --- a socket that is open already: one end of a pair, or inherited --- */

static bool open_fd(struct chardev *chardev, const char *text, struct error *err)
{
    char *end;
    long fd = strtol(text, &end, 10);
    int type;
    socklen_t size = sizeof(type);
    chardev->kind = CHARDEV_SOCKET;
    if (!*text || *end || fd < 0 || fd > INT_MAX || getsockopt((int)fd, SOL_SOCKET, SO_TYPE, &type, &size) != 0 || type != SOCK_STREAM)
        return error_set(err, "fd:%s is not an open stream socket", text);
    chardev->in_fd = fcntl((int)fd, F_DUPFD_CLOEXEC, 3);
    chardev->out_fd = fcntl((int)fd, F_DUPFD_CLOEXEC, 3);
    if (chardev->in_fd < 0 || chardev->out_fd < 0)
        return error_errno(err, errno, "cannot use fd:%s", text);
    set_nonblocking(chardev->in_fd);
    return true;
}

/* --- all kinds --- */

static bool open_kind(struct chardev *chardev, const char *text, struct error *err)
{
    if (strcmp(text, "none") == 0)
        return true;
    if (strcmp(text, "stdio") == 0)
        return open_stdio(chardev, err);
    if (strcmp(text, "pty") == 0)
        return open_pty(chardev, err);
    if (strncmp(text, "file:", 5) == 0)
        return open_file(chardev, text + 5, err);
    if (strncmp(text, "socket:", 7) == 0)
        return open_socket(chardev, text + 7, err);
    if (strncmp(text, "fd:", 3) == 0)
        return open_fd(chardev, text + 3, err);
    return error_set(err, "\"%s\" is no console: use stdio, pty, file:PATH, socket:PATH, fd:N or none", text);
}

struct chardev *chardev_open(const char *text, struct loop *loop, pthread_mutex_t *lock, struct log *log, struct error *err)
{
    struct chardev *chardev = calloc(1, sizeof(*chardev));
    if (!chardev) {
        error_set(err, "out of memory");
        return NULL;
    }
    chardev->loop = loop;
    chardev->lock = lock;
    chardev->log = log;
    chardev->in_fd = chardev->out_fd = chardev->other_fd = -1;
    chardev->accept_work = (struct loop_work){ .run = chardev_accept_work, .owner = chardev };
    if (!open_kind(chardev, text, err)) {
        chardev_close(chardev);
        return NULL;
    }
    chardev->in_event = (struct loop_fd){ .fd = chardev->in_fd, .events = EPOLLIN, .ready = chardev_input_ready,
                                          .owner = chardev };
    chardev->out_event = (struct loop_fd){ .fd = chardev->out_fd, .events = EPOLLOUT, .ready = chardev_output_ready,
                                           .owner = chardev };
    return chardev;
}

/* As long as the reader keeps up. More than a safe piece might block for ever, and the end of the run with it. */
static void last_words(struct chardev *chardev)
{
    struct pollfd ready = { .fd = chardev->out_fd, .events = POLLOUT };
    for (size_t done = 0; done < chardev->pending && chardev->out_fd >= 0 && poll(&ready, 1, 100) == 1;) {
        size_t left = chardev->pending - done;
        ssize_t written = write(chardev->out_fd, chardev->buffer + done, left < CHARDEV_SAFE_WRITE ? left : CHARDEV_SAFE_WRITE);
        if (written <= 0)
            return;
        done += (size_t)written;
    }
}

void chardev_close(struct chardev *chardev)
{
    if (!chardev)
        return;
    last_words(chardev);
    if (chardev->in_watched)
        loop_remove(chardev->loop, &chardev->in_event);
    if (chardev->out_watched)
        loop_remove(chardev->loop, &chardev->out_event);
    if (chardev->listen_event.added)
        loop_remove(chardev->loop, &chardev->listen_event);
    if (chardev->kind == CHARDEV_STDIO && chardev->in_fd >= 0)
        terminal_restore(chardev->in_fd);
    if (chardev->kind == CHARDEV_SOCKET && chardev->name[0])
        unlink(chardev->name);
    loop_cancel(chardev->loop, &chardev->accept_work);
    if (chardev->out_fd >= 0)
        close(chardev->out_fd);
    if (chardev->in_fd >= 0)
        close(chardev->in_fd);
    if (chardev->other_fd >= 0)
        close(chardev->other_fd);
    byte_queue_free(&chardev->device.held);
    byte_queue_free(&chardev->divert.held);
    free(chardev);
}
