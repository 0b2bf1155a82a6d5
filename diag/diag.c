/* The diagnostics ranks' work: messages in, database rows out. Spectra of one snapshot at a time; shares of the next
 * ones arrive meanwhile in the channel's own thread. Each rank computes its layers; the first one puts the spectra of
 * all together and writes them.
 *
 * Nothing here ends the service: what goes wrong with a message, a snapshot or the database becomes an event and a log
 * line. */
#include "diag/diag.h"
#include "core/clock.h"

#include "core/log.h"
#include "diag/alerts.h"
#include "diag/nulls.h"
#include "diag/onset.h"
#include "diag/part.h"
#include "diag/serve.h"
#include "diag/store.h"

#include <math.h>
#include <omp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Credits bound the snapshots under way; one more tells that a rank's share of an old one was lost. */
enum { MOST_UNDER_WAY = CHANNEL_SNAPSHOT_CREDITS + 1 };
enum { MOST_RANKS = 1024 }; /* as diagnostics.ranks says */
enum { FLUSH_EVERY_MS = 500, RETRY_EVERY_MS = 5000, RETRY_FOR_CHECKPOINT_MS = 500 };

/* How long a finished run waits for ensembles that its last rows need. */
enum { MOST_NULLS_WAIT_S = 120 };

typedef struct under_way {
    bool used, broken; /* broken: a share was refused */
    int64_t step;
    int shares;           /* of the weights of this rank's layers */
    int ranks_done;       /* diagnostics ranks whose spectra are in rows, or that have none */
    bool has[MOST_RANKS]; /* which further ranks are among them */
    double since_ms, compute_ms;
    snapshot parts;
    spectrum *rows; /* [maps_count] */
    double *values; /* [maps_value_count] */
    float *pairs;   /* [maps_pair_count] */
    char why[240];  /* there are no spectra; "": none is missing so far */
} under_way;

struct diag {
    maps *maps;        /* NULL: no spectra are wanted */
    svd_device device; /* close NULL: the CPU's LAPACK */
    bool device_lost;
    onsets *onsets;        /* NULL without maps */
    bool *all, *candidate; /* [maps_count] true; whose pair of this snapshot may be an onset's */
    nulls *nulls;          /* NULL without maps */
    alerts *alerts;        /* NULL: no rules, or a further rank */
    int requests;          /* what they ask for, not told yet (channel_request) */
    bool finished;         /* the run has come to its end, as it should */
    int rank, ranks;       /* of the diagnostics ranks */
    store *store;          /* NULL on a further rank */
    channel_sender *first; /* on a further rank: to the first one */
    int64_t tokens_per_step, esd_every;
    under_way snapshots[MOST_UNDER_WAY];
    double next_flush_ms;
    int64_t checkpoint; /* a step that waits to be confirmed; -1: none */
    int64_t confirmed;  /* the last one of which all is committed; -1: none */
    int64_t taken;      /* the last message's number */
    int64_t ended_step; /* the last snapshot that came to an end; -1: none */
    channel_progress progress;
};

static double now_ms(void) {
    return 1e3 * clock_now_s();
}

bool diag_wants(const config *c, const char *tensor_name) {
    return maps_wants(c, tensor_name);
}

status diag_check_alerts(const config *c) {
    return alerts_check(c);
}

diag_size diag_snapshot_size(const config *c) {
    enum { ROW_BYTES = 320, BLOB_ROW_BYTES = 24 };
    maps_size n = {0};
    if (c->diagnostics.ranks == 0 || maps_measure(c, &n) != STATUS_OK) n = (maps_size){0};
    status_clear();
    return (diag_size){.spectra_bytes = ROW_BYTES * n.rows,
                       .esd_bytes = 2 * BLOB_ROW_BYTES * n.rows + 8 * n.values + 4 * n.pairs};
}

int diag_rank_of_layer(const config *c, int64_t layer) {
    return (int)(layer % c->diagnostics.ranks);
}

static status open_maps(diag *d, const config *c) {
    TRY(maps_open(&d->maps, c, omp_get_max_threads()));
    maps_share(d->maps, d->rank, d->ranks);
    if (c->diagnostics.device != DEVICE_CUDA) return STATUS_OK;
    TRY(svd_cuda(&d->device));
    return maps_use_device(d->maps, &d->device);
}

static status open_onsets(diag *d, const config *c) {
    if (!d->maps) return STATUS_OK;
    size_t count = (size_t)maps_count(d->maps);
    d->all = malloc(count * sizeof(bool));
    d->candidate = calloc(count, sizeof(bool));
    if (!d->all || !d->candidate) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    memset(d->all, true, count * sizeof(bool));
    return onsets_open(&d->onsets, c, maps_matrices(d->maps), (int)count);
}

static void close_maps(diag *d) {
    onsets_close(d->onsets);
    free(d->all);
    free(d->candidate);
    nulls_close(d->nulls);
    maps_close(d->maps);
    if (d->device.close) d->device.close(&d->device);
}

/* Ensembles are made where the database is written. */
static status open_nulls(diag *d, const config *c, const char *run_dir) {
    char why[512];
    int threads = d->rank == 0 ? omp_get_max_threads() : 0;
    if (!d->maps) return STATUS_OK;
    TRY(nulls_open(&d->nulls, c, maps_matrices(d->maps), maps_count(d->maps), run_dir, (int)c->diagnostics.null_draws,
                   threads, why, sizeof(why)));
    if (!why[0]) return STATUS_OK;
    log_warn("%s", why);
    store_event(d->store, 0, "warn", "nulls", "%s", why);
    return STATUS_OK;
}

/* ---------------------------------------------------------------- a run that goes on */

/* An event of the diagnostics' own. */
__attribute__((format(printf, 5, 6))) static void note(diag *d, int64_t step, const char *level, const char *kind,
                                                       const char *format, ...) {
    diag_event event = {.step = step};
    va_list args;
    va_start(args, format);
    vsnprintf(event.message, sizeof(event.message), format, args);
    va_end(args);
    if (d->store) {
        store_event(d->store, step, level, kind, "%s", event.message);
        return;
    }
    snprintf(event.level, sizeof(event.level), "%s", level);
    snprintf(event.kind, sizeof(event.kind), "%s", kind);
    if (channel_post(d->first, DIAG_EVENT, step, &event, sizeof(event)) == STATUS_OK) return;
    log_error("an event could not be sent (%s): %s", status_message(), event.message);
    status_clear();
}

static void add_record(diag *d, const store_snapshot *r) {
    store_record record = {.kind = STORE_SNAPSHOT, .snapshot = *r};
    store_add(d->store, &record);
}

typedef struct restoring {
    diag *d;
    snapshot gains; /* of the snapshot that comes next */
} restoring;

static void restore_gains(void *user, const store_gains *g) {
    restoring *r = user;
    size_t bytes = (size_t)g->count * sizeof(float);
    snapshot_tensor *more = realloc(r->gains.tensors, (size_t)(r->gains.count + 1) * sizeof(*more));
    if (!more) return;
    r->gains.tensors = more;
    more[r->gains.count] = (snapshot_tensor){.rows = 1, .cols = g->count, .data = malloc(bytes)};
    if (!more[r->gains.count].data) return;
    snprintf(more[r->gains.count].name, sizeof(more->name), "%s", g->tensor);
    memcpy(more[r->gains.count++].data, g->gain, bytes);
}

static bool same_columns(const spectrum *a, const spectrum *b, int count) {
    for (int i = 0; i < count; i++)
        for (int c = 0; c < SPECTRUM_COLUMN_COUNT; c++)
            if (a[i].column[c] != b[i].column[c] && !(isnan(a[i].column[c]) && isnan(b[i].column[c]))) return false;
    return true;
}

/* What spans snapshots takes the recorded one in. Columns may be filled now that waited for ensembles when it was
 * recorded. */
static void restore_snapshot(void *user, const store_snapshot *recorded) {
    restoring *r = user;
    diag *d = r->d;
    size_t bytes = (size_t)maps_count(d->maps) * sizeof(spectrum);
    store_snapshot filled = *recorded;
    filled.rows = malloc(bytes);
    filled.pairs = NULL;
    onsets_restore(d->onsets, recorded->step, recorded->rows, recorded->pairs);
    alerts_restore(d->alerts, recorded->step, recorded->rows);
    nulls_place_gains(d->nulls, &r->gains);
    snapshot_free(&r->gains);
    if (!filled.rows) return;
    memcpy(filled.rows, recorded->rows, bytes);
    nulls_restore_rows(d->nulls, filled.rows);
    nulls_fill(d->nulls, &filled);
    if (same_columns(filled.rows, recorded->rows, maps_count(d->maps)))
        free(filled.rows);
    else
        add_record(d, &filled);
}

/* What the run's database tells a service that goes on behind that step. */
static status restore(diag *d, int64_t step) {
    int64_t metrics = store_last_metrics(d->store);
    restoring r = {.d = d};
    const store_visitor visitor = {restore_gains, restore_snapshot, &r};
    d->ended_step = step == DIAG_AGAIN ? store_last_snapshot(d->store) : -1;
    d->progress = (channel_progress){store_messages(d->store), d->ended_step, d->ended_step};
    if (step != DIAG_AGAIN && store_is_new(d->store))
        note(d, step, "info", "resume", "the database is new: its rows begin behind step %lld", (long long)step);
    else if (step != DIAG_AGAIN && metrics < step)
        note(d, step, "warn", "resume", "rows of steps %lld to %lld are missing in the database",
             (long long)(metrics + 1), (long long)step);
    status s = d->maps ? store_read_back(d->store, &visitor) : STATUS_OK;
    snapshot_free(&r.gains);
    return s;
}

/* ---------------------------------------------------------------- opening */

static void set_up(diag *d, const config *c, int rank) {
    d->rank = rank;
    d->ranks = (int)c->diagnostics.ranks;
    d->tokens_per_step = c->train.global_batch * c->model.context;
    d->esd_every = c->diagnostics.esd_every;
    d->checkpoint = d->confirmed = d->ended_step = d->progress.step = d->progress.ended = -1;
}

status diag_open(diag **out, const config *c, const char *run_dir, const char *device, int tp, int dp,
                 const char *hosts, int64_t resume_step) {
    char path[4096];
    diag *d = calloc(1, sizeof(*d));
    *out = NULL;
    if (!d) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    set_up(d, c, 0);
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
                                       .matrix_count = d->maps ? maps_count(d->maps) : 0,
                                       .start = resume_step == DIAG_AGAIN ? STORE_SESSION_GOES_ON : STORE_RUN_GOES_ON,
                                       .resume_step = resume_step};
        s = store_open(&d->store, path, &session);
    }
    if (s == STATUS_OK) s = open_onsets(d, c);
    if (s == STATUS_OK) s = open_nulls(d, c, run_dir);
    if (s == STATUS_OK && d->maps) s = alerts_open(&d->alerts, c, maps_matrices(d->maps), maps_count(d->maps), run_dir);
    if (s == STATUS_OK && resume_step >= 0) s = restore(d, resume_step);
    if (s == STATUS_OK) {
        *out = d;
        return STATUS_OK;
    }
    if (d->store) store_close(d->store);
    alerts_close(d->alerts);
    close_maps(d);
    free(d);
    return s;
}

status diag_open_further(diag **out, const config *c, int rank, channel_sender *first) {
    diag *d = calloc(1, sizeof(*d));
    *out = d;
    if (!d) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    set_up(d, c, rank);
    d->first = first;
    status s = open_maps(d, c);
    if (s == STATUS_OK) s = open_onsets(d, c);
    if (s == STATUS_OK) s = open_nulls(d, c, "");
    if (s == STATUS_OK) return STATUS_OK;
    close_maps(d);
    free(d);
    *out = NULL;
    return s;
}

/* ---------------------------------------------------------------- records */

/* Nothing waits for the database: neither may a snapshot of the checkpoint's time be under way. */
static void confirm_checkpoint(diag *d) {
    if (d->checkpoint < 0) return;
    for (int i = 0; i < MOST_UNDER_WAY; i++)
        if (d->snapshots[i].used && d->snapshots[i].step <= d->checkpoint) return;
    store_make_durable(d->store);
    d->confirmed = d->checkpoint;
    d->checkpoint = -1;
}

/* Writes what waits, unless it may wait longer: where a commit costs a disk flush and no checkpoint waits for it, and
 * where the database has just refused. */
static void flush(diag *d) {
    double t = now_ms();
    if (!d->store || (t < d->next_flush_ms && d->checkpoint < 0)) return;
    d->next_flush_ms = store_is_cheap(d->store) ? 0 : t + FLUSH_EVERY_MS;
    if (store_flush(d->store) == STATUS_OK) {
        confirm_checkpoint(d);
        return;
    }
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
    case DIAG_CHECKPOINT:
        return sizeof(diag_checkpoint);
    case DIAG_PROFILE:
        return sizeof(diag_profile);
    default:
        return 0;
    }
}

static void end_text(char *text, size_t size) {
    text[size - 1] = '\0';
}

/* A snapshot without spectra. */
static void add_empty(diag *d, int64_t step, const char *how, double lag_ms) {
    add_record(
        d, &(store_snapshot){
               .step = step, .tokens = step * d->tokens_per_step, .status = how, .lag_ms = lag_ms, .compute_ms = NAN});
}

/* What the nulls have found since the last call: rows, snapshots of before with more columns, things to tell. */
static void take_nulls(diag *d, int64_t step) {
    store_record row = {.kind = STORE_NULL};
    store_snapshot filled;
    char text[512];
    if (!d->nulls || !d->store) return;
    while (nulls_next_snapshot(d->nulls, &filled)) add_record(d, &filled);
    while (nulls_next_row(d->nulls, &row.null)) store_add(d->store, &row);
    while (nulls_next_note(d->nulls, text, sizeof(text))) store_event(d->store, step, "info", "nulls", "%s", text);
}

/* Whether a signal has asked for the end of a run that is at its end already. A worker has them blocked, so they stay.
 */
static bool end_is_asked_for(void) {
    sigset_t pending;
    return sigpending(&pending) == 0 && (sigismember(&pending, SIGUSR1) == 1 || sigismember(&pending, SIGTERM) == 1 ||
                                         sigismember(&pending, SIGINT) == 1);
}

static bool take_last_nulls(void *user) {
    take_nulls(user, 0);
    return !end_is_asked_for();
}

/* The last rows are worth some waiting, unless the run was stopped or is to end now. */
static void finish_nulls(diag *d) {
    if (!d->nulls || !d->store) return;
    int waiting = nulls_finish_aloud(d->nulls, d->finished ? MOST_NULLS_WAIT_S : 0, take_last_nulls, d);
    if (waiting == 0) return;
    char text[256];
    nulls_describe(d->nulls, text, sizeof(text));
    log_warn("columns against nulls stay NULL in %d snapshots: %s", waiting, text);
    store_event(d->store, 0, "warn", "nulls", "columns stay NULL in %d snapshots: %s", waiting, text);
}

static bool wants_values(const diag *d, int64_t step) {
    return d->esd_every > 0 && step % d->esd_every == 0;
}

/* The pairs that a snapshot of that step has. */
static maps_pairs wanted_pairs(const diag *d, const under_way *u) {
    return (maps_pairs){.wanted = wants_values(d, u->step) ? d->all : onsets_wanted(d->onsets), .pairs = u->pairs};
}

static void take_record(diag *d, const channel_message *m) {
    store_record r = {0};
    size_t bytes = record_bytes(m->kind);
    if (bytes == 0 || m->bytes != bytes) {
        note(d, m->step, "error", "fault", "rank %d sent %zu bytes as a record of kind %d", m->sender, m->bytes,
             m->kind);
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
        if (strcmp(r.event.kind, "drop") == 0) add_empty(d, r.event.step, "dropped", NAN);
        break;
    case DIAG_CHECKPOINT:
        memcpy(&d->checkpoint, m->data, sizeof(d->checkpoint));
        flush(d);
        return;
    case DIAG_PROFILE:
        r.kind = STORE_PROFILE;
        memcpy(&r.profile, m->data, bytes);
        end_text(r.profile.phase, sizeof(r.profile.phase));
        break;
    case DIAG_FINISH:
        r.kind = STORE_FINISH;
        memcpy(&r.finish, m->data, bytes);
        end_text(r.finish.status, sizeof(r.finish.status));
        d->finished = strcmp(r.finish.status, "finished") == 0;
        break;
    }
    store_add(d->store, &r);
    flush(d);
}

/* ---------------------------------------------------------------- snapshots */

static void note_alert(void *user, int64_t step, const char *message) {
    note(user, step, "warn", "alert", "%s", message);
}

/* top_overlap; and of the pairs only those stay that are written: of steps whose singular values are, and candidates.
 */
static void note_onsets(diag *d, under_way *u) {
    bool any = wants_values(d, u->step);
    onsets_note(d->onsets, u->step, u->rows, u->pairs, d->candidate);
    for (int i = 0; !wants_values(d, u->step) && i < maps_count(d->maps); i++) {
        any |= d->candidate[i];
        if (!d->candidate[i]) u->pairs[maps_matrices(d->maps)[i].first_pair] = NAN;
    }
    if (any) return;
    free(u->pairs);
    u->pairs = NULL;
}

/* Gains that ensembles keep from here on: a run that goes on needs them. */
static void add_gains(diag *d, const under_way *u) {
    for (int i = 0; i < u->parts.count; i++) {
        const snapshot_tensor *t = &u->parts.tensors[i];
        store_record r = {.kind = STORE_GAINS, .gains = {.step = u->step, .count = (int)t->cols}};
        int layer;
        if (t->rows != 1 || sscanf(t->name, "layers.%d.", &layer) != 1 || !nulls_took_gains(d->nulls, layer)) continue;
        snprintf(r.gains.tensor, sizeof(r.gains.tensor), "%s", t->name);
        r.gains.gain = malloc((size_t)t->cols * sizeof(*r.gains.gain));
        if (!r.gains.gain) continue; /* the columns with gains stay NULL after a restart */
        memcpy(r.gains.gain, t->data, (size_t)t->cols * sizeof(*r.gains.gain));
        store_add(d->store, &r);
    }
}

/* Without the spectra of all layers a snapshot is not recorded. */
static void record_snapshot(diag *d, under_way *u) {
    if (u->why[0]) {
        log_warn("the snapshot of step %lld is not recorded: %s", (long long)u->step, u->why);
        note(d, u->step, "warn", "snapshot", "not recorded: %s", u->why);
        add_empty(d, u->step, "failed", now_ms() - u->since_ms);
        return;
    }
    if (!wants_values(d, u->step)) {
        free(u->values);
        u->values = NULL;
    }
    store_snapshot r = {.step = u->step,
                        .tokens = u->step * d->tokens_per_step,
                        .status = "done",
                        .lag_ms = now_ms() - u->since_ms,
                        .compute_ms = u->compute_ms,
                        .rows = u->rows,
                        .values = u->values};
    nulls_place_gains(d->nulls, &u->parts);
    add_gains(d, u);
    nulls_fill(d->nulls, &r);
    note_onsets(d, u);
    nulls_keep_overlaps(d->nulls, u->step, u->rows);
    r.pairs = u->pairs;
    d->requests |= alerts_take(d->alerts, u->step, u->rows, note_alert, d);
    add_record(d, &r);
    u->rows = NULL;
    u->values = NULL;
    u->pairs = NULL;
}

/* A further rank's spectra of the snapshot, or why there are none, to the first one. */
static void send_part(diag *d, const under_way *u) {
    size_t bytes = 0;
    part_head head = {.compute_ms = u->compute_ms, .done = !u->why[0], .values = wants_values(d, u->step)};
    snprintf(head.why, sizeof(head.why), "%s", u->why);
    const part_results results = {.rows = u->rows, .values = u->values, .top = wanted_pairs(d, u)};
    void *message = part_pack(d->maps, d->rank, d->ranks, &head, &results, &bytes);
    status s = message ? channel_post(d->first, DIAG_PART, u->step, message, bytes)
                       : status_fail(STATUS_INTERNAL, "out of memory for %zu bytes", bytes);
    if (s != STATUS_OK) log_error("the spectra of step %lld are lost: %s", (long long)u->step, status_message());
    status_clear();
    free(message);
}

static void free_snapshot(under_way *u) {
    snapshot_free(&u->parts);
    free(u->rows);
    free(u->values);
    free(u->pairs);
    *u = (under_way){0};
}

/* What there is of a snapshot goes where it belongs; its place is free again. */
static void end_snapshot(diag *d, under_way *u) {
    if (d->store)
        record_snapshot(d, u);
    else
        send_part(d, u);
    d->ended_step = u->step > d->ended_step ? u->step : d->ended_step;
    free_snapshot(u);
    flush(d);
}

/* The first reason is kept. */
__attribute__((format(printf, 2, 3))) static void spoil(under_way *u, const char *format, ...) {
    va_list args;
    if (u->why[0]) return;
    va_start(args, format);
    vsnprintf(u->why, sizeof(u->why), format, args);
    va_end(args);
}

/* Once: the CPU goes on. */
static void report_device(diag *d, int64_t step) {
    if (d->device_lost || !maps_device_fault(d->maps)) return;
    d->device_lost = true;
    note(d, step, "error", "fault", "the CPU computes the spectra from here on: %s", maps_device_fault(d->maps));
}

/* Room for the spectra of all ranks' layers. */
static status make_room(const diag *d, under_way *u) {
    if (u->rows) return STATUS_OK;
    u->rows = malloc(((size_t)maps_count(d->maps) + 1) * sizeof(*u->rows));
    u->values = malloc(((size_t)maps_value_count(d->maps) + 1) * sizeof(*u->values));
    u->pairs = malloc(((size_t)maps_pair_count(d->maps) + 1) * sizeof(*u->pairs));
    for (int i = 0; u->pairs && i < maps_count(d->maps); i++) u->pairs[maps_matrices(d->maps)[i].first_pair] = NAN;
    if (u->rows && u->values && u->pairs) return STATUS_OK;
    return status_fail(STATUS_INTERNAL, "out of memory for %d spectra", maps_count(d->maps));
}

/* The spectra of this rank's layers. */
static status compute_layers(diag *d, under_way *u) {
    double start = now_ms();
    TRY(make_room(d, u));
    u->parts.step = u->step;
    maps_pairs top = wanted_pairs(d, u);
    TRY(maps_compute_pairs(d->maps, &u->parts, u->rows, u->values, &top));
    nulls_place_rows(d->nulls, &u->parts, u->rows, u->values);
    report_device(d, u->step);
    u->compute_ms = fmax(u->compute_ms, now_ms() - start);
    return STATUS_OK;
}

/* All shares of this rank's layers have come, or no more will. */
static void end_shares(diag *d, under_way *u, int senders) {
    if (u->broken) {
        spoil(u, "a share was refused");
    } else if (u->shares < senders || !snapshot_whole(&u->parts)) {
        spoil(u, "incomplete, %d of %d shares arrived", u->shares, senders);
    } else if (compute_layers(d, u) != STATUS_OK) {
        spoil(u, "%s", status_message());
        status_clear();
    }
    u->ranks_done++;
}

/* Whether the snapshot is complete: on a further rank when its own layers are. */
static bool is_complete(const diag *d, const under_way *u) {
    return u->ranks_done == (d->store ? d->ranks : 1);
}

/* Nothing of it will come any more. */
static void give_up(diag *d, under_way *u, int senders) {
    if (u->shares < senders) end_shares(d, u, senders);
    if (!is_complete(d, u))
        spoil(u, "%d of %d diagnostics ranks have sent no spectra", d->ranks - u->ranks_done, d->ranks);
    end_snapshot(d, u);
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
        give_up(d, oldest, senders);
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
        note(d, m->step, "error", "fault", "rank %d's share of a snapshot: %s", m->sender, status_message());
        status_clear();
        u->broken = true;
    }
    if (u->shares < senders) return credits;
    end_shares(d, u, senders);
    if (!is_complete(d, u)) return credits;
    end_snapshot(d, u);
    return credits + 1;
}

/* The spectra of another rank's layers. Its worker, when it is started again, sends again what it had sent. */
static int take_part(diag *d, const channel_message *m, int senders) {
    int credits = 0, rank = m->sender - senders + 1;
    if (m->step <= d->ended_step) return 0;
    under_way *u = find_under_way(d, m->step, senders, &credits);
    if (u->has[rank]) return credits;
    u->has[rank] = true;
    part_head head = {0};
    status s = make_room(d, u);
    const part_results results = {.rows = u->rows, .values = u->values, .top = wanted_pairs(d, u)};
    if (s == STATUS_OK) s = part_unpack(d->maps, rank, d->ranks, m->data, m->bytes, &head, &results);
    if (s != STATUS_OK) spoil(u, "diagnostics rank %d: %s", rank, status_message());
    if (s == STATUS_OK && !head.done) spoil(u, "diagnostics rank %d: %s", rank, head.why);
    status_clear();
    u->compute_ms = fmax(u->compute_ms, head.compute_ms);
    u->ranks_done++;
    if (!is_complete(d, u)) return credits;
    end_snapshot(d, u);
    return credits + 1;
}

static bool is_part(const diag *d, const channel_message *m, int senders) {
    return m->kind == DIAG_PART && d->store && d->maps && m->sender >= senders && m->sender < senders + d->ranks - 1;
}

/* All that was taken is recorded but shares of snapshots under way. */
static void note_progress(diag *d) {
    d->progress.ended = d->ended_step;
    if (d->store && store_waiting(d->store) > 0) return;
    d->progress.number = d->taken;
    d->progress.step = d->ended_step;
    for (int i = 0; i < MOST_UNDER_WAY; i++)
        if (d->snapshots[i].used && d->snapshots[i].step <= d->progress.step)
            d->progress.step = d->snapshots[i].step - 1;
}

static int take_message(diag *d, const channel_message *message, int senders) {
    if (message->kind == CHANNEL_SNAPSHOT && d->maps) return take_share(d, message, senders);
    if (is_part(d, message, senders)) return take_part(d, message, senders);
    take_nulls(d, message->step);
    take_record(d, message);
    return 0;
}

int diag_take(diag *d, const channel_message *message, int senders) {
    d->taken = message->number;
    if (d->store) store_set_message(d->store, message->number);
    int credits = take_message(d, message, senders);
    note_progress(d);
    return credits;
}

channel_progress diag_recorded(const diag *d) {
    return d->progress;
}

int diag_take_requests(diag *d) {
    int requests = d->requests;
    d->requests = 0;
    return requests;
}

int64_t diag_confirmed(const diag *d) {
    return d->confirmed;
}

int diag_give_up(diag *d, int senders) {
    int credits = 0;
    for (int i = 0; i < MOST_UNDER_WAY; i++)
        if (d->snapshots[i].used) {
            give_up(d, &d->snapshots[i], senders);
            credits++;
        }
    return credits;
}

void diag_end(diag *d, int senders) {
    diag_give_up(d, senders);
    finish_nulls(d);
    flush(d);
}

/* ---------------------------------------------------------------- the service */

static void go_on(void *channel) {
    channel_go_on(channel);
}

/* What the other end of the channel knows. */
typedef struct told {
    int64_t confirmed;
    channel_progress progress;
} told;

static void tell(const diag *d, channel_receiver *channel, told *t) {
    if (d->confirmed != t->confirmed) channel_confirm(channel, d->confirmed);
    if (memcmp(&d->progress, &t->progress, sizeof(t->progress)) != 0) channel_report(channel, &d->progress);
    *t = (told){d->confirmed, d->progress};
}

/* Returns when there is a message. Meanwhile what waits for the database is written: training may have nothing to send
 * before it hears that its checkpoint's rows are in. */
static void write_until_message(diag *d, channel_receiver *channel, told *t) {
    struct pollfd ready = {.fd = channel_receiver_descriptor(channel), .events = POLLIN};
    while (ready.fd >= 0 && d->store && (store_waiting(d->store) > 0 || d->checkpoint >= 0)) {
        double wait_ms = d->checkpoint >= 0 ? RETRY_FOR_CHECKPOINT_MS : fmax(1, d->next_flush_ms - now_ms());
        if (poll(&ready, 1, (int)wait_ms) != 0) return;
        flush(d);
        note_progress(d);
        tell(d, channel, t);
    }
}

status diag_serve(diag *d, channel_receiver *channel, int senders) {
    told t = {d->confirmed, d->progress};
    for (int i = 0; i < CHANNEL_SNAPSHOT_CREDITS; i++) channel_grant(channel);
    if (d->maps) maps_tell(d->maps, go_on, channel);
    for (;;) {
        channel_message m = {0};
        write_until_message(d, channel, &t);
        TRY(channel_receive(channel, &m));
        if (m.kind == CHANNEL_END) break;
        int credits = diag_take(d, &m, senders);
        channel_release(channel, &m);
        int requests = diag_take_requests(d);
        if (requests) channel_ask(channel, requests);
        for (int i = 0; i < credits; i++) channel_grant(channel);
        tell(d, channel, &t);
    }
    diag_end(d, senders);
    return STATUS_OK;
}

status diag_close(diag *d) {
    if (!d) return STATUS_OK;
    take_nulls(d, 0);
    status s = store_close(d->store);
    for (int i = 0; i < MOST_UNDER_WAY; i++) free_snapshot(&d->snapshots[i]);
    alerts_close(d->alerts);
    close_maps(d);
    free(d);
    return s;
}
