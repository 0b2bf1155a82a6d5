/* Every operation of the CPU table against plain double arithmetic: odd shapes, strided views, 1 and 2 threads.
 * Backward passes are held against central differences of a forward pass written here, not against formulas. */
#include "core/ops/cpu/product.h"
#include "core/ops/cpu/vector.h"
#include "core/ops/ops.h"
#include "inputs.h"

enum { MOST_THREADS = 2 };
static const double EPS = 0x1p-23; /* fp32: spacing of 1 */

static ops table(int threads) {
    ops o;
    check_status(ops_cpu(&o, threads), STATUS_OK);
    return o;
}

/* ---------------------------------------------------------------- exp */

static void test_vector_exp_is_right_to_two_ulp(void **state) {
    for (double x = -87.3; x <= 88.3; x += 0.00173) {
        float in = (float)x;
        double want = exp((double)in);
        check_near(vector_exp(in), want, 2 * ldexp(1, ilogb(want) - 23));
    }
    assert_true(vector_exp(0.0f) == 1.0f);
    assert_true(vector_exp(-INFINITY) == 0.0f);
    assert_true(vector_exp(-200.0f) == 0.0f);
    assert_true(vector_exp(INFINITY) == INFINITY);
    assert_true(vector_exp(100.0f) == INFINITY);
    assert_true(isnan(vector_exp(NAN)));
}

/* ---------------------------------------------------------------- memory */

static void test_memory(void **state) {
    ops o = table(1);
    float in[5] = {1, 2, 3, 4, 5}, out[5];
    float *device = o.alloc(&o, sizeof in);
    assert_non_null(device);
    o.download(&o, out, device, sizeof out);
    for (int i = 0; i < 5; i++) check_near(out[i], 0, 0);
    o.upload(&o, device, in, sizeof in);
    o.zero(&o, device, 2 * sizeof *device);
    o.sync(&o);
    o.download(&o, out, device, sizeof out);
    for (int i = 0; i < 5; i++) check_near(out[i], i < 2 ? 0 : in[i], 0);
    o.release(&o, device);
    check_status(ops_status(&o), STATUS_OK);
}

/* ---------------------------------------------------------------- products */

static void check_product(int64_t m, int64_t n, int64_t k, bool ta, bool tb, float beta) {
    guarded a = ta ? guarded_random(k, m, 1) : guarded_random(m, k, 1);
    guarded b = tb ? guarded_random(n, k, 1) : guarded_random(k, n, 1);
    guarded y = guarded_new(m, n);
    float *before = malloc((size_t)(m * n) * sizeof *before);
    inputs_normal(before, m * n, 1);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        ops o = table(threads);
        if (beta == 0)
            guarded_poison(&y);
        else
            guarded_set(&y, before);
        o.matmul(&o, y.t, a.t, ta, b.t, tb, beta);
        assert_true(o.gemm_seconds > 0);
        for (int64_t i = 0; i < m; i++)
            for (int64_t j = 0; j < n; j++) {
                double sum = beta == 0 ? 0 : (double)beta * before[i * n + j], size = fabs(sum);
                for (int64_t c = 0; c < k; c++) {
                    double term = (double)(ta ? guarded_at(&a, c, i) : guarded_at(&a, i, c)) *
                                  (tb ? guarded_at(&b, j, c) : guarded_at(&b, c, j));
                    sum += term;
                    size += fabs(term);
                }
                check_near(guarded_at(&y, i, j), sum, EPS * (double)(k + 2) * size);
            }
        guarded_check(&y);
    }
    free(before);
    guarded_free(&a);
    guarded_free(&b);
    guarded_free(&y);
}

static void test_matmul(void **state) {
    static const int64_t shapes[][3] = {{1, 1, 1},    {7, 5, 3},    {1, 33, 72},    {65, 1, 17},
                                        {33, 65, 17}, {45, 48, 61}, {57, 300, 257}, {130, 72, 530}};
    static const float betas[] = {0, 1, 0.5f};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int flags = 0; flags < 4; flags++)
            for (int b = 0; b < 3; b++)
                check_product(shapes[s][0], shapes[s][1], shapes[s][2], flags & 1, flags & 2, betas[b]);
}

/* Rows of a so far apart that they are gathered first; more of them than are gathered at a time. Where products are not
 * OpenBLAS's, any number of threads gives the same bits. */
static void test_products_of_rows_that_share_cache_sets(void **state) {
    enum { M = 61, N = 37, K = 270, LD = 512 };
    static float a[K * LD], b[K * N], y[M * N], alone[M * N], room[K * (N + 31)] __attribute__((aligned(64)));
    bool ours = product_prepare(room, (product_operand){b, N, 1}, K, N).panels;
    inputs_normal(a, K * LD, 1);
    inputs_normal(b, K * N, 1);
    for (int transpose = 0; transpose < 2; transpose++) {
        tensor left = {.data = a, .type = DTYPE_F32, .rows = transpose ? K : M, .cols = transpose ? M : K, .ld = LD};
        tensor right = {.data = b, .type = DTYPE_F32, .rows = K, .cols = N, .ld = N};
        tensor out = {.data = y, .type = DTYPE_F32, .rows = M, .cols = N, .ld = N};
        ops o = table(1);
        o.matmul(&o, out, left, transpose, right, false, 0);
        memcpy(alone, y, sizeof y);
        o = table(MOST_THREADS);
        o.matmul(&o, out, left, transpose, right, false, 0);
        if (ours) assert_memory_equal(y, alone, sizeof y);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < N; j++) {
                double sum = 0, size = 0;
                for (int c = 0; c < K; c++) {
                    double term = (double)(transpose ? a[c * LD + i] : a[i * LD + c]) * b[c * N + j];
                    sum += term;
                    size += fabs(term);
                }
                check_near(y[i * N + j], sum, EPS * K * size);
            }
    }
}

/* With one column nothing in its strides says whether an operand is transposed. */
static void test_products_of_single_columns(void **state) {
    enum { K = 40 };
    float a[K], b[K], y[K * K];
    inputs_normal(a, K, 1);
    inputs_normal(b, K, 1);
    ops o = table(MOST_THREADS);
    tensor left = tensor_make(a, DTYPE_F32, K, 1), right = tensor_make(b, DTYPE_F32, K, 1);
    o.matmul(&o, tensor_make(y, DTYPE_F32, 1, 1), left, true, right, false, 0);
    double sum = 0;
    for (int c = 0; c < K; c++) sum += (double)a[c] * b[c];
    check_near(y[0], sum, EPS * K * K);
    for (int rows = 3; rows <= K; rows += K - 3) {
        left.rows = rows;
        o.matmul(&o, tensor_make(y, DTYPE_F32, rows, K), left, false, right, true, 0);
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < K; j++) check_near(y[i * K + j], (double)a[i] * b[j], EPS * fabs(a[i] * b[j]));
    }
}

/* One prepared operand, then products with all of it and with a corner of it. */
static void test_products_by_a_prepared_operand(void **state) {
    enum { M = 19, N = 70, K = 300, LD = 80 };
    static float a[K * M], b[K * N], room[K * (N + 31)] __attribute__((aligned(64))), y[M * LD], before[M * LD];
    inputs_normal(a, K * M, 1);
    inputs_normal(b, K * N, 1);
    inputs_normal(before, M * LD, 1);
    assert_true(product_room(K, N) <= sizeof room / sizeof *room);
    for (int flags = 0; flags < 8; flags++) {
        bool by_column = flags & 1, transpose = flags & 2;
        int n = flags & 4 ? 41 : N, k = flags & 4 ? 263 : K;
        product_operand left = {a, by_column ? 1 : K, by_column ? M : 1};
        product_right right = product_prepare(room, (product_operand){b, transpose ? 1 : N, transpose ? K : 1}, K, N);
        memcpy(y, before, sizeof y);
        product_by(y, LD, M, n, k, left, &right, 0.5f);
        for (int i = 0; i < M; i++)
            for (int j = 0; j < LD; j++) {
                double sum = before[i * LD + j], size = fabs(sum);
                if (j < n) {
                    sum *= 0.5;
                    for (int c = 0; c < k; c++) {
                        double term =
                            (double)a[by_column ? c * M + i : i * K + c] * b[transpose ? j * K + c : c * N + j];
                        sum += term;
                        size += fabs(term);
                    }
                }
                check_near(y[i * LD + j], sum, j < n ? EPS * K * size : 0);
            }
    }
}

static void test_linear_helpers_are_the_three_products_of_a_layer(void **state) {
    enum { N = 5, IN = 3, OUT = 4 };
    guarded x = guarded_random(N, IN, 1), w = guarded_random(OUT, IN, 1), dy = guarded_random(N, OUT, 1);
    guarded y = guarded_new(N, OUT), dx = guarded_new(N, IN), dw = guarded_new(OUT, IN);
    float ones[OUT * IN] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    guarded_poison(&y);
    guarded_poison(&dx);
    guarded_set(&dw, ones);
    ops o = table(1);
    ops_linear(&o, y.t, x.t, w.t, false);
    ops_linear_dx(&o, dx.t, dy.t, w.t, false);
    ops_linear_dw(&o, dw.t, dy.t, x.t, true);
    ops_linear(&o, y.t, x.t, w.t, true); /* now twice the product */
    ops_linear_dx(&o, dx.t, dy.t, w.t, true);
    const double tolerance = 50 * EPS;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < OUT; j++) {
            double sum = 0;
            for (int c = 0; c < IN; c++) sum += 2.0 * guarded_at(&x, i, c) * guarded_at(&w, j, c);
            check_near(guarded_at(&y, i, j), sum, tolerance * (1 + fabs(sum)));
        }
    for (int i = 0; i < N; i++)
        for (int c = 0; c < IN; c++) {
            double sum = 0;
            for (int j = 0; j < OUT; j++) sum += 2.0 * guarded_at(&dy, i, j) * guarded_at(&w, j, c);
            check_near(guarded_at(&dx, i, c), sum, tolerance * (1 + fabs(sum)));
        }
    for (int j = 0; j < OUT; j++)
        for (int c = 0; c < IN; c++) {
            double sum = 1;
            for (int i = 0; i < N; i++) sum += (double)guarded_at(&dy, i, j) * guarded_at(&x, i, c);
            check_near(guarded_at(&dw, j, c), sum, tolerance * (1 + fabs(sum)));
        }
    guarded *all[] = {&x, &w, &dy, &y, &dx, &dw};
    for (int i = 0; i < 6; i++) {
        guarded_check(all[i]);
        guarded_free(all[i]);
    }
}

/* ---------------------------------------------------------------- RMSNorm */

static const double NORM_EPS = 1e-5;

static double norm_rstd(const double *x, int64_t d) {
    double sum = 0;
    for (int64_t j = 0; j < d; j++) sum += x[j] * x[j];
    return 1 / sqrt(sum / (double)d + NORM_EPS);
}

/* sum_j dy_j y_j of one row */
static double norm_objective(const double *x, const float *gain, const float *dy, int64_t d) {
    double r = norm_rstd(x, d), sum = 0;
    for (int64_t j = 0; j < d; j++) sum += x[j] * r * gain[j] * dy[j];
    return sum;
}

static void check_rmsnorm(int64_t n, int64_t d) {
    guarded x = guarded_random(n, d, 1.5), dy = guarded_random(n, d, 1), y = guarded_new(n, d), dx = guarded_new(n, d);
    guarded gain = guarded_random(1, d, 0.5), before = guarded_random(n, d, 1), rstd = guarded_new(1, n);
    guarded dgain = guarded_new(1, d), dgain_before = guarded_random(1, d, 1);
    const float *g = gain.t.data;
    double *row = malloc((size_t)d * sizeof *row);
    for (int run = 0; run < 2 * MOST_THREADS; run++) {
        ops o = table(1 + run / 2);
        bool accumulate = run % 2;
        guarded_poison(&y);
        guarded_poison(&rstd);
        guarded_poison(&dx);
        o.copy(&o, dgain.t, dgain_before.t);
        if (accumulate) o.copy(&o, dx.t, before.t);
        o.rmsnorm_forward(&o, y.t, rstd.t.data, x.t, g, (float)NORM_EPS);
        o.rmsnorm_backward(&o, dx.t, accumulate, dgain.t.data, dy.t, x.t, g, rstd.t.data);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < d; j++) row[j] = guarded_at(&x, i, j);
            double r = norm_rstd(row, d);
            const float *d_row = tensor_f32(dy.t) + i * dy.t.ld;
            check_near(guarded_at(&rstd, 0, i), r, EPS * (double)(d + 4) * r);
            for (int64_t j = 0; j < d; j++) {
                check_near(guarded_at(&y, i, j), row[j] * r * g[j], EPS * (double)(d + 4) * fabs(row[j] * r * g[j]));
                double at = row[j], h = 1e-5;
                row[j] = at + h;
                double up = norm_objective(row, g, d_row, d);
                row[j] = at - h;
                double down = norm_objective(row, g, d_row, d);
                row[j] = at;
                double want = (up - down) / (2 * h) + (accumulate ? guarded_at(&before, i, j) : 0);
                check_near(guarded_at(&dx, i, j), want, 1e-5 * (1 + r * 4));
            }
        }
        for (int64_t j = 0; j < d; j++) {
            double want = guarded_at(&dgain_before, 0, j), size = fabs(want);
            for (int64_t i = 0; i < n; i++) {
                double term = (double)guarded_at(&dy, i, j) * guarded_at(&x, i, j) * guarded_at(&rstd, 0, i);
                want += term;
                size += fabs(term);
            }
            check_near(guarded_at(&dgain, 0, j), want, 4 * EPS * size);
        }
        guarded *written[] = {&y, &dx, &rstd, &dgain};
        for (int i = 0; i < 4; i++) guarded_check(written[i]);
        guarded_same(&y);
        guarded_same(&dgain);
        if (accumulate) guarded_same(&dx);
    }
    free(row);
    guarded *all[] = {&x, &dy, &y, &dx, &gain, &before, &rstd, &dgain, &dgain_before};
    for (int i = 0; i < 9; i++) guarded_free(all[i]);
}

static void test_rmsnorm(void **state) {
    check_rmsnorm(1, 1);
    check_rmsnorm(3, 7);
    check_rmsnorm(33, 72);
    check_rmsnorm(5, 129);
}

/* The fused residual connection is the two operations, bit for bit. */
static void test_add_rmsnorm(void **state) {
    enum { N = 13, D = 37 };
    guarded x = guarded_random(N, D, 1), branch = guarded_random(N, D, 1), gain = guarded_random(1, D, 1);
    guarded sum = guarded_new(N, D), y = guarded_new(N, D), rstd = guarded_new(1, N);
    guarded two_sum = guarded_new(N, D), two_y = guarded_new(N, D), two_rstd = guarded_new(1, N);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        ops o = table(threads);
        const float *g = gain.t.data;
        o.add_rmsnorm_forward(&o, sum.t, y.t, rstd.t.data, x.t, branch.t, g, (float)NORM_EPS);
        o.add(&o, two_sum.t, x.t, branch.t);
        o.rmsnorm_forward(&o, two_y.t, two_rstd.t.data, two_sum.t, g, (float)NORM_EPS);
        for (int64_t i = 0; i < N; i++) {
            assert_memory_equal(tensor_f32(sum.t) + i * sum.t.ld, tensor_f32(two_sum.t) + i * two_sum.t.ld, D * 4);
            assert_memory_equal(tensor_f32(y.t) + i * y.t.ld, tensor_f32(two_y.t) + i * two_y.t.ld, D * 4);
        }
        assert_memory_equal(rstd.t.data, two_rstd.t.data, N * sizeof(float));
        guarded_check(&sum);
        guarded_check(&y);
        o.add_rmsnorm_forward(&o, two_sum.t, y.t, rstd.t.data, two_sum.t, branch.t, g, (float)NORM_EPS);
        for (int64_t i = 0; i < N; i++)
            for (int64_t j = 0; j < D; j++)
                check_near(guarded_at(&two_sum, i, j), guarded_at(&sum, i, j) + guarded_at(&branch, i, j), 1e-6);
    }
    guarded *all[] = {&x, &branch, &gain, &sum, &y, &rstd, &two_sum, &two_y, &two_rstd};
    for (int i = 0; i < 9; i++) guarded_free(all[i]);
}

static void test_rmsnorm_of_zero_and_in_place(void **state) {
    enum { D = 9 };
    ops o = table(1);
    float x[D] = {0}, gain[D], rstd = NAN;
    for (int j = 0; j < D; j++) gain[j] = 1;
    tensor t = tensor_make(x, DTYPE_F32, 1, D);
    o.rmsnorm_forward(&o, t, &rstd, t, gain, (float)NORM_EPS);
    for (int j = 0; j < D; j++) check_near(x[j], 0, 0);
    check_near(rstd, 1 / sqrt(NORM_EPS), 1e-6 / sqrt(NORM_EPS));
}

/* ---------------------------------------------------------------- rotary */

static void check_rope(int heads, int64_t stride, int64_t first, int dim, int64_t context, int64_t rows) {
    const double theta = 10000;
    guarded x = guarded_random(rows, heads * stride, 1), before = guarded_new(rows, heads * stride);
    float *angles = malloc((size_t)(context * dim) * sizeof *angles);
    for (int64_t t = 0; t < context; t++)
        for (int j = 0; j < dim / 2; j++) {
            double angle = (double)t * pow(theta, -2.0 * j / dim);
            angles[t * dim + j] = (float)cos(angle);
            angles[t * dim + dim / 2 + j] = (float)sin(angle);
        }
    ops o = table(1);
    o.copy(&o, before.t, x.t);
    rope_args args = {heads, stride, first, dim, context, angles, false};
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        o = table(threads);
        o.copy(&o, x.t, before.t);
        args.inverse = false;
        o.rope(&o, x.t, args);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t c = 0; c < heads * stride; c++) {
                int64_t j = c % stride - first;
                if (j < 0 || j >= dim) { /* not rotated: the same bits */
                    check_near(guarded_at(&x, i, c), guarded_at(&before, i, c), 0);
                    continue;
                }
                int64_t pair = j % (dim / 2), base = c - j + pair;
                double angle = (double)(i % context) * pow(theta, -2.0 * (double)pair / dim);
                double a = guarded_at(&before, i, base), b = guarded_at(&before, i, base + dim / 2);
                double want = j < dim / 2 ? a * cos(angle) - b * sin(angle) : b * cos(angle) + a * sin(angle);
                check_near(guarded_at(&x, i, c), want, 4 * EPS * (fabs(a) + fabs(b)));
            }
        guarded_check(&x);
        guarded_same(&x);
        args.inverse = true;
        o.rope(&o, x.t, args);
        for (int64_t i = 0; i < rows; i++)
            for (int64_t c = 0; c < heads * stride; c++)
                check_near(guarded_at(&x, i, c), guarded_at(&before, i, c), 40 * EPS);
    }
    free(angles);
    guarded_free(&x);
    guarded_free(&before);
}

static void test_rope(void **state) {
    check_rope(1, 2, 0, 2, 5, 10);
    check_rope(4, 8, 0, 8, 7, 21);    /* whole heads */
    check_rope(3, 24, 16, 8, 33, 66); /* [nope | rotary] */
    check_rope(2, 13, 5, 6, 31, 31);  /* unrotated columns on both sides */
    check_rope(1, 34, 0, 34, 1, 3);   /* position 0 alone: nothing turns */
}

/* ---------------------------------------------------------------- SwiGLU */

static double swiglu(double gate, double up) {
    return gate / (1 + exp(-gate)) * up;
}

static void check_swiglu(int64_t n, int64_t f, double scale) {
    guarded in = guarded_random(n, 2 * f, scale), dh = guarded_random(n, f, 1);
    guarded h = guarded_new(n, f), din = guarded_new(n, 2 * f), over = guarded_new(n, 2 * f);
    guarded again = guarded_new(n, f);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        ops o = table(threads);
        guarded_poison(&h);
        guarded_poison(&din);
        o.swiglu_forward(&o, h.t, in.t);
        o.copy(&o, again.t, dh.t);
        o.swiglu_backward(&o, din.t, again.t, in.t);
        guarded_check(&again);
        assert_same(&again, &h);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < f; j++) {
                double g = guarded_at(&in, i, j), u = guarded_at(&in, i, f + j), d = guarded_at(&dh, i, j), e = 1e-5;
                check_near(guarded_at(&h, i, j), swiglu(g, u), 8 * EPS * fabs(swiglu(g, u)) + 1e-30);
                double dgate = d * (swiglu(g + e, u) - swiglu(g - e, u)) / (2 * e), dup = d * swiglu(g, 1);
                check_near(guarded_at(&din, i, j), dgate, 1e-6 * (1 + fabs(d * u) * (1 + fabs(g))));
                check_near(guarded_at(&din, i, f + j), dup, 8 * EPS * fabs(dup) + 1e-30);
            }
        guarded_check(&h);
        guarded_check(&din);
        guarded_same(&h);
        guarded_same(&din);
        o.copy(&o, over.t, in.t);
        o.copy(&o, again.t, dh.t);
        o.swiglu_backward(&o, over.t, again.t, over.t);
        guarded_check(&over);
        assert_same(&over, &din);
    }
    guarded *all[] = {&in, &dh, &h, &din, &over, &again};
    for (int i = 0; i < 6; i++) guarded_free(all[i]);
}

static void test_swiglu(void **state) {
    check_swiglu(1, 1, 1);
    check_swiglu(7, 33, 2);
    check_swiglu(31, 200, 2);
    check_swiglu(5, 17, 60); /* exp of the gate leaves fp32 */
}

/* ---------------------------------------------------------------- embedding */

static void test_embedding(void **state) {
    enum { V = 11, N = 70, D = 67, FIRST = 20 };
    guarded weights = guarded_random(V, D, 1), x = guarded_new(N, D), dx = guarded_random(N, D, 1);
    guarded dtable = guarded_new(V, D), before = guarded_random(V, D, 1);
    int32_t tokens[N];
    for (int i = 0; i < N; i++) tokens[i] = (int32_t)(FIRST - 4 + inputs_below(V + 8)); /* some on other ranks */
    tokens[0] = FIRST;
    tokens[1] = FIRST + V - 1;
    tokens[2] = FIRST - 1;
    tokens[3] = FIRST + V;
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        ops o = table(threads);
        guarded_poison(&x);
        o.copy(&o, dtable.t, before.t);
        o.embedding_forward(&o, x.t, weights.t, tokens, FIRST);
        o.embedding_backward(&o, dtable.t, dx.t, tokens, FIRST);
        for (int i = 0; i < N; i++)
            for (int j = 0; j < D; j++) {
                int r = tokens[i] - FIRST;
                check_near(guarded_at(&x, i, j), r >= 0 && r < V ? guarded_at(&weights, r, j) : 0, 0);
            }
        for (int r = 0; r < V; r++)
            for (int j = 0; j < D; j++) {
                double want = guarded_at(&before, r, j), size = fabs(want);
                for (int i = 0; i < N; i++)
                    if (tokens[i] == FIRST + r) {
                        want += guarded_at(&dx, i, j);
                        size += fabs((double)guarded_at(&dx, i, j));
                    }
                check_near(guarded_at(&dtable, r, j), want, EPS * N * size);
            }
        guarded_check(&x);
        guarded_check(&dtable);
        guarded_same(&dtable);
    }
    guarded *all[] = {&weights, &x, &dx, &dtable, &before};
    for (int i = 0; i < 5; i++) guarded_free(all[i]);
}

/* ---------------------------------------------------------------- cross-entropy */

enum { CE_RANKS = 3 };

/* One vocabulary over CE_RANKS shares, the last padded; between the calls the shares are joined as TP joins them. */
static void check_cross_entropy(int64_t n, int64_t share, int64_t padding, double scale, int threads) {
    int64_t vocab = CE_RANKS * share - padding;
    const float factor = 0.25f;
    guarded logits[CE_RANKS], full[CE_RANKS];
    float *most = malloc((size_t)n * sizeof *most), *sums = malloc((size_t)n * sizeof *sums);
    float *picked = malloc((size_t)n * sizeof *picked), *part = malloc(2 * (size_t)n * sizeof *part);
    int32_t *targets = malloc((size_t)n * sizeof *targets);
    ops o = table(threads);
    for (int64_t i = 0; i < n; i++) {
        targets[i] = (int32_t)inputs_below(vocab);
        most[i] = -INFINITY;
        sums[i] = picked[i] = 0;
    }
    targets[0] = (int32_t)vocab - 1;
    targets[n - 1] = 0;
    for (int r = 0; r < CE_RANKS; r++) {
        logits[r] = guarded_random(n, share, scale);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = vocab - r * share > 0 ? vocab - r * share : 0; j < share; j++)
                tensor_f32(logits[r].t)[i * logits[r].t.ld + j] = NAN; /* padding must not matter */
        full[r] = guarded_new(n, share);
        o.copy(&o, full[r].t, logits[r].t);
    }
    int64_t valid[CE_RANKS];
    for (int r = 0; r < CE_RANKS; r++) {
        valid[r] = vocab - r * share < share ? vocab - r * share : share;
        o.ce_max(&o, part, logits[r].t, valid[r]);
        for (int64_t i = 0; i < n; i++) most[i] = fmaxf(most[i], part[i]);
    }
    for (int r = 0; r < CE_RANKS; r++) {
        o.ce_sums(&o, part, part + n, logits[r].t, valid[r], most, targets, r * share);
        for (int64_t i = 0; i < n; i++) {
            sums[i] += part[i];
            picked[i] += part[n + i];
        }
    }
    double loss = 3, want = 3; /* adds */
    o.ce_loss(&o, &loss, sums, picked, most, n);
    for (int r = 0; r < CE_RANKS; r++) {
        o.ce_backward(&o, logits[r].t, valid[r], most, sums, targets, r * share, factor);
        guarded_check(&logits[r]);
    }
#define LOGIT(i, c) ((double)guarded_at(&full[(c) / share], i, (c) % share))
    for (int64_t i = 0; i < n; i++) {
        double top = -INFINITY, sum = 0;
        for (int64_t c = 0; c < vocab; c++) top = fmax(top, LOGIT(i, c));
        for (int64_t c = 0; c < vocab; c++) sum += exp(LOGIT(i, c) - top);
        want += top + log(sum) - LOGIT(i, targets[i]);
        for (int64_t c = 0; c < CE_RANKS * share; c++) {
            double p = c < vocab ? exp(LOGIT(i, c) - top) / sum : 0;
            double gradient = c < vocab ? factor * (p - (c == targets[i])) : 0;
            check_near(guarded_at(&logits[c / share], i, c % share), gradient,
                       c < vocab ? EPS * factor * ((double)(vocab + 4 + 2 * scale) * p + 1) : 0);
        }
    }
#undef LOGIT
    check_near(loss, want, EPS * (double)n * ((double)vocab + 8 * scale));
    for (int r = 0; r < CE_RANKS; r++) {
        guarded_free(&logits[r]);
        guarded_free(&full[r]);
    }
    free(most);
    free(sums);
    free(picked);
    free(part);
    free(targets);
}

static void test_cross_entropy_over_split_and_padded_vocabulary(void **state) {
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        check_cross_entropy(1, 1, 0, 1, threads);
        check_cross_entropy(7, 21, 2, 1, threads);
        check_cross_entropy(33, 170, 1, 3, threads);
        check_cross_entropy(5, 13, 5, 200, threads); /* exp without the maximum would overflow */
    }
}

/* The same rows give the same bits with 1 and 2 threads, and a NaN anywhere in a row shows in its loss. */
static void test_cross_entropy_threads_and_nan(void **state) {
    enum { N = 37, V = 61 };
    guarded logits = guarded_random(N, V, 2), work = guarded_new(N, V);
    int32_t targets[N];
    for (int i = 0; i < N; i++) targets[i] = (int32_t)inputs_below(V);
    double losses[MOST_THREADS];
    float most[N], sums[N], picked[N];
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        ops o = table(threads);
        o.copy(&o, work.t, logits.t);
        o.ce_max(&o, most, work.t, V);
        o.ce_sums(&o, sums, picked, work.t, V, most, targets, 0);
        losses[threads - 1] = 0;
        o.ce_loss(&o, &losses[threads - 1], sums, picked, most, N);
        o.ce_backward(&o, work.t, V, most, sums, targets, 0, 1.0f / N);
        guarded_same(&work);
    }
    assert_memory_equal(&losses[0], &losses[1], sizeof losses[0]);

    ops o = table(1);
    for (int column = 0; column < V; column += 20) {
        o.copy(&o, work.t, logits.t);
        tensor_f32(work.t)[3 * work.t.ld + column] = NAN;
        double loss = 0;
        o.ce_max(&o, most, work.t, V);
        o.ce_sums(&o, sums, picked, work.t, V, most, targets, 0);
        o.ce_loss(&o, &loss, sums, picked, most, N);
        assert_true(isnan(loss));
    }
    guarded_free(&logits);
    guarded_free(&work);
}

/* In one pass: the bits of the operations one by one, padding zero. */
static void test_whole_cross_entropy_is_its_parts(void **state) {
    enum { N = 37, V = 61, PADDING = 3 };
    guarded logits = guarded_random(N, V + PADDING, 2), work = guarded_new(N, V + PADDING);
    guarded whole = guarded_new(N, V + PADDING);
    int32_t targets[N];
    float parts[3][N], at_once[3][N];
    for (int i = 0; i < N; i++) {
        targets[i] = (int32_t)inputs_below(V);
        for (int j = V; j < V + PADDING; j++) tensor_f32(logits.t)[i * logits.t.ld + j] = NAN;
    }
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        ops o = table(threads);
        o.copy(&o, work.t, logits.t);
        o.copy(&o, whole.t, logits.t);
        o.ce_max(&o, parts[0], work.t, V);
        o.ce_sums(&o, parts[1], parts[2], work.t, V, parts[0], targets, 0);
        o.ce_backward(&o, work.t, V, parts[0], parts[1], targets, 0, 1.0f / N);
        o.ce_whole(&o, at_once[0], at_once[1], at_once[2], whole.t, V, targets, 1.0f / N);
        assert_memory_equal(parts, at_once, sizeof parts);
        guarded_check(&whole);
        assert_same(&whole, &work);
    }
    guarded_free(&logits);
    guarded_free(&work);
    guarded_free(&whole);
}

/* Beside a likely word, one fp32 sum would lose much of 32,000 rare ones: 4e-5 of it. */
static void test_sums_over_a_large_vocabulary_keep_the_rare_words(void **state) {
    enum { N = 20, V = 32000 };
    guarded logits = guarded_random(N, V, 3);
    float most[N], sums[N], picked[N];
    int32_t targets[N] = {0};
    ops o = table(MOST_THREADS);
    o.ce_max(&o, most, logits.t, V);
    o.ce_sums(&o, sums, picked, logits.t, V, most, targets, 0);
    for (int64_t i = 0; i < N; i++) {
        double want = 0;
        for (int64_t j = 0; j < V; j++) want += exp((double)guarded_at(&logits, i, j) - most[i]);
        check_near(sums[i], want, 16 * EPS * want);
    }
    guarded_free(&logits);
}

/* ---------------------------------------------------------------- sums and copies */

static void test_add_and_copy(void **state) {
    enum { N = 33, D = 19 };
    guarded a = guarded_random(N, D, 1), b = guarded_random(N, D, 1), y = guarded_new(N, D);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        ops o = table(threads);
        guarded_poison(&y);
        o.add(&o, y.t, a.t, b.t);
        for (int64_t i = 0; i < N; i++)
            for (int64_t j = 0; j < D; j++)
                check_near(guarded_at(&y, i, j), guarded_at(&a, i, j) + guarded_at(&b, i, j), 0);
        o.copy(&o, y.t, a.t);
        o.add(&o, y.t, y.t, b.t); /* y is the first operand */
        o.add(&o, y.t, b.t, y.t); /* y is the second */
        for (int64_t i = 0; i < N; i++)
            for (int64_t j = 0; j < D; j++) {
                float once = guarded_at(&a, i, j) + guarded_at(&b, i, j);
                check_near(guarded_at(&y, i, j), guarded_at(&b, i, j) + once, 0);
            }
        guarded_check(&y);
    }
    guarded *all[] = {&a, &b, &y};
    for (int i = 0; i < 3; i++) guarded_free(all[i]);
}

/* ---------------------------------------------------------------- optimizer */

static void test_sum_squares(void **state) {
    static const int64_t counts[] = {0, 1, 2, 255, 256, 257, 511, 100003};
    for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
        int64_t n = counts[k];
        float *x = malloc((size_t)(n + 1) * sizeof *x);
        inputs_normal(x, n, 1e-3);
        x[n] = NAN; /* beyond the end */
        double want = 0.5, got[MOST_THREADS];
        for (int64_t i = 0; i < n; i++) want += (double)x[i] * x[i];
        for (int threads = 1; threads <= MOST_THREADS; threads++) {
            ops o = table(threads);
            got[threads - 1] = 0.5; /* adds */
            o.sum_squares(&o, &got[threads - 1], x, n);
            check_near(got[threads - 1], want, 1e-12 * want);
        }
        assert_memory_equal(&got[0], &got[1], sizeof got[0]);
        free(x);
    }
    float bad[300] = {0};
    ops o = table(1);
    static const float worst[] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++) {
        bad[299] = worst[i];
        double sum = 0;
        o.sum_squares(&o, &sum, bad, 300);
        assert_false(isfinite(sum));
    }
}

enum { ADAM_COUNT = 1037 };

typedef struct adam_state {
    float w[ADAM_COUNT], m[ADAM_COUNT], v[ADAM_COUNT];
} adam_state;

static void check_adamw(float clip, float decay, int threads) {
    adam_state *s = calloc(1, sizeof *s);
    double *w = calloc(4 * ADAM_COUNT, sizeof *w), *m = w + ADAM_COUNT, *v = m + ADAM_COUNT, *size = v + ADAM_COUNT;
    float g[ADAM_COUNT];
    inputs_normal(s->w, ADAM_COUNT, 1);
    for (int i = 0; i < ADAM_COUNT; i++) w[i] = s->w[i];
    ops o = table(threads);
    adamw_update u = {0};
    const double losses[] = {3, 4};
    for (int step = 1; step <= 5; step++) {
        inputs_normal(g, ADAM_COUNT, step == 3 ? 10 : 1e-2); /* with clipping on, step 3 alone is clipped */
        g[0] = 0;                                            /* 0 / (0 + eps) */
        double norm_sq = 0;
        for (int i = 0; i < ADAM_COUNT; i++) norm_sq += (double)g[i] * g[i];
        adamw_args args = {0.01f, 0.9f, 0.95f, 1e-8f, clip, &norm_sq, losses, 2};
        o.adamw_begin(&o, &u, args);
        assert_int_equal(u.count, step);
        o.adamw(&o, s->w, s->m, s->v, g, NULL, ADAM_COUNT, decay, &u);
        double scale = clip > 0 ? fmin(1, clip / sqrt(norm_sq)) : 1, b1 = args.beta1, b2 = args.beta2, lr = args.lr;
        for (int i = 0; i < ADAM_COUNT; i++) {
            m[i] = b1 * m[i] + (1 - b1) * scale * g[i];
            size[i] = b1 * size[i] + (1 - b1) * fabs(scale * g[i]);
            v[i] = b2 * v[i] + (1 - b2) * scale * scale * g[i] * g[i];
            double hat_m = m[i] / (1 - pow(b1, step)), hat_v = v[i] / (1 - pow(b2, step));
            w[i] -= lr * (decay * w[i] + hat_m / (sqrt(hat_v) + args.eps));
            check_near(s->m[i], m[i], 8 * EPS * size[i]);
            check_near(s->v[i], v[i], 20 * EPS * (fabs(v[i]) + 1e-30));
            check_near(s->w[i], w[i], 4 * EPS * step * (fabs(w[i]) + 1));
        }
    }
    free(s);
    free(w);
}

static void test_adamw(void **state) {
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        check_adamw(0, 0, threads);
        check_adamw(0, 0.1f, threads);
        check_adamw(1, 0.1f, threads);
    }
}

/* The update is left out, and not counted, where the norm or one of the losses is not finite. */
static void test_adamw_leaves_everything_when_something_is_not_finite(void **state) {
    adam_state s, before;
    float g[ADAM_COUNT];
    inputs_normal(s.w, ADAM_COUNT, 1);
    inputs_normal(s.m, ADAM_COUNT, 1);
    inputs_normal(g, ADAM_COUNT, 1);
    for (int i = 0; i < ADAM_COUNT; i++) s.v[i] = s.m[i] * s.m[i];
    before = s;
    ops o = table(2);
    static const double cases[][3] = {{NAN, 1, 1}, {INFINITY, 1, 1}, {1, NAN, 1}, {1, 1, INFINITY}, {1, 1, 1}};
    adamw_update u = {.count = 7};
    float copy[ADAM_COUNT], cast[ADAM_COUNT];
    for (int i = 0; i < 5; i++) {
        bool fine = i == 4;
        o.adamw_begin(&o, &u, (adamw_args){0.01f, 0.9f, 0.95f, 1e-8f, 1, &cases[i][0], &cases[i][1], 2});
        o.adamw(&o, s.w, s.m, s.v, g, fine ? copy : NULL, ADAM_COUNT, 0.1f, &u);
        assert_int_equal(memcmp(&s, &before, sizeof s) != 0, fine);
        assert_int_equal(u.count, fine ? 8 : 7);
    }
    assert_memory_equal(copy, s.w, sizeof copy);
    o.cast(&o, cast, s.w, ADAM_COUNT);
    assert_memory_equal(cast, s.w, sizeof cast);
}

static void test_offload(void **state) {
    ops o;
    check_status(ops_cpu(&o, 1), STATUS_OK);
    float weights[10], want[] = {0, 1, 2, 5, 6, 7, 8, 9};
    for (int i = 0; i < 10; i++) weights[i] = (float)i;
    assert_true(o.offload_open(&o, sizeof want));
    float *host = o.host_alloc(&o, sizeof want);
    assert_non_null(host);
    const offload_part parts[] = {{weights, 3 * sizeof(float)}, {weights + 5, 5 * sizeof(float)}};
    o.offload(&o, 1, host, parts, 2);
    memset(weights, 0, sizeof weights);
    check_status(o.offload_wait(&o, 1), STATUS_OK);
    assert_memory_equal(host, want, sizeof want);
    o.host_release(&o, host);
    float locked[8];
    for (int i = 0; i < 10; i++) weights[i] = (float)i;
    assert_true(o.host_lock(&o, locked, sizeof locked));
    o.offload(&o, 0, locked, parts, 2);
    check_status(o.offload_wait(&o, 0), STATUS_OK);
    assert_memory_equal(locked, want, sizeof want);
    o.host_unlock(&o, locked);
}

static void test_save(void **state) {
    ops o;
    check_status(ops_cpu(&o, 1), STATUS_OK);
    float weights[10], host[8], want[] = {0, 1, 2, 5, 6, 7, 8, 9};
    for (int i = 0; i < 10; i++) weights[i] = (float)i;
    const offload_part parts[] = {{weights, 3 * sizeof(float)}, {weights + 5, 5 * sizeof(float)}};
    o.save(&o, host, parts, 2);
    o.save_fence(&o);
    memset(weights, 0, sizeof weights);
    check_status(o.save_wait(&o), STATUS_OK);
    assert_memory_equal(host, want, sizeof want);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup(test_vector_exp_is_right_to_two_ulp, inputs_start),
    cmocka_unit_test_setup(test_memory, inputs_start),
    cmocka_unit_test(test_offload),
    cmocka_unit_test(test_save),
    cmocka_unit_test_setup(test_matmul, inputs_start),
    cmocka_unit_test_setup(test_products_of_rows_that_share_cache_sets, inputs_start),
    cmocka_unit_test_setup(test_products_of_single_columns, inputs_start),
    cmocka_unit_test_setup(test_products_by_a_prepared_operand, inputs_start),
    cmocka_unit_test_setup(test_linear_helpers_are_the_three_products_of_a_layer, inputs_start),
    cmocka_unit_test_setup(test_rmsnorm, inputs_start),
    cmocka_unit_test_setup(test_add_rmsnorm, inputs_start),
    cmocka_unit_test_setup(test_rmsnorm_of_zero_and_in_place, inputs_start),
    cmocka_unit_test_setup(test_rope, inputs_start),
    cmocka_unit_test_setup(test_swiglu, inputs_start),
    cmocka_unit_test_setup(test_embedding, inputs_start),
    cmocka_unit_test_setup(test_cross_entropy_over_split_and_padded_vocabulary, inputs_start),
    cmocka_unit_test_setup(test_cross_entropy_threads_and_nan, inputs_start),
    cmocka_unit_test_setup(test_whole_cross_entropy_is_its_parts, inputs_start),
    cmocka_unit_test_setup(test_sums_over_a_large_vocabulary_keep_the_rare_words, inputs_start),
    cmocka_unit_test_setup(test_add_and_copy, inputs_start),
    cmocka_unit_test_setup(test_sum_squares, inputs_start),
    cmocka_unit_test_setup(test_adamw, inputs_start),
    cmocka_unit_test_setup(test_adamw_leaves_everything_when_something_is_not_finite, inputs_start),
};
TEST_MAIN(tests)
