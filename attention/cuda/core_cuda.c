/* The attention core of the CUDA table: takes scratch, chooses between the Hopper, fused and plain kernels,
 * queues them on the table's stream. */
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

/* Heads of t that are `stride` columns apart begin on 16 bytes in every row. */
static bool aligned(tensor t, int64_t stride) {
    return (uintptr_t)t.data % 16 == 0 && t.ld % 8 == 0 && stride % 8 == 0;
}

static bool takes_fused(const attn_core_args *a) {
    int qk = a->nope + a->rope;
    bool sizes = a->nope % 8 == 0 && a->rope % 8 == 0 && a->value % 8 == 0;
    return a->q.type == DTYPE_BF16 && sizes && (a->rope == 0 || a->heads == a->kv_heads) && aligned(a->q, qk) &&
           aligned(a->k, a->k_head) && aligned(a->v, a->v_head) && aligned(a->o, a->value) &&
           (a->rope == 0 || aligned(a->k_rope, a->rope));
}

static bool takes_fused_backward(const attn_core_args *a, const attn_core_grads *g) {
    return takes_fused(a) && aligned(g->dout, a->value) && aligned(g->dq, a->nope + a->rope) &&
           aligned(g->dk, a->k_head) && aligned(g->dv, a->v_head);
}

/* The cut of the Hopper kernels for these heads. Scratch is counted by it without a device, and on others left unused.
 */
static hopper_size hopper_of(const ops *o, const attn_core_args *a) {
    return o->activation == DTYPE_BF16 ? hopper_size_of(a->nope, a->rope, a->value) : HOPPER_NONE;
}

static void cuda_forward(ops *o, const attn_core_args *a, arena *scratch) {
    if (!scratch->base || !fits(o, a)) return;
    const cuda_context *c = cuda_of(o);
    hopper_size size = hopper_of(o, a);
    cudaError_t code;
    if (!takes_fused(a))
        code = plain_forward(a, c->stream);
    else if (size == HOPPER_NONE || !c->warpgroups)
        code = fused_forward(a, c->stream);
    else
        code = hopper_forward(a, size, c->tickets, c->sm_count, c->stream);
    cuda_check(o, code, "attention, forward");
}

static void cuda_backward(ops *o, const attn_core_args *a, const attn_core_grads *g, arena *scratch) {
    hopper_size size = hopper_of(o, a);
    size_t mark = arena_mark(scratch), rows = (size_t)(a->batch * a->heads * a->context);
    size_t bytes = rows * sizeof(float); /* of delta, or what the Hopper kernels take in its place */
    if (size != HOPPER_NONE) {
        size_t all = hopper_room_of(hopper_cuts[size], a->batch, a->context, a->heads, a->kv_heads).all;
        bytes = all > bytes ? all : bytes;
    }
    float *delta = arena_push(scratch, bytes);
    float *shares = arena_push(scratch, rows * (size_t)a->rope * sizeof *shares);
    if (scratch->base && fits(o, a)) {
        const cuda_context *c = cuda_of(o);
        cudaStream_t stream = c->stream;
        if (!takes_fused_backward(a, g)) {
            cuda_check(o, plain_delta(a, g, delta, stream), "attention, backward: delta");
            cuda_check(o, plain_dq(a, g, delta, stream), "attention, backward: dq");
            cuda_check(o, plain_dkv(a, g, delta, shares, stream), "attention, backward: dk, dv");
        } else if (size == HOPPER_NONE || !c->warpgroups) {
            cuda_check(o, fused_dq(a, g, delta, stream), "attention, backward: dq");
            cuda_check(o, fused_dkv(a, g, delta, shares, stream), "attention, backward: dk, dv");
        } else {
            cuda_check(o, hopper_backward(a, g, size, delta, shares, c->sm_count, stream), "attention, backward");
        }
        if (a->rope) cuda_check(o, plain_rope_sum(a, g, shares, stream), "attention, backward: rotary key");
    }
    arena_release(scratch, mark);
}

static const attn_core core = {.name = "cuda", .forward = cuda_forward, .backward = cuda_backward};

const attn_core *attn_core_cuda(void) {
    return &core;
}
