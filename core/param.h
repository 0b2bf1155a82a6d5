/* What a module says about one of its parameters: shape, how tensor parallelism cuts it, which gradient class it is in
 * (docs/design.md section 4), how it starts. trainer/params.h turns a list of these into storage; nothing else decides
 * what is reduced. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef enum param_shard {
    PARAM_REPLICATED, /* whole on every rank */
    PARAM_BY_ROWS,    /* an equal share of the rows a rank (outputs: heads, feed-forward units, vocabulary) */
    PARAM_BY_COLS,    /* an equal share of the columns a rank (inputs) */
} param_shard;

typedef enum param_init { PARAM_ONES, PARAM_NORMAL } param_init;

typedef struct param_spec {
    const char *name;   /* within its layer: "attention.W_Q" */
    int64_t rows, cols; /* global and unpadded; a vector is one row */
    param_shard shard;
    bool partial;    /* replicated, but each rank's gradient covers its own heads only: summed over TP once a step */
    bool joined;     /* stored right behind the parameter before it, so that both can be one operand of a product */
    param_init init; /* PARAM_NORMAL: N(0, std^2) */
    float std;
} param_spec;
