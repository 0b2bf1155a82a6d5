/* Attention sublayers: three variants, forward and backward, over shared parts (docs/design.md section 3).
 *
 * B batch, T context, N = B T tokens, d width, H heads, G kv heads, D_n / D_r the parts of a head's query and key
 * without and with rotary, D_qk = D_n + D_r, D_v value dim, R_kv latent dim, R_q query latent dim (0: none). H and G
 * below are this rank's share where the name ends in _local. x is the normed input of the sublayer. A gradient is d +
 * name. */
#pragma once

#include "attention/core.h"
#include "comm/comm.h"
#include "core/arena.h"
#include "core/config.h"
#include "core/ops/ops.h"
#include "core/param.h"

enum { ATTN_MAX_PARAMS = 10, ATTN_MAX_SAVED = 12, ATTN_MAX_PENDING = 2 };

typedef struct attn_dims {
    int64_t batch, context;
    int64_t width;
    int heads, kv_heads, heads_local, kv_heads_local;
    int nope, rope, value; /* D_n, D_r, D_v; mha and prerope rotate whole heads: rope = 0 and nope = D */
    int latent, q_latent;  /* R_kv, R_q; 0: none */
    int rotary;            /* dims that the rotary table covers: D_r, or D where whole heads are rotated */
    bool latent_norm, prerope_hidden;
    config_recompute recompute;
    float norm_eps, scale;        /* scale = 1/sqrt(D_qk) */
    float init_std, residual_std; /* of the initial weights; the second for W_O: 0.02/sqrt(2L) */
} attn_dims;

/* What every layer shares on one rank. */
typedef struct attn_env {
    ops *ops;
    const attn_core *core;
    comm_group *tp;
    attn_dims dims;
    bool
        overlaps; /* other samples go on while these are summed over tp: sums are started, and waited for in the rest */
    const float *rotary_table; /* [T, rotary], device: see rope_args */
} attn_env;

/* One layer's weights (compute copy) and their fp32 gradients, in the order of the variant's parameter list. */
typedef struct attn_weights {
    tensor weight[ATTN_MAX_PARAMS], gradient[ATTN_MAX_PARAMS];
    bool adds; /* backward adds to the matrices' gradients; false: overwrites them (gains' are added to in any case) */
} attn_weights;

/* Where a part of attn_saved comes from, and which of train.recompute's choices keep it until the backward pass. */
typedef enum attn_origin {
    ATTN_OPERAND, /* of the core, or on the way to one; follows from x and ATTN_SHARED: none */
    ATTN_RESULT,  /* of the core, which takes long: none, attention */
    ATTN_SHARED,  /* of all ranks together: each choice, so that nothing is communicated twice */
} attn_origin;

typedef struct attn_part {
    int64_t cols; /* [N, cols] */
    attn_origin origin;
} attn_part;

/* The parts of attn_saved. */
typedef struct attn_layout {
    attn_part slot[ATTN_MAX_SAVED], vector[ATTN_MAX_SAVED];
} attn_layout;

/* What the forward pass of one layer leaves for its backward pass; which slot is what is the variant's own business. */
typedef struct attn_saved {
    tensor slot[ATTN_MAX_SAVED];
    float *vector[ATTN_MAX_SAVED];
} attn_saved;

/* What the first half of a pass leaves for its rest: what was started, and tensors in scratch memory. Zero at first. */
typedef struct attn_pending {
    comm_ticket started;
    tensor slot[ATTN_MAX_PENDING];
} attn_pending;

/* A pass is over some samples of a micro-batch, dims.batch of them, of which N are the tokens, saved and x a view
 * (attn_saved_of). Where the ranks communicate inside a pass it has a rest, so that the first halves of all samples can
 * come before the first rest; NULL where there is none. */
typedef struct attn_variant {
    const char *name;
    /* Fills specs[ATTN_MAX_PARAMS] with the parameters of one layer; returns how many. */
    int (*params)(const attn_dims *dims, param_spec *specs);
    /* Fills in what forward saves (0 before). */
    void (*layout)(const attn_dims *dims, attn_layout *out);
    /* Starts on what the ranks make once for all samples of the micro-batch; env, saved and x are of all. Returns its
     * ticket, which goes into each pending. Before the first forward_rest. NULL: nothing is. */
    comm_ticket (*share)(attn_env *env, int layer, const attn_weights *w, attn_saved *saved, tensor x);
    /* out [N, d] = this rank's share of the sublayer's output: summed over TP by the caller. x [N, d]. Temporaries come
     * from scratch and are given back. again: in the backward pass, from the same x, by the same operations: fills in
     * the parts of saved that are not kept, and out unless it is NULL; communicates nothing. */
    void (*forward)(attn_env *env, int layer, const attn_weights *w, attn_saved *saved, tensor x, const tensor *out,
                    bool again, attn_pending *pending, arena *scratch);
    void (*forward_rest)(attn_env *env, const attn_weights *w, attn_saved *saved, const tensor *out, bool again,
                         const attn_pending *pending, arena *scratch);
    /* dx [N, d] (overwritten) = this rank's share: summed over TP by the caller. Gradients go to w->gradient. dout [N,
     * d] is complete. Temporaries come from scratch and are given back, but for the pending ones: by the caller. */
    void (*backward)(attn_env *env, int layer, const attn_weights *w, const attn_saved *saved, tensor x, tensor dout,
                     tensor dx, attn_pending *pending, arena *scratch);
    void (*backward_rest)(attn_env *env, const attn_weights *w, const attn_saved *saved, tensor x, tensor dx,
                          const attn_pending *pending, arena *scratch);
    /* Columns that a token takes in a layer's cache, on this rank: keys and values, or the latent and what else they
     * are made from. */
    int64_t (*cache_cols)(const attn_dims *dims);
    /* The forward pass of further tokens of one sample: x [n, d] are those of positions `first` to first + n - 1, and
     * cache [T, cache_cols] holds the first `first` rows; theirs are added. out [n, d] as in forward. */
    void (*extend)(attn_env *env, int layer, const attn_weights *w, tensor cache, int64_t first, tensor x, tensor out,
                   arena *scratch);
} attn_variant;

extern const attn_variant attn_mha, attn_mla_prerope, attn_mla_decoupled;

/* The variant that the config names. */
const attn_variant *attn_find(config_variant variant);

/* Dimensions of a config split over tp ranks, for micro-batches of `batch` samples. CONFIG when it cannot be split. */
status attn_dims_from_config(attn_dims *out, const config *c, int tp, int64_t batch, int64_t context);

/* Takes from the arena those parts that dims->recompute keeps, or the others. */
void attn_reserve(const attn_variant *v, const attn_dims *dims, dtype activation, bool kept, arena *a,
                  attn_saved *saved);

/* Those of samples [first, first + count), views. dims: of the whole micro-batch. */
attn_saved attn_saved_of(const attn_variant *v, const attn_dims *dims, const attn_saved *whole, int64_t first,
                         int64_t count);

/* cos and sin of position * theta^(-2j/rotary), [context, rotary], computed in double (host memory). */
void attn_rotary_table(float *table, int64_t context, int rotary, double theta);
