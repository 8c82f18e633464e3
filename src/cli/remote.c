#include "cli/remote.h"

#include "api/instance.h"

int remote_complain(const char *name, const struct error *err, int status)
{
    fprintf(stderr, "doppel: %s: %s\n", name, err->text);
    return status;
}

struct client *remote_open(const char *name, unsigned seconds, int *status)
{
    struct error err;
    struct client *client = client_open(name, seconds, &err);
    if (!client) {
        fprintf(stderr, "doppel: %s\n", err.text);
        *status = EXIT_NO_MACHINE;
    }
    return client;
}

int remote_failed(const char *name, const struct client_answer *answer, const struct error *err)
{
    return remote_complain(name, err, answer->status ? EXIT_REFUSED : EXIT_NO_MACHINE);
}

json_t *remote_get(struct client *client, const char *name, const char *path, int *status)
{
    struct client_answer answer;
    struct error err;
    if (!client_call(client, "GET", path, NULL, -1, &answer, &err)) {
        *status = remote_failed(name, &answer, &err);
        client_answer_end(&answer);
        return NULL;
    }
    return answer.body;
}

static int put(const char *name, const char *path)
{
    struct client_answer answer;
    struct error err;
    int status = EXIT_DONE;
    struct client *client = remote_open(name, REMOTE_SECONDS, &status);
    if (!client)
        return status;
    if (!client_call(client, "PUT", path, NULL, -1, &answer, &err))
        status = remote_failed(name, &answer, &err);
    client_answer_end(&answer);
    client_close(client);
    return status;
}

int remote_put_each(char **name, int count, const char *path)
{
    int first = EXIT_DONE;
    for (int i = 0; i < count; i++) {
        int status = put(name[i], path);
        first = first ? first : status;
    }
    return first;
}
