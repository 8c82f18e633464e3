/* Endpoints that change what a virtual machine is made of. That is possible until it is booted: nothing here is hot-pluggable yet. */
#include "api/endpoints.h"
#include "api/vm_config.h"

enum http_status endpoint_not_offered(struct call *call)
{
    error_set(&call->err, "this is not offered: what a machine is made of is said to vm.create");
    return HTTP_NOT_IMPLEMENTED;
}

/* That a machine which runs cannot be changed is ours to implement, not the client's mistake. */
static enum http_status change(struct call *call, bool (*how)(struct vm_config *config, void *argument, struct error *err))
{
    enum vmm_result result = vmm_change_vm(call->subject->vmm, how, call->body, &call->err);
    return result == VMM_WRONG_STATE ? HTTP_NOT_IMPLEMENTED : call_status(result);
}

static bool add_disk(struct vm_config *config, void *body, struct error *err)
{
    return vm_config_add_disk(config, body, err);
}

static bool add_net(struct vm_config *config, void *body, struct error *err)
{
    return vm_config_add_net(config, body, err);
}

static bool resize(struct vm_config *config, void *body, struct error *err)
{
    return vm_config_resize(config, body, err);
}

enum http_status endpoint_vm_add_disk(struct call *call)
{
    return change(call, add_disk);
}

enum http_status endpoint_vm_add_net(struct call *call)
{
    return change(call, add_net);
}

enum http_status endpoint_vm_resize(struct call *call)
{
    return change(call, resize);
}
