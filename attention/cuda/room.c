#include "attention/cuda/room.h"

hopper_size attn_room_cut(const ops *o, const attn_core_args *a) {
    return o->activation == DTYPE_BF16 ? hopper_size_of(a->nope, a->rope, a->value) : HOPPER_NONE;
}

attn_room attn_room_take(const ops *o, const attn_core_args *a, arena *scratch) {
    hopper_size size = attn_room_cut(o, a);
    size_t rows = (size_t)(a->batch * a->heads * a->context), bytes = rows * sizeof(float);
    if (size != HOPPER_NONE) {
        size_t all = hopper_room_of(hopper_cuts[size], a->batch, a->context, a->heads, a->kv_heads).all;
        bytes = all > bytes ? all : bytes;
    }
    float *delta = arena_push(scratch, bytes);
    return (attn_room){delta, arena_push(scratch, rows * (size_t)a->rope * sizeof(float))};
}

static void forward(ops *o, const attn_core_args *a, arena *scratch) {}

static void backward(ops *o, const attn_core_args *a, const attn_core_grads *g, arena *scratch) {
    size_t mark = arena_mark(scratch);
    attn_room_take(o, a, scratch);
    arena_release(scratch, mark);
}

const attn_core attn_core_cuda_room = {.name = "cuda room", .forward = forward, .backward = backward};
