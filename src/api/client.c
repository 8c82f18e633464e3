#include "api/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "api/http.h"
#include "api/instance.h"

struct client {
    int fd;
    struct http_parser parser;
};

struct client *client_open(const char *name, unsigned seconds, struct error *err)
{
    int fd = instance_connect(name, seconds, err);
    struct client *client = fd < 0 ? NULL : calloc(1, sizeof(*client));
    if (client)
        client->fd = fd;
    else if (fd >= 0)
        close(fd);
    return client;
}

void client_close(struct client *client)
{
    if (!client)
        return;
    close(client->fd);
    free(client);
}

/* The descriptor, if there is one, goes with the first bytes. */
static bool send_request(struct client *client, const char *data, size_t size, int descriptor)
{
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { .space = { 0 } };
    while (size) {
        struct iovec piece = { (void *)data, size };
        struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };
        if (descriptor >= 0) {
            message.msg_control = &control;
            message.msg_controllen = sizeof(control);
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            *header = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
            memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
        }
        ssize_t sent = sendmsg(client->fd, &message, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        descriptor = -1;
        data += sent;
        size -= (size_t)sent;
    }
    return true;
}

static bool receive_answer(struct client *client)
{
    struct http_parser *parser = &client->parser;
    char data[4096];
    http_begin(parser, true);
    while (parser->progress == HTTP_MORE) {
        ssize_t size = recv(client->fd, data, sizeof(data), 0);
        if (size < 0 && errno == EINTR)
            continue;
        if (size <= 0)
            return false;
        http_feed(parser, data, (size_t)size);
    }
    return parser->progress == HTTP_COMPLETE;
}

/* The sentences of an error's body, or its status. */
static void explain(const struct client_answer *answer, struct error *err)
{
    const char *text = json_string_value(json_array_get(answer->body, 0));
    if (text)
        error_set(err, "%s", text);
    else
        error_set(err, "it answers with status %d", answer->status);
}

static bool exchange(struct client *client, const char *method, const char *path, const json_t *body, int descriptor)
{
    char *json = body ? json_dumps(body, JSON_COMPACT) : NULL, *request = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&request, &size);
    if (!out) {
        free(json);
        return false;
    }
    fprintf(out, "%s %s HTTP/1.1\r\nHost: localhost\r\n", method, path);
    if (json)
        fprintf(out, "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s", strlen(json), json);
    else
        fputs("\r\n", out);
    fclose(out);
    bool answered = send_request(client, request, size, descriptor) && receive_answer(client);
    free(request);
    free(json);
    return answered;
}

bool client_call(struct client *client, const char *method, const char *path, json_t *body, int descriptor,
                 struct client_answer *answer, struct error *err)
{
    *answer = (struct client_answer){ 0 };
    bool answered = exchange(client, method, path, body, descriptor);
    const struct http_message *message = &client->parser.message;
    json_decref(body);
    if (answered) {
        answer->status = message->status;
        answer->body = message->body_size ? json_loadb(message->body, message->body_size, 0, NULL) : NULL;
    }
    http_end(&client->parser);
    if (!answered)
        return error_set(err, "it gave no answer: its process has ended, or closed the connection");
    if (answer->status < 400)
        return true;
    explain(answer, err);
    return false;
}

void client_answer_end(struct client_answer *answer)
{
    json_decref(answer->body);
    answer->body = NULL;
}
