/* The chain of tensors from the block norm's output to queries, keys and values: names, shapes and heads' blocks
 * (docs/design.md sections 3 and 6.1). Private to diag/. */
#pragma once

#include "core/config.h"

/* What a layer's maps are made of. OV_ slots are there only where the part ov is recorded. */
enum {
    CHAIN_NORM,
    CHAIN_QUERY,
    CHAIN_Q_DOWN,
    CHAIN_Q_NORM,
    CHAIN_KEY,
    CHAIN_VALUE, /* on the keys' way: mla-prerope compresses values with them */
    CHAIN_DOWN_K,
    CHAIN_DOWN_V,
    CHAIN_DOWN,
    CHAIN_KV_NORM,
    CHAIN_UP,
    CHAIN_KEY_ROPE,
    CHAIN_OV_VALUE, /* x or the latent to a head's values */
    CHAIN_OV_OUT,
    CHAIN_SLOTS
};

typedef struct chain_tensor {
    const char *name; /* within its layer; NULL: this chain has none */
    int64_t rows, cols;
    int heads;          /* equal blocks, one a head; 0: shared, one block */
    int skip, used;     /* of a block only rows [skip, skip + used) count */
    bool across;        /* blocks are columns, not rows */
    const char *weight; /* its name in form weight; NULL: not recorded there */
    int part;           /* MAPS_full or MAPS_ov: with which part it is recorded there */
} chain_tensor;

typedef struct chain {
    int content, rope; /* D_n, D_r */
    int value;         /* D_v; 0: ov is not recorded */
    chain_tensor slot[CHAIN_SLOTS];
} chain;

chain chain_of(const config *c);

/* Rows and columns of one head's block, or of the whole where it is shared, as far as it counts. */
int chain_rows(const chain_tensor *t);
int chain_cols(const chain_tensor *t);

/* to [chain_rows, chain_cols] = head h's block of from, which has the tensor's shape; h is 0 where it is shared. */
void chain_block(double *to, const chain_tensor *t, const float *from, int h);
