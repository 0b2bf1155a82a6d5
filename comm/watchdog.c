#include "comm/watchdog.h"

#include "comm/roles.h"
#include "comm/thread.h"
#include "core/clock.h"
#include "core/log.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { POLLS_A_PATIENCE = 20, MOST_POLL_S = 5 };

typedef struct watch {
    const comm_group *group;
    uint64_t waits; /* as last seen */
    double since_s; /* when it was first seen so */
} watch;

struct comm_watchdog {
    pthread_mutex_t lock; /* guards stopped */
    pthread_cond_t changed;
    bool stopped;
    int64_t step; /* atomic */
    double patience_s;
    pthread_t thread;
    int count;
    watch watches[];
};

_Noreturn static void bite(const comm_watchdog *w, const comm_group *g) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    char layer[32] = "";
    int number = __atomic_load_n(&g->layer, __ATOMIC_RELAXED);
    if (number >= 0) snprintf(layer, sizeof layer, ", layer %d", number);
    log_error(
        "rank %d has waited for %.0f s in %s%s, step %lld (collective %llu of a group of %d): another rank of the "
        "group is stopped, hung or elsewhere; ending the job",
        rank, w->patience_s, __atomic_load_n(&g->place, __ATOMIC_RELAXED), layer,
        (long long)__atomic_load_n(&w->step, __ATOMIC_RELAXED),
        (unsigned long long)__atomic_load_n(&g->sequence, __ATOMIC_RELAXED), g->size);
    comm_abort(STATUS_INTERNAL);
}

static void look(comm_watchdog *w) {
    double now = clock_now_s();
    for (int i = 0; i < w->count; i++) {
        watch *seen = &w->watches[i];
        uint64_t waits = __atomic_load_n(&seen->group->waits, __ATOMIC_ACQUIRE);
        bool inside = waits % 2 == 1;
        if (inside && waits == seen->waits && now - seen->since_s > w->patience_s) bite(w, seen->group);
        if (!inside || waits != seen->waits) seen->since_s = now;
        seen->waits = waits;
    }
}

static void *run(void *user) {
    comm_watchdog *w = user;
    double poll_s = w->patience_s / POLLS_A_PATIENCE;
    if (poll_s > MOST_POLL_S) poll_s = MOST_POLL_S;
    pthread_mutex_lock(&w->lock);
    while (!w->stopped) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        double at = (double)until.tv_nsec * 1e-9 + poll_s;
        until.tv_sec += (time_t)at;
        until.tv_nsec = (long)((at - (double)(time_t)at) * 1e9);
        pthread_cond_timedwait(&w->changed, &w->lock, &until);
        look(w);
    }
    pthread_mutex_unlock(&w->lock);
    return NULL;
}

static void free_watchdog(comm_watchdog *w) {
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->lock);
    free(w);
}

status comm_watch(comm_watchdog **out, const comm_group *const *groups, int count, double patience_s) {
    *out = NULL;
    comm_watchdog *w = calloc(1, sizeof *w + (size_t)count * sizeof w->watches[0]);
    if (!w) return status_fail(STATUS_INTERNAL, "out of memory for the watchdog");
    pthread_mutex_init(&w->lock, NULL);
    pthread_cond_init(&w->changed, NULL);
    w->patience_s = patience_s;
    w->count = count;
    for (int i = 0; i < count; i++) w->watches[i].group = groups[i];
    status result = comm_start_thread(&w->thread, run, w);
    if (result != STATUS_OK) {
        free_watchdog(w);
        return result;
    }
    *out = w;
    return STATUS_OK;
}

void comm_watch_step(comm_watchdog *w, int64_t step) {
    __atomic_store_n(&w->step, step, __ATOMIC_RELAXED);
}

void comm_unwatch(comm_watchdog *w) {
    if (!w) return;
    pthread_mutex_lock(&w->lock);
    w->stopped = true;
    pthread_cond_signal(&w->changed);
    pthread_mutex_unlock(&w->lock);
    pthread_join(w->thread, NULL);
    free_watchdog(w);
}
