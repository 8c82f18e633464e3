/*
 * Terminals in raw mode and their restoration: at exit, on signals that end or stop the process, and by hand. A slot is
 * claimed, filled, and only then marked ready, so that a handler never reads a half-written one. Reclaiming a slot is
 * idempotent: tcsetattr is async-signal-safe (POSIX.1-2017 §2.4.3) and may be done twice.
 */
#include "backend/terminal.h"

#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "backend/chardev.h"
#include "base/base.h"

enum { TERMINALS_MAX = 4 };
enum slot_state { SLOT_FREE, SLOT_CLAIMED, SLOT_RAW };

static struct {
    atomic_int state;
    int fd;
    struct termios before, raw;
} terminals[TERMINALS_MAX];

static atomic_bool handlers_installed;

static const int deadly_signals[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS, SIGTSTP };

static void set_all(bool raw)
{
    for (unsigned i = 0; i < ARRAY_SIZE(terminals); i++)
        if (atomic_load(&terminals[i].state) == SLOT_RAW)
            tcsetattr(terminals[i].fd, TCSANOW, raw ? &terminals[i].raw : &terminals[i].before);
}

void chardev_restore_terminals(void) { set_all(false); }

/* SA_RESETHAND has put the default action back; it is taken as soon as this handler returns. */
static void on_deadly_signal(int number)
{
    set_all(false);
    raise(number);
}

/* `fg` after a stop: raw again, and the next stop is to be seen again. */
static void on_continue(int number)
{
    struct sigaction action = { .sa_handler = on_deadly_signal, .sa_flags = (int)SA_RESETHAND };
    (void)number;
    sigaction(SIGTSTP, &action, NULL);
    set_all(true);
}

/* Only where nobody else has taken the signal: whoever does so later calls chardev_restore_terminals himself. */
static void handle_if_default(int number, void (*handler)(int number), int flags)
{
    struct sigaction old, action = { .sa_handler = handler, .sa_flags = flags };
    if (sigaction(number, NULL, &old) == 0 && !(old.sa_flags & SA_SIGINFO) && old.sa_handler == SIG_DFL)
        sigaction(number, &action, NULL);
}

static void install_handlers(void)
{
    if (atomic_exchange(&handlers_installed, true))
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(deadly_signals); i++)
        handle_if_default(deadly_signals[i], on_deadly_signal, (int)SA_RESETHAND);
    handle_if_default(SIGCONT, on_continue, SA_RESTART);
    atexit(chardev_restore_terminals);
}

/*
 * Every key goes to the guest, Ctrl-C and Ctrl-Z too. Output processing stays on: messages of our own end their lines
 * with a newline only.
 */
static void make_raw(struct termios *settings)
{
    settings->c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
    settings->c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN | ISIG);
    settings->c_cflag = (settings->c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
    settings->c_cc[VMIN] = 1;
    settings->c_cc[VTIME] = 0;
}

static int find(int fd)
{
    for (unsigned i = 0; i < ARRAY_SIZE(terminals); i++)
        if (atomic_load(&terminals[i].state) == SLOT_RAW && terminals[i].fd == fd)
            return (int)i;
    return -1;
}

void terminal_make_raw(int fd)
{
    struct termios before;
    if (find(fd) >= 0 || tcgetattr(fd, &before) != 0)
        return;
    for (unsigned i = 0; i < ARRAY_SIZE(terminals); i++) {
        int expected = SLOT_FREE;
        if (!atomic_compare_exchange_strong(&terminals[i].state, &expected, SLOT_CLAIMED))
            continue;
        terminals[i].fd = fd;
        terminals[i].before = terminals[i].raw = before;
        make_raw(&terminals[i].raw);
        install_handlers();
        atomic_store(&terminals[i].state, SLOT_RAW);
        tcsetattr(fd, TCSANOW, &terminals[i].raw);
        return;
    }
}

void terminal_restore(int fd)
{
    int slot = find(fd);
    if (slot < 0)
        return;
    tcsetattr(fd, TCSANOW, &terminals[slot].before);
    atomic_store(&terminals[slot].state, SLOT_FREE);
}
