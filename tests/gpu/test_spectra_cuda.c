/* The GPU's singular values (Jacobi for small sides, the symmetric embedding for large ones) against LAPACK in float64:
 * random, graded, rank-deficient and degenerate matrices of many sides, and all spectra of whole snapshots. */
#include "unit/spectra_device.h"

#include <lapacke.h>

static svd_device device;

static int open_device(void **state) {
    if (ops_cuda_devices() == 0) {
        print_message("skipped: no NVIDIA GPU on this machine\n");
        return 0;
    }
    check_status(svd_cuda(&device), STATUS_OK);
    return 0;
}

static int close_device(void **state) {
    if (device.close) device.close(&device);
    return 0;
}

static void need_device(void) {
    if (!device.close) skip();
}

/* ---------------------------------------------------------------- matrices by kind */

typedef enum kind { RANDOM, GRADED, HALF_RANK, ONE_RANK, NEAR_ONES, ZERO, IDENTITY, ONE_ENTRY, KINDS } kind;

static void normal(double *x, size_t n, uint64_t stream) {
    float *f = malloc(n * sizeof *f);
    assert_non_null(f);
    rng_normal(f, 17, stream, 0, (int64_t)n, 1);
    for (size_t i = 0; i < n; i++) x[i] = f[i];
    free(f);
}

/* x = a diag(s) b with a, b random orthogonal: s_i = 10^(-4 i/(n-1)). */
static void graded(double *x, int n, uint64_t stream) {
    size_t size = (size_t)n * (size_t)n;
    double *a = malloc(size * sizeof *a), *tau = malloc((size_t)n * sizeof *tau);
    assert_true(a && tau);
    normal(a, size, stream);
    memset(x, 0, size * sizeof *x);
    for (int i = 0; i < n; i++) x[i * n + i] = pow(10, n > 1 ? -4.0 * i / (n - 1) : 0);
    for (int side = 0; side < 2; side++) {
        assert_int_equal(LAPACKE_dgeqrf(LAPACK_COL_MAJOR, n, n, a, n, tau), 0);
        assert_int_equal(LAPACKE_dormqr(LAPACK_COL_MAJOR, side ? 'R' : 'L', 'N', n, n, n, a, n, tau, x, n), 0);
        normal(a, size, stream + 1);
    }
    free(a);
    free(tau);
}

static void low_rank(double *x, int n, int rank, uint64_t stream) {
    double *f = malloc((size_t)(2 * n * rank) * sizeof *f);
    assert_non_null(f);
    normal(f, (size_t)(2 * n * rank), stream);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            x[i * n + j] = 0;
            for (int k = 0; k < rank; k++) x[i * n + j] += f[i * rank + k] * f[(n + j) * rank + k];
        }
    free(f);
}

static void make(double *x, int n, kind which, uint64_t stream) {
    size_t size = (size_t)n * (size_t)n;
    memset(x, 0, size * sizeof *x);
    switch (which) {
    case RANDOM:
        normal(x, size, stream);
        break;
    case GRADED:
        graded(x, n, stream);
        break;
    case HALF_RANK:
        low_rank(x, n, (n + 1) / 2, stream);
        break;
    case ONE_RANK:
        low_rank(x, n, 1, stream);
        break;
    case NEAR_ONES:
        normal(x, size, stream);
        for (size_t i = 0; i < size; i++) x[i] = 1 + 1e-3 * x[i];
        break;
    case IDENTITY:
        for (int i = 0; i < n; i++) x[i * n + i] = 1;
        break;
    case ONE_ENTRY:
        x[size - 1] = -1;
        break;
    case ZERO:
    case KINDS:
        break;
    }
}

/* ---------------------------------------------------------------- the device against LAPACK */

typedef struct worst {
    double of_largest, of_itself; /* of_itself: down to 1e-4 of the largest */
} worst;

/* Absolute: side 2^-23 of the largest. Relative, down to 1e-4 of the largest: 1e-2. */
static void check_matrix(const float *got, double *x, int n, kind which, worst *w) {
    double *want = malloc((size_t)n * sizeof *want);
    assert_non_null(want);
    assert_int_equal(LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'N', n, n, x, n, want, NULL, 1, NULL, 1), 0);
    for (int i = 0; i < n; i++) {
        double off = fabs(got[i] - want[i]), allowed = fp32_error(n) * want[0];
        bool counts = want[i] > 0.99e-4 * want[0];
        if (want[0] > 0) w->of_largest = fmax(w->of_largest, off / want[0]);
        if (counts) w->of_itself = fmax(w->of_itself, off / want[i]);
        if (!(off <= allowed) || (counts && off > 1e-2 * want[i]) || (i > 0 && got[i] > got[i - 1]))
            fail_msg("side %d, kind %d, value %d: %.9g, want %.9g; off by %.2g of the largest, %.2g of itself", n,
                     (int)which, i, got[i], want[i], off / want[0], off / want[i]);
    }
    free(want);
}

static void check_side(int n, int repeats) {
    ops *o = &device.ops;
    int count = KINDS * repeats;
    size_t size = (size_t)n * (size_t)n, bytes = (size_t)count * size * sizeof(float);
    double *x = malloc((size_t)count * size * sizeof *x);
    float *host = malloc(bytes), *values = malloc((size_t)(count * n) * sizeof *values);
    assert_true(x && host && values);
    for (int m = 0; m < count; m++) {
        double *one = x + (size_t)m * size;
        make(one, n, (kind)(m % KINDS), (uint64_t)(1000 * n + 2 * m));
        for (size_t i = 0; i < size; i++) one[i] = host[(size_t)m * size + i] = (float)one[i];
    }
    check_status(device.reserve(&device, n, count), STATUS_OK);
    float *matrices = o->alloc(o, bytes), *found = o->alloc(o, (size_t)(count * n) * sizeof(float));
    assert_true(matrices && found);
    o->upload(o, matrices, host, bytes);
    device.solve(&device, found, matrices, n, count);
    o->download(o, values, found, (size_t)(count * n) * sizeof(float));
    check_status(ops_status(o), STATUS_OK);
    worst w = {0};
    for (int m = 0; m < count; m++) check_matrix(values + m * n, x + (size_t)m * size, n, (kind)(m % KINDS), &w);
    print_message("side %d: off by at most %.2g of the largest (allowed %.2g), %.2g of a value over 1e-4 of it\n", n,
                  w.of_largest, fp32_error(n), w.of_itself);

    float *again = malloc((size_t)(count * n) * sizeof *again); /* the same bits */
    assert_non_null(again);
    o->upload(o, matrices, host, bytes);
    device.solve(&device, found, matrices, n, count);
    o->download(o, again, found, (size_t)(count * n) * sizeof(float));
    assert_memory_equal(values, again, (size_t)(count * n) * sizeof(float));
    o->release(o, matrices);
    o->release(o, found);
    free(x);
    free(host);
    free(values);
    free(again);
}

/* With BULKHEAD_TEST_SMALL set, for a run under compute-sanitizer, fewer. */
static void small_sides(void **state) {
    const int sides[] = {1, 2, 3, 8, 31, 32, 33, 48, 64, 65, 96, 100, 127, 128, 160, 161, 192, 193, 223, 224};
    need_device();
    int most = getenv("BULKHEAD_TEST_SMALL") ? 65 : 224;
    for (size_t i = 0; i < sizeof sides / sizeof *sides && sides[i] <= most; i++) check_side(sides[i], 2);
}

static void large_sides(void **state) {
    const int sides[] = {225, 256, 300, 512};
    need_device();
    size_t count = getenv("BULKHEAD_TEST_SMALL") ? 1 : sizeof sides / sizeof *sides;
    for (size_t i = 0; i < count; i++) check_side(sides[i], 1);
}

/* ---------------------------------------------------------------- whole snapshots */

static void the_oracles_models(void **state) {
    need_device();
    assert_true(compare_models(&device) >= 5);
    check_status(ops_status(&device.ops), STATUS_OK);
}

static void every_wiring(void **state) {
    need_device();
    compare_wirings(&device, 3, 8, 40);
    compare_wirings(&device, 4, 64, 256); /* layers of 256: the embedding */
    check_status(ops_status(&device.ops), STATUS_OK);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(small_sides, open_device, close_device),
    cmocka_unit_test_setup_teardown(large_sides, open_device, close_device),
    cmocka_unit_test_setup_teardown(the_oracles_models, open_device, close_device),
    cmocka_unit_test_setup_teardown(every_wiring, open_device, close_device),
};

TEST_MAIN(tests)
