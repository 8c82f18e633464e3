/* `doppel counters NAME [GLOB]`. */
#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

#include "base/stats.h"
#include "cli/arguments.h"
#include "cli/remote.h"

static const char *text_of(const char *name)
{
    for (unsigned i = 0; i < COUNTER_COUNT; i++)
        if (!strcmp(counter_name(i), name))
            return counter_text(i);
    return "";
}

/* False: none has such a name. */
static bool print(json_t *counters, const char *glob, bool all)
{
    const char *name;
    json_t *value;
    bool any = false;
    json_object_foreach(counters, name, value) {
        if (fnmatch(glob, name, 0))
            continue;
        any = true;
        if (all || json_integer_value(value))
            printf("%16lld  %-20s %s\n", (long long)json_integer_value(value), name, text_of(name));
    }
    return any;
}

int command_counters(int argc, char **argv)
{
    struct arguments arguments;
    int status = arguments_parse(&arguments, COMMAND_counters, 1, 2, argc, argv);
    if (status >= 0)
        return status;
    const char *glob = arguments.count > 1 ? arguments.word[1] : "*";
    struct client *client = remote_open(arguments.word[0], REMOTE_SECONDS, &status);
    json_t *answer = client ? remote_get(client, arguments.word[0], "/api/v1/vm.counters", &status) : NULL;
    status = answer ? EXIT_DONE : status;
    if (answer && arguments.value[FLAG_counters_json]) {
        json_dumpf(answer, stdout, JSON_INDENT(2));
        putchar('\n');
    } else if (answer && !print(json_object_get(answer, "machine"), glob, arguments.value[FLAG_counters_all])) {
        fprintf(stderr, "doppel: no counter matches '%s'; 'doppel counters --all %s' lists them\n", glob, arguments.word[0]);
        status = EXIT_USAGE;
    }
    json_decref(answer);
    client_close(client);
    return status;
}
