/*
 * Disks on NBD servers: nbdkit with its filters for errors and delays, and with the plug pulled. What a request reported as done is
 * done, what failed is reported, and nothing waits for ever.
 */
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "backend/block.h"
#include "base/base.h"
#include "base/error.h"
#include "base/loop.h"
#include "fuzz/mutate.h"

enum { SIZE = 32 << 20, REQUESTS = 120, PIECE = 16 * 1024 };

static char directory[] = "/tmp/doppel-nbd-XXXXXX";

/* --- a server --- */

struct server {
    char socket[64], uri[128];
    pid_t pid;
};

static void start_server(struct server *server, const char *first, ...)
{
    static unsigned count;
    char *argv[16] = { "nbdkit", "-f", "-U", server->socket };
    int words = 4;
    snprintf(server->socket, sizeof(server->socket), "%s/s%u", directory, count++);
    snprintf(server->uri, sizeof(server->uri), "nbd+unix:///?socket=%s", server->socket);
    va_list args;
    va_start(args, first);
    for (const char *word = first; word; word = va_arg(args, const char *))
        argv[words++] = (char *)word;
    va_end(args);
    server->pid = fork();
    if (!server->pid) {
        execvp(argv[0], argv);
        _exit(127);
    }
    for (int i = 0; i < 500 && access(server->socket, F_OK); i++)
        usleep(20000);
    assert_int_equal(access(server->socket, F_OK), 0);
}

static void stop_server(struct server *server)
{
    kill(server->pid, SIGKILL);
    waitpid(server->pid, NULL, 0);
    unlink(server->socket);
}

/* --- requests --- */

struct tracked {
    struct block_request request;
    struct iovec iov[2];
    uint8_t data[PIECE];
    int status;                 /* -1: under way */
};

static void on_done(struct block_request *request, int status)
{
    ((struct tracked *)request->owner)->status = status;
}

static void start(struct block *block, struct tracked *t, enum block_op op, uint64_t offset)
{
    t->status = -1;
    t->iov[0] = (struct iovec){ t->data, PIECE / 4 };
    t->iov[1] = (struct iovec){ t->data + PIECE / 4, PIECE - PIECE / 4 };
    t->request = (struct block_request){ .op = op, .offset = offset, .size = op == BLOCK_FLUSH ? 0 : PIECE, .iov = t->iov, .iov_count = 2,
                                         .done = on_done, .owner = t };
    block_submit(block, &t->request);
}

static struct block *open_block(const struct server *server, struct disk_image_options image, struct loop *loop)
{
    struct error err = { "" };
    const struct block_options options = { .path = server->uri, .image = image };
    struct block *block = block_open(&options, loop, NULL, NULL, &err);
    if (!block)
        fail_msg("%s", err.text);
    return block;
}

static uint64_t place(unsigned i)
{
    return (uint64_t)(i * 37 % REQUESTS) * PIECE;
}

static struct tracked *write_all(struct block *block, uint8_t stamp)
{
    struct tracked *t = calloc(REQUESTS + 1, sizeof(*t));
    for (unsigned i = 0; i < REQUESTS; i++) {
        memset(t[i].data, (int)(i + stamp), PIECE);
        start(block, &t[i], BLOCK_WRITE, place(i));
    }
    block_drain(block);
    start(block, &t[REQUESTS], BLOCK_FLUSH, 0);
    block_drain(block);
    return t;
}

/* What was reported as written is there. */
static void compare(struct block *block, const struct tracked *written)
{
    struct tracked *t = calloc(REQUESTS, sizeof(*t));
    for (unsigned i = 0; i < REQUESTS; i++)
        start(block, &t[i], BLOCK_READ, place(i));
    block_drain(block);
    for (unsigned i = 0; i < REQUESTS; i++) {
        assert_int_equal(t[i].status, 0);
        if (!written[i].status)
            assert_memory_equal(t[i].data, written[i].data, PIECE);
    }
    free(t);
}

/* --- tests --- */

static void what_is_written_is_there(void **state)
{
    struct server server;
    struct loop *loop = loop_create(NULL);
    start_server(&server, "memory", "32M", NULL);
    struct block *block = open_block(&server, (struct disk_image_options){ 0 }, loop);
    assert_int_equal(block_size(block), SIZE);
    struct tracked *written = write_all(block, 1);
    for (unsigned i = 0; i <= REQUESTS; i++)
        assert_int_equal(written[i].status, 0);
    compare(block, written);
    block_close(block);
    block = open_block(&server, (struct disk_image_options){ 0 }, loop);
    compare(block, written);
    block_close(block);
    free(written);
    stop_server(&server);
    loop_destroy(loop);
}

static void errors_arrive_as_errors_and_no_write_is_lost(void **state)
{
    struct server server;
    struct loop *loop = loop_create(NULL);
    start_server(&server, "--filter=error", "memory", "32M", "error=ENOSPC", "error-pwrite-rate=30%", NULL);
    struct block *block = open_block(&server, (struct disk_image_options){ 0 }, loop);
    unsigned failed = 0, succeeded = 0;
    for (unsigned round = 0; round < 3; round++) {
        struct tracked *written = write_all(block, (uint8_t)round);
        for (unsigned i = 0; i < REQUESTS; i++) {
            assert_true(written[i].status == 0 || written[i].status == ENOSPC);
            failed += written[i].status != 0;
            succeeded += written[i].status == 0;
        }
        compare(block, written);
        free(written);
    }
    assert_true(failed && succeeded);
    block_close(block);
    stop_server(&server);
    loop_destroy(loop);
}

static void a_slow_server_is_waited_for(void **state)
{
    struct server server;
    struct loop *loop = loop_create(NULL);
    start_server(&server, "--filter=delay", "memory", "32M", "rdelay=30ms", "wdelay=50ms", NULL);
    struct block *block = open_block(&server, (struct disk_image_options){ 0 }, loop);
    struct tracked *written = write_all(block, 9);
    for (unsigned i = 0; i <= REQUESTS; i++)
        assert_int_equal(written[i].status, 0);
    compare(block, written);
    free(written);
    block_close(block);
    stop_server(&server);
    loop_destroy(loop);
}

/* In mid-traffic: everything is answered, with an error, and so is what comes later. */
static void a_server_that_dies_leaves_nothing_hanging(void **state)
{
    struct server server;
    struct loop *loop = loop_create(NULL);
    start_server(&server, "--filter=delay", "memory", "32M", "wdelay=500ms", NULL);
    struct block *block = open_block(&server, (struct disk_image_options){ 0 }, loop);
    struct tracked *t = calloc(REQUESTS, sizeof(*t));
    for (unsigned i = 0; i < REQUESTS; i++)
        start(block, &t[i], BLOCK_WRITE, place(i));
    usleep(100000);
    stop_server(&server);
    block_drain(block);
    for (unsigned i = 0; i < REQUESTS; i++)
        assert_true(t[i].status > 0);
    start(block, &t[0], BLOCK_READ, 0);
    start(block, &t[1], BLOCK_FLUSH, 0);
    block_drain(block);
    assert_true(t[0].status > 0 && t[1].status > 0);
    block_close(block);
    free(t);
    loop_destroy(loop);
}

static void formats_and_overlays_work_on_it(void **state)
{
    struct server server;
    struct loop *loop = loop_create(NULL);
    start_server(&server, "memory", "32M", NULL);
    struct block *block = open_block(&server, (struct disk_image_options){ 0 }, loop);
    struct tracked *written = write_all(block, 3);
    block_close(block);
    block = open_block(&server, (struct disk_image_options){ .ephemeral = true }, loop);
    compare(block, written);
    free(write_all(block, 200));
    block_close(block);
    block = open_block(&server, (struct disk_image_options){ .read_only = true }, loop);
    compare(block, written);        /* untouched */
    block_close(block);
    free(written);
    stop_server(&server);
    char command[300];
    snprintf(command, sizeof(command), "qemu-img create -q -f qcow2 -o preallocation=full %s/q.qcow2 20M", directory);
    assert_int_equal(system(command), 0);
    snprintf(command, sizeof(command), "file=%s/q.qcow2", directory);
    start_server(&server, "file", command, NULL);
    block = open_block(&server, (struct disk_image_options){ .format = DISK_FORMAT_QCOW2 }, loop);
    assert_int_equal(block_size(block), 20 * MiB);
    written = write_all(block, 5);
    compare(block, written);
    block_close(block);
    free(written);
    stop_server(&server);
    loop_destroy(loop);
}

static void refused(const char *uri, struct disk_image_options image, const char *reason)
{
    struct loop *loop = loop_create(NULL);
    struct error err = { "" };
    const struct block_options options = { .path = uri, .image = image };
    struct block *block = block_open(&options, loop, NULL, NULL, &err);
    if (block || !strstr(err.text, reason))
        fail_msg("'%s' instead of '%s'", err.text, reason);
    loop_destroy(loop);
}

static void what_cannot_be_used_is_refused(void **state)
{
    struct server server;
    refused("nbd+unix:///?socket=/nonexistent/socket", (struct disk_image_options){ 0 }, "No such file");
    start_server(&server, "-r", "memory", "1M", NULL);
    refused(server.uri, (struct disk_image_options){ 0 }, "can only be read");
    refused(server.uri, (struct disk_image_options){ .read_only = true, .direct = true }, "direct is for raw images");
    stop_server(&server);
}

static int begin(void **state)
{
    signal(SIGPIPE, SIG_IGN);
    return mkdtemp(directory) ? 0 : -1;
}

static int end(void **state)
{
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", directory);
    return system(command);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_there),
        cmocka_unit_test(errors_arrive_as_errors_and_no_write_is_lost),
        cmocka_unit_test(a_slow_server_is_waited_for),
        cmocka_unit_test(a_server_that_dies_leaves_nothing_hanging),
        cmocka_unit_test(formats_and_overlays_work_on_it),
        cmocka_unit_test(what_cannot_be_used_is_refused),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
