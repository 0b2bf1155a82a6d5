/* Singular values and the null-free statistics of one spectrum (docs/design.md section 6.3). Outputs are overwritten;
 * all memory is the worker's, allocated once.
 *
 * p <= n: the core's sides; r: the number of singular values; lambda: lambda_i / lambda_max, ascending, unless said
 * otherwise. */
#include "diag/spectrum.h"

#include "diag/gram.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double TW1_Q95 = 0.9793160535; /* 95% point of Tracy-Widom 1 */
static const double EPS32 = 0x1p-23;        /* weights are fp32: what is below is noise */
enum { ALPHA_MIN_TAIL = 10 };
/* Square matrices from this side on take half of the time by their Gram matrix. What that loses, values under 1e-7 of
 * the largest, is under the noise that rounding the weights to fp32 makes. Heads stay below. */
enum { GRAM_LEAST_SIDE = 512 };

const spectrum_column spectrum_columns[SPECTRUM_COLUMN_COUNT] = {
#define REAL            false
#define INTEGER         true
#define X(column, type) {#column, type},
    SPECTRUM_COLUMNS(X)
#undef X
#undef REAL
#undef INTEGER
};

const char *spectrum_status_name(spectrum_status s) {
    static const char *const names[] = {
#define X(name) #name,
        SPECTRUM_STATUSES(X)
#undef X
    };
    return names[s];
}

void spectrum_clear(spectrum *out, spectrum_status why) {
    out->status = why;
    out->null_id = 0;
    out->null_ratio = out->null_query_ratio = out->null_log[0] = out->null_log[1] = NAN;
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++) out->column[i] = NAN;
}

/* ---------------------------------------------------------------- singular values */

status spectrum_work_open(spectrum_work *w, int max_rows, int max_cols) {
    int small = max_rows < max_cols ? max_rows : max_cols, large = max_rows < max_cols ? max_cols : max_rows;
    /* At least what dgesdd and dgesvd ask for any smaller matrix, and room for blocks of 64 in the bidiagonalization.
     */
    int lwork = 3 * small + (large > 7 * small ? large : 7 * small) + 64 * (small + large);
    *w = (spectrum_work){.max_rows = max_rows, .max_cols = max_cols, .lwork = lwork};
    w->work = malloc((size_t)lwork * sizeof(double));
    w->copy = malloc((size_t)max_rows * (size_t)max_cols * sizeof(double));
    w->values = malloc((size_t)small * sizeof(double));
    w->lambda = malloc((size_t)small * sizeof(double));
    w->logs = malloc((size_t)small * sizeof(double));
    w->roots = malloc((size_t)small * sizeof(double));
    w->cdfs = calloc(SPECTRUM_CDFS, sizeof(*w->cdfs));
    w->iwork = malloc((size_t)small * 8 * sizeof(int));
    w->triangle = malloc((size_t)small * (size_t)small * sizeof(double));
    if (w->roots && w->cdfs && w->work && w->copy && w->triangle && w->values && w->lambda && w->logs && w->iwork)
        return STATUS_OK;
    spectrum_work_close(w);
    return status_fail(STATUS_INTERNAL, "out of memory for the singular values of %d x %d matrices", max_rows,
                       max_cols);
}

void spectrum_work_close(spectrum_work *w) {
    free(w->work);
    free(w->copy);
    free(w->values);
    free(w->lambda);
    free(w->logs);
    free(w->iwork);
    free(w->triangle);
    free(w->roots);
    free(w->cdfs);
    *w = (spectrum_work){0};
}

static bool all_finite(const double *x, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* LAPACK's two solvers, one after the other; the row-major rows x cols matrix is its transpose to them: the same
 * values. */
static bool by_reflections(spectrum_work *w, double *matrix, int rows, int cols) {
    int info;
    memcpy(w->copy, matrix, (size_t)rows * (size_t)cols * sizeof(double));
    info = LAPACKE_dgesdd_work(LAPACK_COL_MAJOR, 'N', cols, rows, matrix, cols, w->values, NULL, 1, NULL, 1, w->work,
                               w->lwork, w->iwork);
    if (info != 0)
        info = LAPACKE_dgesvd_work(LAPACK_COL_MAJOR, 'N', 'N', cols, rows, w->copy, cols, w->values, NULL, 1, NULL, 1,
                                   w->work, w->lwork);
    return info == 0;
}

spectrum_status spectrum_solve(spectrum_work *w, double *matrix, int rows, int cols) {
    int small = rows < cols ? rows : cols, large = rows < cols ? cols : rows;
    if (!all_finite(matrix, (size_t)rows * (size_t)cols)) return SPECTRUM_STATUS_nonfinite;
    bool square = rows == cols && rows >= GRAM_LEAST_SIDE, solved = false;
    if (square) solved = gram_values(matrix, rows, w->values, w->copy, w->work);
    if (large >= 2 * small && gram_triangle(matrix, large, small, rows > cols, w->triangle, w->work)) {
        solved = by_reflections(w, w->triangle, small, small);
    } else if (!solved) {
        solved = by_reflections(w, matrix, rows, cols);
    }
    if (!solved) return SPECTRUM_STATUS_failed;
    return all_finite(w->values, (size_t)small) ? SPECTRUM_STATUS_ok : SPECTRUM_STATUS_nonfinite;
}

/* ---------------------------------------------------------------- Marchenko-Pastur */

static double mp_lower(double gamma) {
    return (1 - sqrt(gamma)) * (1 - sqrt(gamma));
}
static double mp_upper(double gamma) {
    return (1 + sqrt(gamma)) * (1 + sqrt(gamma));
}

/* With R = sqrt((b - x)/(x - a)), a and b the edges:
 * 2 pi g F = pi g + sqrt((b-x)(x-a)) - (1+g) atan((R^2-1)/(2R)) + (1-g) atan((a R^2 - b)/(2 (1-g) R)). */
double spectrum_mp_cdf(double x, double gamma) {
    double a = mp_lower(gamma), b = mp_upper(gamma);
    if (x <= a) return 0;
    if (x >= b) return 1;
    double R = sqrt((b - x) / (x - a));
    double F = M_PI * gamma + sqrt((b - x) * (x - a)) - (1 + gamma) * atan((R * R - 1) / (2 * R));
    if (gamma < 1) F += (1 - gamma) * atan((a * R * R - b) / (2 * (1 - gamma) * R));
    return fmin(fmax(F / (2 * M_PI * gamma), 0), 1);
}

double spectrum_mp_median(double gamma) {
    double low = mp_lower(gamma), high = mp_upper(gamma);
    for (;;) {
        double middle = 0.5 * (low + high);
        if (middle <= low || middle >= high) return middle;
        if (spectrum_mp_cdf(middle, gamma) < 0.5)
            low = middle;
        else
            high = middle;
    }
}

/* How far the empirical CDF of n values is from F at the i-th of them (0 <= i < n). */
static double ks_at(const double *lambda, int i, int n, double gamma, double sigma2) {
    double F = spectrum_mp_cdf(lambda[i] / sigma2, gamma);
    return fmax((i + 1.0) / n - F, F - (double)i / n);
}

static double ks_distance(const double *lambda, int n, double gamma, double sigma2) {
    double most = -INFINITY;
    for (int i = 0; i < n; i++) most = fmax(most, ks_at(lambda, i, n, gamma, sigma2));
    return most;
}

/* A cell's farthest point from its line is near its middle, but where an edge of the law lies in it: hence twice. */
static void cdf_fill(spectrum_cdf *c, double gamma) {
    double edge = mp_upper(gamma), step = sqrt(edge) / SPECTRUM_CDF_STEPS, most = 0;
    for (int i = 0; i <= SPECTRUM_CDF_STEPS; i++) c->at[i] = spectrum_mp_cdf(i * step * i * step, gamma);
    c->at[SPECTRUM_CDF_STEPS + 1] = c->at[SPECTRUM_CDF_STEPS] = 1;
    for (int i = 0; i < SPECTRUM_CDF_STEPS; i++) {
        double t = (i + 0.5) * step;
        most = fmax(most, fabs(spectrum_mp_cdf(t * t, gamma) - 0.5 * (c->at[i] + c->at[i + 1])));
    }
    c->gamma = gamma;
    c->margin = 2 * most + 1e-12;
}

static const spectrum_cdf *cdf_of(spectrum_work *w, double gamma) {
    for (int i = 0; i < SPECTRUM_CDFS; i++)
        if (w->cdfs[i].gamma == gamma) return &w->cdfs[i];
    spectrum_cdf *c = &w->cdfs[w->next_cdf++ % SPECTRUM_CDFS];
    cdf_fill(c, gamma);
    return c;
}

typedef struct sigma2_search {
    const double *lambda, *roots; /* roots: their square roots */
    int r;
    double gamma, best_distance, best_sigma2;
    const spectrum_cdf *cdf;
    int worst; /* where the last candidate failed: neighbours fail at the same place */
} sigma2_search;

/* ks_at by the table, for lambda_i up to the candidate's edge. */
static double ks_near(const sigma2_search *q, int i, int kept, double steps_per_root) {
    double x = q->roots[i] * steps_per_root, rest = x - (int)x;
    const double *at = q->cdf->at + (int)x;
    double F = at[0] + rest * (at[1] - at[0]);
    double above = (i + 1.0) / kept - F, below = F - (double)i / kept;
    return above > below ? above : below;
}

/* Keeps sigma2 if its KS distance over the values up to its own edge is less than the best so far. The table only saves
 * work: what it cannot decide for certain is computed. */
static void sigma2_try(sigma2_search *q, double sigma2) {
    double edge = mp_upper(q->gamma) * sigma2, steps_per_root = SPECTRUM_CDF_STEPS / sqrt(edge);
    double margin = q->cdf->margin, surely_lost = q->best_distance + margin;
    int kept = q->r;
    while (kept > 0 && q->lambda[kept - 1] > edge) kept--;
    if (kept < (q->r + 1) / 2) return;
    if (q->worst < kept && ks_near(q, q->worst, kept, steps_per_root) >= surely_lost) return;
    double most = -INFINITY;
    for (int i = 0; i < kept; i++) {
        double near = ks_near(q, i, kept, steps_per_root);
        if (near + margin <= most) continue;
        double d = near >= surely_lost ? near : ks_at(q->lambda, i, kept, q->gamma, sigma2);
        if (d > most) {
            most = d;
            q->worst = i;
            if (most >= q->best_distance) return;
        }
    }
    q->best_distance = most;
    q->best_sigma2 = sigma2;
}

/* Least KS distance over the bulk: 401 points, log-spaced on [0.05, 2] mean, then 201 on one coarse cell to either
 * side; the smallest sigma2 wins ties. NaN when no candidate keeps half of the values. */
static double sigma2_fit(spectrum_work *w, int r, double gamma, double mean) {
    const double step = log(40.0) / 400;
    sigma2_search coarse = {.lambda = w->lambda,
                            .roots = w->roots,
                            .r = r,
                            .gamma = gamma,
                            .best_distance = INFINITY,
                            .best_sigma2 = NAN,
                            .cdf = cdf_of(w, gamma)};
    for (int i = 0; i < r; i++) w->roots[i] = sqrt(w->lambda[i]);
    for (int i = 0; i <= 400; i++) sigma2_try(&coarse, mean * exp(log(0.05) + i * step));
    if (isnan(coarse.best_sigma2)) return NAN;
    sigma2_search fine = coarse;
    fine.best_distance = INFINITY;
    for (int i = 0; i <= 200; i++) sigma2_try(&fine, coarse.best_sigma2 * exp(-step + i * step / 100));
    return fine.best_sigma2;
}

/* ---------------------------------------------------------------- ranks and tails */

double spectrum_exp_entropy(const double *x, int n) {
    double sum = 0, entropy = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    for (int i = 0; i < n; i++) {
        double p = x[i] / sum;
        if (p > 0) entropy -= p * log(p);
    }
    return exp(entropy);
}

void spectrum_power_law(spectrum_work *w, int r, double floor, double scale, spectrum *out) {
    const double *x = w->lambda;
    int first = 0;
    while (first < r && x[first] <= floor) first++;
    for (int i = first; i < r; i++) w->logs[i] = log(x[i]);
    double best = INFINITY;
    for (int i = first; r - i >= ALPHA_MIN_TAIL; i++) {
        int m = r - i;
        double total = 0;
        if (i > first && x[i] == x[i - 1]) continue;
        for (int j = i; j < r; j++) total += w->logs[j] - w->logs[i];
        if (total <= 1e-9 * m) continue;
        double alpha = 1 + m / total, D = 0;
        for (int j = 0; j < m && D < best; j++)
            D = fmax(D, fabs(1 - exp((1 - alpha) * (w->logs[i + j] - w->logs[i])) - (double)j / m));
        if (D >= best) continue;
        best = D;
        out->alpha = alpha;
        out->alpha_xmin = scale * x[i];
        out->alpha_ks = D;
        out->alpha_n = m;
    }
}

/* sigma2, relative to lambda_max like everything here: the columns of the MP law with that variance. */
static void mp_columns(const double *lambda, int r, int p, int n, double sigma2, double scale, spectrum *out) {
    double gamma = (double)p / n, u = sqrt(n - 1.0), v = sqrt(p);
    double low = sigma2 * mp_lower(gamma), high = sigma2 * mp_upper(gamma);
    /* Johnstone 2001: centre and width of the largest eigenvalue of p x n standard Gaussians. */
    double mu = (u + v) * (u + v), tau = (u + v) * cbrt(1 / u + 1 / v);
    double edge95 = sigma2 * (mu + TW1_Q95 * tau) / n;
    double sum = 0, energy = 0;
    int above = 0, above95 = 0, below = 0;
    for (int i = 0; i < r; i++) {
        sum += lambda[i];
        above95 += lambda[i] > edge95;
        below += lambda[i] < low;
        if (lambda[i] > high) {
            above++;
            energy += lambda[i];
        }
    }
    out->sigma2 = scale * sigma2;
    out->mp_lambda_minus = scale * low;
    out->mp_lambda_plus = scale * high;
    out->mp_edge95 = scale * edge95;
    out->mp_gap = 1 / high;
    out->outliers_above = above;
    out->outliers_above95 = above95;
    if (p < n) out->outliers_below = below;
    out->outlier_energy = energy / sum;
    out->mp_ks = ks_distance(lambda, r, gamma, sigma2);
}

/* Products of extreme weights may leave the range of double: what is not finite does not exist. */
static void drop_nonfinite(spectrum *out) {
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++)
        if (!isfinite(out->column[i])) out->column[i] = NAN;
}

void spectrum_measure(spectrum_work *w, const double *s, int r, int rows, int cols, config_sigma2 method,
                      spectrum *out) {
    int p = rows < cols ? rows : cols, n = rows < cols ? cols : rows;
    double *lambda = w->lambda, gamma = (double)p / n, tolerance = n * EPS32;
    spectrum_clear(out, SPECTRUM_STATUS_ok);
    if (!all_finite(s, (size_t)r)) {
        out->status = SPECTRUM_STATUS_nonfinite;
        return;
    }
    if (r == 0 || s[0] == 0) {
        out->status = SPECTRUM_STATUS_zero;
        out->lambda_max = out->lambda_sum = out->numerical_rank = 0;
        return;
    }
    double scale = s[0] * s[0], sum = 0, squares = 0;
    int rank = 0;
    for (int i = r - 1; i >= 0; i--) { /* the smallest first: the sums lose nothing */
        double t = s[i] / s[0];
        rank += t > tolerance;
        lambda[r - 1 - i] = t * t;
        sum += t * t;
        squares += t * t * t * t;
    }
    out->lambda_max = scale;
    out->lambda_sum = scale * sum;
    out->numerical_rank = rank;
    out->stable_rank = sum;
    out->participation_ratio = sum * sum / squares;
    out->effective_rank = spectrum_exp_entropy(lambda, r);
    out->effective_rank_rv = spectrum_exp_entropy(s, r);
    if (r < 2) {
        out->status = SPECTRUM_STATUS_too_small;
        drop_nonfinite(out);
        return;
    }
    if (rank >= 2) {
        out->spectral_gap = 1 / lambda[r - 2];
        out->effective_rank_rest = spectrum_exp_entropy(lambda, r - 1);
    }
    double mean = sum / r, middle = 0.5 * (lambda[(r - 1) / 2] + lambda[r / 2]);
    double sigma2[] = {
        [SIGMA2_TRACE] = mean,
        [SIGMA2_MEDIAN] = middle > tolerance * tolerance ? middle / spectrum_mp_median(gamma) : NAN,
        [SIGMA2_FIT] = rank > r / 2 ? sigma2_fit(w, r, gamma, mean) : NAN,
    };
    out->sigma2_median = scale * sigma2[SIGMA2_MEDIAN];
    out->sigma2_fit = scale * sigma2[SIGMA2_FIT];
    if (!isnan(sigma2[method])) mp_columns(lambda, r, p, n, sigma2[method], scale, out);
    spectrum_power_law(w, r, tolerance * tolerance, scale, out);
    out->status = rank < r ? SPECTRUM_STATUS_rank_deficient : SPECTRUM_STATUS_ok;
    drop_nonfinite(out);
}
