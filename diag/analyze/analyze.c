#include "diag/analyze/analyze.h"

#include "core/clock.h"
#include "core/log.h"
#include "diag/analyze/checkpoint.h"
#include "diag/analyze/series.h"
#include "diag/maps.h"
#include "diag/nulls.h"
#include "diag/store.h"

#include <inttypes.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PROGRESS_EVERY_S = 5 };

typedef struct analysis {
    const analyze_request *request;
    series series;
    config shape; /* of the first checkpoint, which the others must share */
    bool folds;   /* gains that no null knows are folded into its weights */
    maps *maps;
    svd_device device; /* close NULL: the CPU's LAPACK */
    nulls *nulls;
    store *store;
} analysis;

static status open_checkpoint(const analysis *a, const char *path, checkpoint *out) {
    const analyze_request *r = a->request;
    return checkpoint_open(out, path, r->config, r->settings, r->setting_count);
}

/* ---- one model ---- */

typedef struct shape_text {
    char *text;
    size_t bytes;
    FILE *to;
} shape_text;

static void print_shape(void *user, const char *key, const char *value) {
    static const char *const of_no_spectrum[] = {"model.context",  "model.vocab",          "model.rope_theta",
                                                 "model.norm_eps", "model.tie_embeddings", "model.size"};
    if (strncmp(key, "model.", 6) != 0 && strncmp(key, "attention.", 10) != 0) return;
    for (size_t i = 0; i < sizeof of_no_spectrum / sizeof *of_no_spectrum; i++)
        if (strcmp(key, of_no_spectrum[i]) == 0) return;
    fprintf(user, "%s %s, ", key + strcspn(key, ".") + 1, value);
}

/* What its spectra know of a model's shape, as text; malloc'ed, NULL: out of memory. */
static char *describe_shape(const config *c) {
    char *text = NULL;
    size_t bytes;
    FILE *to = open_memstream(&text, &bytes);
    if (!to) return NULL;
    config_visit(c, print_shape, to);
    fclose(to);
    return text;
}

static status check_shape(const analysis *a, const char *path, const config *c) {
    char *first = describe_shape(&a->shape), *this = describe_shape(c);
    status s = STATUS_OK;
    if (!first || !this)
        s = status_fail(STATUS_INTERNAL, "out of memory");
    else if (strcmp(first, this) != 0)
        s = status_fail(STATUS_DATA, "%s and %s are not checkpoints of one model: %sand %s", a->series.item[0].path,
                        path, first, this);
    free(first);
    free(this);
    return s;
}

/* The name of a model's folder; of the run, where that is the name of a step. malloc'ed. */
static char *name_of(const char *path) {
    char *copy = strdup(path), *name = NULL;
    while (copy && !name) {
        size_t length = strlen(copy);
        while (length > 1 && copy[length - 1] == '/') copy[--length] = '\0';
        char *slash = strrchr(copy, '/');
        const char *last = slash ? slash + 1 : copy;
        bool passes = slash && slash != copy && (series_step_of(last) >= 0 || strcmp(last, "checkpoints") == 0);
        if (passes)
            *slash = '\0';
        else
            name = strdup(*last && strcmp(last, ".") != 0 ? last : "model");
        if (!passes && !name) break;
    }
    free(copy);
    return name;
}

static bool is_set(const analyze_request *r, const char *key) {
    for (int i = 0; i < r->setting_count; i++)
        if (strncmp(r->settings[i], key, strlen(key)) == 0 && r->settings[i][strlen(key)] == '=') return true;
    return false;
}

/* A foreign run's snapshots are these checkpoints, evenly spaced: how many tests are made at once counts in findings.
 */
static void plan_snapshots(analysis *a) {
    if (is_set(a->request, "train.steps") || is_set(a->request, "diagnostics.every")) return;
    a->shape.train.steps = a->series.count - 1;
    a->shape.diagnostics.every = 1;
}

/* The first checkpoint's configuration becomes the run's. A foreign model's is named after its folder. */
static status take_shape(analysis *a, checkpoint *c) {
    a->shape = c->architecture.config;
    a->folds = checkpoint_folds_weights(c);
    c->architecture.config = (config){0};
    if (!c->architecture.tensors) return STATUS_OK;
    plan_snapshots(a);
    if (is_set(a->request, "run.name")) return STATUS_OK;
    char *name = name_of(a->series.item[0].path);
    if (!name) return status_fail(STATUS_INTERNAL, "out of memory");
    free(a->shape.run.name);
    a->shape.run.name = name;
    return STATUS_OK;
}

static bool records_weights(const config *c) {
    for (int i = 0; i < c->diagnostics.forms.count; i++)
        if (strcmp(c->diagnostics.forms.items[i], "weight") == 0) return true;
    return false;
}

static status check_one(analysis *a, int index, checkpoint *c) {
    const char *path = a->series.item[index].path;
    if (index > 0) return check_shape(a, path, &c->architecture.config);
    if (checkpoint_folds_weights(c) && records_weights(&c->architecture.config))
        return status_fail(STATUS_CONFIG,
                           "%s: diagnostics.forms: weight is not for a model with q_norm and k_norm, whose gains are "
                           "folded into its weights",
                           path);
    return take_shape(a, c);
}

static status check_all(analysis *a) {
    for (int i = 0; i < a->series.count; i++) {
        checkpoint c;
        TRY(open_checkpoint(a, a->series.item[i].path, &c));
        status s = check_one(a, i, &c);
        checkpoint_close(&c);
        TRY(s);
    }
    return STATUS_OK;
}

/* ---- spectra ---- */

typedef struct note_to {
    store *store;
    int64_t step;
} note_to;

static void record_note(void *user, const char *text) {
    const note_to *to = user;
    log_info("%s", text);
    store_event(to->store, to->step, "info", "analyze", "%s", text);
}

/* Layers first, first + stride, ... of a checkpoint. */
static status compute_layers(analysis *a, const checkpoint *c, int64_t step, int first, int stride, spectrum *rows,
                             double *values) {
    snapshot weights = {.step = step};
    status s = STATUS_OK;
    for (int layer = first; s == STATUS_OK && layer < a->shape.model.layers; layer += stride)
        s = checkpoint_read_layer(c, layer, &weights);
    maps_share(a->maps, first, stride);
    if (s == STATUS_OK) s = maps_compute(a->maps, &weights, rows, values);
    if (s == STATUS_OK) nulls_place(a->nulls, &weights, rows, values);
    snapshot_free(&weights);
    return s;
}

static status compute(analysis *a, const checkpoint *c, int64_t step, spectrum *rows, double *values) {
    int layers = (int)a->shape.model.layers, threads = (int)a->shape.run.threads;
    int passes = (layers + threads - 1) / threads;
    double said = clock_now_s();
    for (int pass = 0; pass < passes; pass++) {
        TRY(compute_layers(a, c, step, pass, passes, rows, values));
        if (clock_now_s() - said < PROGRESS_EVERY_S || pass + 1 == passes) continue;
        said = clock_now_s();
        log_info("step %" PRId64 ": %d of %d layers", step, (pass + 1) * layers / passes, layers);
    }
    return STATUS_OK;
}

/* How many tokens a foreign model had seen is not known. */
static int64_t tokens_at(const analysis *a, int64_t step, bool foreign) {
    return foreign ? -1 : step * a->shape.train.global_batch * a->shape.model.context;
}

/* Takes over its rows and values. */
static void add_snapshot(analysis *a, const store_snapshot *r) {
    store_record record = {.kind = STORE_SNAPSHOT, .snapshot = *r};
    for (int i = 0; a->folds && i < maps_count(a->maps); i++)
        r->rows[i].tw_score_gains = r->rows[i].z_effective_rank_rest_gains = NAN;
    store_add(a->store, &record);
}

/* What cannot be written now is kept, and is written later or counted when the store is closed. */
static void flush(analysis *a) {
    if (store_flush(a->store) != STATUS_OK) status_clear();
}

/* What the nulls have found since the last call. */
static void take_nulls(analysis *a) {
    store_record row = {.kind = STORE_NULL};
    store_snapshot filled;
    char text[512];
    while (nulls_next_snapshot(a->nulls, &filled)) add_snapshot(a, &filled);
    while (nulls_next_row(a->nulls, &row.null)) store_add(a->store, &row);
    while (nulls_next_note(a->nulls, text, sizeof(text))) {
        log_info("%s", text);
        store_event(a->store, 0, "info", "nulls", "%s", text);
    }
}

static bool take_and_flush(void *user) {
    take_nulls(user);
    flush(user);
    return true;
}

/* Waits for the ensembles that rows still need. */
static void finish_nulls(analysis *a) {
    char text[256];
    int waiting = nulls_finish_aloud(a->nulls, a->request->null_wait_s, take_and_flush, a);
    if (waiting == 0) return;
    nulls_describe(a->nulls, text, sizeof(text));
    log_warn("columns against nulls stay NULL in %d snapshots: %s; --null-wait allows more than %d s", waiting, text,
             a->request->null_wait_s);
    store_event(a->store, 0, "warn", "nulls", "columns stay NULL in %d snapshots: %s", waiting, text);
}

/* Takes over rows and values. */
static void record(analysis *a, int64_t step, int64_t tokens, double start_s, spectrum *rows, double *values) {
    if (a->shape.diagnostics.esd_every == 0) {
        free(values);
        values = NULL;
    }
    const store_snapshot r = {.step = step,
                              .tokens = tokens,
                              .status = "done",
                              .lag_ms = NAN,
                              .compute_ms = 1e3 * (clock_now_s() - start_s),
                              .rows = rows,
                              .values = values};
    nulls_fill(a->nulls, &r);
    add_snapshot(a, &r);
    take_nulls(a);
}

static status analyze_one(analysis *a, const series_item *item, const checkpoint *c, bool first) {
    double start_s = clock_now_s();
    spectrum *rows = malloc(((size_t)maps_count(a->maps) + 1) * sizeof(*rows));
    double *values = malloc(((size_t)maps_value_count(a->maps) + 1) * sizeof(*values));
    status s = rows && values ? compute(a, c, item->step, rows, values)
                              : status_fail(STATUS_INTERNAL, "out of memory for %d spectra", maps_count(a->maps));
    if (s != STATUS_OK) {
        free(rows);
        free(values);
        return s;
    }
    record(a, item->step, tokens_at(a, item->step, c->architecture.tensors), start_s, rows, values);
    store_event(a->store, item->step, "info", "analyze", "%s, %s", item->path, c->architecture.family);
    note_to to = {.store = a->store, .step = item->step};
    if (first) checkpoint_notes(c, record_note, &to);
    if (maps_device_fault(a->maps))
        store_event(a->store, item->step, "error", "fault", "the CPU computes the spectra: %s",
                    maps_device_fault(a->maps));
    log_info("%s: step %" PRId64 ", %d spectra in %.1f s", item->path, item->step, maps_count(a->maps),
             clock_now_s() - start_s);
    flush(a);
    return STATUS_OK;
}

static status analyze_all(analysis *a) {
    for (int i = 0; i < a->series.count; i++) {
        checkpoint c;
        TRY(open_checkpoint(a, a->series.item[i].path, &c));
        status s = analyze_one(a, &a->series.item[i], &c, i == 0);
        checkpoint_close(&c);
        TRY(s);
    }
    finish_nulls(a);
    return STATUS_OK;
}

/* ---- the door ---- */

static status open_store(analysis *a) {
    char host[256] = "";
    if (gethostname(host, sizeof(host) - 1) != 0) host[0] = '\0';
    const store_session session = {.config = &a->shape,
                                   .device = a->device.close ? "cuda" : "cpu",
                                   .hosts = host,
                                   .code_version = BULKHEAD_VERSION,
                                   .tp = 1,
                                   .dp = 1,
                                   .matrices = maps_matrices(a->maps),
                                   .matrix_count = maps_count(a->maps)};
    return store_open(&a->store, a->request->output, &session);
}

/* Ensembles are kept beside the database where there is no other place for them. */
static status open_nulls(analysis *a) {
    char folder[4096], why[512];
    const char *output = a->request->output, *slash = strrchr(output, '/');
    snprintf(folder, sizeof(folder), "%.*s", slash ? (int)(slash - output) + 1 : 1, slash ? output : ".");
    TRY(nulls_open(&a->nulls, &a->shape, maps_matrices(a->maps), maps_count(a->maps), folder,
                   (int)a->shape.diagnostics.null_draws, (int)a->shape.run.threads, why, sizeof(why)));
    if (!why[0]) return STATUS_OK;
    log_warn("%s", why);
    store_event(a->store, 0, "warn", "nulls", "%s", why);
    return STATUS_OK;
}

static status write_all(analysis *a) {
    TRY(open_store(a));
    status s = open_nulls(a);
    if (s == STATUS_OK) s = analyze_all(a);
    store_record end = {.kind = STORE_FINISH,
                        .finish = {.last_step = a->series.item[a->series.count - 1].step, .exit_code = (int)s}};
    snprintf(end.finish.status, sizeof(end.finish.status), "%s", s == STATUS_OK ? "finished" : "failed");
    store_add(a->store, &end);
    nulls_close(a->nulls);
    status closed = store_close(a->store);
    return s == STATUS_OK ? closed : s;
}

static status open_maps(analysis *a) {
    TRY(maps_open(&a->maps, &a->shape, (int)a->shape.run.threads));
    if (a->shape.diagnostics.device != DEVICE_CUDA) return STATUS_OK;
    TRY(svd_cuda(&a->device));
    return maps_use_device(a->maps, &a->device);
}

static int threads_of(const analyze_request *r, int64_t layers) {
    int threads = r->threads > 0 ? r->threads : omp_get_max_threads();
    return threads < layers ? threads : (int)layers;
}

status analyze_run(const analyze_request *request) {
    analysis a = {.request = request};
    if (access(request->output, F_OK) == 0)
        return status_fail(STATUS_USAGE,
                           "%s is there already; an analysis goes to a new database (bulkhead merge "
                           "unites databases)",
                           request->output);
    TRY(series_list(&a.series, request->models, request->model_count, request->step));
    status s = check_all(&a);
    if (s == STATUS_OK) {
        a.shape.run.threads = threads_of(request, a.shape.model.layers);
        s = open_maps(&a);
    }
    if (s == STATUS_OK) s = write_all(&a);
    maps_close(a.maps);
    if (a.device.close) a.device.close(&a.device);
    config_free(&a.shape);
    series_free(&a.series);
    return s;
}
