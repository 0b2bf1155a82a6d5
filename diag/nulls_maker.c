/* The queue of ensembles to make and the thread that makes them. */
#define _GNU_SOURCE
#include "diag/nulls_maker.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

typedef struct entry {
    nulls_job job;
    char key[NULLS_KEY_BYTES];
    bool done;
    struct entry *next;
} entry;

struct nulls_maker {
    nulls_cache *cache;
    int threads;
    pthread_t thread;
    pthread_mutex_t lock; /* of all below */
    pthread_cond_t changed;
    entry *first; /* all ever asked for: a key is asked for once */
    const entry *now;
    int waiting, done;
    char fault[256];
    nulls_watch watch; /* of the ensemble that is being made */
};

static void key_of(char key[NULLS_KEY_BYTES], const nulls_job *j) {
    nulls_key(key, &j->shape, j->log_ratio, j->draws);
    if (j->gains) nulls_gains_key(j->gains, key);
}

/* The cheapest of those that wait: the draws of layers are fewer and larger. */
static entry *next_entry(nulls_maker *m) {
    entry *best = NULL;
    for (entry *e = m->first; e; e = e->next)
        if (!e->done && (!best || e->job.shape.rank < best->job.shape.rank)) best = e;
    return best;
}

static status make(nulls_maker *m, const entry *e) {
    const nulls_job *j = &e->job;
    nulls_entry made = {.draws = j->draws};
    memcpy(made.key, e->key, sizeof(made.key));
    if (nulls_cache_find(m->cache, e->key, &made.moments)) return STATUS_OK;
    status s =
        j->gains ? nulls_gains_ensemble(&j->shape, j->gains, j->log_ratio, j->draws, NULLS_SEED, m->threads, &m->watch,
                                        &made.moments)
                 : nulls_ensemble(&j->shape, j->log_ratio, j->draws, NULLS_SEED, m->threads, &m->watch, &made.moments);
    return s == STATUS_OK ? nulls_cache_add(m->cache, &made, !j->gains) : s;
}

static void *work(void *user) {
    nulls_maker *m = user;
    setpriority(PRIO_PROCESS, (id_t)gettid(), 19); /* this thread's, and of those that it starts */
    pthread_mutex_lock(&m->lock);
    while (!atomic_load(&m->watch.stop)) {
        entry *e = next_entry(m);
        if (!e) {
            pthread_cond_wait(&m->changed, &m->lock);
            continue;
        }
        m->now = e;
        atomic_store(&m->watch.drawn, 0);
        pthread_mutex_unlock(&m->lock);
        status s = make(m, e);
        pthread_mutex_lock(&m->lock);
        m->now = NULL;
        if (s != STATUS_OK && !atomic_load(&m->watch.stop) && !m->fault[0])
            snprintf(m->fault, sizeof(m->fault), "%s", status_message());
        status_clear();
        e->done = true;
        m->waiting--;
        m->done++;
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
    return NULL;
}

status nulls_maker_open(nulls_maker **out, nulls_cache *cache, int threads) {
    nulls_maker *m = calloc(1, sizeof(*m));
    *out = NULL;
    if (!m) return status_fail(STATUS_INTERNAL, "out of memory for the null ensembles");
    m->cache = cache;
    m->threads = threads;
    pthread_mutex_init(&m->lock, NULL);
    pthread_cond_init(&m->changed, NULL);
    if (pthread_create(&m->thread, NULL, work, m) != 0) {
        free(m);
        return status_fail(STATUS_INTERNAL, "no thread can be started for the null ensembles");
    }
    *out = m;
    return STATUS_OK;
}

void nulls_maker_close(nulls_maker *m) {
    if (!m) return;
    pthread_mutex_lock(&m->lock);
    atomic_store(&m->watch.stop, true);
    pthread_cond_broadcast(&m->changed);
    pthread_mutex_unlock(&m->lock);
    pthread_join(m->thread, NULL);
    while (m->first) {
        entry *next = m->first->next;
        free(m->first);
        m->first = next;
    }
    pthread_cond_destroy(&m->changed);
    pthread_mutex_destroy(&m->lock);
    free(m);
}

void nulls_maker_ask(nulls_maker *m, const nulls_job *job) {
    char key[NULLS_KEY_BYTES];
    key_of(key, job);
    pthread_mutex_lock(&m->lock);
    entry *e = m->first;
    while (e && strcmp(e->key, key) != 0) e = e->next;
    if (!e && (e = calloc(1, sizeof(*e)))) {
        e->job = *job;
        memcpy(e->key, key, sizeof(key));
        e->next = m->first;
        m->first = e;
        m->waiting++;
        pthread_cond_broadcast(&m->changed);
    }
    pthread_mutex_unlock(&m->lock);
}

static int locked_value(nulls_maker *m, const int *value) {
    pthread_mutex_lock(&m->lock);
    int x = *value;
    pthread_mutex_unlock(&m->lock);
    return x;
}

int nulls_maker_waiting(nulls_maker *m) {
    return locked_value(m, &m->waiting);
}
int nulls_maker_done(nulls_maker *m) {
    return locked_value(m, &m->done);
}

bool nulls_maker_progress(nulls_maker *m, int *rank, int *draws, int *drawn) {
    pthread_mutex_lock(&m->lock);
    const entry *e = m->now;
    if (e) {
        *rank = e->job.shape.rank;
        *draws = e->job.draws;
        *drawn = atomic_load(&m->watch.drawn);
    }
    pthread_mutex_unlock(&m->lock);
    return e != NULL;
}

void nulls_maker_wait(nulls_maker *m, double seconds) {
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += (time_t)seconds;
    pthread_mutex_lock(&m->lock);
    while (m->waiting > 0 && pthread_cond_timedwait(&m->changed, &m->lock, &end) == 0) continue;
    pthread_mutex_unlock(&m->lock);
}

bool nulls_maker_fault(nulls_maker *m, char *to, size_t bytes) {
    pthread_mutex_lock(&m->lock);
    bool any = m->fault[0] != '\0';
    if (any) snprintf(to, bytes, "%s", m->fault);
    m->fault[0] = '\0';
    pthread_mutex_unlock(&m->lock);
    return any;
}
