#include "cli/detach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/error.h"
#include "cli/exit_status.h"

/* The command: waits for a byte, or for the end of a child that could not start. */
static int wait_for_child(pid_t child, int ready)
{
    char byte;
    int status;
    ssize_t size;
    do
        size = read(ready, &byte, 1);
    while (size < 0 && errno == EINTR);
    if (size == 1)
        return EXIT_DONE;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR)
        ;
    return WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_SIGNAL + WTERMSIG(status);
}

static void become_background(void)
{
    int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
    setsid();
    if (nothing >= 0) {
        dup2(nothing, STDIN_FILENO);
        close(nothing);
    }
}

bool detach_begin(struct detach *detach, bool *over, int *status, struct error *err)
{
    int ready[2];
    *over = false;
    if (pipe2(ready, O_CLOEXEC) != 0)
        return error_errno(err, errno, "cannot go to the background");
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        close(ready[0]);
        close(ready[1]);
        return error_errno(err, errno, "cannot go to the background");
    }
    close(ready[child > 0]);
    if (child > 0) {
        *over = true;
        *status = wait_for_child(child, ready[0]);
        close(ready[0]);
        return true;
    }
    detach->ready = ready[1];
    become_background();
    return true;
}

void detach_ready(struct detach *detach, int output)
{
    fflush(NULL);
    if (output >= 0) {
        dup2(output, STDOUT_FILENO);
        dup2(output, STDERR_FILENO);
    }
    ssize_t written = write(detach->ready, "", 1);
    (void)written;
    close(detach->ready);
    detach->ready = -1;
}
