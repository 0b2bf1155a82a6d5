/* bench_attention_cuda: the CUDA attention core at the shapes of bench/notes.md (bf16), one JSON line a shape.
 *
 * usage: bench_attention_cuda [MOST_TFLOP]     default 2: shapes of more work are left out
 * Causal flops: forward B H T^2 (D_qk + D_v), backward B H T^2 (3 D_qk + 2 D_v), the five products of FlashAttention-2.
 * Results are checked against the CPU core by test_attention_cuda; here only that no call failed. */
#include "attention/core.h"
#include "core/clock.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { REPEATS = 10, ROUNDS = 3, OPERANDS = 10 };

typedef struct shape {
    const char *name;
    int batch, heads, context, nope, rope, value;
} shape;

static const shape shapes[] = {
    {"64-1k", 16, 12, 1024, 64, 0, 64},          {"96/64-1k", 16, 12, 1024, 64, 32, 64},
    {"64-2k", 8, 16, 2048, 64, 0, 64},           {"64-8k", 2, 16, 8192, 64, 0, 64},
    {"96/64-2k", 8, 16, 2048, 64, 32, 64},       {"128-4k", 4, 16, 4096, 128, 0, 128},
    {"192/128-4k", 4, 16, 4096, 128, 64, 128},   {"128-16k", 1, 16, 16384, 128, 0, 128},
    {"192/128-16k", 1, 16, 16384, 128, 64, 128},
};

enum { PATTERN = 1000003 }; /* values; a prime, so that rows of one matrix differ */

/* A bf16 matrix of normal values, the pattern of `stream` over and over; data NULL when the device has no room. */
static tensor matrix(ops *o, int64_t rows, int64_t cols, uint64_t stream) {
    static float values[PATTERN];
    static uint16_t halves[PATTERN];
    int64_t count = rows * cols;
    tensor t = tensor_make(o->alloc(o, (size_t)count * 2 + 16), DTYPE_BF16, rows, cols);
    rng_normal(values, 7, stream, 0, PATTERN, 1);
    for (int i = 0; i < PATTERN; i++) {
        union {
            float value;
            uint32_t bits;
        } x = {values[i]};
        halves[i] = (uint16_t)(x.bits >> 16);
    }
    for (int64_t at = 0; t.data && at < count; at += PATTERN) {
        int64_t part = count - at < PATTERN ? count - at : PATTERN;
        o->upload(o, (uint16_t *)t.data + at, halves, (size_t)part * sizeof *halves);
    }
    o->sync(o);
    return t;
}

/* Seconds a call: the fastest of ROUNDS. */
static double time_pass(ops *o, const attn_core *core, const attn_core_args *a, const attn_core_grads *g, arena *s) {
    double best = INFINITY;
    for (int round = 0; round <= ROUNDS; round++) { /* the first is to warm up */
        double start = clock_now_s();
        for (int i = 0; i < REPEATS; i++) {
            if (g)
                core->backward(o, a, g, s);
            else
                core->forward(o, a, s);
        }
        o->sync(o);
        double seconds = (clock_now_s() - start) / REPEATS;
        if (round > 0 && seconds < best) best = seconds;
    }
    return best;
}

static bool run_shape(ops *o, const shape *s) {
    const attn_core *core = attn_core_cuda();
    int64_t n = (int64_t)s->batch * s->context, qk = s->nope + s->rope, h = s->heads;
    int64_t cols[OPERANDS] = {h * qk,       h * s->nope, h * s->value, s->rope,      h * s->value,
                              h * s->value, h * qk,      h * s->nope,  h * s->value, s->rope};
    tensor t[OPERANDS];
    bool whole = true;
    for (int i = 0; i < OPERANDS; i++) {
        t[i] = matrix(o, n, cols[i], (uint64_t)i);
        whole = whole && t[i].data;
    }
    float *lse = o->alloc(o, (size_t)(n * h) * sizeof *lse);
    attn_core_args a = {.batch = s->batch,
                        .context = s->context,
                        .heads = s->heads,
                        .kv_heads = s->heads,
                        .nope = s->nope,
                        .rope = s->rope,
                        .value = s->value,
                        .scale = (float)(1 / sqrt((double)qk)),
                        .q = t[0],
                        .k = t[1],
                        .v = t[2],
                        .k_head = s->nope,
                        .v_head = s->value,
                        .k_rope = t[3],
                        .o = t[4],
                        .lse = lse};
    attn_core_grads g = {.dout = t[5], .dq = t[6], .dk = t[7], .dv = t[8], .dk_rope = t[9]};
    arena scratch = {0};
    core->forward(o, &a, &scratch);
    core->backward(o, &a, &g, &scratch);
    scratch = (arena){.size_bytes = scratch.peak_bytes};
    scratch.base = o->alloc(o, scratch.size_bytes + 1);
    if (whole && lse && scratch.base) {
        double work = (double)s->batch * s->heads * s->context * s->context;
        double forward = time_pass(o, core, &a, NULL, &scratch), backward = time_pass(o, core, &a, &g, &scratch);
        if (ops_status(o) == STATUS_OK)
            printf("{\"bench\":\"attention\",\"core\":\"%s\",\"shape\":\"%s\",\"forward_ms\":%.4f,\"forward_tflops\":"
                   "%.1f,\"backward_ms\":%.4f,\"backward_tflops\":%.1f}\n",
                   core->name, s->name, forward * 1e3, work * (double)(qk + s->value) / forward * 1e-12, backward * 1e3,
                   work * (double)(3 * qk + 2 * s->value) / backward * 1e-12);
        fflush(stdout);
    } else {
        fprintf(stderr, "%s: no room on the device\n", s->name);
        whole = false;
    }
    for (int i = 0; i < OPERANDS; i++) o->release(o, t[i].data);
    o->release(o, lse);
    o->release(o, scratch.base);
    return whole && ops_status(o) == STATUS_OK;
}

int main(int argc, char **argv) {
    double most = argc > 1 ? atof(argv[1]) : 2;
    ops o;
    bool passed = true;
    if (ops_cuda(&o, 0, false) != STATUS_OK) {
        fprintf(stderr, "%s\n", status_message());
        return 1;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        double tflop = 1e-12 * s->batch * s->heads * s->context * s->context * (s->nope + s->rope + s->value);
        if (tflop <= most) passed = run_shape(&o, s) && passed;
    }
    o.close(&o);
    return passed ? 0 : 1;
}
