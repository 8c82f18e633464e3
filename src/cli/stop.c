/* `doppel stop`: the power button first; the guest may have reasons not to obey, and then the machine ends all the same. */
#include "cli/stop.h"

#include <signal.h>
#include <stdio.h>
#include <time.h>

#include "api/instance.h"
#include "base/base.h"
#include "cli/arguments.h"
#include "cli/remote.h"
#include "cli/size.h"

enum { TIME_OUT_SECONDS = 60, FORCED_SECONDS = 10, SILENT_SECONDS = 2, LOOK_MS = 20 };

/* True once the process has let its lock go. */
static bool wait_for_end(const char *name, uint64_t seconds)
{
    struct instance_status status;
    struct timespec pause = { .tv_nsec = LOOK_MS * 1000000 };
    for (uint64_t i = 0; i <= seconds * 1000 / LOOK_MS; i++) {
        if (!instance_look(name, &status) || status.state != INSTANCE_RUNS)
            return true;
        nanosleep(&pause, NULL);
    }
    return false;
}

/* The guest knows of the button. Who waits for it for long is told, and what to do instead. */
static bool wait_for_guest(const char *name, uint64_t seconds)
{
    uint64_t silent = min_u64(seconds, SILENT_SECONDS);
    if (wait_for_end(name, silent))
        return true;
    if (seconds == silent)
        return false;
    fprintf(stderr, "doppel: %s: the power button is pressed; waiting up to %llu s for the guest to power off ('doppel stop --force %s' does not wait)\n",
            name, (unsigned long long)(seconds - silent), name);
    return wait_for_end(name, seconds - silent);
}

static int kill_process(const char *name)
{
    struct instance_status status;
    if (!instance_look(name, &status) || status.state != INSTANCE_RUNS)
        return EXIT_DONE;
    fprintf(stderr, "doppel: %s: its process does not answer and is killed\n", name);
    if (status.pid > 0)
        kill(status.pid, SIGKILL);
    if (wait_for_end(name, FORCED_SECONDS))
        return EXIT_DONE;
    return remote_complain(name, &(struct error){ "its process cannot be ended" }, EXIT_HOST_ERROR);
}

/* False: it gave no answer in time. */
static bool put(struct client *client, const char *path, bool *obeyed)
{
    struct client_answer answer;
    struct error err;
    *obeyed = client_call(client, "PUT", path, NULL, -1, &answer, &err);
    client_answer_end(&answer);
    return answer.status != 0;
}

int stop_forced(const char *name)
{
    int status;
    bool obeyed;
    struct client *client = remote_open(name, FORCED_SECONDS, &status);
    if (!client)
        return status;
    bool answered = put(client, "/api/v1/vmm.shutdown", &obeyed);
    client_close(client);
    return answered && wait_for_end(name, FORCED_SECONDS) ? EXIT_DONE : kill_process(name);
}

/* A paused guest cannot hear the button; that it was not paused is no failure. */
static bool press_button(struct client *client, bool *obeyed)
{
    return put(client, "/api/v1/vm.resume", obeyed) && put(client, "/api/v1/vm.power-button", obeyed);
}

static int stop(const char *name, uint64_t seconds)
{
    int status;
    bool obeyed;
    struct client *client = remote_open(name, FORCED_SECONDS, &status);
    if (!client)
        return status;
    bool answered = press_button(client, &obeyed);
    client_close(client);
    if (!answered)
        return kill_process(name);
    if (obeyed && wait_for_guest(name, seconds))
        return EXIT_DONE;
    if (obeyed)
        fprintf(stderr, "doppel: %s: the guest has not powered off within %llu s; ending it\n", name, (unsigned long long)seconds);
    return stop_forced(name);
}

int command_stop(int argc, char **argv)
{
    struct arguments arguments;
    uint64_t seconds = TIME_OUT_SECONDS;
    int status = arguments_parse(&arguments, COMMAND_stop, 1, -1, argc, argv), first = EXIT_DONE;
    if (status >= 0)
        return status;
    const char *time_out = arguments.value[FLAG_stop_time_out];
    if (time_out && !number_parse(time_out, 24 * 3600, &seconds)) {
        fprintf(stderr, "doppel: '%s' is not a number of seconds up to a day\n", time_out);
        return EXIT_USAGE;
    }
    for (int i = 0; i < arguments.count; i++) {
        status = arguments.value[FLAG_stop_force] ? stop_forced(arguments.word[i]) : stop(arguments.word[i], seconds);
        first = first ? first : status;
    }
    return first;
}
