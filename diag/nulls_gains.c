/* Gain vectors of a layer, and draws that keep them. Factors are row-major, d wide; A [n, d] queries, B [n, d] keys, n
 * = content + rope rows, content first. */
#include "diag/nulls_gains.h"

#include "core/rng.h"
#include "diag/nulls_cache.h"
#include "diag/nulls_sample.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PRODUCT, QUERY, KEY, LEFT, DOWN };

/* ---------------------------------------------------------------- gain vectors */

/* To mean square 1, with the spread of their logarithms. false: not finite or all zero. */
static bool take_gain(nulls_gains *g, int which, const snapshot_tensor *t) {
    int n = (int)t->cols;
    double *x = malloc((size_t)n * sizeof(*x)), sum = 0, logs = 0, squares = 0;
    g->gain[which] = x;
    g->length[which] = n;
    if (!x) return false;
    for (int i = 0; i < n; i++) sum += (double)t->data[i] * t->data[i];
    double rms = sqrt(sum / n);
    if (!(rms > 0) || !isfinite(rms)) return false;
    for (int i = 0; i < n; i++) {
        x[i] = t->data[i] / rms;
        logs += log(fmax(fabs(x[i]), 1e-6)) / n;
    }
    for (int i = 0; i < n; i++) {
        double off = log(fmax(fabs(x[i]), 1e-6)) - logs;
        squares += off * off / n;
    }
    g->spread[which] = sqrt(squares);
    return true;
}

/* Of the bits of all vectors. */
static uint64_t hash_of(const nulls_gains *g) {
    uint64_t hash = 0;
    char text[64];
    for (int k = 0; k < NULLS_GAIN_COUNT; k++)
        for (int i = 0; i < g->length[k]; i++) {
            snprintf(text, sizeof(text), "%016llx %d %.9g", (unsigned long long)hash, k, g->gain[k][i]);
            hash = rng_stream(text);
        }
    return hash;
}

nulls_gains *nulls_gains_read(const config *c, const snapshot *s, int layer) {
    static const char *const names[] = {"attention_norm", "attention.latent_norm", "attention.q_latent_norm"};
    bool latent = c->attention.variant != VARIANT_MHA && c->attention.latent_norm;
    bool q_latent = c->attention.variant == VARIANT_MLA_DECOUPLED && c->attention.q_lora_rank && latent;
    const bool wanted[] = {true, latent, q_latent};
    nulls_gains *g = calloc(1, sizeof(*g));
    for (int k = 0; g && k < NULLS_GAIN_COUNT; k++) {
        char name[64];
        if (!wanted[k]) continue;
        snprintf(name, sizeof(name), "layers.%d.%s", layer, names[k]);
        const snapshot_tensor *t = snapshot_find(s, name);
        if (t && take_gain(g, k, t)) continue;
        nulls_gains_free(g);
        return NULL;
    }
    if (g) g->hash = hash_of(g);
    return g;
}

void nulls_gains_free(nulls_gains *g) {
    for (int k = 0; g && k < NULLS_GAIN_COUNT; k++) free(g->gain[k]);
    free(g);
}

bool nulls_gains_even(const nulls_gains *g) {
    for (int k = 0; k < NULLS_GAIN_COUNT; k++)
        if (!(g->spread[k] < NULLS_GAINS_MOVE)) return false;
    return true;
}

bool nulls_gains_moved(const nulls_gains *a, const nulls_gains *b) {
    for (int k = 0; k < NULLS_GAIN_COUNT; k++)
        if (!(fabs(a->spread[k] - b->spread[k]) <= NULLS_GAINS_MOVE)) return true;
    return false;
}

void nulls_gains_key(const nulls_gains *g, char *key) {
    size_t at = strlen(key);
    snprintf(key + at, NULLS_KEY_BYTES - at, " gains %016llx", (unsigned long long)g->hash);
}

/* ---------------------------------------------------------------- factors */

typedef struct draw_of {
    const nulls_shape *shape;
    const nulls_gains *gains;
    double query_ratio, key_ratio, half_ratio; /* log ratios of the rope rows, and of the halves */
} draw_of;

static void scale_columns(double *x, int rows, int cols, const double *gain) {
    for (int i = 0; gain && i < rows; i++)
        for (int j = 0; j < cols; j++) x[(int64_t)i * cols + j] *= gain[j];
}

/* A leaf weight [rows, cols] of mean square exactly 1, times scale. */
static void draw_leaf(nulls_worker *w, double *x, int rows, int cols, double scale) {
    int64_t n = (int64_t)rows * cols;
    nulls_normals(&w->random, x, n);
    if (n > 0) cblas_dscal((int)n, scale * sqrt((double)n / nulls_squares(x, n)), x, 1);
}

/* Lower triangular T [n, n] with T T^T = X X^T, X [n, m]; a part without rank is left at rounding's size. */
static bool triangle_of(double *T, const double *X, int n, int m) {
    double trace = 0;
    cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, n, m, 1, X, m, 0, T, n);
    for (int i = 0; i < n; i++) trace += T[(int64_t)i * n + i];
    for (int i = 0; i < n; i++) {
        T[(int64_t)i * n + i] += 1e-13 * trace;
        for (int j = i + 1; j < n; j++) T[(int64_t)i * n + j] = 0;
    }
    return LAPACKE_dpotrf_work(LAPACK_ROW_MAJOR, 'L', n, T, n) == 0;
}

/* G [rows, d] standard normals, their columns times gain. */
static void draw_noise(nulls_worker *w, double *G, int rows, int d, const double *gain) {
    nulls_normals(&w->random, G, (int64_t)rows * d);
    scale_columns(G, rows, d, gain);
}

/* to [rows, d] = F G diag(gain), F = w->matrix[LEFT] [rows, inner], G [inner, d] standard normal. Where rows <= inner
 * only F's triangle matters, and as many rows of G. squares: of the rows of G diag(gain) that were drawn. w->gram is
 * overwritten. */
static bool times_noise(nulls_worker *w, double *to, int rows, int inner, int d, const double *gain, double *squares) {
    if (rows > inner) {
        double *G = w->matrix[DOWN];
        draw_noise(w, G, inner, d, gain);
        *squares = nulls_squares(G, (int64_t)inner * d);
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, d, inner, 1, w->matrix[LEFT], inner, G, d, 0, to,
                    d);
        return true;
    }
    if (!triangle_of(w->gram, w->matrix[LEFT], rows, inner)) return false;
    draw_noise(w, to, rows, d, gain);
    *squares = nulls_squares(to, (int64_t)rows * d);
    cblas_dtrmm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, rows, d, 1, w->gram, rows, to, d);
    return true;
}

static bool draw_query(nulls_worker *w, const draw_of *of) {
    const nulls_shape *s = of->shape;
    const double *in = of->gains->gain[NULLS_GAIN_IN];
    int n = s->content + s->rope, inner = s->q_latent ? s->q_latent : s->width;
    double *leaf = s->q_latent ? w->matrix[LEFT] : w->matrix[QUERY], unused;
    draw_leaf(w, leaf, s->content, inner, 1);
    draw_leaf(w, leaf + (int64_t)s->content * inner, s->rope, inner, exp(of->query_ratio));
    scale_columns(leaf, n, inner, s->q_latent ? of->gains->gain[NULLS_GAIN_Q] : in);
    return !s->q_latent || times_noise(w, w->matrix[QUERY], n, inner, s->width, in, &unused);
}

/* F <- F [a G1 | b G2]: the two halves between the latent and x, by their triangle. */
static bool mix_halves(nulls_worker *w, int rows, int inner, const draw_of *of) {
    double *F = w->matrix[LEFT], *L = w->matrix[DOWN], *T = w->matrix[PRODUCT];
    if (rows > inner) {
        if (!nulls_mixed_triangle(w, L, inner, of->shape->half, of->half_ratio)) return false;
        cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, rows, inner, 1, L, inner, F,
                    inner);
        return true;
    }
    if (!triangle_of(T, F, rows, inner) || !nulls_mixed_triangle(w, L, rows, of->shape->half, of->half_ratio))
        return false;
    memset(F, 0, (size_t)rows * (size_t)inner * sizeof(double));
    for (int i = 0; i < rows; i++) memcpy(F + (int64_t)i * inner, T + (int64_t)i * rows, (size_t)rows * sizeof(double));
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, rows, rows, 1, L, rows, F, inner);
    return true;
}

/* Content keys W_UK diag(g_kv) W_D diag(g_in) in w->matrix[KEY], their entries of mean square 1. With a rope part
 * beside them, W_D diag(g_in) is scaled to its exact mean square, as c_rms does in the map. */
static bool draw_latent_keys(nulls_worker *w, const draw_of *of) {
    const nulls_shape *s = of->shape;
    const double *in = of->gains->gain[NULLS_GAIN_IN];
    int rows = s->content, R = s->latent, d = s->width;
    double squares, hidden = R - (rows < R ? rows : R), scale = 1 / sqrt(R);
    draw_leaf(w, w->matrix[LEFT], rows, R, 1);
    scale_columns(w->matrix[LEFT], rows, R, of->gains->gain[NULLS_GAIN_KV]);
    if (s->kind == NULLS_MIXED && !mix_halves(w, rows, R, of)) return false;
    if (!times_noise(w, w->matrix[KEY], rows, R, d, in, &squares)) return false;
    if (s->kind == NULLS_BLOCK) {
        for (int j = 0; j < d; j++) squares += in[j] * in[j] * nulls_chi_squared(&w->random, hidden);
        scale *= sqrt((double)R * d / squares);
    }
    cblas_dscal(rows * d, scale, w->matrix[KEY], 1);
    return true;
}

static bool draw_key(nulls_worker *w, const draw_of *of) {
    const nulls_shape *s = of->shape;
    const double *in = of->gains->gain[NULLS_GAIN_IN];
    int d = s->width;
    double *rope = w->matrix[KEY] + (int64_t)s->content * d;
    if (s->latent) {
        if (!draw_latent_keys(w, of)) return false;
    } else {
        draw_leaf(w, w->matrix[KEY], s->content, d, 1);
        scale_columns(w->matrix[KEY], s->content, d, in);
    }
    draw_leaf(w, rope, s->rope, d, exp(of->key_ratio));
    scale_columns(rope, s->rope, d, in);
    return true;
}

/* ---------------------------------------------------------------- draws */

static bool draw(nulls_worker *w, const void *user, int *rows, int *cols) {
    const draw_of *of = user;
    int n = of->shape->content + of->shape->rope, d = of->shape->width;
    const double *A = w->matrix[QUERY], *B = w->matrix[KEY];
    double *X = w->matrix[PRODUCT];
    if (!draw_query(w, of) || !draw_key(w, of)) return false;
    *rows = *cols = n;
    if (of->shape->channel) {
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, n, n, d, 1, A, d, B, d, 0, X, n);
        return true;
    }
    *cols = d;
    if (n > d) {
        *rows = d;
        cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, d, d, n, 1, A, d, B, d, 0, X, d);
        return true;
    }
    if (!triangle_of(w->gram, A, n, d)) return false;
    memcpy(X, B, (size_t)n * (size_t)d * sizeof(double));
    cblas_dtrmm(CblasRowMajor, CblasLeft, CblasLower, CblasTrans, CblasNonUnit, n, d, 1, w->gram, n, X, d);
    return true;
}

status nulls_gains_ensemble(const nulls_shape *s, const nulls_gains *g, const double *log_ratio, int draws,
                            uint64_t seed, int threads, nulls_watch *watch, nulls_moments *out) {
    draw_of of = {.shape = s, .gains = g};
    if (s->kind == NULLS_MIXED) of.half_ratio = log_ratio[0];
    if (s->kind == NULLS_BLOCK && s->channel) of.query_ratio = log_ratio[0];
    if (s->kind == NULLS_BLOCK) of.key_ratio = log_ratio[s->channel ? 1 : 0];
    size_t n = (size_t)(s->content + s->rope), d = (size_t)s->width, latent = (size_t)(s->latent + s->q_latent);
    size_t side = n > d ? n : d, inner = side > latent ? side : latent;
    nulls_sampler sampler = {.draw = draw, .user = &of, .rank = s->rank, .side = (int)(n > latent ? n : latent)};
    sampler.room[PRODUCT] = side * side;
    sampler.room[QUERY] = sampler.room[KEY] = n * d;
    sampler.room[LEFT] = n * inner;
    sampler.room[DOWN] = inner * side;
    return nulls_sample(&sampler, draws, seed, threads, watch, out);
}
