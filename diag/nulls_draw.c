/* Draws of each kind of product null, by triangular factors. Matrices are row-major; q = min(rows, degrees of freedom)
 * are the columns of a trapezoid. */
#include "diag/nulls_sample.h"

#include <cblas.h>
#include <math.h>

enum { PRODUCT, LEFT, RIGHT, MIDDLE };

static int least(int a, int b) {
    return a < b ? a : b;
}
static int greatest(int a, int b) {
    return a > b ? a : b;
}

/* ---------------------------------------------------------------- small linear algebra */

/* C [m, n] = A [m, k] B [k, n]. */
static void multiply(double *C, const double *A, const double *B, int m, int n, int k) {
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, m, n, k, 1, A, k, B, n, 0, C, n);
}

/* X [r, r] = X L, L lower triangular. */
static void multiply_triangle(double *X, const double *L, int r) {
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, r, r, 1, L, r, X, r);
}

/* ---------------------------------------------------------------- chains */

/* w->matrix[PRODUCT] [r, r]: one triangle for each dimension but one that is r. */
static bool draw_chain(nulls_worker *w, const nulls_shape *s, double log_ratio) {
    int r = s->rank;
    bool left_out = false, first = true, halved = false;
    for (int i = 0; i < s->dim_count; i++) {
        int n = s->dim[i];
        if (n == r && !left_out) {
            left_out = true;
            continue;
        }
        double *L = first ? w->matrix[PRODUCT] : w->matrix[RIGHT];
        if (s->kind == NULLS_MIXED && n == 2 * s->half && !halved) {
            halved = true;
            if (!nulls_mixed_triangle(w, L, r, s->half, log_ratio)) return false;
        } else {
            nulls_trapezoid(&w->random, L, r, n);
        }
        cblas_dscal(r * r, 1 / sqrt(n), L, 1);
        if (!first) multiply_triangle(w->matrix[PRODUCT], L, r);
        first = false;
    }
    return true;
}

/* ---------------------------------------------------------------- content and rope */

/* 1 / rms of a leaf weight of `entries` numbers: some are in the draw, the others are hidden behind the rotations. */
static double leaf_scale(nulls_worker *w, double drawn_squares, double drawn, double entries) {
    return sqrt(entries / (drawn_squares + nulls_chi_squared(&w->random, entries - drawn)));
}

static void scale_columns(double *x, int rows, int cols, int first, int count, double scale) {
    for (int i = 0; i < rows; i++)
        for (int j = first; j < first + count; j++) x[(int64_t)i * cols + j] *= scale;
}

static double column_squares(const double *x, int rows, int cols, int first, int count) {
    double sum = 0;
    for (int i = 0; i < rows; i++) sum += nulls_squares(x + (int64_t)i * cols + first, count);
    return sum;
}

/* The queries' factor into w->matrix[LEFT] [m, *q], of which the first `content` rows are content: L, or with a query
 * latent L L'. Row blocks are scaled to leaves of mean square 1, the rope block times rope_scale. */
static void draw_queries(nulls_worker *w, const nulls_shape *s, int content, double rope_scale, int *q) {
    int m = content + s->rope, n = s->q_latent ? s->q_latent : s->width, q1 = least(m, n);
    double *L = s->q_latent ? w->matrix[PRODUCT] : w->matrix[LEFT];
    nulls_trapezoid(&w->random, L, m, n);
    double *rope = L + (int64_t)content * q1;
    double c = leaf_scale(w, nulls_squares(L, (int64_t)content * q1), (double)content * n, (double)s->content * n);
    double r =
        leaf_scale(w, nulls_squares(rope, (int64_t)s->rope * q1), (double)s->rope * n, (double)s->copies * s->rope * n);
    cblas_dscal(content * q1, c, L, 1);
    cblas_dscal(s->rope * q1, r * rope_scale, rope, 1);
    *q = q1;
    if (!s->q_latent) return;
    *q = least(q1, s->width);
    nulls_trapezoid(&w->random, w->matrix[RIGHT], q1, s->width);
    multiply(w->matrix[LEFT], L, w->matrix[RIGHT], m, *q, q1);
}

/* w->matrix[MIDDLE] [k, k]: the triangle of W_UK, of mean square 1 / R. */
static void draw_up(nulls_worker *w, const nulls_shape *s, int k) {
    double entries = (double)s->content * s->latent;
    nulls_trapezoid(&w->random, w->matrix[MIDDLE], k, greatest(s->content, s->latent));
    double scale = leaf_scale(w, nulls_squares(w->matrix[MIDDLE], (int64_t)k * k), entries, entries);
    cblas_dscal(k * k, scale / sqrt(s->latent), w->matrix[MIDDLE], 1);
}

/* w->matrix[PRODUCT] [*rows, *cols] = A^T [middle on W_DKV; rope W_KR]. */
static void draw_block_score(nulls_worker *w, const nulls_shape *s, double log_ratio, int *rows, int *cols) {
    int k = least(s->content, s->latent), m = k + s->rope, q = least(m, s->width);
    draw_queries(w, s, k, exp(log_ratio), rows);
    draw_up(w, s, k);
    nulls_trapezoid(&w->random, w->matrix[RIGHT], m, s->width);
    double *rope = w->matrix[RIGHT] + (int64_t)k * q;
    double c = leaf_scale(w, nulls_squares(w->matrix[RIGHT], (int64_t)k * q), (double)k * s->width,
                          (double)s->latent * s->width);
    double all = (double)s->rope * s->width, r = leaf_scale(w, nulls_squares(rope, (int64_t)s->rope * q), all, all);
    cblas_dscal(k * q, c, w->matrix[RIGHT], 1);
    cblas_dscal(s->rope * q, r, rope, 1);
    cblas_dtrmm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, k, q, 1, w->matrix[MIDDLE], k,
                w->matrix[RIGHT], q);
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, *rows, q, m, 1, w->matrix[LEFT], *rows, w->matrix[RIGHT], q, 0,
                w->matrix[PRODUCT], q);
    *cols = q;
}

/* w->matrix[PRODUCT] [*rows, *cols] = A B^T. The keys of the q directions that the queries see are a Gaussian [q, k +
 * D_r]. */
static void draw_block_channel(nulls_worker *w, const nulls_shape *s, const double *log_ratio, int *rows, int *cols) {
    int k = least(s->content, s->latent), m = k + s->rope, q;
    double width = s->width;
    *rows = s->content + s->rope;
    *cols = m;
    draw_queries(w, s, s->content, exp(log_ratio[0]), &q);
    draw_up(w, s, k);
    double *G = w->matrix[RIGHT];
    nulls_normals(&w->random, G, (int64_t)q * m);
    double c = leaf_scale(w, column_squares(G, q, m, 0, k), (double)q * k, s->latent * width);
    double r = leaf_scale(w, column_squares(G, q, m, k, s->rope), (double)q * s->rope, s->rope * width);
    scale_columns(G, q, m, 0, k, c);
    scale_columns(G, q, m, k, s->rope, r * exp(log_ratio[1]));
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, q, k, 1, w->matrix[MIDDLE], k, G, m);
    multiply(w->matrix[PRODUCT], w->matrix[LEFT], G, *rows, m, q);
}

typedef struct draw_of {
    const nulls_shape *shape;
    const double *log_ratio; /* [ratio_count] */
} draw_of;

static bool draw(nulls_worker *w, const void *user, int *rows, int *cols) {
    const draw_of *of = user;
    const nulls_shape *s = of->shape;
    *rows = *cols = s->rank;
    if (s->kind != NULLS_BLOCK) return draw_chain(w, s, s->kind == NULLS_MIXED ? of->log_ratio[0] : 0);
    if (s->channel)
        draw_block_channel(w, s, of->log_ratio, rows, cols);
    else
        draw_block_score(w, s, of->log_ratio[0], rows, cols);
    return true;
}

/* ---------------------------------------------------------------- ensembles */

void nulls_shape_finish(nulls_shape *s) {
    s->ratio_count = s->kind == NULLS_CHAIN ? 0 : s->kind == NULLS_BLOCK && s->channel ? 2 : 1;
    if (s->kind == NULLS_BLOCK) {
        s->rank = least(least(s->content, s->latent) + s->rope, s->width);
        if (s->q_latent) s->rank = least(s->rank, s->q_latent);
        return;
    }
    s->rank = s->dim[0];
    for (int i = 1; i < s->dim_count; i++) s->rank = least(s->rank, s->dim[i]);
}

/* The largest side of any matrix of a draw. */
static int longest_side(const nulls_shape *s) {
    return s->kind != NULLS_BLOCK ? s->rank : (s->channel ? s->content : least(s->content, s->latent)) + s->rope;
}

status nulls_ensemble(const nulls_shape *s, const double *log_ratio, int draws, uint64_t seed, int threads,
                      nulls_watch *watch, nulls_moments *out) {
    const draw_of of = {s, log_ratio};
    nulls_sampler sampler = {.draw = draw, .user = &of, .rank = s->rank, .side = longest_side(s)};
    for (int i = PRODUCT; i <= MIDDLE; i++) sampler.room[i] = (size_t)sampler.side * (size_t)sampler.side;
    return nulls_sample(&sampler, draws, seed, threads, watch, out);
}
