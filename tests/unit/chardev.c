/* Character backends: bytes go both ways, room is respected, the escape key works, terminals are put back. */
#include <errno.h>
#include <fcntl.h>


#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "backend/chardev.h"
#include "base/error.h"
#include "base/io.h"
#include "base/loop.h"

struct guest {
    uint8_t data[4096];
    size_t size, room;
    char keys[16];
    unsigned key_count;
};

static size_t guest_room(void *owner) { return ((struct guest *)owner)->room; }

static void guest_receive(void *owner, const uint8_t *data, size_t size)
{
    struct guest *guest = owner;
    assert_true(size <= guest->room);
    memcpy(guest->data + guest->size, data, size);
    guest->size += size;
    guest->room -= size;
}

static void guest_key(void *owner, char key)
{
    struct guest *guest = owner;
    guest->keys[guest->key_count++] = key;
}

static void spin(struct loop *loop)
{
    for (int i = 0; i < 20; i++)
        loop_run_once(loop, 5);
}

static void pty_carries_bytes_both_ways(void **state)
{
    struct loop *loop = loop_create(NULL);
    struct error err;
    struct guest guest = { .room = 3 };
    struct chardev *chardev = chardev_open("pty", loop, NULL, NULL, &err);
    assert_non_null(chardev);
    chardev_connect(chardev, &(struct chardev_client){ guest_room, guest_receive, &guest });
    int fd = open(chardev_name(chardev), O_RDWR | O_NOCTTY);
    assert_true(fd >= 0);
    char back[32];
    assert_int_equal(chardev_write(chardev, "login: \r\n", 9), 9);
    assert_int_equal(read(fd, back, sizeof(back)), 9);
    assert_memory_equal(back, "login: \r\n", 9);
    assert_int_equal(write(fd, "root\r", 5), 5);
    spin(loop);
    assert_int_equal(guest.size, 3);            /* no more than it had room for */
    guest.room = 100;
    chardev_accept_input(chardev);
    spin(loop);
    assert_int_equal(guest.size, 5);
    assert_memory_equal(guest.data, "root\r", 5);
    close(fd);
    for (int i = 0; i < 100; i++) {             /* nobody reads: nothing blocks */
        char line[1024] = { 'x' };
        assert_int_equal(chardev_write(chardev, line, sizeof(line)), sizeof(line));
    }
    chardev_close(chardev);
    loop_destroy(loop);
}

static void file_takes_output(void **state)
{
    char path[] = "/tmp/doppel-chardev-XXXXXX", text[64], back[16];
    close(mkstemp(path));
    struct loop *loop = loop_create(NULL);
    struct error err;
    snprintf(text, sizeof(text), "file:%s", path);
    struct chardev *chardev = chardev_open(text, loop, NULL, NULL, &err);
    assert_non_null(chardev);
    assert_int_equal(chardev_write(chardev, "hello", 5), 5);
    chardev_close(chardev);
    int fd = open(path, O_RDONLY);
    assert_int_equal(read(fd, back, sizeof(back)), 5);
    close(fd);
    unlink(path);
    loop_destroy(loop);
}

static int dial(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void socket_serves_one_after_the_other(void **state)
{
    char path[] = "/tmp/doppel-socket-XXXXXX", text[64], back[16];
    close(mkstemp(path));
    unlink(path);
    struct loop *loop = loop_create(NULL);
    struct error err;
    struct guest guest = { .room = 100 };
    snprintf(text, sizeof(text), "socket:%s", path);
    struct chardev *chardev = chardev_open(text, loop, NULL, NULL, &err);
    assert_non_null(chardev);
    chardev_connect(chardev, &(struct chardev_client){ guest_room, guest_receive, &guest });
    assert_int_equal(chardev_write(chardev, "lost", 4), 4);
    for (int i = 0; i < 2; i++) {
        int fd = dial(path);
        spin(loop);
        assert_int_equal(write(fd, "abc", 3), 3);
        spin(loop);
        assert_int_equal(guest.size, 3 * (i + 1));
        assert_int_equal(chardev_write(chardev, "xyz", 3), 3);
        assert_int_equal(read(fd, back, sizeof(back)), 3);
        assert_memory_equal(back, "xyz", 3);
        close(fd);
        spin(loop);
    }
    chardev_close(chardev);
    assert_int_equal(access(path, F_OK), -1);
    loop_destroy(loop);
}

static void none_takes_all(void **state)
{
    struct loop *loop = loop_create(NULL);
    struct error err;
    struct chardev *chardev = chardev_open("none", loop, NULL, NULL, &err);
    assert_int_equal(chardev_write(chardev, "abc", 3), 3);
    chardev_close(chardev);
    assert_null(chardev_open("teletype", loop, NULL, NULL, &err));
    assert_non_null(strstr(err.text, "teletype"));
    loop_destroy(loop);
}

/* In a child whose standard descriptors are a pseudo-terminal. Returns the master; the child runs `body`. */
static int on_terminal(int (*body)(void), pid_t *child, char *slave_name, size_t size)
{
    int master = posix_openpt(O_RDWR | O_NOCTTY);
    assert_true(master >= 0 && grantpt(master) == 0 && unlockpt(master) == 0);
    assert_int_equal(ptsname_r(master, slave_name, size), 0);
    *child = fork();
    if (*child == 0) {
        for (int i = 1; i < 32; i++)
            signal(i, SIG_DFL);         /* the test library has handlers of its own */
        setsid();
        int slave = open(slave_name, O_RDWR);
        dup2(slave, 0);
        dup2(slave, 1);
        close(master);
        _exit(body());
    }
    return master;
}

static bool is_raw(int fd)
{
    struct termios settings;
    return tcgetattr(fd, &settings) == 0 && !(settings.c_lflag & (ICANON | ECHO));
}

static int escape_body(void)
{
    struct loop *loop = loop_create(NULL);
    struct guest guest = { .room = 100 };
    struct chardev *chardev = chardev_open("stdio", loop, NULL, NULL, NULL);
    if (!chardev || !is_raw(0))
        return 1;
    chardev_connect(chardev, &(struct chardev_client){ guest_room, guest_receive, &guest });
    chardev_on_escape(chardev, &(struct chardev_escape){ guest_key, &guest });
    chardev_write(chardev, "ready", 5);
    for (int i = 0; i < 200 && guest.key_count < 2; i++)
        loop_run_once(loop, 50);
    if (guest.key_count != 2 || memcmp(guest.keys, "cx", 2) != 0)
        return 2;
    if (guest.size != 6 || memcmp(guest.data, "ab\x01\x01\x03z", 6) != 0)
        return 3;
    chardev_close(chardev);
    return is_raw(0) ? 4 : 0;
}

static void escape_key_is_taken_out_and_the_terminal_restored(void **state)
{
    pid_t child;
    char name[64], back[16];
    int status, master = on_terminal(escape_body, &child, name, sizeof(name));
    assert_int_equal(read(master, back, 5), 5);
    /* Split across reads on purpose: the escape key and what it means may come apart. */
    assert_int_equal(write(master, "ab\x01", 3), 3);
    usleep(20000);
    assert_int_equal(write(master, "c\x01\x01\x01" "a\x03z\x01h\x01x", 11), 11);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(master);
}

/* What is pasted; no byte of it is the escape key. */
enum { PASTED = 3 << 19, PASTED_BEFORE_KEY = 100 * 1024 };
static uint8_t pasted(size_t i) { return (uint8_t)(' ' + (i ^ i >> 8) % 90); }

struct slow_guest {
    size_t room, taken, wrong;
    bool key;
};

static size_t slow_room(void *owner) { return ((struct slow_guest *)owner)->room; }

static void slow_receive(void *owner, const uint8_t *data, size_t size)
{
    struct slow_guest *guest = owner;
    for (size_t i = 0; i < size; i++)
        guest->wrong += data[i] != pasted(guest->taken++);
    guest->room -= size;
}

static void slow_key(void *owner, char key) { ((struct slow_guest *)owner)->key = key == 'c'; }

static int paste_body(void)
{
    enum { FIFO = 16 };
    struct loop *loop = loop_create(NULL);
    struct slow_guest guest = { 0 };
    struct chardev *chardev = chardev_open("stdio", loop, NULL, NULL, NULL);
    if (!chardev)
        return 1;
    chardev_connect(chardev, &(struct chardev_client){ slow_room, slow_receive, &guest });
    chardev_on_escape(chardev, &(struct chardev_escape){ slow_key, &guest });
    chardev_write(chardev, "ready", 5);
    while (!guest.key)
        loop_run_once(loop, -1);
    if (guest.taken)
        return 2;
    while (guest.taken < PASTED) {
        guest.room = FIFO;
        chardev_accept_input(chardev);
        loop_run_once(loop, -1);
    }
    chardev_close(chardev);
    return guest.wrong ? 3 : 0;
}

/* More than is held for a guest that reads nothing: the escape key works meanwhile, and then the terminal waits. */
static void what_is_pasted_arrives_however_slowly_the_guest_reads(void **state)
{
    pid_t child;
    char name[64], back[16];
    static uint8_t text[PASTED];
    int status, master = on_terminal(paste_body, &child, name, sizeof(name));
    for (size_t i = 0; i < PASTED; i++)
        text[i] = pasted(i);
    assert_int_equal(read(master, back, 5), 5);
    assert_true(io_write_all(master, text, PASTED_BEFORE_KEY));
    assert_true(io_write_all(master, "\x01" "c", 2));
    assert_true(io_write_all(master, text + PASTED_BEFORE_KEY, PASTED - PASTED_BEFORE_KEY));
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    close(master);
}

static int signal_body(void)
{
    struct loop *loop = loop_create(NULL);
    struct chardev *chardev = chardev_open("stdio", loop, NULL, NULL, NULL);
    if (!chardev || !is_raw(0))
        return 1;
    chardev_write(chardev, "ready", 5);
    for (;;)
        pause();
}

static void fatal_signals_restore_the_terminal(void **state)
{
    static const int signals[] = { SIGTERM, SIGSEGV, SIGABRT };
    for (unsigned i = 0; i < 3; i++) {
        pid_t child;
        char name[64], back[16];
        int status, master = on_terminal(signal_body, &child, name, sizeof(name));
        int slave = open(name, O_RDWR | O_NOCTTY);
        assert_int_equal(read(master, back, 5), 5);
        assert_true(is_raw(slave));
        kill(child, signals[i]);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), signals[i]);
        assert_false(is_raw(slave));
        close(slave);
        close(master);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pty_carries_bytes_both_ways),
        cmocka_unit_test(file_takes_output),
        cmocka_unit_test(socket_serves_one_after_the_other),
        cmocka_unit_test(none_takes_all),
        cmocka_unit_test(escape_key_is_taken_out_and_the_terminal_restored),
        cmocka_unit_test(what_is_pasted_arrives_however_slowly_the_guest_reads),
        cmocka_unit_test(fatal_signals_restore_the_terminal),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
