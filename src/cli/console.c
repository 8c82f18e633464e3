/*
 * `doppel console`: this terminal on a machine's shared console. One end of a socket pair is sent along with the request; from then on
 * bytes go both ways, until Ctrl-A d or the machine's end.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/chardev.h"
#include "backend/terminal.h"
#include "base/byte_queue.h"
#include "base/io.h"
#include "cli/arguments.h"
#include "cli/remote.h"

enum { CTRL_A = 1, BACKLOG = 2048, READ = 512, TYPED_MOST = 1 << 20 };

struct session {
    int line;
    bool is_terminal, escaped, input_ended;
    struct byte_queue typed;            /* and not taken by the machine yet: the escape key works meanwhile */
};

static const char help[] = "\r\nCtrl-A d  detach; the machine goes on\r\nCtrl-A a  send Ctrl-A to the guest\r\nCtrl-A h  this help\r\n";

/* The key after Ctrl-A. False: the session is over. */
static bool escape_key(struct session *session, char key)
{
    if (key == 'd' || key == 'x')
        return false;
    if (key == CTRL_A || key == 'a')
        byte_queue_add(&session->typed, &(char){ CTRL_A }, 1);
    return key != 'h' || io_write_all(STDOUT_FILENO, help, sizeof(help) - 1);
}

/* Room for `size` bytes is reserved. False: the session is over. */
static bool type(struct session *session, const char *data, size_t size)
{
    for (size_t i = 0; i < size; i++) {
        if (session->escaped) {
            session->escaped = false;
            if (!escape_key(session, data[i]))
                return false;
        } else if (session->is_terminal && data[i] == CTRL_A) {
            session->escaped = true;
        } else {
            byte_queue_add(&session->typed, &data[i], 1);
        }
    }
    return true;
}

/* Without a terminal the end of the input is not the end of the session: there may be answers. */
static bool read_input(struct session *session)
{
    char data[READ];
    if (!byte_queue_reserve(&session->typed, sizeof(data)))
        return false;
    ssize_t size = read(STDIN_FILENO, data, sizeof(data));
    if (size < 0 && errno == EINTR)
        return true;
    session->input_ended = size <= 0;
    return size > 0 ? type(session, data, (size_t)size) : !session->is_terminal;
}

/* False: the machine has ended, or nobody reads our output any more. */
static bool show(const struct session *session)
{
    char data[4096];
    ssize_t size = read(session->line, data, sizeof(data));
    if (size < 0 && errno == EINTR)
        return true;
    return size > 0 && io_write_all(STDOUT_FILENO, data, (size_t)size);
}

/* As much as the machine takes now. */
static void send_typed(struct session *session)
{
    ssize_t sent = 0;
    if (session->typed.size)
        sent = send(session->line, byte_queue_first(&session->typed), session->typed.size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (sent > 0)
        byte_queue_drop(&session->typed, (size_t)sent);
}

/* True: detached; false: the other side has ended. */
static bool run(struct session *session)
{
    for (;;) {
        bool reads = !session->input_ended && session->typed.size < TYPED_MOST;
        struct pollfd fds[2] = { { .fd = session->line, .events = (short)(POLLIN | (session->typed.size ? POLLOUT : 0)) },
                                 { .fd = reads ? STDIN_FILENO : -1, .events = POLLIN } };
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            return false;
        if (fds[0].revents & ~POLLOUT && !show(session))
            return false;
        bool detached = fds[1].revents && !read_input(session);
        send_typed(session);
        if (detached)
            return true;
    }
}

static int attach(struct client *client, const char *name)
{
    struct session session = { .is_terminal = isatty(STDIN_FILENO) };
    struct client_answer answer;
    struct error err;
    int pair[2], status = EXIT_DONE;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) != 0) {
        error_errno(&err, errno, "cannot make a line");
        return remote_complain(name, &err, EXIT_HOST_ERROR);
    }
    session.line = pair[0];
    bool attached = client_call(client, "PUT", "/doppel/v1/console", json_pack("{s:i}", "backlog", BACKLOG), pair[1], &answer, &err);
    close(pair[1]);
    if (!attached) {
        status = remote_failed(name, &answer, &err);
    } else {
        signal(SIGPIPE, SIG_IGN);
        if (session.is_terminal)
            fprintf(stderr, "doppel: this is the console of %s; Ctrl-A d detaches it\n", name);
        terminal_make_raw(STDIN_FILENO);
        bool detached = run(&session);
        chardev_restore_terminals();
        if (session.is_terminal)
            fprintf(stderr, "\ndoppel: %s\n", detached ? "detached" : "the machine has ended");
        if (detached && session.typed.size)
            fprintf(stderr, "doppel: the guest has not read all that was typed; %zu bytes are lost\n", session.typed.size);
        byte_queue_free(&session.typed);
    }
    client_answer_end(&answer);
    close(pair[0]);
    return status;
}

int command_console(int argc, char **argv)
{
    struct arguments arguments;
    int status = arguments_parse(&arguments, COMMAND_console, 1, 1, argc, argv);
    if (status >= 0)
        return status;
    struct client *client = remote_open(arguments.word[0], REMOTE_SECONDS, &status);
    if (client)
        status = attach(client, arguments.word[0]);
    client_close(client);
    return status;
}
