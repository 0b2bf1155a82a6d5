#include "comm/watchdog.h"

#include "comm/roles.h"
#include "comm/thread.h"
#include "core/clock.h"
#include "core/log.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { POLLS_A_PATIENCE = 60, MOST_POLL_S = 5 };

/* What was seen last of a group, and since when it has been so: of calls that wait, and of the device's work. */
typedef struct watch {
    const comm_group *group;
    uint64_t waits, finished;
    double call_since_s, device_since_s;
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

/* Says which rank this is and where it stands, and ends the job. what: the reason, with what follows from it. */
_Noreturn static void bite(const comm_watchdog *w, const comm_group *g, const comm_pending *at, const char *what) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    char layer[32] = "";
    if (at->layer >= 0) snprintf(layer, sizeof layer, ", layer %d", at->layer);
    log_error("rank %d %s in %s%s, step %lld (%s, collective %llu of a group of %d); ending the job", rank, what,
              at->place, layer, (long long)__atomic_load_n(&w->step, __ATOMIC_RELAXED), at->operation,
              (unsigned long long)at->sequence, g->size);
    comm_abort(STATUS_INTERNAL);
}

_Noreturn static void bite_waiting(const comm_watchdog *w, const comm_group *g, const comm_pending *at) {
    char what[160];
    snprintf(what, sizeof what, "has waited for %.0f s, since another rank of the group is stopped, hung or elsewhere,",
             w->patience_s);
    bite(w, g, at, what);
}

/* The collective that the group is in. */
static comm_pending named_by(const comm_group *g) {
    return (comm_pending){.operation = __atomic_load_n(&g->operation, __ATOMIC_RELAXED),
                          .place = __atomic_load_n(&g->place, __ATOMIC_RELAXED),
                          .layer = __atomic_load_n(&g->layer, __ATOMIC_RELAXED),
                          .sequence = __atomic_load_n(&g->number, __ATOMIC_RELAXED)};
}

/* A call that does not return. */
static void look_at_call(const comm_watchdog *w, watch *seen, double now) {
    uint64_t waits = __atomic_load_n(&seen->group->waits, __ATOMIC_ACQUIRE);
    bool inside = waits % 2 == 1;
    if (inside && waits == seen->waits && now - seen->call_since_s > w->patience_s) {
        comm_pending at = named_by(seen->group);
        bite_waiting(w, seen->group, &at);
    }
    if (!inside || waits != seen->waits) seen->call_since_s = now;
    seen->waits = waits;
}

/* Work of the device that does not end: true, with the collective that it has come to. */
static bool device_stands(const comm_watchdog *w, watch *seen, double now, comm_pending *at) {
    const comm_group *g = seen->group;
    const char *fault = g->backend->fault ? g->backend->fault(g) : NULL;
    if (fault) {
        comm_pending last = named_by(g);
        char what[512];
        snprintf(what, sizeof what, "was told \"%s\" by %s", fault, g->backend->name);
        bite(w, g, &last, what);
    }
    bool busy = g->backend->unfinished && g->backend->unfinished(g, at);
    if (!busy || at->finished != seen->finished) seen->device_since_s = now;
    if (busy) seen->finished = at->finished;
    return busy && now - seen->device_since_s > w->patience_s;
}

/* Groups share a stream: behind the collective that hangs those of other groups stand too, so the oldest is named. */
static void look(comm_watchdog *w) {
    double now = clock_now_s();
    const comm_group *stuck = NULL;
    comm_pending oldest = {0}, at;
    for (int i = 0; i < w->count; i++) {
        watch *seen = &w->watches[i];
        if (!device_stands(w, seen, now, &at) || (stuck && at.queued_s > oldest.queued_s)) continue;
        stuck = seen->group;
        oldest = at;
    }
    if (stuck) bite_waiting(w, stuck, &oldest);
    for (int i = 0; i < w->count; i++) look_at_call(w, &w->watches[i], now);
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
    double now = clock_now_s();
    for (int i = 0; i < count; i++)
        w->watches[i] = (watch){.group = groups[i], .call_since_s = now, .device_since_s = now};
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
