/* The CUDA table against the CPU table, fp32 and bf16, on the same random inputs (rounded to bf16 for both where the
 * GPU's are): odd shapes, column views, unaligned views, poisoned outputs, and the same bits when a call is repeated.
 *
 * fp32 results may differ by the order of sums and the last bits of exp; bf16 results also by their own rounding.
 * Differences are measured against the element plus the root mean square of all, since sums cancel. */
#include "core/ops/cuda/kernels.h"
#include "core/ops/ops.h"
#include "inputs.h"

static const double FP32_TOLERANCE = 1e-5, BF16_TOLERANCE = 0x1p-8; /* bf16: half the spacing of 1 */

typedef struct tables {
    ops cpu, gpu;
} tables;

/* False, and the test is marked as skipped, where there is no device. */
static void open_tables(tables *t, bool fp32) {
    if (ops_cuda_devices() == 0) {
        print_message("skipped: no NVIDIA GPU on this machine\n");
        skip();
    }
    check_status(ops_cpu(&t->cpu, 2), STATUS_OK);
    check_status(ops_cuda(&t->gpu, 0, fp32), STATUS_OK);
}

static void close_tables(tables *t) {
    check_status(ops_status(&t->gpu), STATUS_OK);
    t->gpu.close(&t->gpu);
}

/* With BULKHEAD_TEST_SMALL set, for a run under compute-sanitizer, larger cases are left out. */
static bool left_out(int64_t elements) {
    enum { SMALL_ELEMENTS = 80000 };
    return getenv("BULKHEAD_TEST_SMALL") && elements > SMALL_ELEMENTS;
}

/* ---------------------------------------------------------------- bf16 on the host */

static uint16_t to_bf16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    if (isnan(x)) return 0x7fff;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t x) {
    uint32_t bits = (uint32_t)x << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* ---------------------------------------------------------------- a matrix on both devices */

/* Rows of ld elements, `first` elements before the matrix and a row after it; what lies around it is NaN. */
typedef struct matrix {
    tables *on;
    tensor cpu, gpu; /* views of the blocks */
    float *cpu_block;
    char *gpu_block, *earlier;
    float *rounded;       /* what was rounded to bf16 on the way to the result, a block of it; NULL: nothing */
    int64_t first, count; /* elements of a block */
} matrix;

static void push(matrix *m) {
    if (m->gpu.type == DTYPE_F32) {
        m->on->gpu.upload(&m->on->gpu, m->gpu_block, m->cpu_block, (size_t)m->count * sizeof(float));
        return;
    }
    uint16_t *rounded = malloc((size_t)m->count * sizeof *rounded);
    assert_non_null(rounded);
    for (int64_t i = 0; i < m->count; i++) {
        rounded[i] = to_bf16(m->cpu_block[i]);
        m->cpu_block[i] = from_bf16(rounded[i]);
    }
    m->on->gpu.upload(&m->on->gpu, m->gpu_block, rounded, (size_t)m->count * sizeof *rounded);
    m->on->gpu.sync(&m->on->gpu);
    free(rounded);
}

/* Random values of N(0, scale^2); scale 0: NaN, an output that must be written everywhere. */
static void fill(matrix *m, double scale) {
    for (int64_t i = 0; i < m->count; i++) m->cpu_block[i] = NAN;
    for (int64_t i = 0; scale != 0 && i < m->cpu.rows; i++)
        inputs_normal(tensor_f32(m->cpu) + i * m->cpu.ld, m->cpu.cols, scale);
    push(m);
}

static matrix matrix_at(tables *on, dtype type, int64_t rows, int64_t cols, int64_t ld, int64_t first, double scale) {
    matrix m = {.on = on, .first = first, .count = first + (rows + 1) * ld};
    size_t size = dtype_bytes(type);
    m.cpu_block = malloc((size_t)m.count * sizeof(float));
    m.gpu_block = on->gpu.alloc(&on->gpu, (size_t)m.count * size);
    assert_non_null(m.cpu_block);
    assert_non_null(m.gpu_block);
    m.cpu = (tensor){m.cpu_block + first, DTYPE_F32, rows, cols, ld};
    m.gpu = (tensor){m.gpu_block + (size_t)first * size, type, rows, cols, ld};
    fill(&m, scale);
    return m;
}

/* How the matrices of a case lie: dense; a column view whose rows stay on 16 bytes; one where nothing does. */
typedef enum layout { DENSE, COLUMNS, UNALIGNED, LAYOUTS } layout;

static matrix matrix_new(tables *on, dtype type, layout how, int64_t rows, int64_t cols, double scale) {
    int64_t first = how == DENSE ? 0 : how == COLUMNS ? 16 : 3;
    int64_t ld = how == DENSE ? cols : how == COLUMNS ? (cols + 15) / 8 * 8 + 24 : cols + 5;
    return matrix_at(on, type, rows, cols, ld, first, scale);
}

static void matrix_free(matrix *m) {
    free(m->cpu_block);
    free(m->earlier);
    free(m->rounded);
    m->on->gpu.release(&m->on->gpu, m->gpu_block);
}

/* The GPU's block as floats; also holds it against the earlier one, if there is one: the same bits. */
static float *pull(matrix *m, const char *what) {
    size_t bytes = (size_t)m->count * dtype_bytes(m->gpu.type);
    char *raw = malloc(bytes);
    float *values = malloc((size_t)m->count * sizeof *values);
    assert_non_null(raw);
    assert_non_null(values);
    m->on->gpu.download(&m->on->gpu, raw, m->gpu_block, bytes);
    if (ops_status(&m->on->gpu) != STATUS_OK) fail_msg("%s: %s", what, status_message());
    for (int64_t i = 0; i < m->count; i++)
        if (m->gpu.type == DTYPE_F32)
            values[i] = ((float *)raw)[i];
        else
            values[i] = from_bf16(((uint16_t *)raw)[i]);
    if (m->earlier && memcmp(m->earlier, raw, bytes) != 0) fail_msg("%s: other bits when repeated", what);
    free(m->earlier);
    m->earlier = raw;
    return values;
}

/* Both devices' matrices agree, and around the GPU's nothing was written. */
static void check_same(matrix *m, const char *what) {
    float *got = pull(m, what);
    double squares = 0, tolerance = m->gpu.type == DTYPE_F32 ? FP32_TOLERANCE : BF16_TOLERANCE;
    int64_t rows = m->cpu.rows, cols = m->cpu.cols, ld = m->cpu.ld;
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) squares += pow(tensor_f32(m->cpu)[i * ld + j], 2);
    double typical = sqrt(squares / (double)(rows * cols));
    for (int64_t k = 0; k < m->count; k++) {
        int64_t i = (k - m->first) / ld, j = (k - m->first) % ld;
        bool inside = k >= m->first && i < rows && j < cols;
        if (!inside && !isnan(got[k]))
            fail_msg("%s [%ld, %ld]: written outside, block element %ld = %g", what, (long)rows, (long)cols, (long)k,
                     (double)got[k]);
        if (!inside) continue;
        double want = m->cpu_block[k], off = fabs((double)got[k] - want);
        double sizes = fabs(want) + (m->rounded ? (1 + tolerance) * fabs(m->rounded[k]) : 0);
        if (!(off <= tolerance * sizes + FP32_TOLERANCE * typical))
            fail_msg("%s [%ld, %ld] %s at (%ld, %ld): %.9g, CPU %.9g, off by %.3g, rms %.3g", what, (long)rows,
                     (long)cols, m->gpu.type == DTYPE_F32 ? "fp32" : "bf16", (long)i, (long)j, (double)got[k], want,
                     off, typical);
    }
    free(got);
}

static int32_t *device_ints(tables *t, const int32_t *host, int64_t count) {
    int32_t *device = t->gpu.alloc(&t->gpu, (size_t)count * sizeof *host);
    assert_non_null(device);
    t->gpu.upload(&t->gpu, device, host, (size_t)count * sizeof *host);
    return device;
}

static dtype activation(const tables *t) {
    return t->gpu.activation;
}

/* ---------------------------------------------------------------- the table and its memory */

static void test_a_bad_index_is_refused_with_the_number_of_gpus(void **state) {
    tables t;
    open_tables(&t, true);
    ops none;
    status_clear();
    check_status(ops_cuda(&none, ops_cuda_devices(), true), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "this process sees"));
    status_clear();
    check_status(ops_cuda(&none, -1, true), STATUS_CONFIG);
    status_clear();
    close_tables(&t);
}

/* Other processes share the device and its count, so that a reading is tried again; one good one is enough. */
static void test_memory_in_use_is_told(void **state) {
    const size_t bytes = 512 << 20, little = 64 << 20;
    tables t;
    open_tables(&t, false);
    bool good = false;
    for (int attempt = 0; attempt < 50 && !good; attempt++) {
        size_t before = t.gpu.used_bytes(&t.gpu);
        void *block = t.gpu.alloc(&t.gpu, bytes);
        assert_non_null(block);
        size_t with = t.gpu.used_bytes(&t.gpu);
        t.gpu.release(&t.gpu, block);
        size_t after = t.gpu.used_bytes(&t.gpu);
        good = before > 0 /* the table's scratch */ && with >= before + bytes && with <= before + bytes + little &&
               after <= before + little;
    }
    assert_true(good);
    assert_null(t.cpu.used_bytes);
    close_tables(&t);
}

static void test_memory(void **state) {
    tables t;
    open_tables(&t, false);
    ops *o = &t.gpu;
    float in[5] = {1, 2, 3, 4, 5}, out[5] = {9, 9, 9, 9, 9};
    float *device = o->alloc(o, sizeof in);
    assert_non_null(device);
    o->download(o, out, device, sizeof out);
    for (int i = 0; i < 5; i++) check_near(out[i], 0, 0);
    o->upload(o, device, in, sizeof in);
    o->zero(o, device, 2 * sizeof *device);
    o->sync(o);
    o->download(o, out, device, sizeof out);
    for (int i = 0; i < 5; i++) check_near(out[i], i < 2 ? 0 : in[i], 0);
    o->release(o, device);
    assert_null(o->alloc(o, (size_t)1 << 45)); /* no GPU has it; and the table goes on */
    check_status(ops_status(o), STATUS_OK);
    void *again = o->alloc(o, 1 << 20);
    assert_non_null(again);
    o->release(o, again);
    close_tables(&t);
}

static void test_the_first_error_is_kept(void **state) {
    tables t;
    open_tables(&t, true);
    float host = 0;
    t.gpu.download(&t.gpu, &host, NULL, sizeof host);
    check_status(ops_status(&t.gpu), STATUS_INTERNAL);
    assert_non_null(strstr(status_message(), "GPU 0: download"));
    status_clear();
    t.gpu.close(&t.gpu);
}

/* Marks are of the queue, not of the host, which runs ahead; and one that is marked again is of its new place. */
static void test_marks(void **state) {
    enum { SIDE = 2048, PRODUCTS = 50 };
    const double least_s = PRODUCTS * 2.0 * SIDE * SIDE * SIDE / 2e14; /* no GPU has so many fp32 flops a second */
    tables t;
    open_tables(&t, true);
    ops *o = &t.gpu;
    tensor x[3];
    ops_mark mark[3] = {0};
    double products = 0;
    for (int i = 0; i < 3; i++) x[i] = tensor_make(o->alloc(o, SIDE * SIDE * sizeof(float)), DTYPE_F32, SIDE, SIDE);
    for (int round = 0; round < 2; round++) {
        o->mark(o, &mark[0], "products");
        for (int i = 0; i < PRODUCTS; i++) ops_linear(o, x[0], x[1], x[2], false);
        o->mark(o, &mark[1], "a copy");
        o->copy(o, x[1], x[2]);
        o->mark(o, &mark[2], NULL);
        products = o->mark_span_s(o, &mark[0], &mark[1]);
    }
    double copy = o->mark_span_s(o, &mark[1], &mark[2]), both = o->mark_span_s(o, &mark[0], &mark[2]);
    assert_true(products > least_s);
    assert_true(copy > 0 && copy < products);
    check_near(both, products + copy, 1e-5);
    for (int i = 0; i < 3; i++) {
        o->mark_release(o, &mark[i]);
        assert_null(mark[i].event);
        o->release(o, x[i].data);
    }
    close_tables(&t);
}

/* ---------------------------------------------------------------- products */

static void check_product(tables *t, int64_t m, int64_t n, int64_t k, int flags, float beta, bool fp32_result,
                          layout how) {
    if (left_out(m * n + m * k + n * k)) return;
    bool ta = flags & 1, tb = flags & 2;
    dtype type = activation(t);
    matrix a = matrix_new(t, type, how, ta ? k : m, ta ? m : k, 1);
    matrix b = matrix_new(t, type, how, tb ? n : k, tb ? k : n, 1);
    matrix y = matrix_new(t, fp32_result ? DTYPE_F32 : type, how, m, n, beta == 0 ? 0 : 1);
    char what[96];
    snprintf(what, sizeof what, "matmul k %ld %s%s beta %g layout %d", (long)k, ta ? "T" : "N", tb ? "T" : "N",
             (double)beta, how);
    t->gpu.matmul(&t->gpu, y.gpu, a.gpu, ta, b.gpu, tb, beta);
    if (beta != 0 && y.gpu.type == DTYPE_BF16) { /* the product is rounded before it is added: core/ops/cuda/matmul.c */
        y.rounded = malloc((size_t)y.count * sizeof *y.rounded);
        assert_non_null(y.rounded);
        memcpy(y.rounded, y.cpu_block, (size_t)y.count * sizeof *y.rounded);
    }
    t->cpu.matmul(&t->cpu, y.cpu, a.cpu, ta, b.cpu, tb, beta);
    for (int64_t i = 0; y.rounded && i < y.count; i++) y.rounded[i] = y.cpu_block[i] - beta * y.rounded[i];
    check_same(&y, what);
    matrix *all[] = {&a, &b, &y};
    for (int i = 0; i < 3; i++) matrix_free(all[i]);
}

static void check_products(bool fp32) {
    static const int64_t shapes[][3] = {{1, 1, 1},     {7, 5, 3},       {1, 72, 768},     {3, 768, 72},
                                        {130, 72, 61}, {1000, 200, 72}, {257, 509, 2048}, {1000, 768, 768}};
    tables t;
    open_tables(&t, fp32);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int flags = 0; flags < 4; flags++)
            for (int how = 0; how < LAYOUTS; how++)
                for (int kind = 0; kind < 4; kind++)
                    check_product(&t, shapes[s][0], shapes[s][1], shapes[s][2], flags, kind % 2 ? 1 : 0, kind / 2,
                                  (layout)how);
    for (int kind = 0; kind < 4; kind++) /* as in a step: dx of a layer, added to what is there */
        check_product(&t, 4096, 768, 2048, 0, kind % 2 ? 1 : 0, kind / 2, DENSE);
    assert_true(t.gpu.flops > 0);
    close_tables(&t);
}

static void test_matmul_fp32(void **state) {
    check_products(true);
}
static void test_matmul_bf16(void **state) {
    check_products(false);
}

/* Rows of random bf16 numbers in GPU memory, the same whenever it is called. */
static tensor fixed_rows(ops *o, uint64_t stream, int64_t rows, int64_t cols) {
    int64_t count = rows * cols;
    float *numbers = malloc((size_t)count * sizeof *numbers);
    uint16_t *rounded = malloc((size_t)count * sizeof *rounded);
    assert_non_null(numbers);
    assert_non_null(rounded);
    rng_normal(numbers, 1, stream, 0, count, 1);
    for (int64_t i = 0; i < count; i++) rounded[i] = to_bf16(numbers[i]);
    tensor t = tensor_make(o->alloc(o, (size_t)count * sizeof *rounded), DTYPE_BF16, rows, cols);
    assert_non_null(t.data);
    o->upload(o, t.data, rounded, (size_t)count * sizeof *rounded);
    o->sync(o);
    free(numbers);
    free(rounded);
    return t;
}

static uint64_t mixed(uint64_t x) { /* the finalizer of SplitMix64 (Steele, Lea & Flood 2014) */
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

/* Of random bits, columns of a wider matrix, against the formula; more rows than blocks, more columns than threads. */
static void test_checksum(void **state) {
    static const int64_t shapes[][2] = {{1, 1}, {3, 700}, {1100, 9}, {257, 256}};
    tables t;
    open_tables(&t, false);
    ops *o = &t.gpu;
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int wide = 0; wide < 2; wide++) {
            int64_t rows = shapes[s][0], cols = shapes[s][1], ld = cols + 3;
            dtype type = wide ? DTYPE_F32 : DTYPE_BF16;
            size_t bytes = (size_t)(rows * ld) * dtype_bytes(type);
            uint8_t *bits = malloc(bytes);
            assert_non_null(bits);
            for (size_t i = 0; i < bytes; i++) bits[i] = (uint8_t)inputs_below(256);
            uint64_t want = 0, got = 0;
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < cols; j++) {
                    uint64_t element = wide ? ((uint32_t *)bits)[i * ld + j] : ((uint16_t *)bits)[i * ld + j];
                    want += mixed(mixed((uint64_t)(i * cols + j) + 1) + element);
                }
            tensor block = tensor_make(o->alloc(o, bytes), type, rows, ld);
            void *sum = o->alloc(o, sizeof got);
            assert_non_null(block.data);
            assert_non_null(sum);
            o->upload(o, block.data, bits, bytes);
            o->sync(o);
            assert_int_equal(launch_checksum(sum, tensor_cols(block, 0, cols), NULL), cudaSuccess);
            assert_int_equal(cudaDeviceSynchronize(), cudaSuccess);
            o->download(o, &got, sum, sizeof got);
            assert_true(got == want);
            o->release(o, block.data);
            o->release(o, sum);
            free(bits);
        }
    close_tables(&t);
}

/* Of a large product algorithms are tried: which one a table takes is not seen in the result, also not of the product
 * that adds by the same one. */
static void test_the_choice_of_an_algorithm_is_not_seen(void **state) {
    enum { M = 4096, N = 1536, K = 768, TABLES = 3, COUNT = M * N };
    enum { BYTES = COUNT * (sizeof(uint16_t) + sizeof(float)) };
    if (left_out(COUNT)) return;
    char *first = malloc(BYTES), *now = malloc(BYTES);
    assert_non_null(first);
    assert_non_null(now);
    for (int i = 0; i < TABLES; i++) {
        tables t;
        open_tables(&t, false);
        ops *o = &t.gpu;
        tensor a = fixed_rows(o, 1, M, K), b = fixed_rows(o, 2, N, K);
        tensor y = tensor_make(o->alloc(o, COUNT * sizeof(uint16_t)), DTYPE_BF16, M, N);
        tensor sum = tensor_make(o->alloc(o, COUNT * sizeof(float)), DTYPE_F32, M, N);
        o->matmul(o, y, a, false, b, true, 0);
        o->matmul(o, sum, a, false, b, true, 0);
        for (int more = 0; more < 2; more++) o->matmul(o, sum, a, false, b, true, 1);
        o->download(o, now, y.data, COUNT * sizeof(uint16_t));
        o->download(o, now + COUNT * sizeof(uint16_t), sum.data, COUNT * sizeof(float));
        check_status(ops_status(o), STATUS_OK);
        if (i == 0) memcpy(first, now, BYTES);
        assert_memory_equal(first, now, BYTES);
        tensor *const all[] = {&a, &b, &y, &sum};
        for (int k = 0; k < 4; k++) o->release(o, all[k]->data);
        close_tables(&t);
    }
    free(first);
    free(now);
}

/* 1 + 2^-11 is lost in TF32 (10 bits of mantissa) and kept in fp32. */
static void test_fp32_products_are_not_tf32(void **state) {
    enum { N = 256 };
    tables t;
    open_tables(&t, true);
    matrix a = matrix_new(&t, DTYPE_F32, DENSE, N, N, 0), b = matrix_new(&t, DTYPE_F32, DENSE, N, N, 0);
    matrix y = matrix_new(&t, DTYPE_F32, DENSE, N, N, 0);
    for (int i = 0; i < N * N; i++) {
        a.cpu_block[i] = 1 + 0x1p-12f;
        b.cpu_block[i] = 1;
    }
    push(&a);
    push(&b);
    t.gpu.matmul(&t.gpu, y.gpu, a.gpu, false, b.gpu, true, 0);
    float *got = pull(&y, "matmul");
    check_near(got[0], N * (1 + 0x1p-12), 1e-6 * N);
    free(got);
    matrix *all[] = {&a, &b, &y};
    for (int i = 0; i < 3; i++) matrix_free(all[i]);
    close_tables(&t);
}

/* ---------------------------------------------------------------- RMSNorm */

static void check_rmsnorm(tables *t, layout how, int64_t n, int64_t d) {
    if (left_out(n * d)) return;
    dtype type = activation(t);
    matrix x = matrix_new(t, type, how, n, d, 1.5), dy = matrix_new(t, type, how, n, d, 1);
    matrix y = matrix_new(t, type, how, n, d, 0), dx = matrix_new(t, type, how, n, d, 0);
    matrix gain = matrix_at(t, DTYPE_F32, 1, d, d, how == UNALIGNED, 1), rstd = matrix_at(t, DTYPE_F32, 1, n, n, 0, 0);
    matrix dgain = matrix_at(t, DTYPE_F32, 1, d, d, how == UNALIGNED, 1);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        fill(&y, 0);
        fill(&rstd, 0);
        fill(&dx, accumulate);
        t->gpu.rmsnorm_forward(&t->gpu, y.gpu, rstd.gpu.data, x.gpu, gain.gpu.data, 1e-5f);
        t->cpu.rmsnorm_forward(&t->cpu, y.cpu, rstd.cpu.data, x.cpu, gain.cpu.data, 1e-5f);
        t->gpu.rmsnorm_backward(&t->gpu, dx.gpu, accumulate, dgain.gpu.data, dy.gpu, x.gpu, gain.gpu.data,
                                rstd.gpu.data);
        t->cpu.rmsnorm_backward(&t->cpu, dx.cpu, accumulate, dgain.cpu.data, dy.cpu, x.cpu, gain.cpu.data,
                                rstd.cpu.data);
        check_same(&y, "rmsnorm y");
        check_same(&rstd, "rmsnorm rstd");
        check_same(&dx, "rmsnorm dx");
        check_same(&dgain, "rmsnorm dgain");
        free(dx.earlier); /* the second time adds */
        free(dgain.earlier);
        dx.earlier = dgain.earlier = NULL;
    }
    for (int again = 0; again < 3; again++) {
        push(&dgain);
        t->gpu.rmsnorm_backward(&t->gpu, dx.gpu, false, dgain.gpu.data, dy.gpu, x.gpu, gain.gpu.data, rstd.gpu.data);
        free(pull(&dx, "rmsnorm dx"));
        free(pull(&dgain, "rmsnorm dgain"));
    }
    matrix *all[] = {&x, &dy, &y, &dx, &gain, &rstd, &dgain};
    for (int i = 0; i < 7; i++) matrix_free(all[i]);
}

/* The fused residual connection is the two operations, bit for bit. */
static void check_add_rmsnorm(tables *t, layout how, int64_t n, int64_t d) {
    dtype type = activation(t);
    matrix x = matrix_new(t, type, how, n, d, 1), branch = matrix_new(t, type, how, n, d, 1);
    matrix gain = matrix_at(t, DTYPE_F32, 1, d, d, how == UNALIGNED, 1);
    matrix out[2][3]; /* sum, y, rstd: fused, then apart */
    for (int i = 0; i < 2; i++) {
        out[i][0] = matrix_new(t, type, how, n, d, 0);
        out[i][1] = matrix_new(t, type, how, n, d, 0);
        out[i][2] = matrix_at(t, DTYPE_F32, 1, n, n, 0, 0);
    }
    ops *o = &t->gpu;
    o->add_rmsnorm_forward(o, out[0][0].gpu, out[0][1].gpu, out[0][2].gpu.data, x.gpu, branch.gpu, gain.gpu.data,
                           1e-5f);
    o->add(o, out[1][0].gpu, x.gpu, branch.gpu);
    o->rmsnorm_forward(o, out[1][1].gpu, out[1][2].gpu.data, out[1][0].gpu, gain.gpu.data, 1e-5f);
    for (int k = 0; k < 3; k++) {
        float *fused = pull(&out[0][k], "add_rmsnorm"), *apart = pull(&out[1][k], "add, then rmsnorm");
        assert_memory_equal(fused, apart, (size_t)out[0][k].count * sizeof *fused); /* and nothing around it */
        free(fused);
        free(apart);
        matrix_free(&out[0][k]);
        matrix_free(&out[1][k]);
    }
    matrix_free(&x);
    matrix_free(&branch);
    matrix_free(&gain);
}

static void test_rmsnorm(void **state) {
    static const int64_t rows[] = {1, 3, 1000}, widths[] = {9, 72, 768, 2048};
    for (int fp32 = 0; fp32 < 2; fp32++) {
        tables t;
        open_tables(&t, fp32);
        for (int how = 0; how < LAYOUTS; how++)
            for (int r = 0; r < 3; r++)
                for (int d = 0; d < 4; d++) {
                    check_rmsnorm(&t, (layout)how, rows[r], widths[d]);
                    check_add_rmsnorm(&t, (layout)how, rows[r], widths[d]);
                }
        check_rmsnorm(&t, DENSE, 5000, 256); /* more rows than all blocks take at once */
        check_rmsnorm(&t, DENSE, 9, 20001);  /* fewer warps a block */
        close_tables(&t);
    }
}

/* ---------------------------------------------------------------- rotary */

static void check_rope(tables *t, layout how, int64_t rows, int heads, int64_t stride, int64_t first, int dim,
                       int64_t context) {
    if (left_out(rows * heads * stride)) return;
    matrix x = matrix_new(t, activation(t), how, rows, heads * stride, 1);
    matrix angles = matrix_new(t, DTYPE_F32, DENSE, context, dim, 0);
    for (int64_t i = 0; i < context; i++)
        for (int j = 0; j < dim / 2; j++) {
            double angle = (double)i * pow(10000, -2.0 * j / dim);
            angles.cpu_block[i * dim + j] = (float)cos(angle);
            angles.cpu_block[i * dim + dim / 2 + j] = (float)sin(angle);
        }
    push(&angles);
    for (int inverse = 0; inverse < 2; inverse++) {
        push(&x);
        rope_args args = {heads, stride, first, dim, context, angles.gpu.data, inverse};
        t->gpu.rope(&t->gpu, x.gpu, args);
        args.table = angles.cpu.data;
        t->cpu.rope(&t->cpu, x.cpu, args);
        check_same(&x, inverse ? "rope inverse" : "rope");
        free(x.earlier);
        x.earlier = NULL;
    }
    matrix_free(&x);
    matrix_free(&angles);
}

static void test_rope(void **state) {
    for (int fp32 = 0; fp32 < 2; fp32++) {
        tables t;
        open_tables(&t, fp32);
        for (int how = 0; how < LAYOUTS; how++) {
            check_rope(&t, (layout)how, 1, 1, 2, 0, 2, 1);
            check_rope(&t, (layout)how, 1000, 12, 64, 0, 64, 250);
            check_rope(&t, (layout)how, 1000, 12, 96, 64, 32, 500); /* [nope | rotary] */
            check_rope(&t, (layout)how, 33, 2, 13, 5, 6, 11);
            check_rope(&t, (layout)how, 1000, 1, 32, 0, 32, 1000); /* the shared key */
        }
        close_tables(&t);
    }
}

/* ---------------------------------------------------------------- SwiGLU and sums */

static void check_swiglu(tables *t, layout how, int64_t n, int64_t f, double scale) {
    if (left_out(n * f)) return;
    dtype type = activation(t);
    matrix in = matrix_new(t, type, how, n, 2 * f, scale), dh = matrix_new(t, type, how, n, f, 1);
    matrix h = matrix_new(t, type, how, n, f, 0), din = matrix_new(t, type, how, n, 2 * f, 0);
    t->gpu.swiglu_forward(&t->gpu, h.gpu, in.gpu);
    t->cpu.swiglu_forward(&t->cpu, h.cpu, in.cpu);
    check_same(&h, "swiglu h");
    for (int again = 0; again < 2; again++) {
        push(&dh);
        t->gpu.swiglu_backward(&t->gpu, din.gpu, dh.gpu, in.gpu);
        free(pull(&din, "swiglu dgate_up"));
        free(pull(&dh, "swiglu h again"));
    }
    push(&dh);
    t->gpu.swiglu_backward(&t->gpu, in.gpu, dh.gpu, in.gpu);
    t->cpu.swiglu_backward(&t->cpu, din.cpu, dh.cpu, in.cpu);
    check_same(&din, "swiglu dgate_up");
    check_same(&dh, "swiglu h again");
    t->cpu.copy(&t->cpu, in.cpu, din.cpu);
    check_same(&in, "swiglu dgate_up in place");
    matrix *all[] = {&in, &dh, &h, &din};
    for (int i = 0; i < 4; i++) matrix_free(all[i]);
}

static void check_add_and_copy(tables *t, layout how, int64_t n, int64_t d) {
    if (left_out(n * d)) return;
    dtype type = activation(t);
    matrix a = matrix_new(t, type, how, n, d, 1), b = matrix_new(t, type, DENSE, n, d, 1);
    matrix y = matrix_new(t, type, how, n, d, 0), z = matrix_new(t, type, DENSE, n, d, 0);
    t->gpu.add(&t->gpu, y.gpu, a.gpu, b.gpu);
    t->cpu.add(&t->cpu, y.cpu, a.cpu, b.cpu);
    check_same(&y, "add");
    t->gpu.copy(&t->gpu, z.gpu, a.gpu);
    t->cpu.copy(&t->cpu, z.cpu, a.cpu);
    check_same(&z, "copy");
    t->gpu.add(&t->gpu, a.gpu, a.gpu, b.gpu);
    t->cpu.add(&t->cpu, a.cpu, a.cpu, b.cpu);
    check_same(&a, "add in place");
    t->gpu.add(&t->gpu, b.gpu, z.gpu, b.gpu);
    t->cpu.add(&t->cpu, b.cpu, z.cpu, b.cpu);
    check_same(&b, "add in place, second");
    matrix *all[] = {&a, &b, &y, &z};
    for (int i = 0; i < 4; i++) matrix_free(all[i]);
}

static void test_swiglu_add_and_copy(void **state) {
    static const int64_t rows[] = {1, 3, 1000}, widths[] = {200, 2048, 5461};
    for (int fp32 = 0; fp32 < 2; fp32++) {
        tables t;
        open_tables(&t, fp32);
        for (int how = 0; how < LAYOUTS; how++)
            for (int r = 0; r < 3; r++)
                for (int f = 0; f < 3; f++) {
                    check_swiglu(&t, (layout)how, rows[r], widths[f], 2);
                    check_add_and_copy(&t, (layout)how, rows[r], widths[f]);
                }
        check_swiglu(&t, DENSE, 5, 16, 60); /* exp of the gate leaves fp32 */
        close_tables(&t);
    }
}

/* ---------------------------------------------------------------- embedding */

/* spread: of how many different tokens, beginning before the first row here and ending after the last. */
static void check_embedding(tables *t, layout how, int64_t n, int64_t d, int64_t vocab, int64_t first, int64_t spread) {
    if (left_out(n * d + vocab * d)) return;
    dtype type = activation(t);
    matrix table = matrix_new(t, type, how, vocab, d, 1), x = matrix_new(t, type, how, n, d, 0);
    matrix dx = matrix_new(t, type, how, n, d, 1), dtable = matrix_new(t, DTYPE_F32, how, vocab, d, 1);
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    assert_non_null(tokens);
    for (int64_t i = 0; i < n; i++) {
        int64_t a = inputs_below(spread), b = inputs_below(spread); /* low numbers often, as in a text */
        tokens[i] = (int32_t)(a * b / spread + (first > 1 ? first - 2 : 0));
    }
    int32_t *device = device_ints(t, tokens, n);
    t->gpu.embedding_forward(&t->gpu, x.gpu, table.gpu, device, first);
    t->cpu.embedding_forward(&t->cpu, x.cpu, table.cpu, tokens, first);
    check_same(&x, "embedding");
    for (int again = 0; again < 2; again++) {
        matrix was = dtable;
        was.gpu_block = t->gpu.alloc(&t->gpu, (size_t)dtable.count * sizeof(float));
        assert_non_null(was.gpu_block);
        was.gpu.data = was.gpu_block + (size_t)was.first * sizeof(float);
        push(&was);
        t->gpu.embedding_backward(&t->gpu, was.gpu, dx.gpu, device, first);
        free(pull(&was, "embedding dtable"));
        dtable.earlier = was.earlier;
        t->gpu.release(&t->gpu, was.gpu_block);
    }
    t->gpu.embedding_backward(&t->gpu, dtable.gpu, dx.gpu, device, first);
    t->cpu.embedding_backward(&t->cpu, dtable.cpu, dx.cpu, tokens, first);
    check_same(&dtable, "embedding dtable");
    t->gpu.release(&t->gpu, device);
    free(tokens);
    matrix *all[] = {&table, &x, &dx, &dtable};
    for (int i = 0; i < 4; i++) matrix_free(all[i]);
}

static void test_embedding(void **state) {
    for (int fp32 = 0; fp32 < 2; fp32++) {
        tables t;
        open_tables(&t, fp32);
        for (int how = 0; how < LAYOUTS; how++) {
            check_embedding(&t, (layout)how, 1, 72, 1, 0, 1);
            check_embedding(&t, (layout)how, 3, 72, 7, 0, 9);
            check_embedding(&t, (layout)how, 1000, 768, 1, 0, 1);      /* one word: one run over all chunks */
            check_embedding(&t, (layout)how, 1000, 72, 509, 300, 600); /* some on other ranks, before and after */
            check_embedding(&t, (layout)how, 1000, 2048, 40, 0, 40);
            check_embedding(&t, (layout)how, 97, 100, 5, 0, 4);
        }
        check_embedding(&t, DENSE, 4000, 768, 32000, 0, 32000);
        check_embedding(&t, DENSE, 70000, 16, 509, 0, 509); /* more than are sorted at once */
        close_tables(&t);
    }
}

/* ---------------------------------------------------------------- cross-entropy */

static void check_cross_entropy(tables *t, layout how, int64_t n, int64_t vocab, int64_t padding, int64_t first,
                                double scale) {
    if (left_out(n * vocab)) return;
    matrix z = matrix_new(t, activation(t), how, n, vocab + padding, scale);
    matrix most = matrix_at(t, DTYPE_F32, 1, n, n, 0, 0), sums = matrix_at(t, DTYPE_F32, 1, n, n, 0, 0);
    matrix picked = matrix_at(t, DTYPE_F32, 1, n, n, 0, 0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = vocab; j < vocab + padding; j++) tensor_f32(z.cpu)[i * z.cpu.ld + j] = NAN;
    push(&z);
    int32_t *targets = malloc((size_t)n * sizeof *targets);
    assert_non_null(targets);
    for (int64_t i = 0; i < n; i++) targets[i] = (int32_t)inputs_below(vocab + 2 * first);
    targets[0] = (int32_t)(first + vocab - 1);
    int32_t *device = device_ints(t, targets, n);
    double losses[2], cpu_loss = 0.25, *loss = t->gpu.alloc(&t->gpu, sizeof *loss);
    assert_non_null(loss);
    for (int again = 0; again < 2; again++) {
        static const double start = 0.25; /* adds */
        t->gpu.upload(&t->gpu, loss, &start, sizeof start);
        t->gpu.ce_max(&t->gpu, most.gpu.data, z.gpu, vocab);
        t->gpu.ce_sums(&t->gpu, sums.gpu.data, picked.gpu.data, z.gpu, vocab, most.gpu.data, device, first);
        t->gpu.ce_loss(&t->gpu, loss, sums.gpu.data, picked.gpu.data, most.gpu.data, n);
        t->gpu.download(&t->gpu, &losses[again], loss, sizeof *loss);
    }
    assert_memory_equal(&losses[0], &losses[1], sizeof losses[0]);
    t->cpu.ce_max(&t->cpu, most.cpu.data, z.cpu, vocab);
    t->cpu.ce_sums(&t->cpu, sums.cpu.data, picked.cpu.data, z.cpu, vocab, most.cpu.data, targets, first);
    t->cpu.ce_loss(&t->cpu, &cpu_loss, sums.cpu.data, picked.cpu.data, most.cpu.data, n);
    check_same(&most, "ce_max");
    check_same(&sums, "ce_sums");
    check_same(&picked, "ce picked");
    check_near(losses[0], cpu_loss, FP32_TOLERANCE * (double)n);
    float by = 1.0f / (float)n;
    t->gpu.ce_backward(&t->gpu, z.gpu, vocab, most.gpu.data, sums.gpu.data, device, first, by);
    t->cpu.ce_backward(&t->cpu, z.cpu, vocab, most.cpu.data, sums.cpu.data, targets, first, by);
    check_same(&z, "ce_backward");
    t->gpu.release(&t->gpu, device);
    t->gpu.release(&t->gpu, loss);
    free(targets);
    matrix *all[] = {&z, &most, &sums, &picked};
    for (int i = 0; i < 4; i++) matrix_free(all[i]);
}

/* In one pass, against the CPU's; the same bits again. */
static void check_whole_cross_entropy(tables *t, layout how, int64_t n, int64_t vocab, int64_t padding, double scale) {
    if (left_out(n * vocab)) return;
    matrix z = matrix_new(t, activation(t), how, n, vocab + padding, scale);
    matrix row[3];
    for (int i = 0; i < 3; i++) row[i] = matrix_at(t, DTYPE_F32, 1, n, n, 0, 0);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = vocab; j < vocab + padding; j++) tensor_f32(z.cpu)[i * z.cpu.ld + j] = NAN;
    int32_t *targets = malloc((size_t)n * sizeof *targets);
    assert_non_null(targets);
    for (int64_t i = 0; i < n; i++) targets[i] = (int32_t)inputs_below(vocab);
    int32_t *device = device_ints(t, targets, n);
    float by = 1.0f / (float)n;
    for (int again = 0; again < 2; again++) {
        push(&z);
        t->gpu.ce_whole(&t->gpu, row[0].gpu.data, row[1].gpu.data, row[2].gpu.data, z.gpu, vocab, device, by);
        free(pull(&z, "ce_whole"));
        for (int i = 0; i < 3; i++) free(pull(&row[i], "ce_whole's rows"));
    }
    t->cpu.ce_whole(&t->cpu, row[0].cpu.data, row[1].cpu.data, row[2].cpu.data, z.cpu, vocab, targets, by);
    t->gpu.release(&t->gpu, device);
    free(targets);
    for (int i = 0; i < 3; i++) {
        check_same(&row[i], "ce_whole's rows");
        matrix_free(&row[i]);
    }
    check_same(&z, "ce_whole");
    matrix_free(&z);
}

static void test_whole_cross_entropy(void **state) {
    for (int fp32 = 0; fp32 < 2; fp32++) {
        tables t;
        open_tables(&t, fp32);
        for (int how = 0; how < LAYOUTS; how++) {
            check_whole_cross_entropy(&t, (layout)how, 1, 1, 0, 1);
            check_whole_cross_entropy(&t, (layout)how, 3, 509, 3, 3);
            check_whole_cross_entropy(&t, (layout)how, 1000, 509, 67, 3);
            check_whole_cross_entropy(&t, (layout)how, 20, 32000, 0, 3);
            check_whole_cross_entropy(&t, (layout)how, 5, 50257, 7, 3); /* more than the registers hold */
            check_whole_cross_entropy(&t, (layout)how, 5, 16, 0, 200);
        }
        close_tables(&t);
    }
}

static void test_cross_entropy(void **state) {
    for (int fp32 = 0; fp32 < 2; fp32++) {
        tables t;
        open_tables(&t, fp32);
        for (int how = 0; how < LAYOUTS; how++) {
            check_cross_entropy(&t, (layout)how, 1, 1, 0, 0, 1);
            check_cross_entropy(&t, (layout)how, 3, 509, 0, 0, 3);
            check_cross_entropy(&t, (layout)how, 3, 509, 3, 100, 3); /* padded; targets on other ranks */
            check_cross_entropy(&t, (layout)how, 1000, 509, 67, 0, 3);
            check_cross_entropy(&t, (layout)how, 30, 32000, 0, 0, 3);
            check_cross_entropy(&t, (layout)how, 5, 16, 0, 0, 200); /* exp without the maximum would overflow */
        }
        close_tables(&t);
    }
}

static void test_a_nan_anywhere_shows_in_the_loss(void **state) {
    enum { V = 4000 };
    tables t;
    open_tables(&t, false);
    matrix z = matrix_new(&t, activation(&t), DENSE, 1, V, 1), most = matrix_at(&t, DTYPE_F32, 1, 1, 1, 0, 0);
    matrix sum = matrix_at(&t, DTYPE_F32, 1, 1, 1, 0, 0), picked = matrix_at(&t, DTYPE_F32, 1, 1, 1, 0, 0);
    int32_t target = 1, *device = device_ints(&t, &target, 1);
    float *values = malloc(V * sizeof *values);
    assert_non_null(values);
    memcpy(values, z.cpu_block, V * sizeof *values);
    for (int j = 0; j < V; j += 571) {
        memcpy(z.cpu_block, values, V * sizeof *values);
        z.cpu_block[j] = NAN;
        push(&z);
        t.gpu.ce_max(&t.gpu, most.gpu.data, z.gpu, V);
        float *got = pull(&most, "ce_max");
        assert_true(isnan(got[0]));
        free(got);
        t.gpu.ce_whole(&t.gpu, most.gpu.data, sum.gpu.data, picked.gpu.data, z.gpu, V, device, 1);
        got = pull(&sum, "ce_whole");
        assert_true(isnan(got[0]));
        free(got);
        free(most.earlier);
        free(sum.earlier);
        most.earlier = sum.earlier = NULL;
    }
    free(values);
    t.gpu.release(&t.gpu, device);
    matrix *all[] = {&z, &most, &sum, &picked};
    for (int i = 0; i < 4; i++) matrix_free(all[i]);
    close_tables(&t);
}

/* ---------------------------------------------------------------- optimizer */

static void test_sum_squares(void **state) {
    static const int64_t counts[] = {0, 1, 3, 4, 5, 4095, 4097, 1000003, 5000000};
    tables t;
    open_tables(&t, false);
    double *out = t.gpu.alloc(&t.gpu, sizeof *out);
    assert_non_null(out);
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        double got[3], want = 0.5;
        for (int shift = 0; shift < 3; shift++) { /* aligned, aligned again, not */
            static const double start = 0.5;
            inputs_next = 0; /* the same values */
            matrix x = matrix_at(&t, DTYPE_F32, 1, counts[c], counts[c], shift / 2, 1);
            float *values = x.cpu.data; /* of very different sizes: another order has other bits */
            for (int64_t i = 0; i < counts[c]; i++) values[i] = ldexpf(values[i], (int)inputs_below(40) - 20);
            push(&x);
            t.gpu.upload(&t.gpu, out, &start, sizeof start);
            t.gpu.sum_squares(&t.gpu, out, x.gpu.data, counts[c]);
            t.gpu.download(&t.gpu, &got[shift], out, sizeof *out);
            if (shift == 0) t.cpu.sum_squares(&t.cpu, &want, x.cpu.data, counts[c]);
            matrix_free(&x);
        }
        check_near(got[0], want, 1e-12 * want);
        assert_memory_equal(&got[0], &got[1], sizeof got[0]);
        assert_memory_equal(&got[0], &got[2], sizeof got[0]);
    }
    t.gpu.release(&t.gpu, out);
    close_tables(&t);
}

/* The state after some steps, then steps whose norm is not finite: nothing moves. */
static void check_adamw(tables *t, int64_t count, int64_t shift, float clip, float decay) {
    if (left_out(count)) return;
    matrix w = matrix_at(t, DTYPE_F32, 1, count, count, shift, 1),
           m = matrix_at(t, DTYPE_F32, 1, count, count, shift, 1);
    matrix v = matrix_at(t, DTYPE_F32, 1, count, count, shift, 1),
           g = matrix_at(t, DTYPE_F32, 1, count, count, shift, 1);
    matrix copy = matrix_at(t, activation(t), 1, count, count, shift, 0);
    double *figures = t->gpu.alloc(&t->gpu, 3 * sizeof *figures);
    adamw_update cpu_update = {0}, *gpu_update = t->gpu.alloc(&t->gpu, sizeof *gpu_update);
    assert_non_null(figures);
    assert_non_null(gpu_update);
    for (int64_t i = 0; i < count; i++) v.cpu_block[shift + i] = fabsf(v.cpu_block[shift + i]);
    push(&v);
    static const double cases[][3] = {{0.5, 2, 3},        {0.5, NAN, 3},    {100, 2, 3}, {NAN, 2, 3},
                                      {0.5, 2, INFINITY}, {INFINITY, 2, 3}, {0.5, 2, 3}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        adamw_args args = {0.01f, 0.9f, 0.95f, 1e-8f, clip, figures, figures + 1, 2};
        t->gpu.upload(&t->gpu, figures, cases[i], sizeof cases[i]);
        t->gpu.adamw_begin(&t->gpu, gpu_update, args);
        t->gpu.adamw(&t->gpu, w.gpu.data, m.gpu.data, v.gpu.data, g.gpu.data, copy.gpu.data, count, decay, gpu_update);
        args.norm_sq = cases[i];
        args.losses = cases[i] + 1;
        t->cpu.adamw_begin(&t->cpu, &cpu_update, args);
        t->cpu.adamw(&t->cpu, w.cpu.data, m.cpu.data, v.cpu.data, g.cpu.data, copy.cpu.data, count, decay, &cpu_update);
    }
    adamw_update got;
    t->gpu.download(&t->gpu, &got, gpu_update, sizeof got);
    assert_int_equal(got.count, 3);
    assert_int_equal(cpu_update.count, 3);
    t->gpu.release(&t->gpu, gpu_update);
    check_same(&w, "adamw weight");
    check_same(&m, "adamw m");
    check_same(&v, "adamw v");
    check_same(&copy, "adamw copy");
    fill(&copy, 0);
    t->gpu.cast(&t->gpu, copy.gpu.data, w.gpu.data, count);
    t->cpu.cast(&t->cpu, copy.cpu.data, w.cpu.data, count);
    check_same(&copy, "cast"); /* and the bits that adamw wrote */
    matrix *all[] = {&w, &m, &v, &g, &copy};
    for (int i = 0; i < 5; i++) matrix_free(all[i]);
    t->gpu.release(&t->gpu, figures);
}

static void test_adamw_and_cast(void **state) {
    static const int64_t counts[] = {1, 3, 4, 1037, 100000};
    for (int fp32 = 0; fp32 < 2; fp32++) {
        tables t;
        open_tables(&t, fp32);
        for (int c = 0; c < 5; c++)
            for (int shift = 0; shift < 2; shift++) {
                check_adamw(&t, counts[c], shift, 0, 0);
                check_adamw(&t, counts[c], shift, 1, 0.1f);
            }
        close_tables(&t);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup(test_a_bad_index_is_refused_with_the_number_of_gpus, inputs_start),
    cmocka_unit_test_setup(test_memory, inputs_start),
    cmocka_unit_test_setup(test_memory_in_use_is_told, inputs_start),
    cmocka_unit_test_setup(test_the_first_error_is_kept, inputs_start),
    cmocka_unit_test_setup(test_marks, inputs_start),
    cmocka_unit_test_setup(test_matmul_fp32, inputs_start),
    cmocka_unit_test_setup(test_matmul_bf16, inputs_start),
    cmocka_unit_test_setup(test_checksum, inputs_start),
    cmocka_unit_test_setup(test_the_choice_of_an_algorithm_is_not_seen, inputs_start),
    cmocka_unit_test_setup(test_fp32_products_are_not_tf32, inputs_start),
    cmocka_unit_test_setup(test_rmsnorm, inputs_start),
    cmocka_unit_test_setup(test_rope, inputs_start),
    cmocka_unit_test_setup(test_swiglu_add_and_copy, inputs_start),
    cmocka_unit_test_setup(test_embedding, inputs_start),
    cmocka_unit_test_setup(test_cross_entropy, inputs_start),
    cmocka_unit_test_setup(test_whole_cross_entropy, inputs_start),
    cmocka_unit_test_setup(test_a_nan_anywhere_shows_in_the_loss, inputs_start),
    cmocka_unit_test_setup(test_sum_squares, inputs_start),
    cmocka_unit_test_setup(test_adamw_and_cast, inputs_start),
};
TEST_MAIN(tests)
