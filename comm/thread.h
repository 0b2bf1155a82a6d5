/* Private to comm/: starting its threads, and their clock. */
#pragma once

#include "core/status.h"

#include <pthread.h>
#include <time.h>

/* A thread with every signal blocked: signals are the main thread's business. */
status comm_start_thread(pthread_t *thread, void *(*run)(void *), void *user);

/* Seconds on a clock that nobody sets. */
static inline double comm_now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
