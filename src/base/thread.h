/* Threads. Signals are the main thread's affair: the others take those only that their own instructions raise, so that a crash is told in any. */
#ifndef DOPPEL_BASE_THREAD_H
#define DOPPEL_BASE_THREAD_H

#include <pthread.h>

/*
 * Any thread. Starts one that runs `run` and shows as `name`, of at most 15 characters, in the host's lists; the caller joins it. Returns 0 or
 * an errno.
 */
int thread_start(pthread_t *thread, const char *name, void *(*run)(void *), void *argument);

/* Any thread: how many of the host's processors the process may run on, at least 1. */
unsigned thread_processors(void);

#endif
