/* Private to comm/: waiting for MPI without burning a core. MPI's own waits spin; these loops test, and sleep longer
 * the longer nothing happens. */
#pragma once

#include <time.h>

enum { BACKOFF_FIRST_US = 20, BACKOFF_MOST_US = 1000 };

typedef struct backoff {
    long us; /* the last sleep */
} backoff;

/* Sleeps, twice as long as last time, most_us at most. */
static inline void backoff_sleep(backoff *b, long most_us) {
    b->us = b->us == 0 ? BACKOFF_FIRST_US : 2 * b->us;
    if (b->us > most_us) b->us = most_us;
    nanosleep(&(struct timespec){.tv_nsec = b->us * 1000}, NULL);
}

static inline void backoff_reset(backoff *b) {
    b->us = 0;
}
