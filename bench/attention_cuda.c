/* bench_attention_cuda: the CUDA attention core at the shapes of bench/notes.md (bf16), family by family of its
 * kernels, and the whole decoupled stage: rotary of q_r and k_r, attention, and back. One JSON line each.
 *
 * usage: bench_attention_cuda [plain | mma | wgmma | stage]...     default: wgmma stage
 * Causal flops: forward B H T^2 (D_qk + D_v), backward B H T^2 (3 D_qk + 2 D_v), the five products of FlashAttention-2.
 * A stage's memory is all that it takes beside its inputs: outputs, gradients and scratch.
 * Results are checked against the CPU core by test_attention_cuda; here only that no call failed. */
#include "attention/attention.h"
#include "core/clock.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { REPEATS = 10, ROUNDS = 3 };
enum { Q, K, V, K_ROPE, DOUT, INPUTS, O = INPUTS, DQ, DK, DV, DK_ROPE, OPERANDS };
static const double MOST_TFLOP_PLAIN = 0.1; /* forward; the plain kernels take their time */

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

static const shape stages[] = {
    {"64+32/64-1k", 32, 12, 1024, 64, 32, 64},
    {"64+32/64-2k", 8, 16, 2048, 64, 32, 64},
    {"128+64/128-4k", 4, 16, 4096, 128, 64, 128},
    {"128+64/128-16k", 1, 16, 16384, 128, 64, 128},
};

/* A shape's operands and scratch on the device. */
typedef struct work {
    ops *o;
    const attn_core *core;
    tensor t[OPERANDS];
    float *lse, *angles;
    attn_core_args args;
    attn_core_grads grads;
    arena scratch;
    rope_args rope_q, rope_k;
    size_t bytes; /* of all but the inputs */
} work;

static float *angles(ops *o, int context, int dim) {
    size_t bytes = (size_t)(context * dim) * sizeof(float);
    float *device = o->alloc(o, bytes + 1), *host = malloc(bytes + 1);
    if (host && dim) attn_rotary_table(host, context, dim, 10000);
    if (device && host) o->upload(o, device, host, bytes);
    o->sync(o);
    free(host);
    return device;
}

static bool work_open(work *w, ops *o, const attn_core *core, const shape *s) {
    *w = (work){.o = o, .core = core};
    int64_t n = (int64_t)s->batch * s->context, qk = s->nope + s->rope, h = s->heads, v = h * s->value;
    int64_t cols[OPERANDS] = {h * qk, h * s->nope, v, s->rope, v, v, h * qk, h * s->nope, v, s->rope};
    bool whole = true;
    for (int i = 0; i < OPERANDS; i++) {
        w->t[i] = matrix(o, n, cols[i], (uint64_t)i);
        whole = whole && w->t[i].data;
        if (i >= INPUTS) w->bytes += (size_t)(n * cols[i]) * 2;
    }
    w->lse = o->alloc(o, (size_t)(n * h) * sizeof *w->lse);
    w->bytes += (size_t)(n * h) * sizeof *w->lse;
    w->angles = angles(o, s->context, s->rope);
    w->args = (attn_core_args){.batch = s->batch,
                               .context = s->context,
                               .heads = s->heads,
                               .kv_heads = s->heads,
                               .nope = s->nope,
                               .rope = s->rope,
                               .value = s->value,
                               .scale = (float)(1 / sqrt((double)qk)),
                               .q = w->t[Q],
                               .k = w->t[K],
                               .v = w->t[V],
                               .k_head = s->nope,
                               .v_head = s->value,
                               .k_rope = w->t[K_ROPE],
                               .o = w->t[O],
                               .lse = w->lse};
    w->grads =
        (attn_core_grads){.dout = w->t[DOUT], .dq = w->t[DQ], .dk = w->t[DK], .dv = w->t[DV], .dk_rope = w->t[DK_ROPE]};
    w->rope_q = (rope_args){
        .heads = s->heads, .stride = qk, .first = s->nope, .dim = s->rope, .context = s->context, .table = w->angles};
    w->rope_k = (rope_args){.heads = 1, .stride = s->rope, .dim = s->rope, .context = s->context, .table = w->angles};
    core->forward(o, &w->args, &w->scratch);
    core->backward(o, &w->args, &w->grads, &w->scratch);
    w->scratch = (arena){.size_bytes = w->scratch.peak_bytes};
    w->scratch.base = o->alloc(o, w->scratch.size_bytes + 1);
    w->bytes += w->scratch.size_bytes;
    whole = whole && w->lse && w->angles && w->scratch.base;
    if (!whole) fprintf(stderr, "%s: no room on the device\n", s->name);
    return whole;
}

static void work_close(work *w) {
    for (int i = 0; i < OPERANDS; i++) w->o->release(w->o, w->t[i].data);
    w->o->release(w->o, w->lse);
    w->o->release(w->o, w->angles);
    w->o->release(w->o, w->scratch.base);
}

static void forward(work *w) {
    w->core->forward(w->o, &w->args, &w->scratch);
}

static void backward(work *w) {
    w->core->backward(w->o, &w->args, &w->grads, &w->scratch);
}

static void rotate(work *w, tensor q, tensor k, bool inverse) {
    w->rope_q.inverse = w->rope_k.inverse = inverse;
    w->o->rope(w->o, q, w->rope_q);
    w->o->rope(w->o, k, w->rope_k);
}

static void stage_forward(work *w) {
    rotate(w, w->t[Q], w->t[K_ROPE], false);
    forward(w);
}

static void stage_both(work *w) {
    stage_forward(w);
    backward(w);
    rotate(w, w->t[DQ], w->t[DK_ROPE], true);
}

/* Seconds a call: the fastest of ROUNDS. */
static double time_calls(work *w, void (*call)(work *)) {
    double best = INFINITY;
    for (int round = 0; round <= ROUNDS; round++) { /* the first is to warm up */
        double start = clock_now_s();
        for (int i = 0; i < REPEATS; i++) call(w);
        w->o->sync(w->o);
        double seconds = (clock_now_s() - start) / REPEATS;
        if (round > 0 && seconds < best) best = seconds;
    }
    return best;
}

static bool run_shape(ops *o, const attn_core *core, const shape *s) {
    work w;
    bool passed = work_open(&w, o, core, s);
    if (passed) {
        double flops = (double)s->batch * s->heads * s->context * s->context, qk = s->nope + s->rope;
        forward(&w);
        double ahead = time_calls(&w, forward), back = time_calls(&w, backward);
        passed = ops_status(o) == STATUS_OK;
        if (passed)
            printf("{\"bench\":\"attention\",\"core\":\"%s\",\"shape\":\"%s\",\"forward_ms\":%.4f,\"forward_tflops\":"
                   "%.1f,\"backward_ms\":%.4f,\"backward_tflops\":%.1f}\n",
                   core->name, s->name, ahead * 1e3, flops * (qk + s->value) / ahead * 1e-12, back * 1e3,
                   flops * (3 * qk + 2 * s->value) / back * 1e-12);
        fflush(stdout);
    }
    work_close(&w);
    return passed;
}

static bool run_stage(ops *o, const shape *s) {
    work w;
    bool passed = work_open(&w, o, attn_core_cuda(), s);
    if (passed) {
        double ahead = time_calls(&w, stage_forward), both = time_calls(&w, stage_both);
        passed = ops_status(o) == STATUS_OK;
        if (passed)
            printf("{\"bench\":\"stage\",\"core\":\"%s\",\"shape\":\"%s\",\"forward_ms\":%.4f,\"both_ms\":%.4f,"
                   "\"peak_mib\":%.0f}\n",
                   w.core->name, s->name, ahead * 1e3, both * 1e3, (double)w.bytes / (1 << 20));
        fflush(stdout);
    }
    work_close(&w);
    return passed;
}

/* All shapes by the family of kernels, or all stages. */
static bool run(ops *o, const char *what) {
    bool passed = true, plain = strcmp(what, "plain") == 0;
    if (strcmp(what, "stage") == 0) {
        for (size_t i = 0; i < sizeof stages / sizeof *stages; i++) passed = run_stage(o, &stages[i]) && passed;
        return passed;
    }
    const attn_core *core = attn_core_cuda_family(what);
    if (!core) {
        fprintf(stderr, "usage: bench_attention_cuda [plain | mma | wgmma | stage]...: not %s\n", what);
        return false;
    }
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        const shape *s = &shapes[i];
        double tflop = 1e-12 * s->batch * s->heads * s->context * s->context * (s->nope + s->rope + s->value);
        if (!plain || tflop <= MOST_TFLOP_PLAIN) passed = run_shape(o, core, s) && passed;
    }
    return passed;
}

int main(int argc, char **argv) {
    static char *all[] = {"wgmma", "stage"};
    char **what = argc > 1 ? argv + 1 : all;
    int count = argc > 1 ? argc - 1 : 2;
    ops o;
    bool passed = true;
    if (ops_cuda(&o, 0, false) != STATUS_OK) {
        fprintf(stderr, "%s\n", status_message());
        return 1;
    }
    for (int i = 0; i < count; i++) passed = run(&o, what[i]) && passed;
    o.close(&o);
    return passed ? 0 : 1;
}
