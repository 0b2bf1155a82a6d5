/* The nulls of a run. A row's ensemble is known by its shape, its rounded log ratios and, where gains are kept, its
 * gains; each is looked up once and then found in a hash table. */
#include "diag/nulls.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/rng.h"
#include "core/snapshot_steps.h"
#include "diag/findings_statistics.h"
#include "diag/nulls_columns.h"
#include "diag/nulls_grid.h"
#include "diag/nulls_maker.h"
#include "diag/nulls_shape.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Draws of a layer cost r^3 in time and 50 r^2 bytes a thread: beyond that rank, hours and gigabytes for columns that
 * no finding reads. */
enum {
    BUCKETS = 4096,
    LAYER_DRAWS = 16,
    MOST_LAYER_RANK = 2048,
    REFILL_EVERY_S = 5,
    SAY_EVERY_S = 10,
    LOOK_EVERY_S = 2
};
static const size_t MOST_KEPT_BYTES = (size_t)128 << 20;
static const double FAMILY_LEVEL = 0.01, LEAST_EFFECT = 1.25, MOST_RANK = 0.8; /* theta and collapse of section 6.5 */

/* A shape that some matrices have. */
typedef struct kind {
    nulls_shape shape;
    bool layer, drawn; /* drawn: there are ensembles of it */
    double edge;       /* over mean lambda, where it knows no ratio */
} kind;

/* An ensemble in use. */
typedef struct known {
    int kind;
    double at[NULLS_MOST_RATIOS];
    const nulls_gains *gains;
    bool ready;
    int tried; /* what the maker had done when it was looked up last */
    store_null row;
    struct known *next, *next_fresh;
} known;

/* A snapshot with columns that wait. */
typedef struct kept {
    store_snapshot record;
    const nulls_gains **gains; /* [layers] */
    int missing;
    bool changed;
    struct kept *next;
} kept;

/* A layer's gains: the latest that an ensemble is or would be made for. Old ones stay, since kept rows may need them.
 */
typedef struct old_gains {
    nulls_gains *gains;
    struct old_gains *next;
} old_gains;

struct nulls {
    config config;
    const maps_matrix *matrices;
    int count, kinds, layers, heads, draws;
    int *kind_of; /* [count]; -1: no null */
    kind *kind;   /* [kinds] */
    nulls_cache *cache;
    nulls_maker *maker; /* NULL: edges only */
    known *bucket[BUCKETS], *fresh, **last_fresh;
    const nulls_gains **gains; /* [layers] */
    bool *took;                /* [layers] at the last snapshot */
    old_gains *all_gains;
    double *query, *key; /* [layers, H + 1] log ratios of this snapshot */
    double tw_threshold, z_threshold;
    kept *first, **last;
    size_t kept_bytes;
    int done_seen, given_up, asked;
    int undrawn_rank; /* the highest rank of a layer without ensembles, until it is told; 0: none */
    double next_refill_s;
    char note[256];
};

/* ---------------------------------------------------------------- opening */

static bool same_shape(const nulls_shape *a, const nulls_shape *b) {
    return a->kind == b->kind && a->channel == b->channel && a->dim_count == b->dim_count && a->half == b->half &&
           memcmp(a->dim, b->dim, sizeof(a->dim)) == 0 && a->content == b->content && a->copies == b->copies &&
           a->rope == b->rope && a->latent == b->latent && a->q_latent == b->q_latent && a->width == b->width;
}

static int kind_index(nulls *n, const maps_matrix *m) {
    nulls_shape s;
    bool layer = m->scope == MAPS_layer;
    nulls_shape_of(&n->config, m, &s);
    if (m->rank < 2 || s.rank != m->rank) return -1;
    for (int i = 0; i < n->kinds; i++)
        if (n->kind[i].layer == layer && same_shape(&n->kind[i].shape, &s)) return i;
    double equal[NULLS_MOST_RATIOS] = {0};
    bool drawn = !layer || s.rank <= MOST_LAYER_RANK;
    if (!drawn && s.rank > n->undrawn_rank) n->undrawn_rank = s.rank;
    n->kind[n->kinds] =
        (kind){.shape = s, .layer = layer, .drawn = drawn, .edge = s.kind == NULLS_BLOCK ? NAN : nulls_edge(&s, equal)};
    return n->kinds++;
}

/* As the findings of this run alone have them: of several runs they are farther out. */
static void set_thresholds(nulls *n) {
    double tests = fmax(1, (double)snapshot_steps_count(&n->config) * n->layers * n->heads);
    n->tw_threshold = findings_tracy_widom_threshold(FAMILY_LEVEL / tests);
    n->z_threshold = findings_normal_quantile(FAMILY_LEVEL / tests);
}

status nulls_open(nulls **out, const config *c, const maps_matrix *matrices, int count, const char *run_dir, int draws,
                  int threads, char *note, size_t note_bytes) {
    nulls *n = calloc(1, sizeof(*n));
    *out = NULL;
    note[0] = '\0';
    if (!n) return status_fail(STATUS_INTERNAL, "out of memory for the nulls");
    n->config = *c;
    n->matrices = matrices;
    n->count = count;
    n->draws = draws;
    n->layers = (int)c->model.layers;
    n->heads = (int)c->model.heads;
    n->last = &n->first;
    n->last_fresh = &n->fresh;
    n->kind_of = malloc(((size_t)count + 1) * sizeof(*n->kind_of));
    n->kind = calloc((size_t)count + 1, sizeof(*n->kind));
    n->gains = calloc((size_t)n->layers, sizeof(*n->gains));
    n->took = calloc((size_t)n->layers, sizeof(*n->took));
    n->query = calloc((size_t)n->layers * ((size_t)n->heads + 1), sizeof(double));
    n->key = calloc((size_t)n->layers * ((size_t)n->heads + 1), sizeof(double));
    status s = n->kind_of && n->kind && n->gains && n->took && n->query && n->key
                   ? STATUS_OK
                   : status_fail(STATUS_INTERNAL, "out of memory for the nulls of %d matrices", count);
    for (int i = 0; s == STATUS_OK && i < count; i++) n->kind_of[i] = kind_index(n, &matrices[i]);
    if (s == STATUS_OK && draws > 0 && threads > 0) {
        set_thresholds(n);
        s = nulls_cache_open(&n->cache, run_dir, note, note_bytes);
        if (s == STATUS_OK) s = nulls_maker_open(&n->maker, n->cache, threads);
    }
    if (s != STATUS_OK) {
        nulls_close(n);
        return s;
    }
    *out = n;
    return STATUS_OK;
}

static void drop_first(nulls *n) {
    kept *k = n->first;
    n->first = k->next;
    if (!n->first) n->last = &n->first;
    free(k->record.rows);
    free(k->gains);
    free(k);
}

void nulls_close(nulls *n) {
    if (!n) return;
    nulls_maker_close(n->maker);
    nulls_cache_close(n->cache);
    while (n->first) drop_first(n);
    for (int i = 0; i < BUCKETS; i++)
        while (n->bucket[i]) {
            known *next = n->bucket[i]->next;
            free(n->bucket[i]);
            n->bucket[i] = next;
        }
    while (n->all_gains) {
        old_gains *next = n->all_gains->next;
        nulls_gains_free(n->all_gains->gains);
        free(n->all_gains);
        n->all_gains = next;
    }
    free(n->kind_of);
    free(n->kind);
    free(n->gains);
    free(n->took);
    free(n->query);
    free(n->key);
    free(n);
}

/* ---------------------------------------------------------------- from the weights */

static double *of_layer(const nulls *n, double *ratios, int layer) {
    return ratios + (int64_t)layer * (n->heads + 1);
}

/* The raw log ratios of a matrix from those of its layer. false: they are not finite. */
static bool take_ratios(const nulls *n, const nulls_shape *s, const maps_matrix *m, double *log_ratio) {
    const double *query = of_layer(n, n->query, m->layer), *key = of_layer(n, n->key, m->layer);
    int h = m->head < 0 ? n->heads : m->head;
    log_ratio[0] = log_ratio[1] = 0;
    if (s->kind == NULLS_MIXED) log_ratio[0] = key[h];
    if (s->kind == NULLS_BLOCK && s->channel) log_ratio[0] = query[h], log_ratio[1] = key[h];
    if (s->kind == NULLS_BLOCK && !s->channel) log_ratio[0] = query[h] + key[h];
    return isfinite(log_ratio[0]) && isfinite(log_ratio[1]);
}

static void place_row(const nulls *n, int index, bool ratios, spectrum *row, const double *s) {
    const kind *k = &n->kind[n->kind_of[index]];
    double log_ratio[NULLS_MOST_RATIOS];
    if (!ratios && k->shape.ratio_count > 0) return;
    if (!take_ratios(n, &k->shape, &n->matrices[index], log_ratio)) return;
    nulls_edge_columns(s, n->matrices[index].rank, isnan(k->edge) ? nulls_edge(&k->shape, log_ratio) : k->edge, row);
    nulls_round(&k->shape, log_ratio);
    row->null_log[0] = log_ratio[0];
    row->null_log[1] = log_ratio[1];
    if (k->shape.ratio_count > 0) row->null_ratio = exp(log_ratio[0] + log_ratio[1]);
    if (k->shape.ratio_count > 1) row->null_query_ratio = exp(log_ratio[0]);
}

/* The gains that ensembles are made for change when they have moved. */
static void place_gains(nulls *n, const snapshot *s, int layer) {
    nulls_gains *now = nulls_gains_read(&n->config, s, layer);
    old_gains *o = now ? malloc(sizeof(*o)) : NULL;
    if (!o || (n->gains[layer] && !nulls_gains_moved(n->gains[layer], now))) {
        free(o);
        nulls_gains_free(now);
        return;
    }
    *o = (old_gains){now, n->all_gains};
    n->all_gains = o;
    n->gains[layer] = now;
    n->took[layer] = true;
}

/* Gains alone may come of layers that another rank computes. */
static bool has_weights(const snapshot *s, int layer) {
    char prefix[32];
    int length = snprintf(prefix, sizeof(prefix), "layers.%d.", layer);
    for (int i = 0; i < s->count; i++)
        if (s->tensors[i].rows > 1 && strncmp(s->tensors[i].name, prefix, (size_t)length) == 0) return true;
    return false;
}

void nulls_place_rows(nulls *n, const snapshot *s, spectrum *rows, const double *values) {
#pragma omp parallel for schedule(dynamic)
    for (int layer = 0; layer < n->layers; layer++) {
        if (!has_weights(s, layer)) continue;
        bool ratios =
            nulls_layer_ratios(&n->config, s, layer, of_layer(n, n->query, layer), of_layer(n, n->key, layer));
        for (int i = 0; i < n->count; i++)
            if (n->matrices[i].layer == layer && n->kind_of[i] >= 0)
                place_row(n, i, ratios, &rows[i], values + n->matrices[i].first_value);
    }
}

void nulls_place_gains(nulls *n, const snapshot *s) {
    memset(n->took, 0, (size_t)n->layers * sizeof(*n->took));
    for (int layer = 0; n->maker && layer < n->layers; layer++) place_gains(n, s, layer);
}

bool nulls_took_gains(const nulls *n, int layer) {
    return n->took[layer];
}

void nulls_restore_rows(const nulls *n, spectrum *rows) {
    for (int i = 0; i < n->count; i++) {
        spectrum *row = &rows[i];
        if (n->kind_of[i] < 0 || isnan(row->null_gap)) continue; /* it was not placed */
        const nulls_shape *s = &n->kind[n->kind_of[i]].shape;
        double all = s->ratio_count > 0 ? log(row->null_ratio) : 0;
        double first = s->ratio_count > 1 ? log(row->null_query_ratio) : all;
        if (!isfinite(all) || !isfinite(first)) continue; /* an older version did not write it */
        row->null_log[0] = first;
        row->null_log[1] = all - first;
        nulls_round(s, row->null_log);
    }
}

void nulls_place(nulls *n, const snapshot *s, spectrum *rows, const double *values) {
    nulls_place_rows(n, s, rows, values);
    nulls_place_gains(n, s);
}

/* ---------------------------------------------------------------- ensembles */

static int draws_of(const nulls *n, const kind *k) {
    int draws = k->layer ? n->draws / LAYER_DRAWS : n->draws;
    return draws < 2 ? 2 : draws;
}

static nulls_job job_at(const nulls *n, const known *k, const double *log_ratio) {
    return (nulls_job){n->kind[k->kind].shape, {log_ratio[0], log_ratio[1]}, draws_of(n, &n->kind[k->kind]), k->gains};
}

static void key_of(const nulls *n, const known *k, const double *log_ratio, char *key) {
    nulls_key(key, &n->kind[k->kind].shape, log_ratio, draws_of(n, &n->kind[k->kind]));
    if (k->gains) nulls_gains_key(k->gains, key);
}

/* Finds what the ensemble is interpolated from, and asks for what is missing. */
static void look_up(nulls *n, known *k) {
    const nulls_shape *s = &n->kind[k->kind].shape;
    double node[NULLS_MOST_NODES][NULLS_MOST_RATIOS];
    nulls_moments at_node[NULLS_MOST_NODES];
    int done = nulls_maker_done(n->maker), count = nulls_nodes(s, k->at, node);
    if (k->ready || k->tried == done) return;
    k->tried = done;
    k->ready = true;
    for (int i = 0; i < count; i++) {
        char key[NULLS_KEY_BYTES];
        key_of(n, k, node[i], key);
        if (nulls_cache_find(n->cache, key, &at_node[i])) continue;
        nulls_job job = job_at(n, k, node[i]);
        nulls_maker_ask(n->maker, &job);
        k->ready = false;
    }
    if (!k->ready) return;
    nulls_interpolate(s, k->at, at_node, &k->row.moments);
    *n->last_fresh = k;
    n->last_fresh = &k->next_fresh;
}

/* The ensemble of that kind, ratios and gains; NULL: no memory. */
static known *find_known(nulls *n, int which, const double *at, const nulls_gains *gains) {
    char text[96];
    snprintf(text, sizeof(text), "%d %.9g %.9g %p", which, at[0], at[1], (const void *)gains);
    known **bucket = &n->bucket[rng_stream(text) % BUCKETS], *k = *bucket;
    while (k && !(k->kind == which && k->at[0] == at[0] && k->at[1] == at[1] && k->gains == gains)) k = k->next;
    if (!k && (k = calloc(1, sizeof(*k)))) {
        *k = (known){.kind = which, .at = {at[0], at[1]}, .gains = gains, .tried = -1, .next = *bucket};
        *bucket = k;
        key_of(n, k, at, k->row.key);
        k->row.null_id = (int64_t)(rng_stream(k->row.key) >> 17) + 1; /* 6 bytes in SQLite */
        k->row.draws = draws_of(n, &n->kind[which]);
        k->row.seed = NULLS_SEED;
    }
    if (k) look_up(n, k);
    return k;
}

/* ---------------------------------------------------------------- columns */

/* Whether a finding could rest on the row: then it deserves an ensemble with its gains. */
static bool crosses(const nulls *n, const nulls_moments *m, int r, const spectrum *row) {
    double ratio = log(r / row->stable_rank) - m->mean[NULLS_ln_lambda_max];
    bool spike = row->tw_score >= n->tw_threshold && ratio >= log(LEAST_EFFECT);
    bool collapse = row->z_effective_rank_rest <= n->z_threshold &&
                    row->effective_rank_rest <= MOST_RANK * m->mean[NULLS_effective_rank_rest];
    return spike || collapse;
}

/* false: a column waits. */
static bool fill_row(nulls *n, int index, const nulls_gains *gains, spectrum *row) {
    const maps_matrix *m = &n->matrices[index];
    if (isnan(row->null_gap) || isnan(row->null_log[0])) return true; /* not placed: no spectrum or no ratio */
    if (!n->kind[n->kind_of[index]].drawn) return true;
    known *k = find_known(n, n->kind_of[index], row->null_log, NULL);
    if (!k || !k->ready) return !k;
    nulls_plain_columns(&k->row.moments, m->rank, row);
    row->null_id = k->row.null_id;
    if (m->scope == MAPS_layer || m->form == MAPS_weight || m->part == MAPS_ov || !gains) return true;
    if (!nulls_gains_even(gains)) {
        if (!crosses(n, &k->row.moments, m->rank, row)) return true;
        k = find_known(n, n->kind_of[index], row->null_log, gains);
        if (!k || !k->ready) return !k;
    }
    nulls_gains_columns(&k->row.moments, m->rank, row);
    return true;
}

/* Returns the rows that wait. */
static int fill_rows(nulls *n, const nulls_gains *const *gains, spectrum *rows) {
    int missing = 0;
    for (int i = 0; i < n->count; i++)
        if (n->kind_of[i] >= 0) missing += !fill_row(n, i, gains[n->matrices[i].layer], &rows[i]);
    return missing;
}

/* ---------------------------------------------------------------- what waits */

static void keep(nulls *n, const store_snapshot *r, int missing) {
    size_t bytes = (size_t)n->count * sizeof(*r->rows), gains = (size_t)n->layers * sizeof(*n->gains);
    kept *k = calloc(1, sizeof(*k));
    spectrum *rows = malloc(bytes);
    const nulls_gains **own = malloc(gains);
    if (!k || !rows || !own) {
        free(k);
        free(rows);
        free(own);
        n->given_up++;
        return;
    }
    memcpy(rows, r->rows, bytes);
    memcpy(own, n->gains, gains);
    *k = (kept){.record = *r, .gains = own, .missing = missing};
    k->record.rows = rows;
    k->record.values = NULL;
    *n->last = k;
    n->last = &k->next;
    n->kept_bytes += bytes;
    for (; n->kept_bytes > MOST_KEPT_BYTES; n->kept_bytes -= bytes, n->given_up++) drop_first(n);
}

void nulls_fill(nulls *n, const store_snapshot *r) {
    if (!n->maker) return;
    int missing = fill_rows(n, n->gains, r->rows);
    if (missing == 0) return;
    keep(n, r, missing);
    int asked = nulls_maker_waiting(n->maker) + nulls_maker_done(n->maker);
    if (asked == n->asked) return;
    n->asked = asked;
    snprintf(n->note, sizeof(n->note), "%d spectra of step %lld wait for %d null ensembles, which are being made",
             missing, (long long)r->step, nulls_maker_waiting(n->maker));
}

void nulls_keep_overlaps(nulls *n, int64_t step, const spectrum *rows) {
    for (kept *k = n->first; k; k = k->next)
        for (int i = 0; k->record.step == step && i < n->count; i++)
            k->record.rows[i].top_overlap = rows[i].top_overlap;
}

/* Fills kept snapshots when the maker has done something, not after every ensemble. */
static void refill(nulls *n) {
    int done = nulls_maker_done(n->maker);
    if (!n->first || done == n->done_seen) return;
    if (nulls_maker_waiting(n->maker) > 0 && clock_now_s() < n->next_refill_s) return;
    n->done_seen = done;
    n->next_refill_s = clock_now_s() + REFILL_EVERY_S;
    for (kept *k = n->first; k; k = k->next) {
        int missing = fill_rows(n, k->gains, k->record.rows);
        k->changed |= missing != k->missing;
        k->missing = missing;
    }
}

bool nulls_next_snapshot(nulls *n, store_snapshot *out) {
    if (!n->maker) return false;
    refill(n);
    size_t bytes = (size_t)n->count * sizeof(spectrum);
    for (kept **at = &n->first; *at; at = &(*at)->next) {
        kept *k = *at;
        spectrum *copy = k->changed ? malloc(bytes) : NULL;
        if (!copy) continue;
        memcpy(copy, k->record.rows, bytes);
        *out = k->record;
        out->rows = copy;
        k->changed = false;
        if (k->missing > 0) return true;
        *at = k->next;
        if (!*at) n->last = at;
        n->kept_bytes -= bytes;
        free(k->record.rows);
        free(k->gains);
        free(k);
        return true;
    }
    return false;
}

bool nulls_next_row(nulls *n, store_null *out) {
    known *k = n->fresh;
    if (!k) return false;
    *out = k->row;
    n->fresh = k->next_fresh;
    if (!n->fresh) n->last_fresh = &n->fresh;
    return true;
}

bool nulls_next_note(nulls *n, char *to, size_t bytes) {
    if (!n->maker) return false;
    if (nulls_maker_fault(n->maker, to, bytes)) return true;
    if (n->undrawn_rank > 0) {
        snprintf(to, bytes,
                 "layers of rank %d have no null ensemble (there are none over %d): their null_edge95, tw_score and z_ "
                 "columns stay NULL",
                 n->undrawn_rank, MOST_LAYER_RANK);
        n->undrawn_rank = 0;
        return true;
    }
    if (!n->note[0]) return false;
    snprintf(to, bytes, "%s", n->note);
    n->note[0] = '\0';
    return true;
}

int nulls_finish(nulls *n, double seconds) {
    if (!n->maker) return 0;
    double end = clock_now_s() + seconds;
    do { /* what is made may show that gains have to be kept, which asks for more */
        nulls_maker_wait(n->maker, end - clock_now_s());
        n->next_refill_s = 0;
        refill(n);
    } while (nulls_maker_waiting(n->maker) > 0 && clock_now_s() < end);
    int waiting = n->given_up;
    for (kept *k = n->first; k; k = k->next) waiting += k->missing > 0;
    return waiting;
}

int nulls_finish_aloud(nulls *n, double seconds, bool (*came)(void *user), void *user) {
    double end = clock_now_s() + seconds, said_s = clock_now_s();
    char text[256];
    for (;;) {
        double left = fmax(0, end - clock_now_s());
        int waiting = nulls_finish(n, fmin(left, LOOK_EVERY_S));
        if (!came(user) || waiting == 0 || left <= LOOK_EVERY_S) return waiting;
        if (clock_now_s() - said_s < SAY_EVERY_S) continue;
        said_s = clock_now_s();
        nulls_describe(n, text, sizeof(text));
        log_info("columns against nulls are filled: %s; waiting %.0f s more at most", text, fmax(0, end - said_s));
    }
}

void nulls_describe(nulls *n, char *to, size_t bytes) {
    int rank, draws, drawn, waiting = n->maker ? nulls_maker_waiting(n->maker) : 0;
    int length = snprintf(to, bytes, "%d null ensemble%s to make", waiting, waiting == 1 ? "" : "s");
    if (!n->maker || length < 0 || (size_t)length >= bytes) return;
    if (nulls_maker_progress(n->maker, &rank, &draws, &drawn))
        snprintf(to + length, bytes - (size_t)length, ", %d of %d draws of one of rank %d made", drawn, draws, rank);
}
