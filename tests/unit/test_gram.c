/* Triangular factors and singular values by Gram matrices, against LAPACK's reflections and matrices of known values.
 */
#include "inputs.h"

#include "diag/gram.h"

#include <cblas.h>
#include <lapacke.h>

static const double EPS = 0x1p-52;

static double *noise(int64_t n) {
    float *x = malloc((size_t)n * sizeof *x);
    double *wide = malloc((size_t)n * sizeof *wide);
    assert_true(x && wide);
    inputs_normal(x, n, 1);
    for (int64_t i = 0; i < n; i++) wide[i] = x[i];
    free(x);
    return wide;
}

/* Orthonormal columns, column-major [rows, cols]. */
static double *orthonormal(int rows, int cols) {
    double *Q = noise((int64_t)rows * cols), *tau = malloc((size_t)cols * sizeof *tau);
    assert_int_equal(LAPACKE_dgeqrf(LAPACK_COL_MAJOR, rows, cols, Q, rows, tau), 0);
    assert_int_equal(LAPACKE_dorgqr(LAPACK_COL_MAJOR, rows, cols, cols, Q, rows, tau), 0);
    free(tau);
    return Q;
}

/* [rows, cols] column-major, rows >= cols, with these singular values. */
static double *with_values(int rows, int cols, const double *s) {
    double *U = orthonormal(rows, cols), *V = orthonormal(cols, cols),
           *X = malloc((size_t)rows * (size_t)cols * sizeof *X);
    for (int j = 0; j < cols; j++) cblas_dscal(rows, s[j], U + (int64_t)j * rows, 1);
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, rows, cols, cols, 1, U, rows, V, cols, 0, X, rows);
    free(U);
    free(V);
    return X;
}

/* n values from first down to last, evenly in their logarithm. */
static void slope(double *s, int n, double first, double last) {
    for (int i = 0; i < n; i++) s[i] = n > 1 ? first * pow(last / first, i / (n - 1.0)) : first;
}

static double *transposed(const double *F, int rows, int cols) {
    double *T = malloc((size_t)rows * (size_t)cols * sizeof *T);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) T[j + (int64_t)i * cols] = F[i + (int64_t)j * rows];
    return T;
}

/* R is that of LAPACK's QR factors up to signs: its condition enters once for the factor, squared for the Gram matrix.
 */
static void check_triangle(int rows, int cols, double condition) {
    double s[64] = {0}, tau[64], work[4 * 64], *R = malloc(64 * 64 * sizeof *R);
    slope(s, cols, 3, 3 / condition);
    double *F = with_values(rows, cols, s), *T = transposed(F, rows, cols);
    for (int turned = 0; turned < 2; turned++) {
        memset(R, 0x55, 64 * 64 * sizeof *R);
        assert_true(gram_triangle(turned ? T : F, rows, cols, turned, R, work));
        double *Q = transposed(T, cols, rows);
        assert_int_equal(LAPACKE_dgeqrf(LAPACK_COL_MAJOR, rows, cols, Q, rows, tau), 0);
        for (int j = 0; j < cols; j++)
            for (int i = 0; i < cols; i++) {
                double sign = Q[i + (int64_t)i * rows] < 0 ? -1 : 1,
                       want = i <= j ? sign * Q[i + (int64_t)j * rows] : 0;
                check_near(R[i + j * cols], want, 30 * EPS * condition * condition * 3);
            }
        free(Q);
    }
    free(F);
    free(T);
    free(R);
}

static void triangles_are_those_of_reflections(void **state) {
    static const int shapes[][2] = {{1, 1}, {5, 1}, {3, 3}, {64, 24}, {200, 63}, {64, 64}};
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        check_triangle(shapes[i][0], shapes[i][1], 1);
        check_triangle(shapes[i][0], shapes[i][1], 50);
    }
}

static void what_squaring_would_spoil_is_refused(void **state) {
    double s[20] = {0}, work[4 * 20], *R = malloc(20 * 20 * sizeof *R), values[20], wide[64 * 20];
    static const double ends[][2] = {{1, 1e-4}, {1, 1e-9}, {1, 0}, {1e-150, 1e-150}, {1e-170, 1e-170}, {1e150, 1e150}};
    for (int i = 0; i < 6; i++) {
        slope(s, 20, ends[i][0], ends[i][1] > 0 ? ends[i][1] : 1);
        if (ends[i][1] == 0) s[19] = 0;
        double *F = with_values(100, 20, s), *X = with_values(20, 20, s);
        assert_false(gram_triangle(F, 100, 20, false, R, work));
        if (i > 2) assert_false(gram_values(X, 20, values, R, wide));
        free(F);
        free(X);
    }
    free(R);
}

static void check_values(int n, double first, double last) {
    double *want = calloc((size_t)n, sizeof *want), *got = malloc((size_t)n * sizeof *got);
    double *gram = malloc((size_t)n * (size_t)n * sizeof *gram), *work = malloc(64 * (size_t)n * sizeof *work);
    slope(want, n, first, last);
    double *X = with_values(n, n, want), *kept = malloc((size_t)n * (size_t)n * sizeof *kept);
    memcpy(kept, X, (size_t)n * (size_t)n * sizeof *kept);
    assert_true(gram_values(X, n, got, gram, work));
    for (int i = 0; i < n; i++) {
        double loss = 20 * EPS * sqrt(n) * first * first;
        check_near(got[i], want[i], fmin(loss / want[i], sqrt(loss)));
    }
    assert_memory_equal(X, kept, (size_t)n * (size_t)n * sizeof *kept);
    double *all[] = {want, got, gram, work, X, kept};
    for (int i = 0; i < 6; i++) free(all[i]);
}

static void values_lose_what_the_header_says(void **state) {
    static const int sides[] = {1, 2, 31, 130};
    for (int i = 0; i < 4; i++) {
        check_values(sides[i], 2, 1);
        check_values(sides[i], 1, 1e-5);
        check_values(sides[i], 1e30, 1e18);
        check_values(sides[i], 1e-30, 1e-42);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup(triangles_are_those_of_reflections, inputs_start),
    cmocka_unit_test_setup(what_squaring_would_spoil_is_refused, inputs_start),
    cmocka_unit_test_setup(values_lose_what_the_header_says, inputs_start),
};
TEST_MAIN(tests)
