/* Endpoints about the screen and the keyboard. */
#include "api/endpoints.h"
#include "api/vmm.h"
#include "machine/screen.h"

/* Runs one of screen.h's functions with the body's string of that name. */
static enum http_status with_text(struct call *call, const char *name,
                                  bool (*run)(struct machine *machine, const char *text, struct error *err))
{
    const char *text = json_string_value(json_object_get(call->body, name));
    enum vmm_result result;
    if (!text) {
        error_set(&call->err, "the request names no \"%s\"", name);
        return HTTP_BAD_REQUEST;
    }
    struct machine *machine = vmm_borrow(call->subject->vmm, &result, &call->err);
    if (!machine)
        return result == VMM_NO_VM ? HTTP_NOT_FOUND : HTTP_INTERNAL_ERROR;
    bool done = run(machine, text, &call->err);
    vmm_give_back(call->subject->vmm);
    return done ? HTTP_NO_CONTENT : HTTP_BAD_REQUEST;
}

enum http_status endpoint_doppel_screenshot(struct call *call) { return with_text(call, "path", screen_save); }
enum http_status endpoint_doppel_send_keys(struct call *call) { return with_text(call, "keys", screen_send_keys); }
enum http_status endpoint_doppel_type(struct call *call) { return with_text(call, "text", screen_type); }
enum http_status endpoint_doppel_pointer(struct call *call) { return with_text(call, "action", screen_pointer); }
