/* From a request to its row, and the answers that every row may give. */
#include "api/endpoints.h"

#include <string.h>

#include "base/base.h"

enum body { BODY_NONE, BODY_JSON };

static const struct endpoint {
    const char *method, *path;
    enum body body;
    enum http_status (*answer)(struct call *call);
} endpoints[] = {
#define ENDPOINT(method, path, id, body, text) { #method, path, body, endpoint_##id },
#include "api/endpoints.def"
#undef ENDPOINT
};

static const struct endpoint *find(const char *path)
{
    for (unsigned i = 0; i < ARRAY_SIZE(endpoints); i++)
        if (!strcmp(endpoints[i].path, path))
            return &endpoints[i];
    return NULL;
}

static bool read_body(struct call *call, const struct http_message *request)
{
    json_error_t problem;
    if (!request->body_size)
        return error_set(&call->err, "the request needs a JSON object as its body");
    call->body = json_loadb(request->body, request->body_size, JSON_REJECT_DUPLICATES, &problem);
    if (!call->body)
        return error_set(&call->err, "the body is not JSON: line %d, column %d: %s", problem.line, problem.column, problem.text);
    return json_is_object(call->body) || error_set(&call->err, "the body is not a JSON object");
}

const char *call_text(struct call *call, const char *key, bool required)
{
    json_t *value = json_object_get(call->body, key);
    const char *text = json_string_value(value);
    if (!text && (value || required))
        error_set(&call->err, "'%s' must be a text", key);
    return text;
}

enum http_status endpoints_answer(struct call *call, const struct http_message *request)
{
    const struct endpoint *endpoint = find(request->target);
    if (!endpoint) {
        error_set(&call->err, "there is nothing at %s", request->target);
        return HTTP_NOT_FOUND;
    }
    if (strcmp(endpoint->method, request->method)) {
        call->allow = endpoint->method;
        error_set(&call->err, "%s takes %s, not %s", endpoint->path, endpoint->method, request->method);
        return HTTP_METHOD_NOT_ALLOWED;
    }
    if (endpoint->body == BODY_JSON && !read_body(call, request))
        return HTTP_BAD_REQUEST;
    return endpoint->answer(call);
}
