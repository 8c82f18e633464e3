#include "cli/exit_status.h"

#include <signal.h>

int exit_status_of(enum machine_end end, uint32_t code)
{
    switch (end) {
    case END_POWER_OFF:
        return EXIT_DONE;
    case END_REBOOT:
        return EXIT_REBOOT;
    case END_TRIPLE_FAULT:
        return EXIT_TRIPLE_FAULT;
    case END_DEBUG_EXIT:
        return (int)((code << 1 | 1) & 0xFF);
    case END_PANIC:
        return EXIT_PANIC;
    case END_WATCHDOG:
        return EXIT_WATCHDOG;
    case END_QUIT:
        return EXIT_SIGNAL + (int)(code ? code : SIGINT);
    case END_NONE:
        return EXIT_DONE;
    case END_HOST_ERROR:
        break;
    }
    return EXIT_HOST_ERROR;
}

const char *exit_reason_of(enum machine_end end)
{
    switch (end) {
    case END_POWER_OFF:
        return "the guest powered off";
    case END_REBOOT:
        return "the guest asked for a reboot";
    case END_TRIPLE_FAULT:
        return "a guest processor shut down (triple fault)";
    case END_DEBUG_EXIT:
        return "the guest ended it through the debug-exit port";
    case END_PANIC:
        return "the guest's kernel panicked";
    case END_WATCHDOG:
        return "the guest's watchdog ran out";
    case END_QUIT:
        return "ended by a signal, from its terminal or its monitor";
    case END_NONE:
        return "ended through its control socket";
    case END_HOST_ERROR:
        break;
    }
    return "the host failed; see its messages";
}
