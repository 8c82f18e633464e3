#ifndef DOPPEL_DBT_GS_H
#define DOPPEL_DBT_GS_H

#include <stdbool.h>

/* May programs write the base by an instruction? Else a system call does it. */
bool gs_has_instruction(void);
/* The calling thread's GS base. Nobody else in the process uses it; a thread may serve several vCPUs in turn. */
void gs_point_at(void *at, bool has_instruction);

#endif
