/* A socket's name appears when it can be connected to, and takes the place of a dead socket only. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "unit/cmocka_all.h"

#include "base/error.h"
#include "base/listen.h"

static char directory[] = "/tmp/doppel-listen-XXXXXX";
static char path[64];

static int connect_to(const char *name)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    strcpy(address.sun_path, name);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int result = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0 ? 0 : errno;
    close(fd);
    return result;
}

static void *connect_when_there(void *result)
{
    while (access(path, F_OK) != 0)
        ;
    *(int *)result = connect_to(path);
    return NULL;
}

static void test_name_comes_last(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 300; round++) {
        pthread_t client;
        int result = -1;
        struct error err;
        assert_int_equal(pthread_create(&client, NULL, connect_when_there, &result), 0);
        int fd = listen_unix(path, 0, 4, &err);
        assert_true(fd >= 0);
        pthread_join(client, NULL);
        assert_int_equal(result, 0);
        close(fd);
        unlink(path);
    }
}

static void test_what_is_there(void **state)
{
    (void)state;
    struct error err;
    struct stat st;
    int first = listen_unix(path, SOCK_NONBLOCK, 1, &err);
    assert_true(first >= 0);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(listen_unix(path, 0, 1, &err), -1);
    assert_int_equal(errno, EADDRINUSE);
    close(first);
    int second = listen_unix(path, 0, 1, &err);      /* the first is dead, its name still there */
    assert_true(second >= 0);
    assert_int_equal(connect_to(path), 0);
    close(second);
    unlink(path);

    int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
    assert_int_equal(listen_unix(path, 0, 1, &err), -1);
    assert_int_equal(stat(path, &st), 0);
    assert_true(S_ISREG(st.st_mode));
    close(file);
    unlink(path);
    assert_int_equal(rmdir(directory), 0);           /* and nothing temporary is left */
    assert_int_equal(mkdir(directory, 0700), 0);
}

static void test_bad_paths(void **state)
{
    (void)state;
    struct error err;
    char long_path[200];
    memset(long_path, 'x', sizeof(long_path) - 1);
    long_path[sizeof(long_path) - 1] = 0;
    assert_int_equal(listen_unix("", 0, 1, &err), -1);
    assert_int_equal(listen_unix(long_path, 0, 1, &err), -1);
    assert_non_null(strstr(err.text, "107"));
    assert_int_equal(listen_unix("/no/such/directory/socket", 0, 1, &err), -1);
    assert_int_equal(errno, ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_name_comes_last),
        cmocka_unit_test(test_what_is_there),
        cmocka_unit_test(test_bad_paths),
    };
    if (!mkdtemp(directory))
        return 1;
    snprintf(path, sizeof(path), "%s/socket", directory);
    int result = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(directory);
    return result;
}
