/* The attention core of the CUDA table: takes scratch, chooses between the Hopper, fused and plain kernels,
 * queues them on the table's stream. */
#include "attention/cuda/kernels.h"
#include "attention/cuda/room.h"
#include "core/ops/cuda/context.h"

#include <string.h>

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

/* Queries from the first position on. */
static bool takes_fused(const attn_core_args *a) {
    int qk = a->nope + a->rope;
    bool sizes = a->nope % 8 == 0 && a->rope % 8 == 0 && a->value % 8 == 0;
    return a->q.type == DTYPE_BF16 && a->first == 0 && sizes && (a->rope == 0 || a->heads == a->kv_heads) &&
           aligned(a->q, qk) && aligned(a->k, a->k_head) && aligned(a->v, a->v_head) && aligned(a->o, a->value) &&
           (a->rope == 0 || aligned(a->k_rope, a->rope));
}

static bool takes_fused_backward(const attn_core_args *a, const attn_core_grads *g) {
    return takes_fused(a) && aligned(g->dout, a->value) && aligned(g->dq, a->nope + a->rope) &&
           aligned(g->dk, a->k_head) && aligned(g->dv, a->v_head);
}

typedef enum family { PLAIN, MMA, WGMMA } family;

/* The last family up to `most` that takes these operands (fused: the tensor cores do) on the table's device. */
static family family_of(const ops *o, const attn_core_args *a, bool fused, family most) {
    if (most == PLAIN || !fused) return PLAIN;
    return most == WGMMA && cuda_of(o)->warpgroups && attn_room_cut(o, a) != HOPPER_NONE ? WGMMA : MMA;
}

static void forward(ops *o, const attn_core_args *a, arena *scratch, family most) {
    if (!scratch->base || !fits(o, a)) return;
    const cuda_context *c = cuda_of(o);
    cudaError_t code = cudaErrorInvalidValue;
    switch (family_of(o, a, takes_fused(a), most)) {
    case PLAIN:
        code = plain_forward(a, c->stream);
        break;
    case MMA:
        code = fused_forward(a, c->stream);
        break;
    case WGMMA:
        code = hopper_forward(a, attn_room_cut(o, a), c->tickets, c->sm_count, c->stream);
        break;
    }
    cuda_check(o, code, "attention, forward");
}

static void backward(ops *o, const attn_core_args *a, const attn_core_grads *g, arena *scratch, family most) {
    size_t mark = arena_mark(scratch);
    attn_room room = attn_room_take(o, a, scratch);
    float *delta = room.delta, *shares = room.shares;
    if (scratch->base && fits(o, a)) {
        const cuda_context *c = cuda_of(o);
        cudaStream_t stream = c->stream;
        switch (family_of(o, a, takes_fused_backward(a, g), most)) {
        case PLAIN:
            cuda_check(o, plain_delta(a, g, delta, stream), "attention, backward: delta");
            cuda_check(o, plain_dq(a, g, delta, stream), "attention, backward: dq");
            cuda_check(o, plain_dkv(a, g, delta, shares, stream), "attention, backward: dk, dv");
            break;
        case MMA:
            cuda_check(o, fused_dq(a, g, delta, stream), "attention, backward: dq");
            cuda_check(o, fused_dkv(a, g, delta, shares, stream), "attention, backward: dk, dv");
            break;
        case WGMMA:
            cuda_check(o, hopper_backward(a, g, attn_room_cut(o, a), delta, shares, c->sm_count, stream),
                       "attention, backward");
            break;
        }
        if (a->rope) cuda_check(o, plain_rope_sum(a, g, shares, stream), "attention, backward: rotary key");
    }
    arena_release(scratch, mark);
}

/* A core of each family. */
#define CORE(most, title)                                                                                              \
    static void most##_forward(ops *o, const attn_core_args *a, arena *scratch) {                                      \
        forward(o, a, scratch, most);                                                                                  \
    }                                                                                                                  \
    static void most##_backward(ops *o, const attn_core_args *a, const attn_core_grads *g, arena *scratch) {           \
        backward(o, a, g, scratch, most);                                                                              \
    }                                                                                                                  \
    static const attn_core most##_core = {.name = title, .forward = most##_forward, .backward = most##_backward};
CORE(PLAIN, "plain")
CORE(MMA, "mma")
CORE(WGMMA, "wgmma")
#undef CORE

const attn_core *attn_core_cuda(void) {
    return &WGMMA_core;
}

const attn_core *attn_core_cuda_family(const char *name) {
    static const attn_core *const families[] = {&PLAIN_core, &MMA_core, &WGMMA_core};
    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (strcmp(families[i]->name, name) == 0) return families[i];
    return NULL;
}
