/* MLA with rotary before compression; the cache would hold the latent only.
 * key:    k0 = RoPE(x W_Kt), v0 = x W_Vt; c = k0 W_DKt + v0 W_DVt;
 * hidden: c = RoPE(x) W_Dt, x rotated head slice by head slice;
 * both:   ch = RMSNorm(c), k = ch W_UKt, v = ch W_UVt, q = RoPE(x W_Qt), scores q k / sqrt(D).
 *
 * Tensor parallel, key: k0 and v0 are this rank's heads and W_DK, W_DV are cut by input, so c is completed by one small
 * all-reduce forward and its gradient, partial behind the latent, by one backward before the norm. Hidden: the latent
 * is computed on every rank and its gradients stay partial, as in mla_decoupled.c.
 *
 * N tokens, d width, R latent dim; on this rank: H heads of D. */
#include "attention/parts.h"

enum { W_Q, W_K, W_V, W_DK, W_DV, KEY_PARAMS }; /* key: the parameters in front of the common ones */
enum { W_D = 1, HIDDEN_PARAMS };                /* hidden: W_Q and W_D */
enum { QKV, C, C_NORMED, KV, O };               /* [N, ...]: [q | k0 | v0] or q; c; ch; [k | v]; o */
enum { LSE, RSTD };                             /* [B, H, T], [N] */

/* The common parameters: W_UK, W_UV (joined), W_O, the latent norm's gain. */
static int w_uk(const attn_dims *d) {
    return d->prerope_hidden ? HIDDEN_PARAMS : KEY_PARAMS;
}
static int w_o(const attn_dims *d) {
    return w_uk(d) + 2;
}
static int g_kv(const attn_dims *d) {
    return w_uk(d) + 3;
}

static int64_t head_cols(const attn_dims *d) {
    return (int64_t)d->heads_local * d->nope;
}

static int params(const attn_dims *d, param_spec *specs) {
    int64_t all = (int64_t)d->heads * d->nope;
    specs[W_Q] = attn_spec_rows(d, "attention.W_Q", all, d->width, false);
    if (d->prerope_hidden) {
        specs[W_D] = attn_spec_partial(d, "attention.W_D", d->latent, d->width);
    } else {
        specs[W_K] = attn_spec_rows(d, "attention.W_K", all, d->width, true);
        specs[W_V] = attn_spec_rows(d, "attention.W_V", all, d->width, true);
        specs[W_DK] = specs[W_DV] = (param_spec){.name = "attention.W_DK",
                                                 .rows = d->latent,
                                                 .cols = all,
                                                 .shard = PARAM_BY_COLS,
                                                 .init = PARAM_NORMAL,
                                                 .std = d->init_std};
        specs[W_DV].name = "attention.W_DV";
    }
    specs[w_uk(d)] = attn_spec_rows(d, "attention.W_UK", all, d->latent, false);
    specs[w_uk(d) + 1] = attn_spec_rows(d, "attention.W_UV", all, d->latent, true);
    specs[w_o(d)] = attn_spec_out(d);
    if (d->latent_norm) specs[g_kv(d)] = attn_spec_gain("attention.latent_norm", d->latent, d->prerope_hidden);
    return w_o(d) + 1 + d->latent_norm;
}

static void layout(const attn_dims *d, attn_layout *out) {
    out->slot[QKV] = (attn_part){head_cols(d) * (d->prerope_hidden ? 1 : 3), ATTN_OPERAND};
    out->slot[C] = (attn_part){d->latent, ATTN_SHARED};
    out->slot[C_NORMED] = (attn_part){d->latent, ATTN_OPERAND};
    out->slot[KV] = (attn_part){2 * head_cols(d), ATTN_OPERAND};
    out->slot[O] = (attn_part){head_cols(d), ATTN_RESULT};
    out->vector[LSE] = (attn_part){d->heads_local, ATTN_RESULT};
    out->vector[RSTD] = (attn_part){1, ATTN_OPERAND};
}

static void set_operands(attn_core_args *args, const attn_dims *d, const attn_saved *saved) {
    args->q = tensor_cols(saved->slot[QKV], 0, head_cols(d));
    args->k = tensor_cols(saved->slot[KV], 0, head_cols(d));
    args->v = tensor_cols(saved->slot[KV], head_cols(d), head_cols(d));
    args->k_head = args->v_head = d->nope;
    args->o = saved->slot[O];
    args->lse = saved->vector[LSE];
}

static attn_core_args core_args(const attn_env *env, const attn_saved *saved) {
    attn_core_args args = attn_core_for(env);
    set_operands(&args, &env->dims, saved);
    return args;
}

/* x rotated head slice by head slice, [N, d], from scratch. */
static tensor rotated(attn_env *env, tensor x, arena *scratch) {
    tensor r = arena_tensor(scratch, x.type, x.rows, x.cols);
    env->ops->copy(env->ops, r, x);
    attn_rotate(env, r, 0, env->dims.heads, false);
    return r;
}

/* q, or [q | k0 | v0]. */
static void project(attn_env *env, const attn_weights *w, attn_saved *saved, tensor x) {
    int parts = env->dims.prerope_hidden ? 1 : 3, rotated_heads = env->dims.heads_local * (parts == 1 ? 1 : 2);
    ops_linear(env->ops, saved->slot[QKV], x, attn_joined(w->weight, W_Q, parts), false);
    attn_rotate(env, saved->slot[QKV], 0, rotated_heads, false);
}

/* The latent c [N, R], complete on every rank behind the ticket. */
static comm_ticket compress(attn_env *env, int layer, const attn_weights *w, attn_saved *saved, tensor x,
                            arena *scratch) {
    tensor qkv = saved->slot[QKV], c = saved->slot[C];
    int64_t cols = head_cols(&env->dims);
    if (env->dims.prerope_hidden) {
        size_t mark = arena_mark(scratch);
        ops_linear(env->ops, c, rotated(env, x, scratch), w->weight[W_D], false);
        arena_release(scratch, mark);
        return 0;
    }
    ops_linear(env->ops, c, tensor_cols(qkv, cols, cols), w->weight[W_DK], false);
    ops_linear(env->ops, c, tensor_cols(qkv, 2 * cols, cols), w->weight[W_DV], true);
    return comm_sum(env->tp, env->overlaps, c.data, c.rows * c.cols, c.type, "latent", layer);
}

static void forward(attn_env *env, int layer, const attn_weights *w, attn_saved *saved, tensor x, const tensor *out,
                    bool again, attn_pending *pending, arena *scratch) {
    project(env, w, saved, x);
    if (!again) pending->started = compress(env, layer, w, saved, x, scratch);
}

/* ch, once c is complete. */
static void norm_latent(attn_env *env, const attn_weights *w, attn_saved *saved, const attn_pending *pending) {
    comm_wait(env->tp, pending->started);
    attn_latent_forward(env, saved->slot[C_NORMED], saved->vector[RSTD], saved->slot[C], w->weight[g_kv(&env->dims)]);
}

/* [k | v] of the tokens whose ch that is. */
static void expand(attn_env *env, const attn_weights *w, attn_saved *saved, tensor normed) {
    ops_linear(env->ops, saved->slot[KV], normed, attn_joined(w->weight, w_uk(&env->dims), 2), false);
}

static void forward_rest(attn_env *env, const attn_weights *w, attn_saved *saved, const tensor *out, bool again,
                         const attn_pending *pending, arena *scratch) {
    norm_latent(env, w, saved, pending);
    expand(env, w, saved, saved->slot[C_NORMED]);
    attn_core_args args = core_args(env, saved);
    attn_finish(env, &args, w->weight[w_o(&env->dims)], out, again, scratch);
}

/* key: dqkv's k0 and v0 columns from dc, which is complete; then dx = this rank's share. */
static void backward_key(attn_env *env, const attn_weights *w, const attn_saved *saved, tensor x, tensor dqkv,
                         tensor dc, tensor dx) {
    int64_t cols = head_cols(&env->dims);
    for (int part = 0; part < 2; part++) {
        int64_t first = (part + 1) * cols;
        ops_linear_dw(env->ops, w->gradient[W_DK + part], dc, tensor_cols(saved->slot[QKV], first, cols), w->adds);
        ops_linear_dx(env->ops, tensor_cols(dqkv, first, cols), dc, w->weight[W_DK + part], false);
    }
    attn_rotate(env, dqkv, 0, 2 * env->dims.heads_local, true);
    ops_linear_dw(env->ops, attn_joined(w->gradient, W_Q, 3), dqkv, x, w->adds);
    ops_linear_dx(env->ops, dx, dqkv, attn_joined(w->weight, W_Q, 3), false);
}

/* hidden: dc is partial; dx = RoPE's inverse of dc W_D, plus dq W_Q. */
static void backward_hidden(attn_env *env, const attn_weights *w, tensor x, tensor dq, tensor dc, tensor dx,
                            arena *scratch) {
    size_t mark = arena_mark(scratch);
    ops_linear_dw(env->ops, w->gradient[W_D], dc, rotated(env, x, scratch), w->adds);
    ops_linear_dx(env->ops, dx, dc, w->weight[W_D], false);
    attn_rotate(env, dx, 0, env->dims.heads, true);
    attn_rotate(env, dq, 0, env->dims.heads_local, true);
    ops_linear_dw(env->ops, w->gradient[W_Q], dq, x, w->adds);
    ops_linear_dx(env->ops, dx, dq, w->weight[W_Q], true);
    arena_release(scratch, mark);
}

/* Pending: dqkv, whose k0 and v0 columns follow from dc, and the gradient of ch. */
enum { DQKV, DNORMED };

static void backward(attn_env *env, int layer, const attn_weights *w, const attn_saved *saved, tensor x, tensor dout,
                     tensor dx, attn_pending *pending, arena *scratch) {
    const attn_dims *d = &env->dims;
    int64_t cols = head_cols(d);
    tensor o = saved->slot[O], qkv = saved->slot[QKV], kv = saved->slot[KV], c = saved->slot[C];
    tensor dqkv = pending->slot[DQKV] = arena_tensor(scratch, qkv.type, qkv.rows, qkv.cols);
    tensor dnormed = pending->slot[DNORMED] = arena_tensor(scratch, c.type, c.rows, c.cols);
    size_t mark = arena_mark(scratch);
    tensor grad_o = arena_tensor(scratch, o.type, o.rows, o.cols);
    tensor dkv = arena_tensor(scratch, kv.type, kv.rows, kv.cols);
    ops_linear_dx(env->ops, grad_o, dout, w->weight[w_o(d)], false);
    ops_linear_dw(env->ops, w->gradient[w_o(d)], dout, o, w->adds);

    attn_core_args args = core_args(env, saved);
    attn_core_grads grads = {.dout = grad_o,
                             .dq = tensor_cols(dqkv, 0, cols),
                             .dk = tensor_cols(dkv, 0, cols),
                             .dv = tensor_cols(dkv, cols, cols)};
    attn_core_backward(env, &args, &grads, scratch);

    ops_linear_dw(env->ops, attn_joined(w->gradient, w_uk(d), 2), dkv, saved->slot[C_NORMED], w->adds);
    ops_linear_dx(env->ops, dnormed, dkv, attn_joined(w->weight, w_uk(d), 2), false);
    arena_release(scratch, mark);
    if (!d->prerope_hidden)
        pending->started = comm_sum(env->tp, env->overlaps, dnormed.data, dnormed.rows * dnormed.cols, dnormed.type,
                                    "latent gradient", layer);
}

static void backward_rest(attn_env *env, const attn_weights *w, const attn_saved *saved, tensor x, tensor dx,
                          const attn_pending *pending, arena *scratch) {
    const attn_dims *d = &env->dims;
    size_t mark = arena_mark(scratch);
    tensor c = saved->slot[C], dqkv = pending->slot[DQKV];
    tensor dc = arena_tensor(scratch, c.type, c.rows, c.cols);
    comm_wait(env->tp, pending->started);
    attn_latent_backward(env, dc, pending->slot[DNORMED], c, saved->vector[RSTD], w->weight[g_kv(d)],
                         w->gradient[g_kv(d)]);
    if (d->prerope_hidden)
        backward_hidden(env, w, x, tensor_cols(dqkv, 0, head_cols(d)), dc, dx, scratch);
    else
        backward_key(env, w, saved, x, dqkv, dc, dx);
    arena_release(scratch, mark);
}

/* The cache: ch, [T, R]. */
static int64_t cache_cols(const attn_dims *d) {
    return d->latent;
}

static void extend(attn_env *env, int layer, const attn_weights *w, tensor cache, int64_t first, tensor x, tensor out,
                   arena *scratch) {
    size_t mark = arena_mark(scratch);
    attn_env at = attn_env_at(env, first);
    attn_saved saved = attn_saved_room(env, &attn_mla_prerope, x.rows, scratch);
    attn_pending pending = {0};
    tensor all = tensor_rows(cache, 0, first + x.rows);
    saved.slot[KV] = arena_tensor(scratch, x.type, all.rows, saved.slot[KV].cols);
    forward(&at, layer, w, &saved, x, &out, false, &pending, scratch);
    norm_latent(env, w, &saved, &pending);
    attn_cache_put(env, cache, first, 0, saved.slot[C_NORMED]);
    expand(env, w, &saved, all);
    attn_core_args args = attn_core_at(env, first, x.rows);
    set_operands(&args, &env->dims, &saved);
    attn_finish(env, &args, w->weight[w_o(&env->dims)], &out, false, scratch);
    arena_release(scratch, mark);
}

const attn_variant attn_mla_prerope = {.name = "mla-prerope",
                                       .params = params,
                                       .layout = layout,
                                       .forward = forward,
                                       .forward_rest = forward_rest,
                                       .backward = backward,
                                       .backward_rest = backward_rest,
                                       .cache_cols = cache_cols,
                                       .extend = extend};
