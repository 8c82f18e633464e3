/* vm.snapshot and vm.restore. Places are URLs of the form file:///DIRECTORY, as Cloud Hypervisor has them. */
#include <string.h>
#include <unistd.h>

#include "api/console.h"
#include "api/endpoints.h"
#include "api/vm_config.h"
#include "machine/snapshot.h"

/* in_empty: the directory may be there, if there is nothing in it. */
static enum http_status keep(struct call *call, const char *directory, const struct snapshot_options *options, bool in_empty)
{
    enum vmm_result result;
    struct machine *machine = vmm_borrow(call->subject->vmm, &result, &call->err);
    if (!machine)
        return call_status(result);
    if (in_empty)
        rmdir(directory);
    bool kept = machine_snapshot(machine, directory, options, &call->err);
    vmm_give_back(call->subject->vmm);
    return kept ? HTTP_NO_CONTENT : HTTP_INTERNAL_ERROR;
}

enum http_status call_snapshot(struct call *call, const char *directory, const struct snapshot_options *options)
{
    return keep(call, directory, options, false);
}

/* The directory of a URL; NULL: the error says what is wrong. */
static const char *directory_of(struct call *call, const char *key)
{
    const char *url = call_text(call, key, true);
    if (url && !strncmp(url, "file:///", 8))
        return url + 7;
    if (url)
        error_set(&call->err, "'%s' must be like file:///DIRECTORY", key);
    return NULL;
}

/* Clients make the directory first, because Cloud Hypervisor wants it so; a snapshot here makes its own. */
enum http_status endpoint_vm_snapshot(struct call *call)
{
    const char *directory = directory_of(call, "destination_url");
    return directory ? keep(call, directory, NULL, true) : HTTP_BAD_REQUEST;
}

/* What belonged to the process that it was taken of: the console is ours, and messages go where ours go. */
static void adopt(struct call *call, struct machine_config *config)
{
    config->console = call->subject->console ? CONSOLE_SHARED : "none";
    config->virtio_console = config->virtio_console ? "none" : NULL;
    config->debug_console = config->debug_console ? "none" : NULL;
    config->log = call->subject->defaults->log;
}

enum http_status endpoint_vm_restore(struct call *call)
{
    const char *directory = directory_of(call, "source_url");
    if (!directory)
        return HTTP_BAD_REQUEST;
    const struct restore_options options = { .disks = call_text(call, "doppel_disks", false) };
    struct snapshot *snapshot = snapshot_open(directory, &call->err);
    if (!snapshot)
        return HTTP_BAD_REQUEST;
    adopt(call, snapshot_config(snapshot));
    struct vm_config *config = vm_config_of_snapshot(snapshot, &options, &call->err);
    enum vmm_result result = config ? vmm_create_vm(call->subject->vmm, config, &call->err) : VMM_FAILED;
    if (result != VMM_DONE)
        return call_status(result);
    result = vmm_boot(call->subject->vmm, !json_is_true(json_object_get(call->body, "resume")), &call->err);
    if (result == VMM_DONE)
        return HTTP_NO_CONTENT;
    struct error ignored;
    vmm_delete_vm(call->subject->vmm, &ignored);
    return call_status(result);
}
