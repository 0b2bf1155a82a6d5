/* The CUDA attention core, with each family of kernels that the device has, against the CPU's, fp32 and bf16, on the
 * same inputs (rounded to bf16 for both where the GPU's are). The CPU core is itself held against double in tests/unit.
 *
 * fp32: the order of sums may differ. bf16: at most twice the error of a naive bf16 computation, which rounds the
 * probabilities, their gradients and the outputs. Errors are norms over a whole operand. */
#include "attention/core.h"
#include "core/ops/cuda/context.h"
#include "inputs.h"

static const double FP32_TOLERANCE = 1e-5;
static const double FLOOR = 1e-5; /* of an element of size 1 whose terms cancel */
/* In so short a context a handful of roundings make the error, two computations differ by chance, and delta, a sum of
 * rounded outputs, is taken from a number of its size: as much as some roundings of bf16 is allowed besides. */
enum { FEW_TOKENS = 16 };
static const double BF16_ROUNDINGS = 4.0 / 256;

typedef struct shape {
    int batch, context, heads, kv_heads, nope, rope, value;
    bool interleaved; /* k and v are [k_h | v_h] in one matrix */
    float gain;       /* of q: 30 makes nearly one-hot rows */
    bool equal_keys;
    bool unaligned; /* operands begin one element after a 16-byte boundary */
} shape;

enum { Q, K, V, K_ROPE, DOUT, O, DQ, DK, DV, DK_ROPE, LSE, OPERANDS };
static const char *const names[OPERANDS] = {"q", "k", "v", "k_rope", "dout", "o", "dq", "dk", "dv", "dk_rope", "lse"};

/* Every operand of one case on both devices; naive: the host results of the naive bf16 computation. */
typedef struct both {
    ops cpu, gpu;
    shape s;
    int64_t count[OPERANDS], cols[OPERANDS];
    float *host[OPERANDS], *naive[OPERANDS];
    void *device[OPERANDS];
} both;

static float round_bf16(float x) {
    uint32_t bits;
    if (!isfinite(x)) return x;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static dtype type_of(const both *b, int operand) {
    return operand == LSE ? DTYPE_F32 : b->gpu.activation;
}

static size_t shift_bytes(const both *b, int operand) {
    return b->s.unaligned ? dtype_bytes(type_of(b, operand)) : 0;
}

static void push(both *b, int operand, const float *values) {
    size_t n = (size_t)b->count[operand], size = dtype_bytes(type_of(b, operand));
    char *packed = malloc(n * size + 1);
    assert_non_null(packed);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        uint16_t half = (uint16_t)(bits >> 16); /* values are representable */
        memcpy(packed + i * size, size == 2 ? (void *)&half : (void *)&bits, size);
    }
    b->gpu.upload(&b->gpu, b->device[operand], packed, n * size);
    b->gpu.sync(&b->gpu);
    free(packed);
}

static float *pull(both *b, int operand) {
    size_t n = (size_t)b->count[operand], size = dtype_bytes(type_of(b, operand));
    char *packed = malloc(n * size + 1);
    float *values = malloc(n * sizeof *values + 1);
    assert_non_null(packed);
    assert_non_null(values);
    b->gpu.download(&b->gpu, packed, b->device[operand], n * size);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = 0;
        memcpy((char *)&bits + (4 - size), packed + i * size, size); /* bf16 is the upper half (little-endian) */
        memcpy(&values[i], &bits, sizeof bits);
    }
    free(packed);
    return values;
}

static void both_open(both *b, shape s, bool fp32) {
    if (ops_cuda_devices() == 0) {
        print_message("skipped: no NVIDIA GPU on this machine\n");
        skip();
    }
    *b = (both){.s = s};
    check_status(ops_cpu(&b->cpu, 2), STATUS_OK);
    check_status(ops_cuda(&b->gpu, 0, fp32), STATUS_OK);
    int64_t n = (int64_t)s.batch * s.context, q = (int64_t)s.heads * (s.nope + s.rope);
    int64_t o = (int64_t)s.heads * s.value, k = (int64_t)s.kv_heads * (s.nope + (s.interleaved ? s.value : 0));
    int64_t v = s.interleaved ? 0 : (int64_t)s.kv_heads * s.value;
    int64_t cols[OPERANDS] = {q, k, v, s.rope, o, o, q, k, v, s.rope, s.heads};
    for (int i = 0; i < OPERANDS; i++) {
        b->cols[i] = cols[i];
        b->count[i] = n * cols[i];
        b->host[i] = malloc((size_t)b->count[i] * sizeof(float) + 1);
        b->naive[i] = calloc((size_t)b->count[i] + 1, sizeof(float));
        char *device = b->gpu.alloc(&b->gpu, (size_t)b->count[i] * dtype_bytes(type_of(b, i)) + 16);
        assert_non_null(b->host[i]);
        assert_non_null(b->naive[i]);
        assert_non_null(device);
        b->device[i] = device + shift_bytes(b, i);
        if (i <= DOUT) inputs_normal(b->host[i], b->count[i], i == Q ? s.gain : 1);
        for (int64_t e = 0; e < b->count[i]; e++) {
            if (i > DOUT) b->host[i][e] = NAN;
            if (s.equal_keys && (i == K || i == K_ROPE)) b->host[i][e] = b->host[i][e % cols[i]];
            if (!fp32) b->host[i][e] = round_bf16(b->host[i][e]);
        }
        push(b, i, b->host[i]);
    }
}

static void both_close(both *b) {
    for (int i = 0; i < OPERANDS; i++) {
        free(b->host[i]);
        free(b->naive[i]);
        b->gpu.release(&b->gpu, (char *)b->device[i] - shift_bytes(b, i));
    }
    b->gpu.close(&b->gpu);
}

static void arguments(const both *b, bool gpu, attn_core_args *a, attn_core_grads *g) {
    const shape *s = &b->s;
    tensor t[OPERANDS];
    for (int i = 0; i < OPERANDS; i++)
        t[i] = tensor_make(gpu ? b->device[i] : b->host[i], gpu ? type_of(b, i) : DTYPE_F32,
                           (int64_t)s->batch * s->context, b->cols[i]);
    if (s->interleaved) {
        t[V] = tensor_cols(t[K], s->nope, t[K].cols - s->nope);
        t[DV] = tensor_cols(t[DK], s->nope, t[DK].cols - s->nope);
    }
    *a = (attn_core_args){
        .batch = s->batch,
        .context = s->context,
        .heads = s->heads,
        .kv_heads = s->kv_heads,
        .nope = s->nope,
        .rope = s->rope,
        .value = s->value,
        .scale = (float)(1 / sqrt(s->nope + s->rope)),
        .q = t[Q],
        .k = t[K],
        .v = t[V],
        .k_head = s->nope + (s->interleaved ? s->value : 0),
        .v_head = s->value + (s->interleaved ? s->nope : 0),
        .k_rope = s->rope ? t[K_ROPE] : (tensor){0},
        .o = t[O],
        .lse = t[LSE].data,
    };
    *g = (attn_core_grads){
        .dout = t[DOUT], .dq = t[DQ], .dk = t[DK], .dv = t[DV], .dk_rope = s->rope ? t[DK_ROPE] : (tensor){0}};
}

/* Both passes, with scratch that an earlier use left full of NaN. */
static void run_core(both *b, const attn_core *core) {
    bool gpu = core != &attn_core_cpu;
    ops *o = gpu ? &b->gpu : &b->cpu;
    attn_core_args a;
    attn_core_grads g;
    arguments(b, gpu, &a, &g);
    arena scratch = {0};
    core->forward(o, &a, &scratch);
    core->backward(o, &a, &g, &scratch);
    size_t bytes = scratch.peak_bytes;
    char *poison = malloc(bytes + 1);
    assert_non_null(poison);
    memset(poison, 0xff, bytes);
    scratch = (arena){.base = o->alloc(o, bytes + 1), .size_bytes = bytes};
    assert_non_null(scratch.base);
    o->upload(o, scratch.base, poison, bytes);
    core->forward(o, &a, &scratch);
    core->backward(o, &a, &g, &scratch);
    o->sync(o);
    check_status(ops_status(o), STATUS_OK);
    o->release(o, scratch.base);
    free(poison);
}

/* Keys and values as args see them. */
static const float *row(tensor t, int64_t i, int64_t first) {
    return (const float *)t.data + i * t.ld + first;
}

/* Row i of one head of the naive bf16 computation: outputs are added up in fp32 here and rounded at the end. */
static void naive_row(both *b, const attn_core_args *a, const attn_core_grads *g, int64_t first, int64_t i, int h,
                      float *p) {
    int64_t kv = (int64_t)h * a->kv_heads / a->heads, qk = a->nope + a->rope;
    const float *q = row(a->q, first + i, h * qk), *dout = row(g->dout, first + i, (int64_t)h * a->value);
    float *o = b->naive[O] + (first + i) * b->cols[O] + (int64_t)h * a->value,
          *dq = b->naive[DQ] + (first + i) * b->cols[DQ] + h * qk;
    float top = -INFINITY, sum = 0, delta = 0;
    for (int64_t j = 0; j <= i; j++) {
        const float *k = row(a->k, first + j, kv * a->k_head), *r = a->rope ? row(a->k_rope, first + j, 0) : NULL;
        p[j] = 0;
        for (int64_t c = 0; c < qk; c++) p[j] += q[c] * (c < a->nope ? k[c] : r[c - a->nope]);
        p[j] *= a->scale;
        top = fmaxf(top, p[j]);
    }
    for (int64_t j = 0; j <= i; j++) sum += p[j] = expf(p[j] - top);
    for (int64_t j = 0; j <= i; j++) {
        const float *v = row(a->v, first + j, kv * a->v_head);
        p[j] = round_bf16(p[j] / sum);
        for (int c = 0; c < a->value; c++) o[c] += p[j] * v[c];
    }
    for (int c = 0; c < a->value; c++) delta += dout[c] * (o[c] = round_bf16(o[c]));
    for (int64_t j = 0; j <= i; j++) {
        const float *k = row(a->k, first + j, kv * a->k_head), *r = a->rope ? row(a->k_rope, first + j, 0) : NULL;
        const float *v = row(a->v, first + j, kv * a->v_head);
        float *dk = b->naive[DK] + (first + j) * a->k.ld + kv * a->k_head,
              *dr = b->naive[DK_ROPE] + (first + j) * a->rope;
        float *dv = b->s.interleaved ? dk + a->nope : b->naive[DV] + (first + j) * a->v.ld + kv * a->v_head, dp = 0;
        for (int c = 0; c < a->value; c++) {
            dp += dout[c] * v[c];
            dv[c] += p[j] * dout[c];
        }
        float ds = round_bf16(p[j] * (dp - delta) * a->scale);
        for (int64_t c = 0; c < qk; c++) {
            dq[c] += ds * (c < a->nope ? k[c] : r[c - a->nope]);
            *(c < a->nope ? &dk[c] : &dr[c - a->nope]) += ds * q[c];
        }
    }
}

static void run_naive(both *b) {
    attn_core_args a;
    attn_core_grads g;
    arguments(b, false, &a, &g);
    float *p = malloc((size_t)a.context * sizeof *p);
    assert_non_null(p);
    for (int64_t sample = 0; sample < a.batch; sample++)
        for (int h = 0; h < a.heads; h++)
            for (int64_t i = 0; i < a.context; i++) naive_row(b, &a, &g, sample * a.context, i, h, p);
    free(p);
    for (int i = O; i < LSE; i++)
        for (int64_t e = 0; e < b->count[i]; e++) b->naive[i][e] = round_bf16(b->naive[i][e]);
}

static double distance(const float *x, const float *y, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += ((double)x[i] - y[i]) * ((double)x[i] - y[i]);
    return sqrt(sum);
}

static double norm(const float *x, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sqrt(sum);
}

static void check_case(shape s, bool fp32, const char *family) {
    both b;
    both_open(&b, s, fp32);
    if (strcmp(family, "wgmma") == 0 && !cuda_of(&b.gpu)->warpgroups) { /* not this device's */
        both_close(&b);
        return;
    }
    const attn_core *core = attn_core_cuda_family(family);
    run_core(&b, &attn_core_cpu);
    if (!fp32) run_naive(&b);
    run_core(&b, core);
    float *first[OPERANDS] = {0};
    for (int i = O; i < OPERANDS; i++) {
        first[i] = pull(&b, i);
        double floor = FLOOR * s.gain * sqrt((double)b.count[i]), error = distance(first[i], b.host[i], b.count[i]);
        double allowed = fp32 || i == LSE ? FP32_TOLERANCE * s.gain * norm(b.host[i], b.count[i])
                                          : 2 * distance(b.naive[i], b.host[i], b.count[i]);
        if (!fp32 && s.context < FEW_TOKENS) allowed += BF16_ROUNDINGS * norm(b.host[i], b.count[i]);
        if (!(error <= allowed + floor))
            fail_msg("%s, %s by %s, B %d T %d H %d/%d (%d+%d)/%d: off by %.3g > %.3g + %.3g", names[i],
                     fp32 ? "fp32" : "bf16", family, s.batch, s.context, s.heads, s.kv_heads, s.nope, s.rope, s.value,
                     error, allowed, floor);
        float *poison = malloc((size_t)b.count[i] * sizeof *poison + 1);
        assert_non_null(poison);
        for (int64_t e = 0; e < b.count[i]; e++) poison[e] = NAN;
        push(&b, i, poison);
        free(poison);
    }
    run_core(&b, core); /* the same bits again */
    for (int i = O; i < OPERANDS; i++) {
        float *again = pull(&b, i);
        assert_memory_equal(again, first[i], (size_t)b.count[i] * sizeof *again);
        free(again);
        free(first[i]);
    }
    both_close(&b);
}

static void check_both(shape s) {
    if (s.gain == 0) s.gain = 1;
    check_case(s, true, "plain");
    check_case(s, false, "plain");
    check_case(s, false, "mma");
    check_case(s, false, "wgmma");
}

/* Operands from O to LSE as a family makes them. */
static void run_and_pull(both *b, const char *family, float *out[OPERANDS]) {
    run_core(b, attn_core_cuda_family(family));
    for (int i = O; i < OPERANDS; i++) out[i] = pull(b, i);
}

/* A context too long for the CPU: wgmma against mma.sync, which is held against the CPU where it is not, in blocks of
 * rows. Both round as bf16 does; what a tile of the longest context adds to a block is 1/16 of it by norm and more. And
 * wgmma's bits again. */
static void check_long(shape s) {
    enum { ROWS = 64 };
    static const double ROUNDINGS = 4.0 / 256;
    both b;
    float *mma[OPERANDS], *wgmma[OPERANDS], *again[OPERANDS];
    both_open(&b, s, false);
    if (!cuda_of(&b.gpu)->warpgroups) { /* nothing to compare */
        both_close(&b);
        return;
    }
    run_and_pull(&b, "mma", mma);
    run_and_pull(&b, "wgmma", wgmma);
    run_and_pull(&b, "wgmma", again);
    for (int i = O; i < OPERANDS; i++) {
        for (int64_t at = 0, n = ROWS * b.cols[i]; at < b.count[i]; at += n) {
            if (n > b.count[i] - at) n = b.count[i] - at;
            double error = distance(wgmma[i] + at, mma[i] + at, n), size = norm(mma[i] + at, n);
            if (!(error <= ROUNDINGS * size))
                fail_msg("%s, T %d H %d/%d (%d+%d)/%d, rows from %ld on: wgmma is %.3g off mma.sync, of %.3g", names[i],
                         s.context, s.heads, s.kv_heads, s.nope, s.rope, s.value, (long)(at / b.cols[i]), error, size);
        }
        assert_memory_equal(again[i], wgmma[i], (size_t)b.count[i] * sizeof(float));
        free(mma[i]);
        free(wgmma[i]);
        free(again[i]);
    }
    both_close(&b);
}

static const int contexts[] = {1, 2, 31, 65, 127, 128, 130};
enum { CONTEXTS = sizeof contexts / sizeof *contexts };

static void test_contexts(void **state) {
    for (int t = 0; t < CONTEXTS; t++) {
        check_both((shape){2, contexts[t], 3, 3, 64, 32, 64, true, 1, false, false});
        check_both((shape){1, contexts[t], 2, 2, 64, 0, 64, false, 1, false, false});
    }
}

static void test_long_context(void **state) {
    check_both((shape){1, 1025, 2, 2, 64, 32, 64, true, 1, false, false});
}

/* Those whose tiles of queries fill the cache go through the heads in another order, a few at a time (hopper_order.h).
 */
static void test_longest_contexts(void **state) {
    check_long((shape){1, 32768, 2, 2, 128, 64, 128, false, 1, false, false});
    check_long((shape){1, 32768, 2, 1, 64, 0, 64, true, 1, false, false});
    check_long((shape){1, 16385, 9, 9, 128, 64, 128, true, 1, false, false});
    check_long((shape){1, 32700, 3, 3, 128, 0, 128, false, 1, false, false});
    check_long((shape){2, 8200, 2, 2, 64, 32, 64, true, 1, false, false});
}

/* bf16, by both families; the plain kernels see no more in these than in small ones. */
static void check_fused(shape s) {
    check_case(s, false, "mma");
    check_case(s, false, "wgmma");
}

/* Several tiles of keys and of queries and one more row, whole heads in turn on a multiprocessor. */
static void test_several_tiles(void **state) {
    check_fused((shape){2, 385, 12, 12, 64, 0, 64, false, 1, false, false});
    check_fused((shape){2, 385, 12, 12, 64, 32, 64, true, 1, false, false});
    check_fused((shape){1, 1025, 2, 2, 64, 0, 64, false, 1, false, false});
    check_fused((shape){1, 1025, 2, 2, 128, 0, 128, true, 1, false, false});
    check_fused((shape){1, 1025, 2, 2, 128, 64, 128, true, 1, false, false});
    check_fused((shape){3, 449, 4, 2, 64, 0, 64, false, 1, false, false});
    check_fused((shape){1, 449, 6, 1, 128, 0, 128, true, 1, false, false});
}

/* More heads than there are sums of dq kept: places of sums are used again. */
static void test_many_heads(void **state) {
    check_fused((shape){9, 257, 12, 12, 64, 0, 64, false, 1, false, false});
    check_fused((shape){20, 129, 12, 12, 128, 64, 128, true, 1, false, false});
}

static void test_sizes_of_heads(void **state) {
    check_both((shape){1, 130, 2, 2, 16, 8, 16, true, 1, false, false});
    check_both((shape){1, 130, 2, 2, 32, 16, 32, false, 1, false, false});
    check_both((shape){1, 130, 2, 2, 128, 0, 128, true, 1, false, false});
    check_both((shape){1, 130, 2, 2, 128, 64, 128, true, 1, false, false});
    check_both((shape){1, 65, 1, 1, 192, 64, 256, false, 1, false, false});
    check_both((shape){1, 130, 2, 2, 16, 0, 16, true, 1, false, false});
    check_both((shape){1, 130, 2, 2, 32, 16, 80, true, 1, false, false});
    check_both((shape){1, 130, 2, 2, 80, 0, 48, false, 1, false, false});
    check_both((shape){1, 130, 2, 2, 112, 32, 96, true, 1, false, false});
    check_both((shape){1, 130, 2, 2, 160, 48, 160, false, 1, false, false});
    check_both((shape){1, 130, 2, 2, 160, 0, 128, false, 1, false, false});
    check_both((shape){1, 130, 2, 2, 40, 56, 64, true, 1, false, false});
}

/* What the fused kernels do not take: sizes that are no multiple of 8, views off the 16-byte boundaries. */
static void test_odd_shapes(void **state) {
    check_both((shape){2, 65, 3, 3, 20, 6, 18, true, 1, false, false});
    check_both((shape){1, 65, 2, 2, 64, 32, 64, true, 1, false, true});
}

static void test_grouped_heads(void **state) {
    check_both((shape){2, 130, 4, 1, 64, 0, 64, false, 1, false, false});
    check_both((shape){2, 130, 6, 3, 128, 0, 128, true, 1, false, false});
    check_both((shape){2, 65, 4, 2, 64, 32, 64, true, 1, false, false});
}

static void test_large_scores(void **state) {
    check_both((shape){1, 130, 2, 2, 64, 32, 64, true, 30, false, false});
    check_fused((shape){1, 385, 2, 2, 64, 0, 64, false, 30, false, false});
    check_fused((shape){1, 385, 2, 2, 128, 64, 128, true, 30, false, false});
}

static void test_equal_keys(void **state) {
    check_both((shape){1, 130, 2, 2, 64, 32, 64, true, 1, true, false});
    check_fused((shape){1, 385, 2, 2, 64, 0, 64, true, 1, true, false});
    check_fused((shape){1, 385, 2, 2, 128, 64, 128, false, 1, true, false});
}

/* Heads that are too wide end in one message, no crash. */
static void test_too_wide_a_head_is_refused(void **state) {
    both b;
    both_open(&b, (shape){1, 4, 1, 1, 240, 32, 64, false, 1, false, false}, false);
    attn_core_args a;
    attn_core_grads g;
    arguments(&b, true, &a, &g);
    char *block = b.gpu.alloc(&b.gpu, 4096);
    arena scratch = {.base = block, .size_bytes = 4096};
    attn_core_cuda()->forward(&b.gpu, &a, &scratch);
    check_status(ops_status(&b.gpu), STATUS_CONFIG);
    b.gpu.release(&b.gpu, block);
    both_close(&b);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup(test_contexts, inputs_start),
    cmocka_unit_test_setup(test_long_context, inputs_start),
    cmocka_unit_test_setup(test_longest_contexts, inputs_start),
    cmocka_unit_test_setup(test_several_tiles, inputs_start),
    cmocka_unit_test_setup(test_many_heads, inputs_start),
    cmocka_unit_test_setup(test_sizes_of_heads, inputs_start),
    cmocka_unit_test_setup(test_odd_shapes, inputs_start),
    cmocka_unit_test_setup(test_grouped_heads, inputs_start),
    cmocka_unit_test_setup(test_large_scores, inputs_start),
    cmocka_unit_test_setup(test_equal_keys, inputs_start),
    cmocka_unit_test_setup(test_too_wide_a_head_is_refused, inputs_start),
};
TEST_MAIN(tests)
