/* Endpoints that are Doppel's alone. */
#include <stdlib.h>
#include <string.h>

#include "api/console.h"
#include "api/endpoints.h"
#include "base/clock.h"
#include "engine/engine.h"
#include "machine/snapshot.h"
#include "mem/ram.h"
#include "vcpu/work.h"

static void nothing(struct vcpu *vcpu, void *argument)
{
}

/* An engine adds to its vCPU's counters when it comes to a block border: ask each to come to one. */
void call_settle_counters(struct machine *machine)
{
    for (unsigned i = 0; i < machine->config.cpus; i++)
        vcpu_run_on(NULL, machine->vcpu[i], nothing, NULL);
}

enum http_status endpoint_doppel_info(struct call *call)
{
    enum vmm_result result;
    struct machine *machine = vmm_borrow(call->subject->vmm, &result, &call->err);
    call->answer = json_pack("{s:s?, s:b}", "name", call->subject->name, "shared_console", call->subject->console != NULL);
    if (!machine)
        return HTTP_OK;
    call_settle_counters(machine);
    json_t *more = json_pack("{s:s, s:I, s:I, s:I, s:I, s:I}", "engine", machine->vcpu[0]->engine->name, "guest_ns",
                             (json_int_t)clock_ns(machine->clock), "instructions",
                             (json_int_t)machine_counter(machine, COUNTER_instructions), "memory_granted",
                             (json_int_t)ram_granted(machine->ram), "guest_panics",
                             (json_int_t)machine_counter(machine, COUNTER_guest_panics), "watchdog_expiries",
                             (json_int_t)machine_counter(machine, COUNTER_watchdog_expiries));
    json_object_update_new(call->answer, more);
    vmm_give_back(call->subject->vmm);
    return HTTP_OK;
}

/* --- the monitor --- */

void call_monitor_end(struct call_monitor *monitor, struct vmm *vmm)
{
    enum vmm_result result;
    if (!monitor->session.stopped)
        return;
    struct machine *machine = vmm_borrow(vmm, &result, NULL);
    if (!machine)
        return;
    if (monitor->boot == vmm_boots(vmm))
        monitor_session_end(&monitor->session);
    vmm_give_back(vmm);
}

/* A session is about one machine: after another boot it begins anew. */
static bool borrow_for_monitor(struct call *call, enum vmm_result *result)
{
    struct call_monitor *monitor = call->monitor;
    struct machine *machine = vmm_borrow(call->subject->vmm, result, &call->err);
    if (!machine)
        return false;
    if (monitor->boot != vmm_boots(call->subject->vmm))
        *monitor = (struct call_monitor){ { .machine = machine }, vmm_boots(call->subject->vmm) };
    return true;
}

/* NULL: no memory for what it printed. */
static char *execute(struct call *call, const char *line, bool *done)
{
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return NULL;
    *done = monitor_execute(&call->monitor->session, line, out);
    fclose(out);
    return text;
}

enum http_status endpoint_doppel_monitor(struct call *call)
{
    enum vmm_result result;
    bool done;
    const char *line = call_text(call, "command", true);
    if (!line)
        return HTTP_BAD_REQUEST;
    if (!borrow_for_monitor(call, &result))
        return call_status(result);
    char *text = execute(call, line, &done);
    vmm_give_back(call->subject->vmm);
    call->answer = text ? json_pack("{s:s, s:b}", "output", text, "refused", !done) : NULL;
    free(text);
    if (call->answer)
        return HTTP_OK;
    error_set(&call->err, "there is no memory for the answer");
    return HTTP_INTERNAL_ERROR;
}

/* --- the console --- */

enum http_status endpoint_doppel_console(struct call *call)
{
    json_int_t backlog = json_integer_value(json_object_get(call->body, "backlog"));
    if (!call->subject->console) {
        error_set(&call->err, "its console is not shared; where it goes is in vm.info");
        return HTTP_CONFLICT;
    }
    if (call->descriptor_count != 1) {
        error_set(&call->err, "one stream socket must come with the request, by SCM_RIGHTS");
        return HTTP_BAD_REQUEST;
    }
    if (!console_attach(call->subject->console, call->descriptor[0], backlog > 0 ? (size_t)backlog : 0, &call->err))
        return HTTP_CONFLICT;
    call->descriptor[0] = -1;
    return HTTP_NO_CONTENT;
}

/* --- snapshots --- */

enum http_status endpoint_doppel_snapshot(struct call *call)
{
    const char *directory = call_text(call, "directory", true), *parent = directory ? call_text(call, "parent", false) : NULL;
    const char *disks = directory ? call_text(call, "disks", false) : NULL;
    if (!directory || (!parent && json_object_get(call->body, "parent")) || (!disks && json_object_get(call->body, "disks")))
        return HTTP_BAD_REQUEST;
    const struct snapshot_options options = { .parent = parent, .disks = disks, .compress = json_is_true(json_object_get(call->body, "compress")) };
    return call_snapshot(call, directory, &options);
}
