/* MLA with decoupled rotary, as in DeepSeek-V2/V3: content and position kept apart, one rotary key for all heads.
 * c = x W_DKVt, ch = RMSNorm(c), [k_n | v] = ch W_UKVt per head, k_r = RoPE(x W_KRt); q = x W_Qt, or RMSNorm(x W_DQt)
 * W_UQt, in heads of [q_n | q_r], RoPE on q_r; scores (q_n k_n + q_r k_r) / sqrt(D_n + D_r).
 *
 * Tensor parallel: rank `layer mod P` computes k_r for all tokens and broadcasts it, hidden under the projections of q
 * and c (of the last samples, where a micro-batch is cut). The latents are computed on every rank. Backward, everything
 * after them is partial (this rank's heads), RMSNorm's backward and the projections are linear, so partial gradients
 * flow straight to dx, which the caller sums once; the gradients of the shared weights stay partial until the step's
 * end.
 *
 * N tokens, d width; on this rank: H heads; R latent dim, R_q query latent dim. */
#include "attention/parts.h"

/* The norms are last so that a config without them, or without a query latent, has no gaps. */
enum { W_Q, W_DKV, W_KR, W_UKV, W_O, BASE_PARAMS };
enum { Q, C, C_NORMED, KV, K_ROPE, O, Q_C, Q_C_NORMED }; /* [N, ...] */
enum { LSE, RSTD, Q_RSTD };                              /* [B, H, T], [N], [N] */

/* Where the optional parameters are: behind the others, in this order. */
static int w_dq(const attn_dims *d) {
    return BASE_PARAMS;
}
static int g_kv(const attn_dims *d) {
    return BASE_PARAMS + (d->q_latent > 0);
}
static int g_q(const attn_dims *d) {
    return g_kv(d) + 1;
}

static int params(const attn_dims *d, param_spec *specs) {
    int64_t q_rows = (int64_t)d->heads * (d->nope + d->rope), q_in = d->q_latent ? d->q_latent : d->width;
    specs[W_Q] = attn_spec_rows(d, d->q_latent ? "attention.W_UQ" : "attention.W_Q", q_rows, q_in, false);
    specs[W_DKV] = attn_spec_partial(d, "attention.W_DKV", d->latent, d->width);
    specs[W_KR] = attn_spec_partial(d, "attention.W_KR", d->rope, d->width);
    specs[W_UKV] = attn_spec_rows(d, "attention.W_UKV", (int64_t)d->heads * (d->nope + d->value), d->latent, false);
    specs[W_O] = attn_spec_out(d);
    int count = BASE_PARAMS;
    if (d->q_latent) specs[count++] = attn_spec_partial(d, "attention.W_DQ", d->q_latent, d->width);
    if (d->latent_norm) {
        specs[count++] = attn_spec_gain("attention.latent_norm", d->latent, true);
        if (d->q_latent) specs[count++] = attn_spec_gain("attention.q_latent_norm", d->q_latent, true);
    }
    return count;
}

static void layout(const attn_dims *d, attn_layout *out) {
    out->slot[Q] = (attn_part){(int64_t)d->heads_local * (d->nope + d->rope), ATTN_OPERAND};
    out->slot[C] = out->slot[C_NORMED] = (attn_part){d->latent, ATTN_OPERAND};
    out->slot[KV] = (attn_part){(int64_t)d->heads_local * (d->nope + d->value), ATTN_OPERAND};
    out->slot[K_ROPE] = (attn_part){d->rope, ATTN_SHARED};
    out->slot[O] = (attn_part){(int64_t)d->heads_local * d->value, ATTN_RESULT};
    out->slot[Q_C] = out->slot[Q_C_NORMED] = (attn_part){d->q_latent, ATTN_OPERAND};
    out->vector[LSE] = (attn_part){d->heads_local, ATTN_RESULT};
    out->vector[RSTD] = (attn_part){1, ATTN_OPERAND};
    out->vector[Q_RSTD] = (attn_part){d->q_latent > 0, ATTN_OPERAND};
}

static void set_operands(attn_core_args *args, const attn_dims *d, const attn_saved *saved, tensor k_rope) {
    tensor kv = saved->slot[KV];
    args->q = saved->slot[Q];
    args->k = kv;
    args->v = tensor_cols(kv, d->nope, kv.cols - d->nope);
    args->k_head = args->v_head = d->nope + d->value;
    args->k_rope = k_rope;
    args->o = saved->slot[O];
    args->lse = saved->vector[LSE];
}

static attn_core_args core_args(const attn_env *env, const attn_saved *saved) {
    attn_core_args args = attn_core_for(env);
    set_operands(&args, &env->dims, saved, saved->slot[K_ROPE]);
    return args;
}

/* q [N, H (D_n + D_r)], rotated. */
static void project_q(attn_env *env, const attn_weights *w, attn_saved *saved, tensor x) {
    const attn_dims *d = &env->dims;
    if (d->q_latent) {
        ops_linear(env->ops, saved->slot[Q_C], x, w->weight[w_dq(d)], false);
        attn_latent_forward(env, saved->slot[Q_C_NORMED], saved->vector[Q_RSTD], saved->slot[Q_C], w->weight[g_q(d)]);
        x = saved->slot[Q_C_NORMED];
    }
    ops_linear(env->ops, saved->slot[Q], x, w->weight[W_Q], false);
    attn_rotate_tail(env, saved->slot[Q], d->heads_local, false);
}

/* k_r. */
static comm_ticket share(attn_env *env, int layer, const attn_weights *w, attn_saved *saved, tensor x) {
    tensor k_rope = saved->slot[K_ROPE];
    int owner = layer % env->tp->size;
    if (env->tp->rank == owner) {
        ops_linear(env->ops, k_rope, x, w->weight[W_KR], false);
        attn_rotate_tail(env, k_rope, 1, false);
    }
    return comm_broadcast_start(env->tp, k_rope.data, k_rope.rows * k_rope.cols, k_rope.type, owner, "rotary key",
                                layer);
}

static void forward(attn_env *env, int layer, const attn_weights *w, attn_saved *saved, tensor x, const tensor *out,
                    bool again, attn_pending *pending, arena *scratch) {
    project_q(env, w, saved, x);
    ops_linear(env->ops, saved->slot[C], x, w->weight[W_DKV], false);
    attn_latent_forward(env, saved->slot[C_NORMED], saved->vector[RSTD], saved->slot[C], w->weight[g_kv(&env->dims)]);
}

static void forward_rest(attn_env *env, const attn_weights *w, attn_saved *saved, const tensor *out, bool again,
                         const attn_pending *pending, arena *scratch) {
    ops_linear(env->ops, saved->slot[KV], saved->slot[C_NORMED], w->weight[W_UKV], false);
    comm_wait(env->tp, pending->started);
    attn_core_args args = core_args(env, saved);
    attn_finish(env, &args, w->weight[W_O], out, again, scratch);
}

/* A latent between two projections, its slots of attn_saved and its weights. */
typedef struct latent_path {
    int latent, normed, rstd; /* slots, and the vector */
    int up, down, gain;       /* weights */
} latent_path;

/* dx = (or adds, when accumulate) what reaches x through the latent from dy, the gradient of normed W_upt. */
static void backward_latent(attn_env *env, const attn_weights *w, const attn_saved *saved, latent_path p, tensor x,
                            tensor dy, tensor dx, bool accumulate, arena *scratch) {
    size_t mark = arena_mark(scratch);
    tensor latent = saved->slot[p.latent];
    tensor dnormed = arena_tensor(scratch, latent.type, latent.rows, latent.cols);
    tensor dlatent = arena_tensor(scratch, latent.type, latent.rows, latent.cols);
    ops_linear_dw(env->ops, w->gradient[p.up], dy, saved->slot[p.normed], w->adds);
    ops_linear_dx(env->ops, dnormed, dy, w->weight[p.up], false);
    attn_latent_backward(env, dlatent, dnormed, latent, saved->vector[p.rstd], w->weight[p.gain], w->gradient[p.gain]);
    ops_linear_dw(env->ops, w->gradient[p.down], dlatent, x, w->adds);
    ops_linear_dx(env->ops, dx, dlatent, w->weight[p.down], accumulate);
    arena_release(scratch, mark);
}

/* dx = the share of the queries. */
static void backward_q(attn_env *env, const attn_weights *w, const attn_saved *saved, tensor x, tensor dq, tensor dx,
                       arena *scratch) {
    const attn_dims *d = &env->dims;
    if (d->q_latent) {
        const latent_path path = {Q_C, Q_C_NORMED, Q_RSTD, W_Q, w_dq(d), g_q(d)};
        backward_latent(env, w, saved, path, x, dq, dx, false, scratch);
        return;
    }
    ops_linear_dw(env->ops, w->gradient[W_Q], dq, x, w->adds);
    ops_linear_dx(env->ops, dx, dq, w->weight[W_Q], false);
}

static void backward(attn_env *env, int layer, const attn_weights *w, const attn_saved *saved, tensor x, tensor dout,
                     tensor dx, attn_pending *pending, arena *scratch) {
    const attn_dims *d = &env->dims;
    size_t mark = arena_mark(scratch);
    tensor o = saved->slot[O], q = saved->slot[Q], kv = saved->slot[KV];
    tensor grad_o = arena_tensor(scratch, o.type, o.rows, o.cols);
    tensor dq = arena_tensor(scratch, q.type, q.rows, q.cols);
    tensor dkv = arena_tensor(scratch, kv.type, kv.rows, kv.cols);
    tensor dk_rope = arena_tensor(scratch, q.type, q.rows, d->rope);
    ops_linear_dx(env->ops, grad_o, dout, w->weight[W_O], false);
    ops_linear_dw(env->ops, w->gradient[W_O], dout, o, w->adds);

    attn_core_args args = core_args(env, saved);
    attn_core_grads grads = {
        .dout = grad_o, .dq = dq, .dk = dkv, .dv = tensor_cols(dkv, d->nope, dkv.cols - d->nope), .dk_rope = dk_rope};
    attn_core_backward(env, &args, &grads, scratch);
    attn_rotate_tail(env, dq, d->heads_local, true);
    attn_rotate_tail(env, dk_rope, 1, true);

    backward_q(env, w, saved, x, dq, dx, scratch);
    const latent_path kv_path = {C, C_NORMED, RSTD, W_UKV, W_DKV, g_kv(d)};
    backward_latent(env, w, saved, kv_path, x, dkv, dx, true, scratch);
    ops_linear_dw(env->ops, w->gradient[W_KR], dk_rope, x, w->adds);
    ops_linear_dx(env->ops, dx, dk_rope, w->weight[W_KR], true);
    arena_release(scratch, mark);
}

/* The cache: the normed latent and the rotated key, [T, R + D_r]. */
static int64_t cache_cols(const attn_dims *d) {
    return d->latent + d->rope;
}

static void extend(attn_env *env, int layer, const attn_weights *w, tensor cache, int64_t first, tensor x, tensor out,
                   arena *scratch) {
    const attn_dims *d = &env->dims;
    size_t mark = arena_mark(scratch);
    attn_env at = attn_env_at(env, first);
    attn_saved saved = attn_saved_room(env, &attn_mla_decoupled, x.rows, scratch);
    tensor all = tensor_rows(cache, 0, first + x.rows);
    saved.slot[KV] = arena_tensor(scratch, x.type, all.rows, saved.slot[KV].cols);
    comm_ticket rotary_key = share(&at, layer, w, &saved, x);
    forward(&at, layer, w, &saved, x, &out, false, NULL, scratch);
    attn_cache_put(env, cache, first, 0, saved.slot[C_NORMED]);
    ops_linear(env->ops, saved.slot[KV], tensor_cols(all, 0, d->latent), w->weight[W_UKV], false);
    comm_wait(env->tp, rotary_key);
    attn_cache_put(env, cache, first, d->latent, saved.slot[K_ROPE]);
    attn_core_args args = attn_core_at(env, first, x.rows);
    set_operands(&args, d, &saved, tensor_cols(all, d->latent, d->rope));
    attn_finish(env, &args, w->weight[W_O], &out, false, scratch);
    arena_release(scratch, mark);
}

const attn_variant attn_mla_decoupled = {.name = "mla-decoupled",
                                         .params = params,
                                         .layout = layout,
                                         .share = share,
                                         .forward = forward,
                                         .forward_rest = forward_rest,
                                         .backward = backward,
                                         .cache_cols = cache_cols,
                                         .extend = extend};
