/* Endpoints about the virtual machine's life, after Cloud Hypervisor's. */
#include <string.h>

#include "api/endpoints.h"
#include "api/vm_config.h"
#include "api/vmm.h"
#include "backend/chardev.h"
#include "base/base.h"
#include "dev/device.h"
#include "dev/pci/pci.h"

enum http_status call_status(enum vmm_result result)
{
    switch (result) {
    case VMM_DONE:
        return HTTP_NO_CONTENT;
    case VMM_INVALID:
        return HTTP_BAD_REQUEST;
    case VMM_NO_VM:
        return HTTP_NOT_FOUND;
    case VMM_WRONG_STATE:
        return HTTP_METHOD_NOT_ALLOWED;
    case VMM_FAILED:
        break;
    }
    return HTTP_INTERNAL_ERROR;
}

enum http_status endpoint_vm_create(struct call *call)
{
    struct vm_config *config = vm_config_parse(call->body, call->subject->defaults, call->subject->name, &call->err);
    return config ? call_status(vmm_create_vm(call->subject->vmm, config, &call->err)) : HTTP_BAD_REQUEST;
}

enum http_status endpoint_vm_boot(struct call *call)
{
    return call_status(vmm_boot(call->subject->vmm, false, &call->err));
}

enum http_status endpoint_vm_pause(struct call *call)
{
    return call_status(vmm_pause(call->subject->vmm, &call->err));
}

enum http_status endpoint_vm_resume(struct call *call)
{
    return call_status(vmm_resume(call->subject->vmm, &call->err));
}

enum http_status endpoint_vm_shutdown(struct call *call)
{
    return call_status(vmm_shutdown(call->subject->vmm, &call->err));
}

enum http_status endpoint_vm_delete(struct call *call)
{
    return call_status(vmm_delete_vm(call->subject->vmm, &call->err));
}

/* Something short done to a machine that is booted. */
static enum http_status with_machine(struct call *call, void (*run)(struct machine *machine))
{
    enum vmm_result result;
    struct machine *machine = vmm_borrow(call->subject->vmm, &result, &call->err);
    if (!machine)
        return call_status(result);
    run(machine);
    vmm_give_back(call->subject->vmm);
    return HTTP_NO_CONTENT;
}

enum http_status endpoint_vm_reboot(struct call *call)
{
    return with_machine(call, machine_reset);
}

enum http_status endpoint_vm_power_button(struct call *call)
{
    return with_machine(call, machine_power_button);
}

static void send_nmi(struct machine *machine)
{
    for (unsigned i = 0; i < machine->config.cpus; i++)
        vcpu_kick(machine->vcpu[i], REQUEST_NMI);
}

enum http_status endpoint_vm_nmi(struct call *call)
{
    return with_machine(call, send_nmi);
}

/* --- what there is to see --- */

static const char *state_name(enum vmm_state state)
{
    return state == VMM_RUNNING ? "Running" : state == VMM_PAUSED ? "Paused" : "Created";
}

/* A DeviceNode for each device; those on PCI have an address. */
static json_t *device_tree(struct machine *machine)
{
    json_t *tree = json_object();
    pthread_mutex_lock(&machine->lock);
    for (const struct device *device = machine->devices; device; device = device->next)
        json_object_set_new(tree, device->name, json_pack("{s:s, s:[], s:[]}", "id", device->name, "resources", "children"));
    for (unsigned devfn = 0; machine->pci && devfn < 256; devfn++) {
        const struct pci_function *function = pci_bus_find(machine->pci, (uint8_t)devfn);
        if (function)
            json_object_set_new(json_object_get(tree, function->device.name), "pci_bdf",
                                json_sprintf("0000:00:%02x.%u", devfn >> 3, devfn & 7));
    }
    pthread_mutex_unlock(&machine->lock);
    return tree;
}

/* A pseudoterminal has a name only once it is open. */
static void name_terminal(json_t *config, const char *key, const struct chardev *chardev)
{
    if (chardev && chardev_name(chardev))
        json_object_set_new(json_object_get(config, key), "file", json_string(chardev_name(chardev)));
}

enum http_status endpoint_vm_info(struct call *call)
{
    enum vmm_result result;
    struct vmm *vmm = call->subject->vmm;
    const struct vm_config *config = vmm_borrow_config(vmm, &result, &call->err);
    if (!config)
        return call_status(result);
    struct machine *machine = vmm_borrow(vmm, &result, &call->err);
    if (machine)
        pthread_mutex_lock(&machine->lock);
    json_t *json = vm_config_to_json(config, machine ? &machine->config : config->machine, call->subject->console_log);
    if (machine)
        pthread_mutex_unlock(&machine->lock);
    call->answer = json_pack("{s:o, s:s, s:I}", "config", json, "state", state_name(vmm_state(vmm)), "memory_actual_size",
                             (json_int_t)config->machine->memory);
    vmm_give_back(vmm);
    if (machine) {
        json_object_set_new(call->answer, "device_tree", device_tree(machine));
        name_terminal(json_object_get(call->answer, "config"), "serial", machine->console);
        name_terminal(json_object_get(call->answer, "config"), "console", machine->virtio_console);
        vmm_give_back(vmm);
    }
    return HTTP_OK;
}

enum http_status endpoint_vm_counters(struct call *call)
{
    enum vmm_result result;
    struct machine *machine = vmm_borrow(call->subject->vmm, &result, &call->err);
    if (!machine)
        return call_status(result);
    json_t *counters = json_object();
    call_settle_counters(machine);
    for (unsigned i = 0; i < COUNTER_COUNT; i++)
        json_object_set_new(counters, counter_name(i), json_integer((json_int_t)machine_counter(machine, i)));
    vmm_give_back(call->subject->vmm);
    call->answer = json_pack("{s:o}", "machine", counters);
    return HTTP_OK;
}
