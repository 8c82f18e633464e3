/* Logs turn over: what a guest writes never takes more than two mebibytes, and the last of it is there. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "api/log_file.h"
#include "base/error.h"
#include "cmocka_all.h"

static char folder[] = "/tmp/doppel-log-XXXXXX";
static int directory;

static int set_up(void **state)
{
    strcpy(folder + sizeof(folder) - 7, "XXXXXX");
    if (!mkdtemp(folder))
        return -1;
    directory = open(folder, O_RDONLY | O_DIRECTORY);
    return directory < 0;
}

static int take_down(void **state)
{
    unlinkat(directory, "log", 0);
    unlinkat(directory, "log.1", 0);
    close(directory);
    return rmdir(folder);
}

static size_t size_of(const char *name)
{
    struct stat st;
    return fstatat(directory, name, &st, 0) == 0 ? (size_t)st.st_size : 0;
}

static void it_turns_over_at_a_mebibyte(void **state)
{
    struct log_file file;
    struct error err;
    char block[1000], last[8];
    memset(block, 'x', sizeof(block));
    assert_true(log_file_open(&file, directory, "log", &err));
    for (unsigned i = 0; i < 5000; i++)
        log_file_write(&file, block, sizeof(block));
    log_file_write(&file, "the end", 7);
    log_file_close(&file);
    assert_in_range(size_of("log"), 7, 1024 * 1024);
    assert_in_range(size_of("log.1"), 1024 * 1024 - sizeof(block), 1024 * 1024);
    int fd = openat(directory, "log", O_RDONLY);
    assert_int_equal(pread(fd, last, 7, (off_t)size_of("log") - 7), 7);
    assert_memory_equal(last, "the end", 7);
    close(fd);
}

static void its_stream_writes_each_line(void **state)
{
    struct log_file file;
    struct error err;
    assert_true(log_file_open(&file, directory, "log", &err));
    FILE *stream = log_file_stream(&file);
    fprintf(stream, "one line\n");
    assert_int_equal(size_of("log"), 9);
    fclose(stream);
    log_file_close(&file);
}

static void a_place_that_cannot_be_written_is_named(void **state)
{
    struct log_file file;
    struct error err;
    mkdirat(directory, "log", 0700);
    assert_false(log_file_open(&file, directory, "log", &err));
    assert_non_null(strstr(err.text, "log"));
    unlinkat(directory, "log", AT_REMOVEDIR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_turns_over_at_a_mebibyte, set_up, take_down),
        cmocka_unit_test_setup_teardown(its_stream_writes_each_line, set_up, take_down),
        cmocka_unit_test_setup_teardown(a_place_that_cannot_be_written_is_named, set_up, take_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
