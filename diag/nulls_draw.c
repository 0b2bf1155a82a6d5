/* Draws of the product null and their moments. Outputs are overwritten; all memory is a worker's, allocated once.
 *
 * Matrices are row-major. L [m, q] is the lower trapezoid of a Gaussian m x n matrix, q = min(m, n). Eigenvalues come
 * from the smaller Gram matrix, in float64: here, unlike for measured weights, nothing depends on the smallest. */
#include "diag/nulls_draw.h"

#include "core/rng.h"
#include "diag/spectrum.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { BUFFERED_NORMALS = 512 };

/* The random numbers of one draw. */
typedef struct source {
    uint64_t seed, stream, next_normal, next_uniform;
    int at;
    float normals[BUFFERED_NORMALS];
} source;

typedef struct worker {
    source random;
    double *left, *right, *middle, *product, *gram; /* [side, side] each */
    spectrum_work spectrum;
} worker;

static int least(int a, int b) {
    return a < b ? a : b;
}
static int greatest(int a, int b) {
    return a > b ? a : b;
}

/* ---------------------------------------------------------------- random numbers */

static void source_start(source *s, uint64_t seed, uint64_t draw) {
    s->seed = seed;
    s->stream = 2 * draw;
    s->next_normal = s->next_uniform = 0;
    s->at = BUFFERED_NORMALS;
}

static double normal(source *s) {
    if (s->at == BUFFERED_NORMALS) {
        rng_normal(s->normals, s->seed, s->stream, s->next_normal, BUFFERED_NORMALS, 1);
        s->next_normal += BUFFERED_NORMALS;
        s->at = 0;
    }
    return s->normals[s->at++];
}

/* In (0, 1). */
static double uniform(source *s) {
    return ((double)(rng_u64(s->seed, s->stream + 1, s->next_uniform++) >> 11) + 0.5) * 0x1p-53;
}

/* Chi squared with n degrees of freedom: n squares, or for more than a few the gamma generator of Marsaglia and Tsang
 * (ACM Trans. Math. Softw. 26, 2000), which is exact. */
static double chi_squared(source *s, double n) {
    if (n <= 0) return 0;
    if (n <= 4) {
        double sum = 0;
        for (int i = 0; i < (int)n; i++) {
            double x = normal(s);
            sum += x * x;
        }
        return sum;
    }
    double d = n / 2 - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = normal(s), v = 1 + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (log(uniform(s)) < 0.5 * x * x + d - d * v + d * log(v)) return 2 * d * v;
    }
}

/* L [m, min(m, n)] of an m x n standard Gaussian matrix. */
static void draw_trapezoid(source *s, double *L, int m, int n) {
    int q = least(m, n);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < q; j++)
            L[(int64_t)i * q + j] = j < i ? normal(s) : j == i ? sqrt(chi_squared(s, n - i)) : 0;
}

static void draw_full(source *s, double *G, int64_t count) {
    for (int64_t i = 0; i < count; i++) G[i] = normal(s);
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

static double squares(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* ---------------------------------------------------------------- chains */

/* L with L L^T = a^2 L1 L1^T + b^2 L2 L2^T, a^2 + b^2 = 1: the triangular factor of two Gaussian blocks [r, half] side
 * by side. false: not positive definite. */
static bool draw_mixed_triangle(worker *w, double *L, int r, int half, double log_ratio) {
    double b2 = 1 / (1 + exp(2 * log_ratio)), a2 = 1 - b2;
    for (int side = 0; side < 2; side++) {
        draw_trapezoid(&w->random, w->gram, r, half);
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, r, r, side ? b2 : a2, w->gram, r, side ? 1 : 0, L, r);
    }
    for (int i = 0; i < r; i++)
        for (int j = i + 1; j < r; j++) L[(int64_t)i * r + j] = 0;
    return LAPACKE_dpotrf_work(LAPACK_ROW_MAJOR, 'L', r, L, r) == 0;
}

/* w->product [r, r]: one triangle for each dimension but one that is r. */
static bool draw_chain(worker *w, const nulls_shape *s, double log_ratio) {
    int r = s->rank;
    bool left_out = false, first = true, halved = false;
    for (int i = 0; i < s->dim_count; i++) {
        int n = s->dim[i];
        if (n == r && !left_out) {
            left_out = true;
            continue;
        }
        double *L = first ? w->product : w->right;
        if (s->kind == NULLS_MIXED && n == 2 * s->half && !halved) {
            halved = true;
            if (!draw_mixed_triangle(w, L, r, s->half, log_ratio)) return false;
        } else {
            draw_trapezoid(&w->random, L, r, n);
        }
        cblas_dscal(r * r, 1 / sqrt(n), L, 1);
        if (!first) multiply_triangle(w->product, L, r);
        first = false;
    }
    return true;
}

/* ---------------------------------------------------------------- content and rope */

/* 1 / rms of a leaf weight of `entries` numbers: some are in the draw, the others are hidden behind the rotations. */
static double leaf_scale(worker *w, double drawn_squares, double drawn, double entries) {
    return sqrt(entries / (drawn_squares + chi_squared(&w->random, entries - drawn)));
}

static void scale_columns(double *x, int rows, int cols, int first, int count, double scale) {
    for (int i = 0; i < rows; i++)
        for (int j = first; j < first + count; j++) x[(int64_t)i * cols + j] *= scale;
}

static double column_squares(const double *x, int rows, int cols, int first, int count) {
    double sum = 0;
    for (int i = 0; i < rows; i++) sum += squares(x + (int64_t)i * cols + first, count);
    return sum;
}

/* The queries' factor into w->left [m, *q], of which the first `content` rows are content: L, or with a query latent
 * L L'. Row blocks are scaled to leaves of mean square 1, the rope block times rope_scale. */
static void draw_queries(worker *w, const nulls_shape *s, int content, double rope_scale, int *q) {
    int m = content + s->rope, n = s->q_latent ? s->q_latent : s->width, q1 = least(m, n);
    double *L = s->q_latent ? w->product : w->left;
    draw_trapezoid(&w->random, L, m, n);
    double *rope = L + (int64_t)content * q1;
    double c = leaf_scale(w, squares(L, (int64_t)content * q1), (double)content * n, (double)s->content * n);
    double r =
        leaf_scale(w, squares(rope, (int64_t)s->rope * q1), (double)s->rope * n, (double)s->copies * s->rope * n);
    cblas_dscal(content * q1, c, L, 1);
    cblas_dscal(s->rope * q1, r * rope_scale, rope, 1);
    *q = q1;
    if (!s->q_latent) return;
    *q = least(q1, s->width);
    draw_trapezoid(&w->random, w->right, q1, s->width);
    multiply(w->left, L, w->right, m, *q, q1);
}

/* w->middle [k, k]: the triangle of W_UK, of mean square 1 / R. */
static void draw_up(worker *w, const nulls_shape *s, int k) {
    double entries = (double)s->content * s->latent;
    draw_trapezoid(&w->random, w->middle, k, greatest(s->content, s->latent));
    double scale = leaf_scale(w, squares(w->middle, (int64_t)k * k), entries, entries);
    cblas_dscal(k * k, scale / sqrt(s->latent), w->middle, 1);
}

/* w->product [*rows, *cols] = A^T [middle on W_DKV; rope W_KR]. */
static void draw_block_score(worker *w, const nulls_shape *s, double log_ratio, int *rows, int *cols) {
    int k = least(s->content, s->latent), m = k + s->rope, q = least(m, s->width);
    draw_queries(w, s, k, exp(log_ratio), rows);
    draw_up(w, s, k);
    draw_trapezoid(&w->random, w->right, m, s->width);
    double *rope = w->right + (int64_t)k * q;
    double c = leaf_scale(w, squares(w->right, (int64_t)k * q), (double)k * s->width, (double)s->latent * s->width);
    double all = (double)s->rope * s->width, r = leaf_scale(w, squares(rope, (int64_t)s->rope * q), all, all);
    cblas_dscal(k * q, c, w->right, 1);
    cblas_dscal(s->rope * q, r, rope, 1);
    cblas_dtrmm(CblasRowMajor, CblasLeft, CblasLower, CblasNoTrans, CblasNonUnit, k, q, 1, w->middle, k, w->right, q);
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, *rows, q, m, 1, w->left, *rows, w->right, q, 0, w->product, q);
    *cols = q;
}

/* w->product [*rows, *cols] = A B^T. The keys of the q directions that the queries see are a Gaussian [q, k + D_r]. */
static void draw_block_channel(worker *w, const nulls_shape *s, const double *log_ratio, int *rows, int *cols) {
    int k = least(s->content, s->latent), m = k + s->rope, q;
    double width = s->width;
    *rows = s->content + s->rope;
    *cols = m;
    draw_queries(w, s, s->content, exp(log_ratio[0]), &q);
    draw_up(w, s, k);
    double *G = w->right;
    draw_full(&w->random, G, (int64_t)q * m);
    double c = leaf_scale(w, column_squares(G, q, m, 0, k), (double)q * k, s->latent * width);
    double r = leaf_scale(w, column_squares(G, q, m, k, s->rope), (double)q * s->rope, s->rope * width);
    scale_columns(G, q, m, 0, k, c);
    scale_columns(G, q, m, k, s->rope, r * exp(log_ratio[1]));
    cblas_dtrmm(CblasRowMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, q, k, 1, w->middle, k, G, m);
    multiply(w->product, w->left, G, *rows, m, q);
}

/* ---------------------------------------------------------------- statistics of a draw */

/* The r largest eigenvalues of X X^T, X = w->product [rows, cols], ascending and relative to the largest. */
static bool solve(worker *w, int rows, int cols, int r) {
    int n = least(rows, cols);
    double *lambda = w->spectrum.lambda, *all = w->spectrum.values;
    cblas_dsyrk(CblasRowMajor, CblasLower, rows <= cols ? CblasNoTrans : CblasTrans, n, greatest(rows, cols), 1,
                w->product, cols, 0, w->gram, n);
    /* Row-major lower is column-major upper. */
    int info = LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'N', 'U', n, w->gram, n, all, w->spectrum.work, w->spectrum.lwork,
                                   w->spectrum.iwork, 1);
    if (info != 0 || !(all[n - 1] > 0)) return false;
    for (int i = 0; i < r; i++) lambda[i] = fmax(all[n - r + i], 0) / all[n - 1];
    return true;
}

static void measure(worker *w, int r, double *out) {
    const double *lambda = w->spectrum.lambda;
    double sum = 0, squared = 0;
    for (int i = 0; i < r; i++) {
        sum += lambda[i];
        squared += lambda[i] * lambda[i];
    }
    spectrum tail = {.alpha = NAN};
    spectrum_power_law(&w->spectrum, r, 0, 1, &tail);
    out[NULLS_ln_lambda_max] = log(r / sum);
    out[NULLS_lambda_max] = r / sum;
    out[NULLS_stable_rank] = sum;
    out[NULLS_effective_rank] = spectrum_exp_entropy(lambda, r);
    out[NULLS_effective_rank_rest] = r > 1 ? spectrum_exp_entropy(lambda, r - 1) : NAN;
    out[NULLS_participation_ratio] = sum * sum / squared;
    out[NULLS_alpha] = tail.alpha;
}

static bool draw_one(worker *w, const nulls_shape *s, const double *log_ratio, uint64_t seed, int draw, double *out) {
    int rows = s->rank, cols = s->rank;
    source_start(&w->random, seed, (uint64_t)draw);
    if (s->kind != NULLS_BLOCK) {
        if (!draw_chain(w, s, s->kind == NULLS_MIXED ? log_ratio[0] : 0)) return false;
    } else if (s->channel) {
        draw_block_channel(w, s, log_ratio, &rows, &cols);
    } else {
        draw_block_score(w, s, log_ratio[0], &rows, &cols);
    }
    if (!solve(w, rows, cols, s->rank)) return false;
    measure(w, s->rank, out);
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

static void worker_close(worker *w) {
    free(w->left);
    free(w->right);
    free(w->middle);
    free(w->product);
    free(w->gram);
    spectrum_work_close(&w->spectrum);
}

static status worker_open(worker *w, int side) {
    size_t bytes = (size_t)side * (size_t)side * sizeof(double);
    double **all[] = {&w->left, &w->right, &w->middle, &w->product, &w->gram};
    bool enough = true;
    for (int i = 0; i < 5; i++) enough &= (*all[i] = malloc(bytes)) != NULL;
    if (!enough) return status_fail(STATUS_INTERNAL, "out of memory for the draws of a null of side %d", side);
    return spectrum_work_open(&w->spectrum, side, side);
}

static void moments_of(const double *rows, int draws, nulls_moments *out) {
    for (int k = 0; k < NULLS_STATISTIC_COUNT; k++) {
        double mean = 0, squared = 0;
        for (int i = 0; i < draws; i++) mean += rows[(int64_t)i * NULLS_STATISTIC_COUNT + k] / draws;
        for (int i = 0; i < draws; i++) {
            double x = rows[(int64_t)i * NULLS_STATISTIC_COUNT + k] - mean;
            squared += x * x;
        }
        out->mean[k] = mean;
        out->sd[k] = sqrt(squared / (draws - 1));
    }
}

status nulls_ensemble(const nulls_shape *s, const double *log_ratio, int draws, uint64_t seed, int threads,
                      const atomic_bool *stop, nulls_moments *out) {
    worker *workers = calloc((size_t)threads, sizeof(*workers));
    double *rows = malloc((size_t)draws * NULLS_STATISTIC_COUNT * sizeof(*rows));
    status result = workers && rows ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for %d draws", draws);
    for (int i = 0; i < threads && result == STATUS_OK; i++) result = worker_open(&workers[i], longest_side(s));
    bool stopped = false, failed = false;
    if (result == STATUS_OK) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) reduction(|| : stopped, failed)
        for (int i = 0; i < draws; i++) {
            worker *w = &workers[omp_get_thread_num()];
            if (stop && atomic_load_explicit(stop, memory_order_relaxed)) stopped = true;
            if (stopped || failed) continue;
            failed = !draw_one(w, s, log_ratio, seed, i, rows + (int64_t)i * NULLS_STATISTIC_COUNT);
        }
    }
    if (stopped) result = status_fail(STATUS_INTERNAL, "the draws of a null were stopped");
    if (failed && !stopped) result = status_fail(STATUS_INTERNAL, "a draw of a null has no eigenvalues");
    if (result == STATUS_OK) moments_of(rows, draws, out);
    for (int i = 0; workers && i < threads; i++) worker_close(&workers[i]);
    free(workers);
    free(rows);
    return result;
}
