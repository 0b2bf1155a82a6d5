/* Runs of the size `tiny` whose weights drift but do not learn, with or without a spike in every head: initial weights
 * as the trainer draws them, then every snapshot through the maps, the nulls and the onset rules that a run goes
 * through. */
#pragma once

#include "attention/attention.h"
#include "core/snapshot_steps.h"
#include "diag/findings_study.h"
#include "diag/nulls.h"
#include "diag/onset.h"
#include "folder.h"
#include "inputs.h"
#include "snapshots.h"
#include "trainer/params.h"

/* static: fresh noise around the initial weights in every snapshot. walk: Gaussian steps that add up. signs: every
 * element goes its own way for ever by the learning rate, as under Adam with a gradient of constant sign. */
typedef enum noise_drift { NOISE_STATIC, NOISE_WALK, NOISE_SIGNS, NOISE_DRIFTS } noise_drift;

enum { NOISE_EVERY = 10, NOISE_DRAWS = 16384, NOISE_PLANTED_AT = 3 };

/* Per snapshot, against initial weights of 0.02; signs: NOISE_EVERY steps of 6e-4. */
static const double noise_initial = 0.02, noise_scale[NOISE_DRIFTS] = {0.002, 0.01, 0.006};
static const char *const noise_names[NOISE_DRIFTS] = {"static", "walk", "signs"};

/* A new seed, and a cache folder of its own: ensembles are the shipped ones and those made now. */
static inline int noise_start(void **state) {
    folder *f = malloc(sizeof(*f));
    *f = folder_make();
    *state = f;
    setenv("BULKHEAD_CACHE", f->path, 1);
    return inputs_start(state);
}

static inline int noise_end(void **state) {
    folder_remove(*state);
    free(*state);
    return 0;
}

typedef struct noise_model {
    config config;
    int snapshots, heads; /* K; L H: of all layers */
    maps *maps;           /* one matrix a head: form score, part full */
    ops ops;
    arena memory;
    params params; /* those that the maps need; master: the weights that drift */
    snapshot snapshot;
    spectrum *rows; /* [heads] */
    double *values; /* what maps and onsets want room for */
    float *pairs, *noise;
    bool *candidate;
} noise_model;

static inline void noise_add_params(noise_model *n) {
    attn_dims dims;
    check_status(attn_dims_from_config(&dims, &n->config, 1, 1, 1), STATUS_OK);
    for (int l = 0; l < n->config.model.layers; l++) {
        param_spec specs[ATTN_MAX_PARAMS + 1] = {
            {.name = "attention_norm", .rows = 1, .cols = dims.width, .init = PARAM_ONES}};
        int count = 1 + attn_find(n->config.attention.variant)->params(&dims, specs + 1);
        char prefix[32], name[64];
        snprintf(prefix, sizeof(prefix), "layers.%d.", l);
        for (int i = 0; i < count; i++) {
            snprintf(name, sizeof(name), "%s%s", prefix, specs[i].name);
            if (maps_wants(&n->config, name)) check_status(params_add(&n->params, prefix, &specs[i]), STATUS_OK);
        }
    }
    check_status(params_layout(&n->params, 0, 1, 0, 1), STATUS_OK);
    n->memory.size_bytes = params_bytes(&n->params) + 8 * ARENA_ALIGN_BYTES; /* each of its blocks is aligned */
    n->memory.base = n->ops.alloc(&n->ops, n->memory.size_bytes);
    assert_non_null(n->memory.base);
    params_reserve(&n->params, DTYPE_F32, &n->memory);
}

static inline noise_model noise_open(const char *variant, int layers, int snapshots) {
    char name[64], depth[64], steps[64], every[64];
    snprintf(name, sizeof(name), "attention.variant=%s", variant);
    snprintf(depth, sizeof(depth), "model.layers=%d", layers);
    snprintf(steps, sizeof(steps), "train.steps=%d", (snapshots - 1) * NOISE_EVERY);
    snprintf(every, sizeof(every), "diagnostics.every=%d", NOISE_EVERY);
    const char *const settings[] = {"model.size=tiny",
                                    name,
                                    depth,
                                    steps,
                                    every,
                                    "diagnostics.dense_until=0",
                                    "diagnostics.forms=score",
                                    "diagnostics.parts=full",
                                    "diagnostics.scopes=head"};
    noise_model n = {.snapshots = snapshots};
    check_status(config_load(&n.config, NULL, settings, sizeof(settings) / sizeof(*settings)), STATUS_OK);
    assert_int_equal(snapshot_steps_count(&n.config), snapshots);
    check_status(maps_open(&n.maps, &n.config, 2), STATUS_OK);
    check_status(ops_cpu(&n.ops, 2), STATUS_OK);
    noise_add_params(&n);
    int64_t largest = 0;
    for (int i = 0; i < n.params.count; i++) {
        const param *p = &n.params.list[i];
        snapshot_room(&n.snapshot, p->name, p->rows, p->cols);
        largest = p->rows * p->cols > largest ? p->rows * p->cols : largest;
    }
    n.heads = maps_count(n.maps);
    n.rows = calloc((size_t)n.heads, sizeof(*n.rows));
    n.values = calloc((size_t)maps_value_count(n.maps), sizeof(*n.values));
    n.pairs = calloc((size_t)maps_pair_count(n.maps), sizeof(*n.pairs));
    n.candidate = calloc((size_t)n.heads, sizeof(*n.candidate));
    n.noise = calloc((size_t)largest, sizeof(*n.noise));
    return n;
}

static inline void noise_close(noise_model *n) {
    maps_close(n->maps);
    snapshot_free(&n->snapshot);
    params_free(&n->params);
    n->ops.release(&n->ops, n->memory.base);
    config_free(&n->config);
    free(n->rows);
    free(n->values);
    free(n->pairs);
    free(n->candidate);
    free(n->noise);
}

/* ---------------------------------------------------------------- weights */

/* Snapshot k > 0 of one tensor: x the weights [count], which walk and signs move; out what the snapshot holds. */
static inline void noise_move(noise_model *n, const param *p, noise_drift drift, uint64_t seed, int k, float *out) {
    int64_t count = p->rows * p->cols;
    float *x = n->params.master + p->offset, scale = (float)noise_scale[drift];
    char name[96];
    snprintf(name, sizeof(name), "%s drift %d", p->name, drift == NOISE_SIGNS ? 0 : k);
    uint64_t signs = 0;
    if (drift == NOISE_SIGNS)
        for (int64_t i = 0; i < count; i++) {
            if (i % 64 == 0) signs = rng_u64(seed, rng_stream(name), (uint64_t)i / 64);
            n->noise[i] = signs >> i % 64 & 1 ? scale : -scale;
        }
    else
        rng_normal(n->noise, seed, rng_stream(name), 0, count, scale);
    for (int64_t i = 0; i < count; i++) {
        out[i] = x[i] + n->noise[i];
        if (drift != NOISE_STATIC) x[i] = out[i];
    }
}

/* The weights of snapshot k; k = 0: the initial ones of that seed. moves_gains false: gains stay 1. */
static inline void noise_weights(noise_model *n, noise_drift drift, bool moves_gains, uint64_t seed, int k) {
    if (k == 0) check_status(params_init(&n->params, &n->ops, seed), STATUS_OK);
    for (int i = 0; i < n->params.count; i++) {
        const param *p = &n->params.list[i];
        float *out = n->snapshot.tensors[i].data;
        if (k > 0 && (moves_gains || p->spec.init == PARAM_NORMAL))
            noise_move(n, p, drift, seed, k, out);
        else
            memcpy(out, n->params.master + p->offset, (size_t)(p->rows * p->cols) * sizeof(*out));
    }
}

/* Standard deviation of the weights at snapshot k. */
static inline double noise_level(noise_drift drift, int k) {
    double steps = k == 0 || drift == NOISE_STATIC ? k > 0 : drift == NOISE_WALK ? sqrt(k) : k;
    return hypot(noise_initial, steps * noise_scale[drift]);
}

static inline void noise_unit(float *x, int64_t n, uint64_t seed, const char *name) {
    double squares = 0;
    rng_normal(x, seed, rng_stream(name), 0, n, 1);
    for (int64_t i = 0; i < n; i++) squares += (double)x[i] * x[i];
    for (int64_t i = 0; i < n; i++) x[i] /= (float)sqrt(squares);
}

/* Adds size[h] * level * (sqrt rows + sqrt cols) * u y^T to the first `rows` of every `stride` rows of a layer's
 * tensor: about size[h] times the largest singular value of noise of that level. u is the head's, y the head's and
 * tensor's own. */
static inline void noise_plant_in(const noise_model *n, int layer, const char *part, int64_t rows, int64_t stride,
                                  uint64_t seed, const double *size, double level) {
    char name[96];
    snprintf(name, sizeof(name), "layers.%d.%s", layer, part);
    const snapshot_tensor *t = snapshot_find(&n->snapshot, name);
    assert_non_null(t);
    float *u = malloc((size_t)rows * sizeof(*u)), *y = malloc((size_t)t->cols * sizeof(*y));
    for (int h = 0; h < n->config.model.heads; h++) {
        double spike = size[h] * level * (sqrt((double)rows) + sqrt((double)t->cols));
        float *block = t->data + h * stride * t->cols;
        snprintf(name, sizeof(name), "head %d.%d", layer, h);
        noise_unit(u, rows, seed, name);
        snprintf(name, sizeof(name), "head %d.%d of %s", layer, h, part);
        noise_unit(y, t->cols, seed, name);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t j = 0; j < t->cols; j++) block[i * t->cols + j] += (float)(spike * u[i] * y[j]);
    }
    free(u);
    free(y);
}

/* The same direction between queries and keys in both factors of every head: A^T B gets a spike. size [heads]. */
static inline void noise_plant(const noise_model *n, uint64_t seed, const double *size, double level) {
    const config *c = &n->config;
    bool decoupled = c->attention.variant == VARIANT_MLA_DECOUPLED, mha = c->attention.variant == VARIANT_MHA;
    int64_t rows = decoupled ? c->attention.qk_nope_head_dim : c->model.head_dim;
    int64_t query = rows + (decoupled ? c->attention.qk_rope_head_dim : 0);
    int64_t key = rows + (decoupled ? c->attention.v_head_dim : 0);
    const char *keys = mha ? "attention.W_K" : decoupled ? "attention.W_UKV" : "attention.W_UK";
    for (int l = 0; l < c->model.layers; l++) {
        noise_plant_in(n, l, "attention.W_Q", rows, query, seed, size + l * c->model.heads, level);
        noise_plant_in(n, l, keys, rows, key, seed, size + l * c->model.heads, level);
    }
}

/* ---------------------------------------------------------------- runs */

typedef struct noise_run {
    noise_drift drift;
    bool moves_gains;
    uint64_t seed;
    double
        excess; /* each head's lambda_max / mean lambda over e^m at snapshot NOISE_PLANTED_AT; 0: nothing is planted */
} noise_run;

typedef struct noise_watch {
    nulls *nulls;
    onsets *onsets;
    store_null *null; /* [nulls_count]: the rows of the table `nulls` */
    int null_count;
    findings_state *states; /* [heads, snapshots] */
} noise_watch;

static inline noise_watch noise_watch_open(const noise_model *n) {
    noise_watch w = {.states = calloc((size_t)(n->heads * n->snapshots), sizeof(*w.states))};
    char note[512];
    check_status(
        nulls_open(&w.nulls, &n->config, maps_matrices(n->maps), n->heads, ".", NOISE_DRAWS, 2, note, sizeof(note)),
        STATUS_OK);
    check_status(onsets_open(&w.onsets, &n->config, maps_matrices(n->maps), n->heads), STATUS_OK);
    return w;
}

static inline void noise_watch_close(noise_watch *w) {
    nulls_close(w->nulls);
    onsets_close(w->onsets);
    free(w->null);
    free(w->states);
}

static inline const nulls_moments *noise_null(noise_watch *w, int64_t null_id) {
    for (store_null row; nulls_next_row(w->nulls, &row); w->null_count++) {
        w->null = realloc(w->null, (size_t)(w->null_count + 1) * sizeof(*w->null));
        w->null[w->null_count] = row;
    }
    for (int i = 0; i < w->null_count; i++)
        if (w->null[i].null_id == null_id) return &w->null[i].moments;
    fail_msg("no row of nulls has the id %lld", (long long)null_id);
    return NULL;
}

static inline bool noise_lacks_scores(const noise_model *n) {
    for (int h = 0; h < n->heads; h++)
        if (isnan(n->rows[h].tw_score)) return true;
    return false;
}

/* The columns of the snapshot in n, as snapshot k. tw_score is waited for as long as it takes; tw_score_gains is not
 * where gains are uneven, since its ensembles cost minutes: an onset that it decides is hidden, which counts as one. */
static inline void noise_measure(noise_model *n, noise_watch *w, int k) {
    const double for_ever_s = 1e6;
    const maps_pairs top = {onsets_wanted(w->onsets), n->pairs};
    store_snapshot late;
    check_status(maps_compute_pairs(n->maps, &n->snapshot, n->rows, n->values, &top), STATUS_OK);
    nulls_place(w->nulls, &n->snapshot, n->rows, n->values);
    nulls_fill(w->nulls, &(store_snapshot){.step = k * NOISE_EVERY, .status = "done", .rows = n->rows});
    if (noise_lacks_scores(n)) assert_int_equal(nulls_finish(w->nulls, for_ever_s), 0);
    while (nulls_next_snapshot(w->nulls, &late)) {
        if (late.step == k * NOISE_EVERY) memcpy(n->rows, late.rows, (size_t)n->heads * sizeof(*n->rows));
        free(late.rows);
    }
    for (int h = 0; h < n->heads; h++) {
        const spectrum *row = &n->rows[h];
        const nulls_moments *m = noise_null(w, row->null_id);
        assert_false(isnan(row->tw_score));
        w->states[h * n->snapshots + k] = (findings_state){
            .measured = true,
            .tw_score = row->tw_score,
            .tw_score_gains = row->tw_score_gains,
            .excess =
                row->lambda_max * maps_matrices(n->maps)[h].rank / row->lambda_sum / exp(m->mean[NULLS_ln_lambda_max]),
            .null_sd = m->sd[NULLS_ln_lambda_max],
        };
    }
}

/* size [heads]: with which spike each head has that excess in the weights of snapshot k, by bisection. */
static inline void noise_find_sizes(noise_model *n, noise_watch *w, const noise_run *r, int k, double *size) {
    const double level = noise_level(r->drift, k), low = 0.5, high = 1.1;
    float **kept = calloc((size_t)n->snapshot.count, sizeof(*kept));
    for (int i = 0; i < n->snapshot.count; i++) {
        snapshot_tensor *t = &n->snapshot.tensors[i];
        kept[i] = malloc((size_t)(t->rows * t->cols) * sizeof(float));
        memcpy(kept[i], t->data, (size_t)(t->rows * t->cols) * sizeof(float));
    }
    for (int h = 0; h < n->heads; h++) size[h] = 0.5 * (low + high);
    for (double step = 0.25 * (high - low); step > 1e-4; step *= 0.5) {
        noise_plant(n, r->seed, size, level);
        noise_measure(n, w, k);
        for (int h = 0; h < n->heads; h++) size[h] += w->states[h * n->snapshots + k].excess < r->excess ? step : -step;
        for (int i = 0; i < n->snapshot.count; i++) {
            snapshot_tensor *t = &n->snapshot.tensors[i];
            memcpy(t->data, kept[i], (size_t)(t->rows * t->cols) * sizeof(float));
        }
    }
    for (int i = 0; i < n->snapshot.count; i++) free(kept[i]);
    free(kept);
}

typedef struct noise_outcome {
    int onsets, hidden, references; /* heads with an onset; where a missing value hides whether; with a top_overlap */
    bool rejected;                  /* its first snapshot counts as no noise */
    double score;                   /* mean tw_score of the last snapshot's heads */
} noise_outcome;

/* Every head is a layer of its own here, so that each is judged; M is the same. */
static inline noise_outcome noise_judge(const noise_model *n, noise_watch *w, double theta) {
    findings_run run = {
        .layers = n->heads, .heads = 1, .planned = n->snapshots, .snapshots = n->snapshots, .states = w->states};
    findings_study study = {.runs = &run, .count = 1};
    run.steps = malloc((size_t)n->snapshots * sizeof(*run.steps));
    run.recorded = malloc((size_t)n->snapshots * sizeof(*run.recorded));
    for (int k = 0; k < n->snapshots; k++) {
        run.steps[k] = k * NOISE_EVERY;
        run.recorded[k] = true;
    }
    findings_prepare(&study);
    noise_outcome out = {.rejected = run.rejected};
    check_near(study.threshold, onsets_threshold(w->onsets), 1e-9);
    for (int h = 0; h < n->heads; h++) {
        const findings_state *last = findings_state_at(&run, h, 0, n->snapshots - 1);
        findings_answer happened = findings_onset(&study, &run, h, theta).happened;
        out.onsets += happened == FINDINGS_YES;
        out.hidden += happened == FINDINGS_UNKNOWN;
        out.references += !isnan(last->top_overlap);
        out.score += last->tw_score / n->heads;
    }
    free(run.steps);
    free(run.recorded);
    return out;
}

static inline noise_outcome noise_go(noise_model *n, const noise_run *r, double theta) {
    noise_watch w = noise_watch_open(n);
    double *size = calloc((size_t)n->heads, sizeof(*size));
    for (int k = 0; k < n->snapshots; k++) {
        bool planted = r->excess > 0 && k >= NOISE_PLANTED_AT;
        noise_weights(n, r->drift, r->moves_gains, r->seed, k);
        if (planted && k == NOISE_PLANTED_AT) noise_find_sizes(n, &w, r, k, size);
        if (planted) noise_plant(n, r->seed, size, noise_level(r->drift, k));
        noise_measure(n, &w, k);
        onsets_note(w.onsets, k * NOISE_EVERY, n->rows, n->pairs, n->candidate);
        for (int h = 0; h < n->heads; h++) {
            findings_state *s = &w.states[h * n->snapshots + k];
            s->top_overlap = n->rows[h].top_overlap;
            if (planted && k == NOISE_PLANTED_AT) check_near(s->excess, r->excess, 0.01);
        }
    }
    noise_outcome out = noise_judge(n, &w, theta);
    noise_watch_close(&w);
    free(size);
    return out;
}

/* Of all heads of so many runs, each with a spike of 1.5 e^m, 95% have an onset at theta = 1.25 and a reference. */
static inline void noise_check_spikes(const char *variant, int layers, int snapshots, int runs) {
    noise_model n = noise_open(variant, layers, snapshots);
    int heads = runs * n.heads, found = 0, references = 0;
    for (int i = 0; i < runs; i++) {
        noise_run r = {.drift = i % NOISE_DRIFTS, .seed = inputs_seed + (uint64_t)i, .excess = 1.5};
        noise_outcome o = noise_go(&n, &r, 1.25);
        found += o.onsets;
        references += o.references;
    }
    noise_close(&n);
    printf("%s: of %d heads with a spike of 1.5 e^m %d have an onset at theta = 1.25, %d a reference\n", variant, heads,
           found, references);
    assert_true(found >= 0.95 * heads && references >= 0.95 * heads);
}
