/* The endpoints of the control socket: what is asked, by method and path, and who answers. */
#ifndef DOPPEL_API_ENDPOINTS_H
#define DOPPEL_API_ENDPOINTS_H

#include <jansson.h>

#include "api/http.h"
#include "api/monitor.h"
#include "api/server.h"
#include "api/vmm.h"
#include "base/error.h"

enum { CALL_DESCRIPTORS_MAX = 8 };

/* What the monitor keeps for a connection between its commands. */
struct call_monitor {
    struct monitor_session session;
    unsigned long boot;         /* which machine the session is about: vmm_boots */
};

/* The connection closes: a machine that its monitor has stopped goes on. */
void call_monitor_end(struct call_monitor *monitor, struct vmm *vmm);

/* One request being answered. */
struct call {
    const struct server_subject *subject;
    struct call_monitor *monitor;               /* of the connection */
    json_t *body;                               /* NULL: there was none */
    int descriptor[CALL_DESCRIPTORS_MAX];       /* that came with it; who keeps one puts -1 there */
    unsigned descriptor_count;
    json_t *answer;                             /* a new reference; NULL: none */
    const char *allow;                          /* HTTP_METHOD_NOT_ALLOWED: the method that there is */
    struct error err;                           /* status 400 and above: the reason */
};

/* Answers. The request is hostile. */
enum http_status endpoints_answer(struct call *call, const struct http_message *request);

/* Cloud Hypervisor's answers: 404 while nothing is created, 405 in the wrong state. */
enum http_status call_status(enum vmm_result result);
/* The text at the key of the body; NULL: there is none, and if it is required the error says so. */
const char *call_text(struct call *call, const char *key, bool required);
/* Keeps the machine, which need not be paused, in the directory. */
struct snapshot_options;
enum http_status call_snapshot(struct call *call, const char *directory, const struct snapshot_options *options);
/* Makes the counters of a machine that runs true for this moment. */
void call_settle_counters(struct machine *machine);

/* A handler for each row of endpoints.def; some rows share one. */
#define ENDPOINT(method, path, id, body, text) enum http_status endpoint_##id(struct call *call);
#include "api/endpoints.def"
#undef ENDPOINT

#endif
