/* Multi-head and grouped-query attention: q, k, v = x W_Qt, x W_Kt, x W_Vt; RoPE on q and k; softmax(q kt / sqrt(D)) v;
 * W_O.
 *
 * N tokens, d width; on this rank: H query heads, G kv heads; D head dim, D_v value dim. */
#include "attention/parts.h"

enum { W_Q, W_K, W_V, W_O, PARAMS };
enum { QKV, O }; /* saved: [N, H D + G D + G D_v] after RoPE; [N, H D_v] */
enum { LSE };    /* saved: [B, H, T] */

static int params(const attn_dims *d, param_spec *specs) {
    int64_t dim = d->nope;
    specs[W_Q] = attn_spec_rows(d, "attention.W_Q", d->heads * dim, d->width, false);
    specs[W_K] = attn_spec_rows(d, "attention.W_K", d->kv_heads * dim, d->width, true);
    specs[W_V] = attn_spec_rows(d, "attention.W_V", (int64_t)d->kv_heads * d->value, d->width, true);
    specs[W_O] = attn_spec_out(d);
    return PARAMS;
}

static int64_t q_cols(const attn_dims *d) {
    return (int64_t)d->heads_local * d->nope;
}
static int64_t k_cols(const attn_dims *d) {
    return (int64_t)d->kv_heads_local * d->nope;
}
static int64_t v_cols(const attn_dims *d) {
    return (int64_t)d->kv_heads_local * d->value;
}

static void layout(const attn_dims *d, attn_layout *out) {
    out->slot[QKV] = (attn_part){q_cols(d) + k_cols(d) + v_cols(d), ATTN_OPERAND};
    out->slot[O] = (attn_part){(int64_t)d->heads_local * d->value, ATTN_RESULT};
    out->vector[LSE] = (attn_part){d->heads_local, ATTN_RESULT};
}

static tensor kv_of(const attn_dims *d, const attn_saved *saved) {
    return tensor_cols(saved->slot[QKV], q_cols(d), k_cols(d) + v_cols(d));
}

/* kv: [k | v]. */
static void set_operands(attn_core_args *args, const attn_dims *d, const attn_saved *saved, tensor kv) {
    args->q = tensor_cols(saved->slot[QKV], 0, q_cols(d));
    args->k = tensor_cols(kv, 0, k_cols(d));
    args->v = tensor_cols(kv, k_cols(d), v_cols(d));
    args->k_head = d->nope;
    args->v_head = d->value;
    args->o = saved->slot[O];
    args->lse = saved->vector[LSE];
}

static attn_core_args core_args(const attn_env *env, const attn_saved *saved) {
    attn_core_args args = attn_core_for(env);
    set_operands(&args, &env->dims, saved, kv_of(&env->dims, saved));
    return args;
}

static void project(attn_env *env, const attn_weights *w, attn_saved *saved, tensor x) {
    ops_linear(env->ops, saved->slot[QKV], x, attn_joined(w->weight, W_Q, 3), false);
    attn_rotate(env, saved->slot[QKV], 0, env->dims.heads_local + env->dims.kv_heads_local, false);
}

static void forward(attn_env *env, int layer, const attn_weights *w, attn_saved *saved, tensor x, const tensor *out,
                    bool again, attn_pending *pending, arena *scratch) {
    project(env, w, saved, x);
    attn_core_args args = core_args(env, saved);
    attn_finish(env, &args, w->weight[W_O], out, again, scratch);
}

static void backward(attn_env *env, int layer, const attn_weights *w, const attn_saved *saved, tensor x, tensor dout,
                     tensor dx, attn_pending *pending, arena *scratch) {
    const attn_dims *d = &env->dims;
    size_t mark = arena_mark(scratch);
    tensor o = saved->slot[O], qkv = saved->slot[QKV];
    tensor grad_o = arena_tensor(scratch, o.type, o.rows, o.cols);
    tensor dqkv = arena_tensor(scratch, qkv.type, qkv.rows, qkv.cols);
    ops_linear_dx(env->ops, grad_o, dout, w->weight[W_O], false);
    ops_linear_dw(env->ops, w->gradient[W_O], dout, o, w->adds);

    attn_core_args args = core_args(env, saved);
    attn_core_grads grads = {.dout = grad_o,
                             .dq = tensor_cols(dqkv, 0, q_cols(d)),
                             .dk = tensor_cols(dqkv, q_cols(d), k_cols(d)),
                             .dv = tensor_cols(dqkv, q_cols(d) + k_cols(d), v_cols(d))};
    attn_core_backward(env, &args, &grads, scratch);
    attn_rotate(env, dqkv, 0, d->heads_local + d->kv_heads_local, true);

    ops_linear_dw(env->ops, attn_joined(w->gradient, W_Q, 3), dqkv, x, w->adds);
    ops_linear_dx(env->ops, dx, dqkv, attn_joined(w->weight, W_Q, 3), false);
    arena_release(scratch, mark);
}

/* The cache: [k | v], [T, G D + G D_v]. */
static int64_t cache_cols(const attn_dims *d) {
    return k_cols(d) + v_cols(d);
}

static void extend(attn_env *env, int layer, const attn_weights *w, tensor cache, int64_t first, tensor x, tensor out,
                   arena *scratch) {
    size_t mark = arena_mark(scratch);
    attn_env at = attn_env_at(env, first);
    attn_saved saved = attn_saved_room(env, &attn_mha, x.rows, scratch);
    project(&at, w, &saved, x);
    attn_cache_put(env, cache, first, 0, kv_of(&env->dims, &saved));
    attn_core_args args = attn_core_at(env, first, x.rows);
    set_operands(&args, &env->dims, &saved, tensor_rows(cache, 0, first + x.rows));
    attn_finish(env, &args, w->weight[W_O], &out, false, scratch);
    arena_release(scratch, mark);
}

const attn_variant attn_mha = {.name = "mha",
                               .params = params,
                               .layout = layout,
                               .forward = forward,
                               .backward = backward,
                               .cache_cols = cache_cols,
                               .extend = extend};
