/* Token by token: the forward pass of one sample that keeps of each layer what its attention needs of earlier tokens,
 * in a cache (attn_variant.cache_cols columns a token and layer: keys and values in mha; in the latent variants the
 * normed latent, in mla-decoupled with the rotary key beside it). */
#pragma once

#include "trainer/model.h"

typedef struct decoder {
    model *model;
    model_cache cache;
    arena scratch;
    void *memory; /* device: the cache's */
    int64_t last; /* row of the last token in the last forward pass */
} decoder;

/* For a model of one rank and one sample, which outlives it; empty. CONFIG when memory is too small. Close in any case.
 */
status decoder_open(decoder *out, model *m);
void decoder_close(decoder *d);

/* The next n tokens: n >= 1, and the cache holds at most T. */
void decoder_add(decoder *d, const int32_t *tokens, int64_t n);

/* The logits [V] of what follows the last token that was added. Failures of operations: model_status. */
void decoder_logits(decoder *d, float *logits);

/* Bytes that a token takes in the caches of all layers, and in those of mha with as many heads of head_dim and
 * v_head_dim, at the activations' precision. */
typedef struct decoder_bytes {
    int64_t token, mha_token;
} decoder_bytes;
decoder_bytes decoder_cache_bytes(const model *m, const config *c);
