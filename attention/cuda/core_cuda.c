/* The attention core of the CUDA table: takes scratch, queues the kernels on the table's stream. */
#include "attention/cuda/kernels.h"
#include "core/ops/cuda/context.h"

static bool fits(ops *o, const attn_core_args *a) {
    if (a->nope + a->rope <= PLAIN_MOST_DIM && a->value <= PLAIN_MOST_DIM) return true;
    if (o->first_error == STATUS_OK)
        o->first_error =
            status_fail(STATUS_CONFIG, "attention on GPUs takes heads of at most %d: %d + %d / %d asked for",
                        PLAIN_MOST_DIM, a->nope, a->rope, a->value);
    return false;
}

static void cuda_forward(ops *o, const attn_core_args *a, arena *scratch) {
    if (!scratch->base || !fits(o, a)) return;
    cuda_check(o, plain_forward(a, cuda_of(o)->stream), "attention, forward");
}

static void cuda_backward(ops *o, const attn_core_args *a, const attn_core_grads *g, arena *scratch) {
    size_t mark = arena_mark(scratch), rows = (size_t)(a->batch * a->heads * a->context);
    float *delta = arena_push(scratch, rows * sizeof *delta);
    float *shares = arena_push(scratch, rows * (size_t)a->rope * sizeof *shares);
    if (scratch->base && fits(o, a)) {
        cudaStream_t stream = cuda_of(o)->stream;
        cuda_check(o, plain_delta(a, g, delta, stream), "attention, backward: delta");
        cuda_check(o, plain_dq(a, g, delta, stream), "attention, backward: dq");
        cuda_check(o, plain_dkv(a, g, delta, shares, stream), "attention, backward: dk, dv");
        if (a->rope) cuda_check(o, plain_rope_sum(a, g, shares, stream), "attention, backward: rotary key");
    }
    arena_release(scratch, mark);
}

static const attn_core core = {.name = "cuda plain", .forward = cuda_forward, .backward = cuda_backward};

const attn_core *attn_core_cuda(void) {
    return &core;
}
