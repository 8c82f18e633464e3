/* The file of sections: what is written is read back; whatever is damaged is refused, with its place named. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "base/base.h"
#include "base/error.h"
#include "state/container.h"
#include "state/stream.h"

static void fill(struct container *container)
{
    static const char *const names[] = { "manifest", "vcpu/0", "empty", "ram/0" };
    for (unsigned i = 0; i < ARRAY_SIZE(names); i++) {
        struct state_buffer *content = container_add(container, names[i]);
        if (!strcmp(names[i], "empty"))
            continue;
        uint8_t *bytes = state_buffer_append(content, 100 * (i + 1));
        memset(bytes, (int)i + 1, 100 * (i + 1));
    }
}

/* The bytes of a container's file. */
static uint8_t *file_of(const struct container *container, size_t *size)
{
    char directory[] = "/tmp/doppel-container-XXXXXX", path[64];
    struct error err;
    assert_non_null(mkdtemp(directory));
    int fd = open(directory, O_RDONLY | O_DIRECTORY);
    if (!container_write(container, fd, "state", &err))
        fail_msg("%s", err.text);
    int file = openat(fd, "state", O_RDONLY);
    *size = (size_t)lseek(file, 0, SEEK_END);
    uint8_t *bytes = malloc(*size);
    assert_int_equal(pread(file, bytes, *size, 0), *size);
    struct container again = { 0 };
    if (!container_read(&again, fd, "state", &err))
        fail_msg("%s", err.text);
    assert_int_equal(again.count, container->count);
    container_free(&again);
    close(file);
    close(fd);
    snprintf(path, sizeof(path), "%s/state", directory);
    unlink(path);
    rmdir(directory);
    return bytes;
}

static void what_is_written_is_read_back(void **state)
{
    struct container written = { 0 }, read = { 0 };
    struct error err;
    size_t size;
    fill(&written);
    uint8_t *bytes = file_of(&written, &size);
    assert_true(container_parse(&read, bytes, size, "test", &err));
    assert_int_equal(read.count, written.count);
    for (unsigned i = 0; i < written.count; i++) {
        const struct state_buffer *content = container_find(&read, written.section[i].name);
        assert_non_null(content);
        assert_int_equal(content->size, written.section[i].content.size);
        if (content->size)
            assert_memory_equal(content->data, written.section[i].content.data, content->size);
    }
    assert_null(container_find(&read, "vcpu/1"));
    container_free(&read);
    container_free(&written);
    free(bytes);
}

static void any_flipped_bit_is_refused(void **state)
{
    struct container written = { 0 }, read = { 0 };
    struct error err;
    size_t size;
    fill(&written);
    uint8_t *bytes = file_of(&written, &size);
    for (size_t bit = 0; bit < size * 8; bit++) {
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        if (container_parse(&read, bytes, size, "test", &err))
            fail_msg("bit %zu of byte %zu made no difference", bit % 8, bit / 8);
        assert_int_equal(read.count, 0);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
    }
    container_free(&written);
    free(bytes);
}

static void any_truncation_is_refused(void **state)
{
    struct container written = { 0 }, read = { 0 };
    struct error err;
    size_t size;
    fill(&written);
    uint8_t *bytes = file_of(&written, &size);
    for (size_t less = 0; less < size; less++) {
        uint8_t *copy = malloc(less + 1);
        memcpy(copy, bytes, less);
        assert_false(container_parse(&read, copy, less, "test", &err));
        free(copy);
    }
    container_free(&written);
    free(bytes);
}

static void the_place_of_damage_is_named(void **state)
{
    struct container written = { 0 }, read = { 0 };
    struct error err;
    size_t size;
    fill(&written);
    uint8_t *bytes = file_of(&written, &size);
    bytes[size - 1] ^= 1;
    assert_false(container_parse(&read, bytes, size, "test", &err));
    assert_non_null(strstr(err.text, "ram/0"));
    bytes[size - 1] ^= 1;
    bytes[8] = 99;
    assert_false(container_parse(&read, bytes, size, "test", &err));
    assert_non_null(strstr(err.text, "format 99"));
    container_free(&written);
    free(bytes);
}

/* --- looking into a stream without its list --- */

struct point {
    uint16_t x, y;
};
struct shape {
    bool closed;
    struct point corner[2];
    uint8_t name[4];
};
static const struct state_field point_fields[] = { STATE_SCALAR(struct point, x), STATE_SCALAR(struct point, y) };
static const struct state_list point_list = STATE_LIST("point", 1, point_fields);
static const struct state_field shape_fields[] = {
    STATE_SCALAR(struct shape, closed), STATE_NESTED_ARRAY(struct shape, corner, point_list), STATE_BLOB(struct shape, name),
};
static const struct state_list shape_list = STATE_LIST("shape", 1, shape_fields);

static void collect(void *owner, const struct stream_field *field)
{
    char *text = owner;
    uint64_t value = 0;
    memcpy(&value, field->data, min_u64(field->size, sizeof(value)));
    sprintf(text + strlen(text), "%s=%llx ", field->path, (unsigned long long)value);
}

static void a_stream_describes_itself(void **state)
{
    const struct shape shape = { true, { { 1, 2 }, { 3, 0x4444 } }, { 'a', 'b', 'c', 'd' } };
    struct state_buffer buffer = { 0 };
    struct error err;
    char text[256] = "";
    state_save(&shape_list, &shape, &buffer);
    assert_true(stream_visit(buffer.data, buffer.size, collect, text, &err));
    assert_string_equal(text, "closed=1 corner[0].x=1 corner[0].y=2 corner[1].x=3 corner[1].y=4444 name=64636261 ");
    for (size_t less = 1; less < buffer.size; less++) {
        char ignored[256] = "";
        assert_false(stream_visit(buffer.data, less, collect, ignored, &err));
    }
    state_buffer_free(&buffer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(any_flipped_bit_is_refused),
        cmocka_unit_test(any_truncation_is_refused),
        cmocka_unit_test(the_place_of_damage_is_named),
        cmocka_unit_test(a_stream_describes_itself),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
