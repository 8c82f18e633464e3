/* The endpoints of the control socket: what is asked, by method and path, and who answers. */
#ifndef DOPPEL_API_ENDPOINTS_H
#define DOPPEL_API_ENDPOINTS_H

#include <jansson.h>

#include "api/http.h"
#include "api/monitor.h"
#include "api/server.h"
#include "base/error.h"

enum { CALL_DESCRIPTORS_MAX = 8 };

/* One request being answered. */
struct call {
    const struct server_subject *subject;
    struct monitor_session *monitor;            /* of the connection */
    json_t *body;                               /* NULL: there was none */
    int descriptor[CALL_DESCRIPTORS_MAX];       /* that came with it; who keeps one puts -1 there */
    unsigned descriptor_count;
    json_t *answer;                             /* a new reference; NULL: none */
    const char *allow;                          /* HTTP_METHOD_NOT_ALLOWED: the method that there is */
    struct error err;                           /* status 400 and above: the reason */
};

/* Answers. The request is hostile. */
enum http_status endpoints_answer(struct call *call, const struct http_message *request);

/* A handler for each row of endpoints.def. */
#define ENDPOINT(method, path, id, body, text) enum http_status endpoint_##id(struct call *call);
#include "api/endpoints.def"
#undef ENDPOINT

#endif
