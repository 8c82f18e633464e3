/* The machine's screen, keyboard and pointer on VNC. */
#ifndef DOPPEL_MACHINE_SCREEN_VNC_H
#define DOPPEL_MACHINE_SCREEN_VNC_H

#include "machine/machine.h"

struct screen_vnc;

/* Serves what config.vnc says. NULL: err says why. */
struct screen_vnc *screen_vnc_open(struct machine *machine, struct error *err);
/* Board lock not held; before the devices go. */
void screen_vnc_close(struct screen_vnc *screen);

#endif
