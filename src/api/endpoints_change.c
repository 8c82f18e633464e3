/*
 * Endpoints that change what a virtual machine is made of: all of it until it is booted, disks and network cards also while it runs.
 */
#include <stdlib.h>

#include "api/endpoints.h"
#include "api/vm_config.h"
#include "machine/hotplug.h"

enum http_status endpoint_not_offered(struct call *call)
{
    error_set(&call->err, "this is not offered: what a machine is made of is said to vm.create");
    return HTTP_NOT_IMPLEMENTED;
}

/* --- before it is booted --- */

static bool add_disk(struct vm_config *config, void *body, struct error *err)
{
    return vm_config_add_disk(config, body, err);
}

static bool add_net(struct vm_config *config, void *body, struct error *err)
{
    return vm_config_add_net(config, body, err);
}

static bool remove_device(struct vm_config *config, void *body, struct error *err)
{
    return vm_config_remove_device(config, json_string_value(json_object_get(body, "id")), err);
}

static bool change_medium(struct vm_config *config, void *body, struct error *err)
{
    return vm_config_change_medium(config, body, err);
}

static bool resize(struct vm_config *config, void *body, struct error *err)
{
    return vm_config_resize(config, body, err);
}

/* --- while it runs --- */

static void answer_place(struct call *call, const struct hotplug_place *place)
{
    call->answer = json_pack("{s:s, s:o}", "id", place->id, "bdf", json_sprintf("0000:00:%02x.%u", place->devfn >> 3, place->devfn & 7));
}

/* Texts of a device that did not come about are let go. */
static bool came(struct vm_config *config, unsigned owned, bool ok)
{
    while (!ok && config->owned_count > owned)
        free(config->owned[--config->owned_count]);
    return ok;
}

static bool plug_disk(struct vm_config *config, struct machine *machine, void *argument, struct error *err)
{
    struct call *call = argument;
    struct disk_config disk;
    struct hotplug_place place;
    unsigned owned = config->owned_count;
    bool ok = vm_config_parse_disk(config, call->body, &disk, err) && machine_add_disk(machine, &disk, &place, err);
    if (ok)
        answer_place(call, &place);
    return came(config, owned, ok);
}

static bool plug_net(struct vm_config *config, struct machine *machine, void *argument, struct error *err)
{
    struct call *call = argument;
    struct net_config net;
    struct hotplug_place place;
    unsigned owned = config->owned_count;
    bool ok = vm_config_parse_net(config, call->body, &net, err) && machine_add_net(machine, &net, &place, err);
    if (ok)
        answer_place(call, &place);
    return came(config, owned, ok);
}

static bool unplug(struct vm_config *config, struct machine *machine, void *argument, struct error *err)
{
    struct call *call = argument;
    return machine_remove_device(machine, json_string_value(json_object_get(call->body, "id")), err);
}

static bool change_medium_running(struct vm_config *config, struct machine *machine, void *argument, struct error *err)
{
    struct call *call = argument;
    struct medium_change change;
    return vm_config_parse_medium(call->body, &change, err) && machine_change_medium(machine, &change, err);
}

/* --- the endpoints --- */

/* As long as it is not booted the configuration changes, else the machine. */
static enum http_status plug(struct call *call, bool (*before)(struct vm_config *config, void *argument, struct error *err),
                             bool (*running)(struct vm_config *config, struct machine *machine, void *argument, struct error *err))
{
    struct vmm *vmm = call->subject->vmm;
    enum vmm_result result = vmm_change_booted(vmm, running, call, &call->err);
    if (result == VMM_WRONG_STATE)
        result = vmm_change_vm(vmm, before, call->body, &call->err);
    return result == VMM_DONE && call->answer ? HTTP_OK : call_status(result);
}

enum http_status endpoint_vm_add_disk(struct call *call)
{
    return plug(call, add_disk, plug_disk);
}

enum http_status endpoint_vm_add_net(struct call *call)
{
    return plug(call, add_net, plug_net);
}

enum http_status endpoint_vm_remove_device(struct call *call)
{
    return call_text(call, "id", true) ? plug(call, remove_device, unplug) : HTTP_BAD_REQUEST;
}

enum http_status endpoint_doppel_change_medium(struct call *call)
{
    return plug(call, change_medium, change_medium_running);
}

/* That a machine which runs cannot be changed in this is ours to implement, not the client's mistake. */
enum http_status endpoint_vm_resize(struct call *call)
{
    enum vmm_result result = vmm_change_vm(call->subject->vmm, resize, call->body, &call->err);
    return result == VMM_WRONG_STATE ? HTTP_NOT_IMPLEMENTED : call_status(result);
}
