#ifndef DOPPEL_DBT_GS_H
#define DOPPEL_DBT_GS_H

/* The calling thread's GS base. Nobody else in the process uses it; a thread may serve several vCPUs in turn. */
void gs_point_at(void *at);

#endif
