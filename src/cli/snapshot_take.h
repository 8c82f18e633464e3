/* `doppel snapshot NAME DIRECTORY`: of a machine that runs. */
#ifndef DOPPEL_CLI_SNAPSHOT_TAKE_H
#define DOPPEL_CLI_SNAPSHOT_TAKE_H

/* argv[0] is "snapshot". Returns the exit status. */
int snapshot_take(int argc, char **argv);

#endif
