/* The diagnostics rank's work: messages in, database rows out. Spectra of one snapshot at a time; shares of the next
 * ones arrive meanwhile in the channel's own thread.
 *
 * Nothing here ends the service: what goes wrong with a message, a snapshot or the database becomes an event and a log
 * line. */
#include "diag/diag.h"
#include "core/clock.h"

#include "core/log.h"
#include "diag/maps.h"
#include "diag/serve.h"
#include "diag/store.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Credits bound the snapshots under way; one more tells that a rank's share of an old one was lost. */
enum { MOST_UNDER_WAY = CHANNEL_SNAPSHOT_BUFFERS + 1 };
enum { FLUSH_EVERY_MS = 500, RETRY_EVERY_MS = 5000 };

typedef struct under_way {
    bool used, broken; /* broken: a share was refused */
    int64_t step;
    int shares;
    double since_ms;
    snapshot parts;
} under_way;

struct diag {
    maps *maps;        /* NULL: no spectra are wanted */
    svd_device device; /* close NULL: the CPU's LAPACK */
    bool device_lost;
    store *store;
    int64_t tokens_per_step, esd_every;
    under_way snapshots[MOST_UNDER_WAY];
    double next_flush_ms;
};

static double now_ms(void) {
    return 1e3 * clock_now_s();
}

bool diag_wants(const config *c, const char *tensor_name) {
    return maps_wants(c, tensor_name);
}

static status open_maps(diag *d, const config *c) {
    TRY(maps_open(&d->maps, c, omp_get_max_threads()));
    if (c->diagnostics.device != DEVICE_CUDA) return STATUS_OK;
    TRY(svd_cuda(&d->device));
    return maps_use_device(d->maps, &d->device);
}

static void close_maps(diag *d) {
    maps_close(d->maps);
    if (d->device.close) d->device.close(&d->device);
}

status diag_open(diag **out, const config *c, const char *run_dir, const char *device, int tp, int dp,
                 const char *hosts) {
    char path[4096];
    diag *d = calloc(1, sizeof(*d));
    *out = NULL;
    if (!d) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    d->tokens_per_step = c->train.global_batch * c->model.context;
    d->esd_every = c->diagnostics.esd_every;
    status s = STATUS_OK;
    if (snprintf(path, sizeof(path), "%s/run.db", run_dir) >= (int)sizeof(path))
        s = status_fail(STATUS_IO, "the path of the run folder is too long: %s", run_dir);
    if (s == STATUS_OK && c->diagnostics.ranks > 0) s = open_maps(d, c);
    if (s == STATUS_OK) {
        const store_session session = {.config = c,
                                       .device = device,
                                       .hosts = hosts,
                                       .code_version = BULKHEAD_VERSION,
                                       .tp = tp,
                                       .dp = dp,
                                       .matrices = d->maps ? maps_matrices(d->maps) : NULL,
                                       .matrix_count = d->maps ? maps_count(d->maps) : 0};
        s = store_open(&d->store, path, &session);
    }
    if (s == STATUS_OK) {
        *out = d;
        return STATUS_OK;
    }
    close_maps(d);
    free(d);
    return s;
}

/* ---------------------------------------------------------------- records */

/* Writes what waits, unless it may wait longer: where a commit costs a disk flush, and where the database has just
 * refused. */
static void flush(diag *d) {
    double t = now_ms();
    if (t < d->next_flush_ms) return;
    d->next_flush_ms = store_is_cheap(d->store) ? 0 : t + FLUSH_EVERY_MS;
    if (store_flush(d->store) == STATUS_OK) return;
    d->next_flush_ms = now_ms() + RETRY_EVERY_MS;
    status_clear();
}

static size_t record_bytes(int kind) {
    switch (kind) {
    case DIAG_STEP:
        return sizeof(diag_step);
    case DIAG_EVAL:
        return sizeof(diag_eval);
    case DIAG_EVENT:
        return sizeof(diag_event);
    case DIAG_FINISH:
        return sizeof(diag_finish);
    default:
        return 0;
    }
}

static void end_text(char *text, size_t size) {
    text[size - 1] = '\0';
}

static void add_snapshot(diag *d, int64_t step, const char *how, double lag_ms, double compute_ms, spectrum *rows,
                         double *values) {
    store_record r = {.kind = STORE_SNAPSHOT,
                      .snapshot = {.step = step,
                                   .tokens = step * d->tokens_per_step,
                                   .status = how,
                                   .lag_ms = lag_ms,
                                   .compute_ms = compute_ms,
                                   .rows = rows,
                                   .values = values}};
    store_add(d->store, &r);
}

static void take_record(diag *d, const channel_message *m) {
    store_record r = {0};
    size_t bytes = record_bytes(m->kind);
    if (bytes == 0 || m->bytes != bytes) {
        store_event(d->store, m->step, "error", "fault", "rank %d sent %zu bytes as a record of kind %d", m->sender,
                    m->bytes, m->kind);
        return;
    }
    switch ((diag_record_kind)m->kind) {
    case DIAG_STEP:
        r.kind = STORE_STEP;
        memcpy(&r.step, m->data, bytes);
        break;
    case DIAG_EVAL:
        r.kind = STORE_EVAL;
        memcpy(&r.eval, m->data, bytes);
        end_text(r.eval.split, sizeof(r.eval.split));
        break;
    case DIAG_EVENT:
        r.kind = STORE_EVENT;
        memcpy(&r.event, m->data, bytes);
        end_text(r.event.level, sizeof(r.event.level));
        end_text(r.event.kind, sizeof(r.event.kind));
        end_text(r.event.message, sizeof(r.event.message));
        if (strcmp(r.event.kind, "drop") == 0) add_snapshot(d, r.event.step, "dropped", NAN, NAN, NULL, NULL);
        break;
    case DIAG_FINISH:
        r.kind = STORE_FINISH;
        memcpy(&r.finish, m->data, bytes);
        end_text(r.finish.status, sizeof(r.finish.status));
        break;
    }
    store_add(d->store, &r);
    flush(d);
}

/* ---------------------------------------------------------------- snapshots */

static void fail_snapshot(diag *d, const under_way *u, const char *why) {
    log_warn("the snapshot of step %lld is not recorded: %s", (long long)u->step, why);
    store_event(d->store, u->step, "warn", "snapshot", "not recorded: %s", why);
    add_snapshot(d, u->step, "failed", now_ms() - u->since_ms, NAN, NULL, NULL);
}

/* Once: the CPU goes on. */
static void report_device(diag *d, int64_t step) {
    if (d->device_lost || !maps_device_fault(d->maps)) return;
    d->device_lost = true;
    store_event(d->store, step, "error", "fault", "the CPU computes the spectra from here on: %s",
                maps_device_fault(d->maps));
}

static void compute_snapshot(diag *d, under_way *u) {
    int64_t count = maps_count(d->maps), value_count = maps_value_count(d->maps);
    spectrum *rows = malloc((size_t)(count + 1) * sizeof(*rows));
    double *values = malloc((size_t)(value_count + 1) * sizeof(*values)), start = now_ms();
    u->parts.step = u->step;
    status s = rows && values ? maps_compute(d->maps, &u->parts, rows, values)
                              : status_fail(STATUS_INTERNAL, "out of memory for %lld spectra", (long long)count);
    if (s != STATUS_OK) {
        fail_snapshot(d, u, status_message());
        status_clear();
        free(rows);
        free(values);
        return;
    }
    report_device(d, u->step);
    if (d->esd_every == 0 || u->step % d->esd_every != 0) {
        free(values);
        values = NULL;
    }
    double end = now_ms();
    add_snapshot(d, u->step, "done", end - u->since_ms, end - start, rows, values);
}

static void end_snapshot(diag *d, under_way *u, int senders) {
    char why[96];
    if (u->broken) {
        fail_snapshot(d, u, "a share was refused");
    } else if (u->shares < senders || !snapshot_whole(&u->parts)) {
        snprintf(why, sizeof(why), "incomplete, %d of %d shares arrived", u->shares, senders);
        fail_snapshot(d, u, why);
    } else {
        compute_snapshot(d, u);
    }
    snapshot_free(&u->parts);
    *u = (under_way){0};
    flush(d);
}

/* The snapshot of that step; a new one takes a free place, or that of the oldest, which then lost a share. */
static under_way *find_under_way(diag *d, int64_t step, int senders, int *credits) {
    under_way *oldest = NULL, *unused = NULL;
    for (int i = 0; i < MOST_UNDER_WAY; i++) {
        under_way *u = &d->snapshots[i];
        if (u->used && u->step == step) return u;
        if (!u->used) unused = u;
        if (u->used && (!oldest || u->step < oldest->step)) oldest = u;
    }
    if (!unused) {
        end_snapshot(d, oldest, senders);
        (*credits)++;
        unused = oldest;
    }
    *unused = (under_way){.used = true, .step = step, .since_ms = now_ms()};
    return unused;
}

static int take_share(diag *d, const channel_message *m, int senders) {
    int credits = 0;
    under_way *u = find_under_way(d, m->step, senders, &credits);
    u->shares++;
    if (snapshot_add(&u->parts, m) != STATUS_OK) {
        store_event(d->store, m->step, "error", "fault", "rank %d's share of a snapshot: %s", m->sender,
                    status_message());
        status_clear();
        u->broken = true;
    }
    if (u->shares < senders) return credits;
    end_snapshot(d, u, senders);
    return credits + 1;
}

int diag_take(diag *d, const channel_message *message, int senders) {
    if (message->kind == CHANNEL_SNAPSHOT && d->maps) return take_share(d, message, senders);
    take_record(d, message);
    return 0;
}

int diag_give_up(diag *d, int senders) {
    int credits = 0;
    for (int i = 0; i < MOST_UNDER_WAY; i++)
        if (d->snapshots[i].used) {
            end_snapshot(d, &d->snapshots[i], senders);
            credits++;
        }
    return credits;
}

/* ---------------------------------------------------------------- the service */

status diag_serve(diag *d, channel_receiver *channel, int senders) {
    for (int i = 0; i < CHANNEL_SNAPSHOT_BUFFERS; i++) channel_grant(channel);
    for (;;) {
        channel_message m = {0};
        TRY(channel_receive(channel, &m));
        if (m.kind == CHANNEL_END) break;
        int credits = diag_take(d, &m, senders);
        channel_release(channel, &m);
        for (int i = 0; i < credits; i++) channel_grant(channel);
    }
    diag_give_up(d, senders);
    flush(d);
    return STATUS_OK;
}

status diag_close(diag *d) {
    if (!d) return STATUS_OK;
    status s = store_close(d->store);
    for (int i = 0; i < MOST_UNDER_WAY; i++) snapshot_free(&d->snapshots[i].parts);
    close_maps(d);
    free(d);
    return s;
}
