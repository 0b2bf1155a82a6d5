/* A rank's part of a checkpoint. The training loop copies what the rank owns into one host buffer and goes on; a thread
 * squeezes padding out of the copy, hashes its boxes and writes the shard. When all ranks have told in a step's
 * agreement that theirs is durable, the thread of compute rank 0 publishes the folder. */
#include "trainer/checkpoint_private.h"

#include "core/file.h"
#include "core/log.h"
#include "trainer/events.h"

#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What the thread does: it moves from WRITING to WRITTEN or FAILED and from PUBLISHING or DISCARDING to IDLE, the
 * training loop all other ways. */
typedef enum phase { IDLE, WRITING, WRITTEN, FAILED, PUBLISHING, DISCARDING, QUITTING } phase;

struct checkpoint_writer {
    const checkpoint_source *source;
    owned boxes;
    offload_part *parts; /* [kinds, boxes.count] */
    float *host;         /* the copy of them */
    bool host_is_ops;    /* host is the table's memory */
    checkpoint_state state;
    pthread_t thread;
    bool runs;
    pthread_mutex_t mutex; /* of the phase, whose changes hand over all else */
    pthread_cond_t changed;
    phase phase;
    status result; /* of the last checkpoint, and its message */
    char why[512];
};

/* ---------------------------------------------------------------- the shard */

static bool all_finite(const float *x, int64_t count) {
    uint32_t bad = 0;
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof bits);
        bad |= (bits & 0x7f800000) == 0x7f800000;
    }
    return !bad;
}

/* Rows move together, over the padding between them. */
static void squeeze(float *values, const owned_box *b) {
    if (b->stride == b->n_cols) return;
    for (int64_t r = 1; r < b->n_rows; r++)
        memmove(values + r * b->n_cols, values + r * b->stride, (size_t)b->n_cols * sizeof *values);
}

/* The table of a shard's tensors. */
typedef struct shard {
    int count;
    safetensors_entry *entries;
    char (*names)[BOX_NAME_BYTES];
    char (*texts)[BOX_TEXT_BYTES];
    const char *(*metadata)[2];
} shard;

static void free_shard(shard *t) {
    free(t->entries);
    free(t->names);
    free(t->texts);
    free(t->metadata);
}

static status add_box(shard *t, const params *p, const owned_box *b, checkpoint_kind kind, float *values) {
    const param *q = &p->list[b->param];
    tensor_box in_file = {.row = b->row, .col = b->col, .rows = q->spec.rows, .cols = q->spec.cols};
    int i = t->count++;
    size_t bytes = (size_t)(b->n_rows * b->n_cols) * sizeof *values;
    squeeze(values, b);
    if (!all_finite(values, b->n_rows * b->n_cols))
        return status_fail(STATUS_DATA, "%s (%s) holds values that are not finite", q->name,
                           checkpoint_kind_names[kind]);
    snprintf(in_file.tensor, sizeof in_file.tensor, "%s", q->name);
    snprintf(in_file.kind, sizeof in_file.kind, "%s", checkpoint_kind_names[kind]);
    box_hash(in_file.hash, values, bytes);
    box_name(t->names[i], &in_file);
    box_text(t->texts[i], &in_file);
    t->metadata[i][0] = t->names[i];
    t->metadata[i][1] = t->texts[i];
    t->entries[i] = (safetensors_entry){.name = t->names[i],
                                        .type = SAFETENSORS_F32,
                                        .rank = 2,
                                        .shape = {b->n_rows, b->n_cols},
                                        .data = values,
                                        .bytes = bytes};
    return STATUS_OK;
}

static status fill_shard(shard *t, checkpoint_writer *w) {
    float *values = w->host;
    for (int kind = 0; kind < CHECKPOINT_KINDS; kind++)
        for (int i = 0; i < w->boxes.count; i++) {
            TRY(add_box(t, w->source->params, &w->boxes.boxes[i], (checkpoint_kind)kind, values));
            values += w->parts[kind * w->boxes.count + i].bytes / sizeof *values;
        }
    return STATUS_OK;
}

static status write_shard(checkpoint_writer *w) {
    char folder[CHECKPOINT_PATH_BYTES], name[CHECKPOINT_NAME_BYTES], path[CHECKPOINT_PATH_BYTES + 64];
    size_t most = (size_t)(CHECKPOINT_KINDS * w->boxes.count) + 1;
    TRY(w->source->ops->save_wait(w->source->ops));
    shard t = {.entries = calloc(most, sizeof *t.entries),
               .names = calloc(most, sizeof *t.names),
               .texts = calloc(most, sizeof *t.texts),
               .metadata = calloc(most, sizeof *t.metadata)};
    status s = t.entries && t.names && t.texts && t.metadata
                   ? STATUS_OK
                   : status_fail(STATUS_INTERNAL, "out of memory for the table of a checkpoint");
    if (s == STATUS_OK) s = fill_shard(&t, w);
    checkpoint_path(folder, w->source->config, w->state.step, false);
    checkpoint_shard_name(name, w->source->roles->compute_rank);
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (s == STATUS_OK) s = file_make_dirs(folder);
    if (s == STATUS_OK) s = safetensors_write(path, t.entries, t.count, (const char *const(*)[2])t.metadata, t.count);
    free_shard(&t);
    return s;
}

/* ---------------------------------------------------------------- the thread */

static void keep_result(checkpoint_writer *w, status s) {
    w->result = s;
    snprintf(w->why, sizeof w->why, "%s", status_message());
}

/* Training goes on without it. */
static void tell_failure(const checkpoint_writer *w) {
    log_error("step %ld: the checkpoint could not be written: %s; training goes on, the one before stays and the next "
              "one is tried",
              (long)w->state.step, w->why);
    event_post(w->source->records, w->state.step, "error", "checkpoint", "not written: %s", w->why);
}

/* The thread has something to do. */
static bool is_busy(phase p) {
    return p == WRITING || p == PUBLISHING || p == DISCARDING;
}

static phase next_phase(checkpoint_writer *w) {
    pthread_mutex_lock(&w->mutex);
    while (!is_busy(w->phase) && w->phase != QUITTING) pthread_cond_wait(&w->changed, &w->mutex);
    phase p = w->phase;
    pthread_mutex_unlock(&w->mutex);
    return p;
}

static void enter(checkpoint_writer *w, phase p) {
    pthread_mutex_lock(&w->mutex);
    w->phase = p;
    pthread_cond_broadcast(&w->changed);
    pthread_mutex_unlock(&w->mutex);
}

static phase current_phase(checkpoint_writer *w) {
    pthread_mutex_lock(&w->mutex);
    phase p = w->phase;
    pthread_mutex_unlock(&w->mutex);
    return p;
}

static void *run(void *user) {
    checkpoint_writer *w = user;
    for (phase p; (p = next_phase(w)) != QUITTING; status_clear()) {
        if (p == WRITING) keep_result(w, write_shard(w));
        if (p == PUBLISHING) keep_result(w, checkpoint_publish(w->source, &w->state));
        if (p == PUBLISHING && w->result != STATUS_OK) tell_failure(w);
        if (p == DISCARDING) checkpoint_discard(w->source->config, w->state.step);
        enter(w, p != WRITING ? IDLE : w->result == STATUS_OK ? WRITTEN : FAILED);
    }
    return NULL;
}

/* Signals are the main thread's business. */
static status start_thread(checkpoint_writer *w) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    w->runs = pthread_create(&w->thread, NULL, run, w) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return w->runs ? STATUS_OK : status_fail(STATUS_INTERNAL, "cannot start the checkpoints' thread");
}

/* ---------------------------------------------------------------- the loop's side */

/* The parts of all boxes, with the padding inside them; returns their bytes. */
static size_t list_parts(checkpoint_writer *w) {
    const params *p = w->source->params;
    const float *const from[CHECKPOINT_KINDS] = {p->master, p->moment1, p->moment2};
    size_t bytes = 0;
    for (int kind = 0; kind < CHECKPOINT_KINDS; kind++)
        for (int i = 0; i < w->boxes.count; i++) {
            const owned_box *b = &w->boxes.boxes[i];
            size_t part = (size_t)((b->n_rows - 1) * b->stride + b->n_cols) * sizeof(float);
            w->parts[kind * w->boxes.count + i] = (offload_part){.device = from[kind] + b->at, .bytes = part};
            bytes += part;
        }
    return bytes;
}

/* Page-locked memory, where a device wants it, makes the copy fast; without it there is a slower one. */
static status reserve_host(checkpoint_writer *w, size_t bytes) {
    ops *o = w->source->ops;
    w->host = o->host_alloc(o, bytes);
    w->host_is_ops = w->host != NULL;
    if (!w->host) w->host = malloc(bytes + 1);
    if (w->host) return STATUS_OK;
    return status_fail(STATUS_CONFIG, "%.1f MiB of host memory for checkpoints cannot be had", (double)bytes / 0x1p20);
}

status checkpoint_writer_open(checkpoint_writer **out, const checkpoint_source *source) {
    checkpoint_writer *w = *out = calloc(1, sizeof *w);
    if (!w) return status_fail(STATUS_INTERNAL, "out of memory for checkpoints");
    w->source = source;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->changed, NULL);
    TRY(owned_list(&w->boxes, source->params, source->roles));
    w->parts = calloc((size_t)(CHECKPOINT_KINDS * w->boxes.count) + 1, sizeof *w->parts);
    if (!w->parts) return status_fail(STATUS_INTERNAL, "out of memory for checkpoints");
    TRY(reserve_host(w, list_parts(w)));
    if (source->roles->compute_rank == 0) checkpoint_clean(source->config);
    return start_thread(w);
}

void checkpoint_writer_close(checkpoint_writer *w) {
    if (!w) return;
    if (w->runs) {
        pthread_mutex_lock(&w->mutex);
        while (is_busy(w->phase)) pthread_cond_wait(&w->changed, &w->mutex);
        pthread_mutex_unlock(&w->mutex);
        enter(w, QUITTING);
        pthread_join(w->thread, NULL);
    }
    ops *o = w->source->ops;
    if (w->host_is_ops)
        o->host_release(o, w->host);
    else
        free(w->host);
    pthread_cond_destroy(&w->changed);
    pthread_mutex_destroy(&w->mutex);
    free(w->parts);
    owned_free(&w->boxes);
    free(w);
}

void checkpoint_begin(checkpoint_writer *w, const checkpoint_state *state) {
    ops *o = w->source->ops;
    w->state = *state;
    o->save(o, w->host, w->parts, CHECKPOINT_KINDS * w->boxes.count);
    enter(w, WRITING);
}

void checkpoint_fence(checkpoint_writer *w) {
    w->source->ops->save_fence(w->source->ops);
}

void checkpoint_tell(checkpoint_writer *w, agreement *mine) {
    phase p = current_phase(w);
    mine->writing = is_busy(p);
    mine->failed = p == FAILED;
}

bool checkpoint_settle(checkpoint_writer *w, const agreement *all) {
    phase mine = current_phase(w);
    bool first = w->source->roles->compute_rank == 0;
    if (all->writing || (mine != WRITTEN && mine != FAILED)) return false;
    if (!all->failed) {
        enter(w, first ? PUBLISHING : IDLE);
        return true;
    }
    if (w->result != STATUS_OK) status_fail(w->result, "%s", w->why);
    keep_result(w, comm_agree(w->source->roles->compute, w->result));
    status_clear();
    if (first) tell_failure(w);
    enter(w, first ? DISCARDING : IDLE);
    return true;
}

status checkpoint_result(checkpoint_writer *w) {
    if (w->result == STATUS_OK) return STATUS_OK;
    return status_fail(w->result,
                       "the checkpoint of step %ld could not be written: %s; put that right, and --resume auto goes on "
                       "from the one before it",
                       (long)w->state.step, w->why);
}
