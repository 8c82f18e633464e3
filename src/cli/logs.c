/* `doppel logs`: the files in a machine's directory, whether it runs or not. They turn over (api/log_file.h), which following notices. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "api/instance.h"
#include "cli/arguments.h"
#include "cli/remote.h"

enum { LOOK_MS = 100 };

/* To the end of what there is now. False: nobody reads our output. */
static bool copy(int fd)
{
    char data[16 * 1024];
    for (;;) {
        ssize_t size = read(fd, data, sizeof(data));
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return true;
        if (fwrite(data, 1, (size_t)size, stdout) != (size_t)size || fflush(stdout) != 0)
            return false;
    }
}

static bool show_old(const char *name, const char *file)
{
    char old[64];
    snprintf(old, sizeof(old), "%s.1", file);
    int fd = instance_open(name, old);
    bool shown = fd < 0 || copy(fd);
    if (fd >= 0)
        close(fd);
    return shown;
}

/* The file that has the name now, if it is no longer this one. */
static int next_file(const char *name, const char *file, int fd)
{
    struct stat here, there;
    int other = instance_open(name, file);
    if (other >= 0 && fstat(fd, &here) == 0 && fstat(other, &there) == 0 && here.st_ino != there.st_ino)
        return other;
    if (other >= 0)
        close(other);
    return -1;
}

/* What was written before the end is seen: the state is looked at before the file. */
static void follow(const char *name, const char *file, int *fd)
{
    struct timespec pause = { .tv_nsec = LOOK_MS * 1000000 };
    struct instance_status status;
    for (bool runs = true; runs;) {
        runs = instance_look(name, &status) && status.state == INSTANCE_RUNS;
        int other = next_file(name, file, *fd);
        if (!copy(*fd))
            return;
        if (other >= 0) {
            close(*fd);
            *fd = other;
        } else if (runs) {
            nanosleep(&pause, NULL);
        }
    }
}

static int show(const char *name, const char *file, bool following)
{
    struct instance_status status;
    struct error err;
    if (!instance_look(name, &status)) {
        error_set(&err, "there is no such machine; 'doppel ps' lists them");
        return remote_complain(name, &err, EXIT_NO_MACHINE);
    }
    int fd = instance_open(name, file);
    if (fd < 0) {
        error_set(&err, !strcmp(file, INSTANCE_CONSOLE) ? "its console is not shared, so that there is no log of it"
                                                        : "it does not run in the background, so that its messages go elsewhere");
        return remote_complain(name, &err, EXIT_REFUSED);
    }
    if (show_old(name, file) && copy(fd) && following)
        follow(name, file, &fd);
    close(fd);
    return EXIT_DONE;
}

int command_logs(int argc, char **argv)
{
    struct arguments arguments;
    int status = arguments_parse(&arguments, COMMAND_logs, 1, 1, argc, argv);
    if (status >= 0)
        return status;
    return show(arguments.word[0], arguments.value[FLAG_logs_messages] ? INSTANCE_MESSAGES : INSTANCE_CONSOLE,
                arguments.value[FLAG_logs_follow]);
}
