/*
 * `doppel clone`: a snapshot of the machine, and a process of its own for each copy, which restores it. They are named after the
 * machine, and all start at once.
 */
#include <errno.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "api/instance.h"
#include "base/base.h"
#include "cli/arguments.h"
#include "cli/remote.h"
#include "cli/size.h"

enum { CLONES_MAX = 1000 };

struct clone {
    char name[INSTANCE_NAME_MAX + 1];
    pid_t process;
};

extern char **environ;

/* --- the directory --- */

/* Makes what is missing of the path. */
static bool make_directories(char *path)
{
    for (char *at = path + 1; (at = strchr(at, '/')); at++) {
        *at = 0;
        bool made = mkdir(path, 0777) == 0 || errno == EEXIST;
        *at = '/';
        if (!made)
            return false;
    }
    return mkdir(path, 0777) == 0;
}

/* XDG Base Directory Specification 0.8: what should outlive a restart, but is nobody's document. */
static bool standard_directory(const char *name, char path[PATH_MAX])
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    char when[32];
    time_t now = time(NULL);
    struct tm tm;
    strftime(when, sizeof(when), "%Y%m%d-%H%M%S", localtime_r(&now, &tm));
    if (state && *state == '/')
        return snprintf(path, PATH_MAX, "%s/doppel/%s-%s", state, name, when) < PATH_MAX;
    return home && snprintf(path, PATH_MAX, "%s/.local/state/doppel/%s-%s", home, name, when) < PATH_MAX;
}

static bool make_place(const struct arguments *arguments, char path[PATH_MAX], struct error *err)
{
    const char *wanted = arguments->value[FLAG_clone_directory];
    char text[PATH_MAX];
    bool known = wanted ? snprintf(text, sizeof(text), "%s", wanted) < PATH_MAX : standard_directory(arguments->word[0], text);
    if (!known)
        return error_set(err, "there is no place for the clones' disks: name one with --directory");
    if (!make_directories(text))
        return error_errno(err, errno, "cannot make the directory %s", text);
    return realpath(text, path) || error_errno(err, errno, "cannot find the directory %s", text);
}

/* --- the snapshot --- */

static int take_snapshot(const char *name, const char *directory)
{
    struct client_answer answer = { 0 };
    struct error err;
    int status;
    struct client *client = remote_open(name, 0, &status);
    if (!client)
        return status;
    json_t *body = json_pack("{s:s}", "directory", directory);
    status = client_call(client, "PUT", "/doppel/v1/snapshot", body, -1, &answer, &err) ? EXIT_DONE
                                                                                          : remote_failed(name, &answer, &err);
    client_answer_end(&answer);
    client_close(client);
    return status;
}

/* --- the copies --- */

/* NAME-1, NAME-2 and so on, those that are taken left out. */
static bool choose_name(const char *machine, unsigned *number, struct clone *clone, struct error *err)
{
    struct instance_status status;
    do {
        if (snprintf(clone->name, sizeof(clone->name), "%s-%u", machine, ++*number) > INSTANCE_NAME_MAX)
            return error_set(err, "the name %s is too long for its copies to have a number behind it", machine);
    } while (instance_look(clone->name, &status));
    return true;
}

static bool start(struct clone *clone, const char *place, bool own_memory, struct error *err)
{
    char base[PATH_MAX + 16], disks[PATH_MAX + INSTANCE_NAME_MAX + 2];
    snprintf(base, sizeof(base), "%s/snapshot", place);
    snprintf(disks, sizeof(disks), "%s/%s", place, clone->name);
    if (mkdir(disks, 0777) < 0)
        return error_errno(err, errno, "cannot make the directory %s", disks);
    char *argv[] = { "doppel", "restore", base, "--clone", "--detach", "--name", clone->name, "--disks", disks,
                     own_memory ? NULL : "--share-memory", NULL };
    int status = posix_spawn(&clone->process, "/proc/self/exe", NULL, NULL, argv, environ);
    return !status || error_errno(err, status, "cannot start the copy %s", clone->name);
}

/* Each prints its name once it runs, or its own complaint. */
static int await(struct clone *clones, unsigned count)
{
    int result = EXIT_DONE;
    for (unsigned i = 0; i < count; i++) {
        int status;
        if (waitpid(clones[i].process, &status, 0) < 0)
            continue;
        if (status && result == EXIT_DONE)
            result = WIFEXITED(status) ? WEXITSTATUS(status) : EXIT_HOST_ERROR;
    }
    return result;
}

static int start_all(const char *machine, const char *place, unsigned count, bool own_memory)
{
    struct error err;
    struct clone *clones = calloc(count, sizeof(*clones));
    unsigned started = 0, number = 0;
    bool ok = clones || error_set(&err, "no memory for %u copies", count);
    for (; ok && started < count; started += ok)
        ok = choose_name(machine, &number, &clones[started], &err) && start(&clones[started], place, own_memory, &err);
    int status = await(clones, started);
    free(clones);
    return ok ? status : remote_complain(machine, &err, EXIT_HOST_ERROR);
}

int command_clone(int argc, char **argv)
{
    struct arguments arguments;
    struct error err;
    char place[PATH_MAX], base[PATH_MAX + 16];
    uint64_t count = 1;
    int status = arguments_parse(&arguments, COMMAND_clone, 1, 1, argc, argv);
    if (status >= 0)
        return status;
    const char *text = arguments.value[FLAG_clone_count];
    if (text && (!number_parse(text, CLONES_MAX, &count) || !count)) {
        fprintf(stderr, "doppel: --count %s: there can be 1 to %d copies at a time\n", text, CLONES_MAX);
        return EXIT_USAGE;
    }
    struct instance_status running;
    if (!instance_look(arguments.word[0], &running) || running.state != INSTANCE_RUNS) {
        fprintf(stderr, "doppel: there is no machine '%s' that runs; 'doppel ps' lists them\n", arguments.word[0]);
        return EXIT_NO_MACHINE;
    }
    if (!make_place(&arguments, place, &err))
        return remote_complain(arguments.word[0], &err, EXIT_USAGE);
    snprintf(base, sizeof(base), "%s/snapshot", place);
    status = take_snapshot(arguments.word[0], base);
    if (status != EXIT_DONE) {
        rmdir(place);
        return status;
    }
    fprintf(stderr, "doppel: the copies share %s; their disks lie beside it. Remove %s when they have ended\n", base, place);
    return start_all(arguments.word[0], place, (unsigned)count, arguments.value[FLAG_clone_own_memory] != NULL);
}
