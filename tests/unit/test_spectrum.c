/* The statistics of one spectrum against the independent oracle and against what must hold for any matrix. */
#include "check.h"
#include "core/rng.h"
#include "spectra_cases.h"

/* C = A B, plainly. */
static double *product(const double *A, const double *B, int rows, int inner, int cols) {
    double *C = calloc((size_t)rows * (size_t)cols, sizeof(double));
    for (int i = 0; i < rows; i++)
        for (int k = 0; k < inner; k++)
            for (int j = 0; j < cols; j++) C[i * cols + j] += A[i * inner + k] * B[k * cols + j];
    return C;
}

static void run_matrix_case(spectra_case *c) {
    const json_t *want = json_array_get(json_object_get(c->json, "results"), 0);
    const spectra_array *first = &c->array[0];
    int rows = first->rows, cols = first->cols, r = (int)spectra_int(want, "r", 0);
    double *X = malloc((size_t)rows * (size_t)cols * sizeof(double));
    memcpy(X, first->data, (size_t)rows * (size_t)cols * sizeof(double));
    for (int i = 1; i < c->count; i++) {
        double *next = product(X, c->array[i].data, rows, cols, c->array[i].cols);
        free(X);
        X = next;
        cols = c->array[i].cols;
    }
    spectrum_work w;
    spectrum got;
    check_status(spectrum_work_open(&w, rows, cols), STATUS_OK);
    spectrum_status why = spectrum_solve(&w, X, rows, cols);
    if (why == SPECTRUM_STATUS_ok)
        spectrum_measure(&w, w.values, r, (int)spectra_int(want, "rows", 0), (int)spectra_int(want, "cols", 0),
                         SIGMA2_TRACE, &got);
    else
        spectrum_clear(&got, why);
    spectra_compare(c, want, &got, w.values);
    spectrum_work_close(&w);
    free(X);
}

static void oracle_matrices(void **state) {
    int done = 0;
    spectra_case c;
    for (size_t i = 0; spectra_case_open(&c, i); i++) {
        if (strcmp(c.kind, "matrix") == 0 || strcmp(c.kind, "chain") == 0) {
            run_matrix_case(&c);
            done++;
        }
        spectra_case_close(&c);
    }
    assert_int_equal(done, 19);
}

/* The distribution function against the quadrature of its density, and its median. */
static void marchenko_pastur_law(void **state) {
    const double gammas[] = {1, 0.999, 0.5, 1.0 / 12};
    for (int k = 0; k < 4; k++) {
        double g = gammas[k], a = (1 - sqrt(g)) * (1 - sqrt(g)), b = (1 + sqrt(g)) * (1 + sqrt(g));
        double x = a + 0.3 * (b - a), end = acos((1 + g - x) / (2 * sqrt(g))), sum = 0;
        const int n = 200000; /* midpoint rule after x = 1 + g - 2 sqrt(g) cos v: smooth, error ~ n^-2 */
        for (int i = 0; i < n; i++) {
            double v = (i + 0.5) * end / n,
                   f = g == 1 ? (1 + cos(v)) / M_PI : 2 * sin(v) * sin(v) / (M_PI * (1 + g - 2 * sqrt(g) * cos(v)));
            sum += f * end / n;
        }
        check_near(spectrum_mp_cdf(x, g), sum, 1e-8);
        check_near(spectrum_mp_cdf(spectrum_mp_median(g), g), 0.5, 1e-12);
    }
    check_near(spectrum_mp_median(1), 0.652779, 1e-5);
    assert_true(spectrum_mp_cdf(-1, 1) == 0 && spectrum_mp_cdf(4, 1) == 1);
}

static void noise(double *x, int n, uint64_t seed) {
    float *f = malloc((size_t)n * sizeof(float));
    rng_normal(f, seed, 0, 0, n, 1);
    for (int i = 0; i < n; i++) x[i] = f[i];
    free(f);
}

static void spectrum_of(const double *matrix, int rows, int cols, spectrum *out, double *values) {
    spectrum_work w;
    double *copy = malloc((size_t)rows * (size_t)cols * sizeof(double));
    memcpy(copy, matrix, (size_t)rows * (size_t)cols * sizeof(double));
    check_status(spectrum_work_open(&w, rows, cols), STATUS_OK);
    assert_int_equal(spectrum_solve(&w, copy, rows, cols), SPECTRUM_STATUS_ok);
    int r = rows < cols ? rows : cols;
    spectrum_measure(&w, w.values, r, rows, cols, SIGMA2_TRACE, out);
    if (values) memcpy(values, w.values, (size_t)r * sizeof(double));
    spectrum_work_close(&w);
    free(copy);
}

static bool carries_scale(int column) {
    return column <= SPECTRUM_mp_edge95 || column == SPECTRUM_alpha_xmin;
}

/* Weights times 1e-30 or 1e+30: every ratio the same, every lambda times the square. */
static void ratios_do_not_know_the_scale(void **state) {
    enum { ROWS = 24, COLS = 60 };
    static double x[ROWS * COLS], y[ROWS * COLS];
    const double scales[] = {1e-30, 1e30};
    spectrum a, b;
    noise(x, ROWS * COLS, 11);
    spectrum_of(x, ROWS, COLS, &a, NULL);
    for (int k = 0; k < 2; k++) {
        for (int i = 0; i < ROWS * COLS; i++) y[i] = x[i] * scales[k];
        spectrum_of(y, ROWS, COLS, &b, NULL);
        for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++) {
            if (isnan(a.column[i]) && isnan(b.column[i])) continue;
            double want = carries_scale(i) ? a.column[i] * scales[k] * scales[k] : a.column[i];
            check_near(b.column[i], want, 1e-10 * fabs(want));
        }
    }
}

/* Householder reflections from both sides and a transposition change no number but rows and cols. */
static void rotations_change_nothing(void **state) {
    enum { ROWS = 20, COLS = 33 };
    static double x[ROWS * COLS], y[ROWS * COLS], u[ROWS], v[COLS];
    spectrum a, b;
    double uu = 0, vv = 0;
    noise(x, ROWS * COLS, 12);
    noise(u, ROWS, 13);
    noise(v, COLS, 14);
    for (int i = 0; i < ROWS; i++) uu += u[i] * u[i];
    for (int j = 0; j < COLS; j++) vv += v[j] * v[j];
    spectrum_of(x, ROWS, COLS, &a, NULL);
    memcpy(y, x, sizeof(x));
    for (int j = 0; j < COLS; j++) {
        double dot = 0;
        for (int i = 0; i < ROWS; i++) dot += u[i] * y[i * COLS + j];
        for (int i = 0; i < ROWS; i++) y[i * COLS + j] -= 2 * dot / uu * u[i];
    }
    for (int i = 0; i < ROWS; i++) {
        double dot = 0;
        for (int j = 0; j < COLS; j++) dot += v[j] * y[i * COLS + j];
        for (int j = 0; j < COLS; j++) y[i * COLS + j] -= 2 * dot / vv * v[j];
    }
    static double transposed[ROWS * COLS];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLS; j++) transposed[j * ROWS + i] = y[i * COLS + j];
    spectrum_of(transposed, COLS, ROWS, &b, NULL);
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++)
        if (!(isnan(a.column[i]) && isnan(b.column[i])))
            check_near(b.column[i], a.column[i], 1e-9 * fabs(a.column[i]) + 1e-12);
}

/* The variance of noise from a third of the definitions each, and the choice between them. */
static void three_estimates_of_the_variance(void **state) {
    enum { ROWS = 64, COLS = 256 };
    static double x[ROWS * COLS], s[ROWS];
    spectrum_work w;
    spectrum q, chosen;
    noise(x, ROWS * COLS, 15);
    spectrum_of(x, ROWS, COLS, &q, s);
    check_near(q.sigma2 / COLS, 1, 0.06);
    check_near(q.sigma2_median / COLS, 1, 0.06);
    check_near(q.sigma2_fit / COLS, 1, 0.06);
    assert_int_equal(q.outliers_above, 0);
    check_status(spectrum_work_open(&w, ROWS, COLS), STATUS_OK);
    spectrum_measure(&w, s, ROWS, ROWS, COLS, SIGMA2_MEDIAN, &chosen);
    check_near(chosen.sigma2, q.sigma2_median, 0);
    check_near(chosen.mp_lambda_plus, q.sigma2_median * 2.25, 1e-9 * chosen.mp_lambda_plus);
    spectrum_measure(&w, s, ROWS, ROWS, COLS, SIGMA2_FIT, &chosen);
    check_near(chosen.sigma2, q.sigma2_fit, 0);
    spectrum_work_close(&w);
}

/* The pruned search finds what a plain scan of the same grid finds. */
static void fit_is_the_least_of_its_grid(void **state) {
    enum { N = 40 };
    spectrum_work w;
    check_status(spectrum_work_open(&w, N, 3 * N), STATUS_OK);
    for (uint64_t seed = 0; seed < 16; seed++) {
        int cols = seed % 2 ? 3 * N : N;
        double gamma = (double)N / cols, edge = (1 + sqrt(gamma)) * (1 + sqrt(gamma));
        double s[N], lambda[N], mean = 0, best = INFINITY, found = NAN;
        noise(s, N, 100 + seed);
        for (int i = 0; i < N; i++) s[i] = exp(0.8 * s[i]);
        for (int i = 1; i < N; i++) /* descending */
            for (int k = i; k > 0 && s[k] > s[k - 1]; k--) {
                double t = s[k];
                s[k] = s[k - 1];
                s[k - 1] = t;
            }
        for (int i = 0; i < N; i++) lambda[i] = s[N - 1 - i] * s[N - 1 - i];
        for (int i = 0; i < N; i++) mean += lambda[i] / N;
        double centre = mean;
        for (int pass = 0; pass < 2; pass++) {
            double h = log(40.0) / 400, start = pass ? -h : log(0.05), step = pass ? h / 100 : h, at = NAN;
            best = INFINITY;
            for (int i = 0; i <= (pass ? 200 : 400); i++) {
                double sigma2 = centre * exp(start + i * step), worst = 0;
                int kept = 0;
                while (kept < N && lambda[kept] <= edge * sigma2) kept++;
                if (kept < N / 2) continue;
                for (int k = 0; k < kept; k++) {
                    double F = spectrum_mp_cdf(lambda[k] / sigma2, gamma);
                    worst = fmax(worst, fmax((k + 1.0) / kept - F, F - (double)k / kept));
                }
                if (worst < best) {
                    best = worst;
                    at = sigma2;
                }
            }
            centre = found = at;
        }
        spectrum q;
        spectrum_measure(&w, s, N, N, cols, SIGMA2_TRACE, &q);
        if (isnan(found))
            assert_true(isnan(q.sigma2_fit));
        else
            check_near(q.sigma2_fit, found, 1e-5 * found);
    }
    spectrum_work_close(&w);
}

/* Exact quantiles of a density with exponent 2.5. */
static void power_law_finds_its_exponent(void **state) {
    enum { N = 1000 };
    static double s[N];
    spectrum_work w;
    spectrum q;
    for (int i = 0; i < N; i++) s[i] = sqrt(pow((i + 0.5) / N, -1 / 1.5));
    check_status(spectrum_work_open(&w, N, N), STATUS_OK);
    spectrum_measure(&w, s, N, N, N, SIGMA2_TRACE, &q);
    check_near(q.alpha, 2.5, 0.02);
    spectrum_work_close(&w);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(oracle_matrices),
    cmocka_unit_test(marchenko_pastur_law),
    cmocka_unit_test(ratios_do_not_know_the_scale),
    cmocka_unit_test(rotations_change_nothing),
    cmocka_unit_test(three_estimates_of_the_variance),
    cmocka_unit_test(fit_is_the_least_of_its_grid),
    cmocka_unit_test(power_law_finds_its_exponent),
};

TEST_MAIN(tests)
