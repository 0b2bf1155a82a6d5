/* What the variants share: dimensions from a config, the rotary table, and the parts of parts.h. */
#include "attention/attention.h"
#include "attention/parts.h"
#include "core/ops/profile.h"

#include <math.h>

static const attn_variant *const variants[] = {
    [VARIANT_MHA] = &attn_mha,
    [VARIANT_MLA_PREROPE] = &attn_mla_prerope,
    [VARIANT_MLA_DECOUPLED] = &attn_mla_decoupled,
};

const attn_variant *attn_find(config_variant variant) {
    return variants[variant];
}

status attn_dims_from_config(attn_dims *out, const config *c, int tp, int64_t batch, int64_t context) {
    config_variant variant = c->attention.variant;
    bool decoupled = variant == VARIANT_MLA_DECOUPLED;
    if (c->model.heads % tp != 0)
        return status_fail(STATUS_CONFIG,
                           "model.heads: %ld heads cannot be split over parallel.tensor = %d ranks; choose a divisor",
                           (long)c->model.heads, tp);
    if (c->model.kv_heads % tp != 0)
        return status_fail(
            STATUS_CONFIG,
            "model.kv_heads: %ld kv heads cannot be split over parallel.tensor = %d ranks; choose a divisor",
            (long)c->model.kv_heads, tp);
    int nope = (int)(decoupled ? c->attention.qk_nope_head_dim : c->model.head_dim);
    int rope = decoupled ? (int)c->attention.qk_rope_head_dim : 0;
    *out = (attn_dims){
        .batch = batch,
        .context = context,
        .width = c->model.width,
        .heads = (int)c->model.heads,
        .kv_heads = (int)c->model.kv_heads,
        .heads_local = (int)(c->model.heads / tp),
        .kv_heads_local = (int)(c->model.kv_heads / tp),
        .nope = nope,
        .rope = rope,
        .value = (int)c->attention.v_head_dim,
        .latent = variant == VARIANT_MHA ? 0 : (int)c->attention.kv_lora_rank,
        .q_latent = decoupled ? (int)c->attention.q_lora_rank : 0,
        .rotary = decoupled ? rope : nope,
        .latent_norm = c->attention.latent_norm,
        .prerope_hidden = c->attention.prerope_source == SOURCE_HIDDEN,
        .recompute = c->train.recompute,
        .norm_eps = (float)c->model.norm_eps,
        .scale = (float)(1.0 / sqrt(nope + rope)),
        .init_std = 0.02f,
        .residual_std = (float)(0.02 / sqrt(2.0 * (double)c->model.layers)),
    };
    return STATUS_OK;
}

static bool keeps(const attn_dims *d, attn_origin origin) {
    if (origin == ATTN_OPERAND) return d->recompute == RECOMPUTE_NONE;
    return origin == ATTN_SHARED || d->recompute != RECOMPUTE_FULL;
}

void attn_reserve(const attn_variant *v, const attn_dims *d, dtype type, bool kept, arena *a, attn_saved *saved) {
    attn_layout layout = {0};
    int64_t tokens = d->batch * d->context;
    v->layout(d, &layout);
    for (int i = 0; i < ATTN_MAX_SAVED; i++) {
        attn_part slot = layout.slot[i], vector = layout.vector[i];
        if (keeps(d, slot.origin) == kept) saved->slot[i] = arena_tensor(a, type, tokens, slot.cols);
        if (keeps(d, vector.origin) == kept)
            saved->vector[i] = arena_push(a, (size_t)(tokens * vector.cols) * sizeof(float));
    }
}

attn_saved attn_saved_of(const attn_variant *v, const attn_dims *d, const attn_saved *whole, int64_t first,
                         int64_t count) {
    attn_layout layout = {0};
    attn_saved part;
    int64_t row = first * d->context;
    v->layout(d, &layout);
    for (int i = 0; i < ATTN_MAX_SAVED; i++) {
        float *vector = whole->vector[i];
        part.slot[i] = tensor_rows(whole->slot[i], row, count * d->context);
        part.vector[i] = vector ? vector + row * layout.vector[i].cols : NULL;
    }
    return part;
}

void attn_rotary_table(float *table, int64_t context, int rotary, double theta) {
    int half = rotary / 2;
    for (int64_t t = 0; t < context; t++) {
        for (int j = 0; j < half; j++) {
            double angle = (double)t * pow(theta, -2.0 * j / rotary);
            table[t * rotary + j] = (float)cos(angle);
            table[t * rotary + half + j] = (float)sin(angle);
        }
    }
}

tensor attn_joined(const tensor *weights, int first, int count) {
    tensor t = weights[first];
    for (int i = first + 1; i < first + count; i++) {
        assert(weights[i].cols == t.cols && weights[i].ld == t.ld && t.ld == t.cols);
        assert(!t.data || (char *)weights[i].data == (char *)t.data + (size_t)(t.rows * t.cols) * dtype_bytes(t.type));
        t.rows += weights[i].rows;
    }
    return t;
}

static void rotate(attn_env *env, tensor x, rope_args args) {
    args.context = env->dims.context;
    args.table = env->rotary_table;
    args.dim = env->dims.rotary;
    env->ops->rope(env->ops, x, args);
}

void attn_rotate(attn_env *env, tensor x, int64_t first, int heads, bool inverse) {
    rotate(env, x, (rope_args){.heads = heads, .stride = env->dims.rotary, .first = first, .inverse = inverse});
}

void attn_rotate_tail(attn_env *env, tensor x, int heads, bool inverse) {
    int64_t stride = x.cols / heads;
    rotate(env, x, (rope_args){.heads = heads, .stride = stride, .first = stride - env->dims.rope, .inverse = inverse});
}

void attn_latent_forward(attn_env *env, tensor normed, float *rstd, tensor latent, tensor gain) {
    if (env->dims.latent_norm)
        env->ops->rmsnorm_forward(env->ops, normed, rstd, latent, gain.data, env->dims.norm_eps);
    else
        env->ops->copy(env->ops, normed, latent);
}

void attn_latent_backward(attn_env *env, tensor dlatent, tensor dnormed, tensor latent, const float *rstd, tensor gain,
                          tensor dgain) {
    if (env->dims.latent_norm)
        env->ops->rmsnorm_backward(env->ops, dlatent, false, dgain.data, dnormed, latent, gain.data, rstd);
    else
        env->ops->copy(env->ops, dlatent, dnormed);
}

attn_core_args attn_core_for(const attn_env *env) {
    const attn_dims *d = &env->dims;
    return (attn_core_args){
        .batch = d->batch,
        .context = d->context,
        .heads = d->heads_local,
        .kv_heads = d->kv_heads_local,
        .nope = d->nope,
        .rope = d->rope,
        .value = d->value,
        .scale = d->scale,
    };
}

attn_core_args attn_core_at(const attn_env *env, int64_t first, int64_t n) {
    attn_core_args args = attn_core_for(env);
    args.batch = 1;
    args.first = first;
    args.context = first + n;
    return args;
}

attn_env attn_env_at(const attn_env *env, int64_t first) {
    attn_env at = *env;
    at.dims.context -= first;
    if (at.rotary_table) at.rotary_table += first * at.dims.rotary;
    return at;
}

attn_saved attn_saved_room(const attn_env *env, const attn_variant *v, int64_t n, arena *scratch) {
    attn_saved saved = {0};
    attn_dims d = env->dims;
    d.batch = 1;
    d.context = n;
    d.recompute = RECOMPUTE_NONE;
    attn_reserve(v, &d, env->ops->activation, true, scratch, &saved);
    return saved;
}

void attn_cache_put(attn_env *env, tensor cache, int64_t first, int64_t col, tensor x) {
    env->ops->copy(env->ops, tensor_cols(tensor_rows(cache, first, x.rows), col, x.cols), x);
}

/* Causal: half of the T x T square, less that of the queries that are not asked for. Forward are the scores and the
 * weighted sums of values; backward the scores again and the gradients of weights, v, q and k. */
static void count_flops(ops *o, const attn_core_args *args, bool backward) {
    double context = (double)args->context, first = (double)args->first;
    double square = (double)args->batch * args->heads * (context * context - first * first);
    double qk = args->nope + args->rope, v = args->value;
    o->attention_flops += square * (backward ? 3 * qk + 2 * v : qk + v);
}

static void core_forward(attn_env *env, const attn_core_args *args, arena *scratch) {
    profile_phase before = profile_enter(env->ops->profile, PROFILE_ATTENTION);
    env->core->forward(env->ops, args, scratch);
    count_flops(env->ops, args, false);
    profile_enter(env->ops->profile, before);
}

void attn_core_backward(attn_env *env, const attn_core_args *args, const attn_core_grads *grads, arena *scratch) {
    profile_phase before = profile_enter(env->ops->profile, PROFILE_ATTENTION);
    env->core->backward(env->ops, args, grads, scratch);
    count_flops(env->ops, args, true);
    profile_enter(env->ops->profile, before);
}

void attn_finish(attn_env *env, const attn_core_args *args, tensor w_o, const tensor *out, bool again, arena *scratch) {
    if (!again || !keeps(&env->dims, ATTN_RESULT)) core_forward(env, args, scratch);
    if (out) ops_linear(env->ops, *out, args->o, w_o, false);
}

param_spec attn_spec_rows(const attn_dims *d, const char *name, int64_t rows, int64_t cols, bool joined) {
    return (param_spec){.name = name,
                        .rows = rows,
                        .cols = cols,
                        .shard = PARAM_BY_ROWS,
                        .joined = joined,
                        .init = PARAM_NORMAL,
                        .std = d->init_std};
}

param_spec attn_spec_out(const attn_dims *d) {
    return (param_spec){.name = "attention.W_O",
                        .rows = d->width,
                        .cols = (int64_t)d->heads * d->value,
                        .shard = PARAM_BY_COLS,
                        .init = PARAM_NORMAL,
                        .std = d->residual_std};
}

param_spec attn_spec_partial(const attn_dims *d, const char *name, int64_t rows, int64_t cols) {
    return (param_spec){
        .name = name, .rows = rows, .cols = cols, .partial = true, .init = PARAM_NORMAL, .std = d->init_std};
}

param_spec attn_spec_gain(const char *name, int64_t cols, bool partial) {
    return (param_spec){.name = name, .rows = 1, .cols = cols, .partial = partial, .init = PARAM_ONES};
}
