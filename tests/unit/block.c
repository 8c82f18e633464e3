/* Block backends: data arrive whole, in both engines; errors are delivered; a locked image is refused by name. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "backend/block.h"
#include "base/base.h"
#include "base/error.h"
#include "base/loop.h"

enum { IMAGE_SIZE = 4 * 1024 * 1024, CONCURRENT = 300 };

struct fixture {
    char path[64];
    struct loop *loop;
    struct block *block;
    int engine;
};

struct tracked {
    struct block_request request;
    struct iovec iov;
    bool finished;
    int status;
};

static void on_done(struct block_request *request, int status)
{
    struct tracked *tracked = request->owner;
    tracked->finished = true;
    tracked->status = status;
}

static struct block *open_image(struct fixture *f, bool read_only, struct error *err)
{
    struct block_options options = { .path = f->path, .image = { .read_only = read_only }, .engine = f->engine };
    return block_open(&options, f->loop, NULL, NULL, err);
}

static void setup(struct fixture *f, int engine)
{
    strcpy(f->path, "/tmp/doppel-block-XXXXXX");
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, IMAGE_SIZE), 0);
    close(fd);
    f->engine = engine;
    f->loop = loop_create(NULL);
    struct error err;
    f->block = open_image(f, false, &err);
    if (!f->block && engine == BLOCK_ENGINE_URING) {
        unlink(f->path);
        skip();                 /* forbidden here */
    }
    assert_non_null(f->block);
}

static void teardown(struct fixture *f)
{
    block_close(f->block);
    loop_destroy(f->loop);
    unlink(f->path);
}

static void start(struct fixture *f, struct tracked *t, enum block_op op, uint64_t offset, void *data, uint64_t size)
{
    *t = (struct tracked){ .iov = { data, size } };
    t->request = (struct block_request){ .op = op, .offset = offset, .size = size, .iov = &t->iov, .iov_count = 1,
                                         .done = on_done, .owner = t };
    block_submit(f->block, &t->request);
    assert_false(t->finished);
}

static int wait_for(struct fixture *f, struct tracked *t)
{
    for (int i = 0; i < 1000 && !t->finished; i++)
        loop_run_once(f->loop, 1000);
    assert_true(t->finished);
    return t->status;
}

static int run(struct fixture *f, enum block_op op, uint64_t offset, void *data, uint64_t size)
{
    struct tracked t;
    start(f, &t, op, offset, data, size);
    return wait_for(f, &t);
}

static void check_data(int engine)
{
    struct fixture f;
    setup(&f, engine);
    uint8_t *out = malloc(65536), *in = calloc(1, 65536);
    for (int i = 0; i < 65536; i++)
        out[i] = (uint8_t)(i * 7 + i / 256);
    assert_int_equal(block_size(f.block), IMAGE_SIZE);
    assert_int_equal(run(&f, BLOCK_WRITE, 512 * 3, out, 65536), 0);
    assert_int_equal(run(&f, BLOCK_FLUSH, 0, NULL, 0), 0);
    assert_int_equal(run(&f, BLOCK_READ, 512 * 3, in, 65536), 0);
    assert_memory_equal(in, out, 65536);

    int fd = open(f.path, O_RDONLY);
    assert_int_equal(pread(fd, in, 65536, 512 * 3), 65536);
    assert_memory_equal(in, out, 65536);
    close(fd);
    free(out);
    free(in);
    teardown(&f);
}

static void check_many(int engine)
{
    struct fixture f;
    setup(&f, engine);
    struct tracked *t = calloc(CONCURRENT, sizeof(*t));
    uint8_t *data = malloc(CONCURRENT * 4096), *back = malloc(CONCURRENT * 4096);
    for (int i = 0; i < CONCURRENT; i++) {
        memset(data + i * 4096, i + 1, 4096);
        start(&f, &t[i], BLOCK_WRITE, (uint64_t)i * 4096, data + i * 4096, 4096);
    }
    block_drain(f.block);
    for (int i = 0; i < CONCURRENT; i++)
        assert_true(t[i].finished && t[i].status == 0);
    for (int i = 0; i < CONCURRENT; i++)
        start(&f, &t[i], BLOCK_READ, (uint64_t)i * 4096, back + i * 4096, 4096);
    for (int i = 0; i < CONCURRENT; i++)
        assert_int_equal(wait_for(&f, &t[i]), 0);
    assert_memory_equal(data, back, CONCURRENT * 4096);
    free(t);
    free(data);
    free(back);
    teardown(&f);
}

/* Rows of every length, more than the ring holds among them: each request completes, in block_unplug or on the loop. */
static void check_plugged(int engine)
{
    struct fixture f;
    setup(&f, engine);
    struct tracked *t = calloc(CONCURRENT, sizeof(*t));
    uint8_t *data = malloc(CONCURRENT * 4096);
    for (unsigned row = 1; row <= CONCURRENT; row += row < 8 ? 1 : 97) {
        for (int op = BLOCK_WRITE; op >= BLOCK_READ; op--) {
            memset(data, op == BLOCK_WRITE ? (int)row : 0, row * 4096);
            block_plug(f.block);
            for (unsigned i = 0; i < row; i++)
                start(&f, &t[i], op, (uint64_t)i * 4096, data + i * 4096, 4096);
            block_unplug(f.block);
            for (unsigned i = 0; i < row; i++)
                assert_int_equal(wait_for(&f, &t[i]), 0);
        }
        for (unsigned i = 0; i < row * 4096; i++)
            assert_int_equal(data[i], (uint8_t)row);
    }
    free(t);
    free(data);
    teardown(&f);
}

static void check_zeroes(int engine)
{
    struct fixture f;
    setup(&f, engine);
    uint8_t *data = malloc(IMAGE_SIZE), *zero = calloc(1, IMAGE_SIZE);
    for (enum block_op op = BLOCK_DISCARD; op <= BLOCK_WRITE_ZEROES; op++)
        for (int unmap = 0; unmap < 2; unmap++) {
            memset(data, 0xA5, IMAGE_SIZE);
            assert_int_equal(run(&f, BLOCK_WRITE, 0, data, IMAGE_SIZE), 0);
            struct tracked t = { .finished = false };
            t.request = (struct block_request){ .op = op, .offset = 4096, .size = IMAGE_SIZE - 8192, .unmap = unmap,
                                                .done = on_done, .owner = &t };
            block_submit(f.block, &t.request);
            assert_int_equal(wait_for(&f, &t), 0);
            assert_int_equal(run(&f, BLOCK_READ, 0, data, IMAGE_SIZE), 0);
            assert_int_equal(data[4095], 0xA5);
            assert_int_equal(data[IMAGE_SIZE - 4096], 0xA5);
            if (op == BLOCK_WRITE_ZEROES)
                assert_memory_equal(data + 4096, zero, IMAGE_SIZE - 8192);
        }
    free(data);
    free(zero);
    teardown(&f);
}

static void check_errors(int engine)
{
    struct fixture f;
    setup(&f, engine);
    uint8_t data[4096] = { 0 };
    assert_int_equal(run(&f, BLOCK_READ, IMAGE_SIZE, data, 512), EINVAL);
    assert_int_equal(run(&f, BLOCK_READ, UINT64_MAX - 511, data, 512), EINVAL);
    assert_int_equal(run(&f, BLOCK_WRITE, 100, data, 512), EINVAL);
    assert_int_equal(run(&f, BLOCK_READ, 0, data, 0), 0);
    assert_int_equal(truncate(f.path, 4096), 0);
    assert_int_equal(run(&f, BLOCK_READ, 8192, data, 4096), EIO);
    assert_int_equal(run(&f, BLOCK_READ, 0, data, 4096), 0);
    block_close(f.block);
    f.block = open_image(&f, true, NULL);
    assert_non_null(f.block);
    assert_true(block_read_only(f.block));
    assert_int_equal(run(&f, BLOCK_WRITE, 0, data, 512), EROFS);
    assert_int_equal(run(&f, BLOCK_FLUSH, 0, NULL, 0), 0);
    teardown(&f);
}

static void data_uring(void **state) { check_data(BLOCK_ENGINE_URING); }
static void data_threads(void **state) { check_data(BLOCK_ENGINE_THREADS); }
static void many_uring(void **state) { check_many(BLOCK_ENGINE_URING); }
static void many_threads(void **state) { check_many(BLOCK_ENGINE_THREADS); }
static void plugged_uring(void **state) { check_plugged(BLOCK_ENGINE_URING); }
static void plugged_threads(void **state) { check_plugged(BLOCK_ENGINE_THREADS); }
static void zeroes_uring(void **state) { check_zeroes(BLOCK_ENGINE_URING); }
static void zeroes_threads(void **state) { check_zeroes(BLOCK_ENGINE_THREADS); }
static void errors_uring(void **state) { check_errors(BLOCK_ENGINE_URING); }
static void errors_threads(void **state) { check_errors(BLOCK_ENGINE_THREADS); }

static void locked_image_is_refused_by_name(void **state)
{
    struct fixture f;
    struct error err = { "" };
    setup(&f, BLOCK_ENGINE_AUTO);
    assert_null(open_image(&f, false, &err));
    assert_non_null(strstr(err.text, f.path));
    assert_non_null(strstr(err.text, "in use"));
    assert_null(open_image(&f, true, &err));
    block_close(f.block);
    f.block = open_image(&f, true, &err);
    struct block *second = open_image(&f, true, &err);
    assert_non_null(second);    /* readers share */
    block_close(second);
    teardown(&f);
}

static void missing_image_is_named(void **state)
{
    struct error err = { "" };
    struct loop *loop = loop_create(NULL);
    struct block_options options = { .path = "/nonexistent/disk.img" };
    assert_null(block_open(&options, loop, NULL, NULL, &err));
    assert_non_null(strstr(err.text, "/nonexistent/disk.img"));
    options.path = "/tmp";
    options.image.read_only = true;
    assert_null(block_open(&options, loop, NULL, NULL, &err));
    loop_destroy(loop);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(data_uring),    cmocka_unit_test(data_threads),    cmocka_unit_test(many_uring),
        cmocka_unit_test(many_threads),  cmocka_unit_test(zeroes_uring),    cmocka_unit_test(zeroes_threads),
        cmocka_unit_test(errors_uring),  cmocka_unit_test(errors_threads),  cmocka_unit_test(locked_image_is_refused_by_name),
        cmocka_unit_test(plugged_uring), cmocka_unit_test(plugged_threads), cmocka_unit_test(missing_image_is_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
