/* Endpoints about the process. */
#include <unistd.h>

#include "api/endpoints.h"
#include "base/version.h"
#include "api/vmm.h"

enum http_status endpoint_vmm_ping(struct call *call)
{
    call->answer = json_pack("{s:s, s:s, s:i, s:[]}", "build_version", "doppel " DOPPEL_VERSION, "version", DOPPEL_VERSION, "pid",
                             (int)getpid(), "features");
    return HTTP_OK;
}

enum http_status endpoint_vmm_shutdown(struct call *call)
{
    vmm_quit(call->subject->vmm, END_NONE, 0);
    return HTTP_NO_CONTENT;
}
