#include <stdio.h>

#include "cli/commands.h"
#include "cli/exit_status.h"
#include "base/version.h"

int command_version(int argc, char **argv)
{
    printf("doppel %s\n", DOPPEL_VERSION);
    return EXIT_DONE;
}
