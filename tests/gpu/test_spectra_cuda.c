/* The GPU's singular values against LAPACK in float64: random, graded, rank-deficient, degenerate and nonfinite
 * matrices of many sides, how blocks share them, and all spectra of whole snapshots. */
#include "core/ops/cuda/context.h"
#include "diag/cuda/kernels.h"
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

typedef enum kind { RANDOM, GRADED, STEEP, HALF_RANK, ONE_RANK, NEAR_ONES, ZERO, IDENTITY, ONE_ENTRY, KINDS } kind;

static void normal(double *x, size_t n, uint64_t stream) {
    float *f = malloc(n * sizeof *f);
    assert_non_null(f);
    rng_normal(f, 17, stream, 0, (int64_t)n, 1);
    for (size_t i = 0; i < n; i++) x[i] = f[i];
    free(f);
}

/* x = a diag(s) b with a, b random orthogonal: s_i = 10^(-digits i/(n-1)). */
static void graded(double *x, int n, double digits, uint64_t stream) {
    size_t size = (size_t)n * (size_t)n;
    double *a = malloc(size * sizeof *a), *tau = malloc((size_t)n * sizeof *tau);
    assert_true(a && tau);
    normal(a, size, stream);
    memset(x, 0, size * sizeof *x);
    for (int i = 0; i < n; i++) x[i * n + i] = pow(10, n > 1 ? -digits * i / (n - 1) : 0);
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
        graded(x, n, 4, stream);
        break;
    case STEEP:
        graded(x, n, 6, stream);
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
    double of_largest, of_itself; /* of_itself: down to 1e-6 of the largest */
} worst;

/* An eigenvalue of the Gram matrix is off by some side 2^-53 of the largest; its root is rounded to fp32. */
static double allowed_error(int n, double value, double largest) {
    double error = (n + 8) * 0x1p-53 * largest * largest;
    return 0x1p-23 * value + (value > 0 ? fmin(sqrt(error), error / value) : sqrt(error));
}

static void check_matrix(const float *got, double *x, int n, kind which, worst *w) {
    double *want = malloc((size_t)n * sizeof *want);
    assert_non_null(want);
    assert_int_equal(LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'N', n, n, x, n, want, NULL, 1, NULL, 1), 0);
    for (int i = 0; i < n; i++) {
        double off = fabs(got[i] - want[i]);
        if (want[0] > 0) w->of_largest = fmax(w->of_largest, off / want[0]);
        if (want[i] > 0.99e-6 * want[0]) w->of_itself = fmax(w->of_itself, off / want[i]);
        if (!(off <= allowed_error(n, want[i], want[0])) || (i > 0 && got[i] > got[i - 1]))
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
    print_message("side %d: off by at most %.2g of the largest, %.2g of a value over 1e-6 of it\n", n, w.of_largest,
                  w.of_itself);

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

/* With BULKHEAD_TEST_SMALL set, for a run under compute-sanitizer, small ones only. */
static void many_sides(void **state) {
    const int sides[] = {1,   2,   3,   5,   8,   31,  32,  33,  48,  64,  65,  97,  100,
                         127, 128, 161, 192, 193, 224, 225, 226, 256, 257, 300, 512, 1024};
    need_device();
    int most = getenv("BULKHEAD_TEST_SMALL") ? 65 : 1024;
    for (size_t i = 0; i < sizeof sides / sizeof *sides && sides[i] <= most; i++) check_side(sides[i], 1);
}

/* More than the device has blocks at once: groups take several, one after the other. */
static void many_matrices(void **state) {
    need_device();
    check_side(64, getenv("BULKHEAD_TEST_SMALL") ? 2 : 300);
}

/* The bits do not depend on how many blocks share a matrix, nor on where they keep their vectors. */
static void same_bits_for_all_plans(void **state) {
    enum { SIDE = 101, COUNT = 5 };
    const int blocks[] = {1, 2, 12, 20}; /* the last two: 2 and 4 a matrix */
    need_device();
    ops *o = &device.ops;
    cuda_context *c = cuda_of(o);
    tridiagonal_plan usual, most;
    assert_int_equal(tridiagonal_plan_for(&usual, SIDE, COUNT, c->device), cudaSuccess);
    most = usual;
    most.blocks = blocks[sizeof blocks / sizeof *blocks - 1];
    most.shared_bytes = 0;
    size_t stride = (size_t)usual.stride, gram_bytes = COUNT * stride * stride * sizeof(double);
    double *grams = calloc(1, gram_bytes), *there = o->alloc(o, gram_bytes);
    double *vectors = o->alloc(o, tridiagonal_vector_bytes(&most));
    unsigned *arrivals = o->alloc(o, COUNT * sizeof *arrivals);
    float *found = o->alloc(o, COUNT * SIDE * sizeof *found), want[COUNT * SIDE], got[COUNT * SIDE];
    assert_true(grams && there && vectors && arrivals && found);
    for (size_t i = 0; i < COUNT * SIDE * SIDE; i++) { /* symmetric, positive definite */
        size_t matrix = i / (SIDE * SIDE), row = i / SIDE % SIDE, column = i % SIDE;
        double apart = fabs((double)row - (double)column);
        grams[(matrix * stride + row) * stride + column] = exp(-apart / (double)(1 + matrix)) + (row == column);
    }
    for (size_t i = 0; i < 2 * sizeof blocks / sizeof *blocks; i++) {
        tridiagonal_plan p = usual;
        tridiagonal_share(&p, COUNT, blocks[i / 2]);
        if (i % 2) p.shared_bytes = 0;
        o->upload(o, there, grams, gram_bytes);
        cuda_check(o, launch_tridiagonal_values(found, there, vectors, arrivals, &p, c->stream), "values");
        o->download(o, i ? got : want, found, sizeof got);
        check_status(ops_status(o), STATUS_OK);
        if (i == 0)
            assert_true(want[0] > want[SIDE - 1] && want[SIDE - 1] > 0);
        else
            assert_memory_equal(got, want, sizeof want);
    }
    o->release(o, there);
    o->release(o, vectors);
    o->release(o, arrivals);
    o->release(o, found);
    free(grams);
}

/* What is not finite stays in its own matrix. */
static void nonfinite(void **state) {
    enum { SIDE = 256, COUNT = 4, SIZE = SIDE * SIDE };
    need_device();
    ops *o = &device.ops;
    float *host = malloc(COUNT * SIZE * sizeof *host), values[COUNT * SIDE], again[COUNT * SIDE];
    assert_non_null(host);
    rng_normal(host, 23, 0, 0, COUNT * SIZE, 1);
    check_status(device.reserve(&device, SIDE, COUNT), STATUS_OK);
    float *matrices = o->alloc(o, COUNT * SIZE * sizeof *host), *found = o->alloc(o, sizeof values);
    assert_true(matrices && found);
    for (int bad = 0; bad < 2; bad++) {
        if (bad) {
            host[SIZE + 7] = NAN;
            host[3 * SIZE - 1] = INFINITY;
        }
        o->upload(o, matrices, host, COUNT * SIZE * sizeof *host);
        device.solve(&device, found, matrices, SIDE, COUNT);
        o->download(o, bad ? again : values, found, sizeof values);
    }
    check_status(ops_status(o), STATUS_OK);
    for (int i = 0; i < SIDE; i++) {
        assert_true(isnan(again[SIDE + i]) && isnan(again[2 * SIDE + i]));
        assert_true(isfinite(values[i]) && isfinite(values[3 * SIDE + i]));
    }
    assert_memory_equal(values, again, SIDE * sizeof *values);
    assert_memory_equal(values + 3 * SIDE, again + 3 * SIDE, SIDE * sizeof *values);
    o->release(o, matrices);
    o->release(o, found);
    free(host);
}

/* ---------------------------------------------------------------- how blocks share the matrices; needs no device */

static void blocks_vectors_fit_their_memory(void **state) {
    const size_t memory[] = {48 << 10, 99 << 10, 163 << 10, 227 << 10};
    for (size_t m = 0; m < sizeof memory / sizeof *memory; m++)
        for (int side = 1, pairs = TRIDIAGONAL_MOST_PAIRS; side <= 20000; side += side / 7 + 1) {
            tridiagonal_plan p = {0};
            tridiagonal_shape(&p, side, memory[m]);
            size_t vector = (size_t)p.stride * sizeof(double), wanted = (size_t)(1 + 2 * p.pairs) * vector;
            assert_true(p.stride >= side && p.stride < side + 4 && p.stride % 2 == 0);
            assert_true(p.threads >= 32 && p.threads <= 512 && p.threads % 32 == 0);
            assert_true(p.pairs >= 1 && p.pairs <= TRIDIAGONAL_MOST_PAIRS);
            if (3 * vector <= memory[m]) { /* one pair and v */
                assert_int_equal(p.shared_bytes, wanted);
                assert_true(p.shared_bytes <= memory[m] && p.pairs <= pairs); /* fewer for larger sides */
                pairs = p.pairs;
            } else {
                assert_int_equal(p.shared_bytes, 0);
            }
        }
}

static void all_matrices_are_taken(void **state) {
    for (int side = 1; side <= 4096; side += side / 3 + 1)
        for (int blocks = 1; blocks <= 300; blocks += 1 + blocks / 4)
            for (int count = 1; count <= 2000; count += 1 + count / 4) {
                tridiagonal_plan p = {.side = side, .stride = tridiagonal_stride(side)};
                tridiagonal_share(&p, count, blocks);
                int turns = (count + blocks - 1) / blocks;
                assert_true(p.groups >= 1 && p.groups <= count && p.members >= 1);
                assert_true(p.groups * p.members <= blocks); /* or they wait for ever */
                assert_true((count + p.groups - 1) / p.groups == turns);
            }
    tridiagonal_plan p = {.side = 1024, .stride = 1024};
    tridiagonal_share(&p, 24, 132);
    assert_int_equal(p.members, 5);
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
    compare_wirings(&device, 4, 64, 256); /* layers of 256 */
    check_status(ops_status(&device.ops), STATUS_OK);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(many_sides, open_device, close_device),
    cmocka_unit_test_setup_teardown(many_matrices, open_device, close_device),
    cmocka_unit_test_setup_teardown(same_bits_for_all_plans, open_device, close_device),
    cmocka_unit_test_setup_teardown(nonfinite, open_device, close_device),
    cmocka_unit_test(blocks_vectors_fit_their_memory),
    cmocka_unit_test(all_matrices_are_taken),
    cmocka_unit_test_setup_teardown(the_oracles_models, open_device, close_device),
    cmocka_unit_test_setup_teardown(every_wiring, open_device, close_device),
};

TEST_MAIN(tests)
