/* The LLaMA-like model of one rank: token embedding, L x (RMSNorm, attention, residual, RMSNorm, SwiGLU, residual),
 * RMSNorm, LM head; forward and backward. The embedding and the head are cut by vocabulary, SwiGLU by its hidden units,
 * attention by heads (docs/design.md sections 2 to 4).
 *
 * N = B T tokens of a micro-batch, d width, F feed-forward dim, V vocabulary; _local: this rank's share.
 * All memory comes from one arena at creation; the calls below allocate nothing. */
#pragma once

#include "attention/attention.h"
#include "trainer/params.h"

typedef struct model_layer {
    int attention_first; /* index of the layer's first attention parameter */
    int attention_count;
    int attention_norm, mlp_norm, gate, up, down; /* parameter indices */
    attn_weights weights;
    attn_saved saved;
    /* What train.recompute does not keep lies in one room, where each layer's takes the place of the last one's. */
    tensor input, attention_in, middle, mlp_in; /* [N, d]: residual stream, its norm; after attention, its norm */
    tensor gate_up;                             /* [N, 2 F_local] */
    float *rstd1, *rstd2;                       /* [N] */
} model_layer;

/* Reports under way at most, one a slot. */
enum { MODEL_REPORTS = 2 };

/* Samples [first, first + count) of a micro-batch: what is computed at a time (trainer/layers.c). */
typedef struct model_part {
    int64_t first, count;
    comm_ticket sum; /* over the tensor-parallel ranks, of what the last stage made of the part's rows */
} model_part;

enum { MODEL_PARTS = 2 };

/* What the attention of tokens so far leaves for further ones. */
typedef struct model_cache {
    tensor *layer;  /* [layers] of [T, columns of the variant] */
    int64_t first;  /* tokens that are in it */
    arena *scratch; /* of attn_variant.extend */
} model_cache;

typedef struct model {
    ops *ops;
    comm_group *tp, *dp;
    const attn_variant *variant;
    attn_env attention;       /* of all samples */
    const model_cache *cache; /* while model_extend runs; NULL else */
    int parts;
    model_part part[MODEL_PARTS];
    params params;
    int layers;
    int64_t width, ffn, vocab, batch, context, tokens; /* tokens: N */
    float norm_eps;
    bool tied;
    int embedding, final_norm, head; /* parameter indices; head is embedding when tied */
    int first_layer_bucket;          /* of layer 0; that of layer l is l behind it */
    model_layer *layer;
    arena memory;
    tensor output, final_in, branch, dx, dbranch; /* [N, d]; final_in: norm of output */
    float *rstd;
    int64_t chunk; /* rows of logits at a time */
    float *ce;     /* [3, chunk]: row max, sums, picked */
    double
        *figures; /* device, [Q + 2]: the sum of the tokens' losses since the last report, of each data-parallel
                   * rank; the squared norm of this rank's gradients before any sum over ranks; that of the gradient */
    double *reported[MODEL_REPORTS]; /* the same in host memory */
    ops_mark arrived[MODEL_REPORTS];
    adamw_update *update;    /* device: trainer/optimizer.h */
    int32_t *input, *target; /* device, [N] */
    float *rotary_table;
} model;

typedef struct model_needs {          /* what one rank needs, found by a step over counting tables */
    size_t bytes;                     /* device memory for everything below */
    size_t parameter_bytes;           /* weights, gradients, moments */
    int64_t parameters;               /* of the whole model */
    double train_flops;               /* matrix products and attention of one micro-batch, forward and backward */
    int64_t tp_bytes, tp_collectives; /* tensor-parallel communication of one micro-batch */
} model_needs;

/* Builds the model on device o for micro-batches of `batch` samples; weights start from c->train.init_from
 * (its failures: trainer/weights.h), or where none is named from c->run.seed. With c->parallel.zero master weights and
 * moments are cut over dp; with c->parallel.halves on (auto is off here) the layers work on two parts of a micro-batch
 * where there are several tensor-parallel ranks and samples. CONFIG when the shapes cannot be split over tp or memory
 * is too small. The caller frees with model_free in any case. */
status model_create(model *out, const config *c, ops *o, const attn_core *core, comm_group *tp, comm_group *dp,
                    int64_t batch);

void model_free(model *m);

/* The model of rank 0 of tp x dp without its memory (every data pointer is NULL), and what it needs. For planning; the
 * caller frees with model_free in any case. */
status model_describe(model *out, const config *c, dtype activation, int64_t logit_elements, const attn_core *core,
                      int tp, int dp, int64_t batch, model_needs *needs);

/* Forward and backward of one micro-batch (host arrays [B T]): scale * d(sum of the tokens' cross-entropy) is added to
 * the gradients and the sum itself to the loss. Partial gradients stay partial. scale is not 0. first: it is the step's
 * first one, so gradients start here, whatever they were. last: it is the step's last one, so the reduction of each
 * bucket of sharded parameters over dp is started as soon as its gradients are complete. */
void model_train(model *m, const int32_t *input, const int32_t *target, float scale, bool first, bool last);

/* Starts the reduction of bucket b's gradients over dp: each rank's piece, or the whole without pieces. Complete after
 * comm_finish(m->dp). layer: for messages. */
void model_reduce_bucket(model *m, int b, int layer);

/* Forward of the first `samples` samples: adds the sum of their tokens' cross-entropy to the loss. */
void model_evaluate(model *m, const int32_t *input, const int32_t *target, int64_t samples);

/* The cross-entropy of each token of the first `samples` samples, [samples T], into host memory. */
void model_token_losses(model *m, const int32_t *input, const int32_t *target, int64_t samples, float *losses);

/* Forward of the n tokens (host) behind those in the cache, which gets their rows: 1 <= n <= T - cache->first. The
 * model is of one rank and one sample. */
void model_extend(model *m, const int32_t *tokens, int64_t n, const model_cache *cache);

/* The logits [n, V] of rows [first, first + n) of the last forward pass into host memory; of one rank. */
void model_logits(model *m, int64_t first, int64_t n, float *logits);

/* The loss sums of all data-parallel ranks on each of them. */
void model_reduce_loss(model *m);

typedef struct model_report {
    double loss;        /* sum since the last report; the same on all ranks of the group */
    double grad_norm;   /* (trainer/optimizer.h) */
    bool own_is_finite; /* this rank's own share: the loss of its samples, its gradients before any sum over ranks;
                         * false of a rank alone */
} model_report;

/* Starts bringing the figures to the host as they are at this place of the queue; loss sums start again at 0. */
void model_report_start(model *m, int slot);

/* Waits until those of the slot are there. */
model_report model_report_take(model *m, int slot);

/* Both at once, where no report is under way: the loss sum. */
double model_take_loss(model *m);

/* Where the squared norm of the gradient is kept, device; NULL over a counting table. */
double *model_norm_sq(const model *m);

/* Counts those gradients in, before they are reduced: elements [first, first + count). */
void model_note_own(model *m, int64_t first, int64_t count);

/* First failure of the model's operations or collectives. */
status model_status(const model *m);
