/* Draws to moments. Outputs are overwritten; all memory is a worker's, allocated once.
 *
 * Eigenvalues come from the smaller Gram matrix, in float64: here, unlike for measured weights, nothing depends on the
 * smallest. */
#include "diag/nulls_sample.h"

#include "core/rng.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>

static int least(int a, int b) {
    return a < b ? a : b;
}
static int greatest(int a, int b) {
    return a > b ? a : b;
}

/* ---------------------------------------------------------------- random numbers */

static void source_start(nulls_source *s, uint64_t seed, uint64_t draw) {
    s->seed = seed;
    s->stream = 2 * draw;
    s->next_normal = s->next_uniform = 0;
    s->at = NULLS_BUFFERED_NORMALS;
}

double nulls_normal(nulls_source *s) {
    if (s->at == NULLS_BUFFERED_NORMALS) {
        rng_normal(s->normals, s->seed, s->stream, s->next_normal, NULLS_BUFFERED_NORMALS, 1);
        s->next_normal += NULLS_BUFFERED_NORMALS;
        s->at = 0;
    }
    return s->normals[s->at++];
}

/* In (0, 1). */
static double uniform(nulls_source *s) {
    return ((double)(rng_u64(s->seed, s->stream + 1, s->next_uniform++) >> 11) + 0.5) * 0x1p-53;
}

/* Chi squared with n degrees of freedom: n squares, or for more than a few the gamma generator of Marsaglia and Tsang
 * (ACM Trans. Math. Softw. 26, 2000), which is exact. */
double nulls_chi_squared(nulls_source *s, double n) {
    if (n <= 0) return 0;
    if (n <= 4) {
        double sum = 0;
        for (int i = 0; i < (int)n; i++) {
            double x = nulls_normal(s);
            sum += x * x;
        }
        return sum;
    }
    double d = n / 2 - 1.0 / 3, c = 1 / sqrt(9 * d);
    for (;;) {
        double x = nulls_normal(s), v = 1 + c * x;
        if (v <= 0) continue;
        v = v * v * v;
        if (log(uniform(s)) < 0.5 * x * x + d - d * v + d * log(v)) return 2 * d * v;
    }
}

/* L [m, min(m, n)] of an m x n standard Gaussian matrix. */
void nulls_trapezoid(nulls_source *s, double *L, int m, int n) {
    int q = least(m, n);
    for (int i = 0; i < m; i++)
        for (int j = 0; j < q; j++)
            L[(int64_t)i * q + j] = j < i ? nulls_normal(s) : j == i ? sqrt(nulls_chi_squared(s, n - i)) : 0;
}

void nulls_normals(nulls_source *s, double *G, int64_t count) {
    for (int64_t i = 0; i < count; i++) G[i] = nulls_normal(s);
}

/* ---------------------------------------------------------------- small linear algebra */

double nulls_squares(const double *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
    return sum;
}

/* L with L L^T = a^2 L1 L1^T + b^2 L2 L2^T, a^2 + b^2 = 1: the triangular factor of two Gaussian blocks [r, half] side
 * by side. false: not positive definite. */
bool nulls_mixed_triangle(nulls_worker *w, double *L, int r, int half, double log_ratio) {
    double b2 = 1 / (1 + exp(2 * log_ratio)), a2 = 1 - b2;
    for (int side = 0; side < 2; side++) {
        nulls_trapezoid(&w->random, w->gram, r, half);
        cblas_dsyrk(CblasRowMajor, CblasLower, CblasNoTrans, r, r, side ? b2 : a2, w->gram, r, side ? 1 : 0, L, r);
    }
    for (int i = 0; i < r; i++)
        for (int j = i + 1; j < r; j++) L[(int64_t)i * r + j] = 0;
    return LAPACKE_dpotrf_work(LAPACK_ROW_MAJOR, 'L', r, L, r) == 0;
}

/* ---------------------------------------------------------------- statistics of a draw */

/* The r largest eigenvalues of X X^T, X = w->matrix[0] [rows, cols], ascending and relative to the largest. */
static bool solve(nulls_worker *w, int rows, int cols, int r) {
    int n = least(rows, cols);
    double *lambda = w->spectrum.lambda, *all = w->spectrum.values;
    cblas_dsyrk(CblasRowMajor, CblasLower, rows <= cols ? CblasNoTrans : CblasTrans, n, greatest(rows, cols), 1,
                w->matrix[0], cols, 0, w->gram, n);
    /* Row-major lower is column-major upper. */
    int info = LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'N', 'U', n, w->gram, n, all, w->spectrum.work, w->spectrum.lwork,
                                   w->spectrum.iwork, 1);
    if (info != 0 || !(all[n - 1] > 0)) return false;
    for (int i = 0; i < r; i++) lambda[i] = fmax(all[n - r + i], 0) / all[n - 1];
    return true;
}

static void measure(nulls_worker *w, int r, double *out) {
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

/* ---------------------------------------------------------------- the loop */

static void worker_close(nulls_worker *w) {
    for (int i = 0; i < NULLS_MATRICES; i++) free(w->matrix[i]);
    free(w->gram);
    spectrum_work_close(&w->spectrum);
}

static status worker_open(nulls_worker *w, const nulls_sampler *s) {
    bool enough = (w->gram = malloc((size_t)s->side * (size_t)s->side * sizeof(double))) != NULL;
    for (int i = 0; i < NULLS_MATRICES; i++)
        enough &= (w->matrix[i] = malloc((s->room[i] + 1) * sizeof(double))) != NULL;
    if (!enough) return status_fail(STATUS_INTERNAL, "out of memory for the draws of a null of side %d", s->side);
    return spectrum_work_open(&w->spectrum, s->side, s->side);
}

static bool draw_one(nulls_worker *w, const nulls_sampler *s, uint64_t seed, int draw, double *out) {
    int rows, cols;
    source_start(&w->random, seed, (uint64_t)draw);
    if (!s->draw(w, s->user, &rows, &cols) || !solve(w, rows, cols, s->rank)) return false;
    measure(w, s->rank, out);
    return true;
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

status nulls_sample(const nulls_sampler *sampler, int draws, uint64_t seed, int threads, nulls_watch *watch,
                    nulls_moments *out) {
    nulls_worker *workers = calloc((size_t)threads, sizeof(*workers));
    double *rows = malloc((size_t)draws * NULLS_STATISTIC_COUNT * sizeof(*rows));
    status result = workers && rows ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for %d draws", draws);
    for (int i = 0; i < threads && result == STATUS_OK; i++) result = worker_open(&workers[i], sampler);
    bool stopped = false, failed = false;
    int omp_threads = omp_get_max_threads();
    omp_set_num_threads(1); /* BLAS inside a draw: the draws are the parallelism */
    if (result == STATUS_OK) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) reduction(|| : stopped, failed)
        for (int i = 0; i < draws; i++) {
            if (watch && atomic_load_explicit(&watch->stop, memory_order_relaxed)) stopped = true;
            if (stopped || failed) continue;
            nulls_worker *w = &workers[omp_get_thread_num()];
            failed = !draw_one(w, sampler, seed, i, rows + (int64_t)i * NULLS_STATISTIC_COUNT);
            if (watch) atomic_fetch_add_explicit(&watch->drawn, 1, memory_order_relaxed);
        }
    }
    omp_set_num_threads(omp_threads);
    if (stopped) result = status_fail(STATUS_INTERNAL, "the draws of a null were stopped");
    if (failed && !stopped) result = status_fail(STATUS_INTERNAL, "a draw of a null has no eigenvalues");
    if (result == STATUS_OK) moments_of(rows, draws, out);
    for (int i = 0; workers && i < threads; i++) worker_close(&workers[i]);
    free(workers);
    free(rows);
    return result;
}
