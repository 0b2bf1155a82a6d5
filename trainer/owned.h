/* Which part of the model's state this compute rank alone keeps for the others: what it writes into a checkpoint and
 * sends to the diagnostics ranks. */
#pragma once

#include "comm/roles.h"
#include "trainer/params.h"

/* A box of a global tensor that no other compute rank keeps: where its fp32 master and moments lie. Over all compute
 * ranks the boxes cover every element of every parameter once; padding belongs to no box. */
typedef struct owned_box {
    int param;                        /* index in params.list */
    int64_t row, col, n_rows, n_cols; /* global, unpadded; never empty */
    int64_t at, stride;               /* floats from the start of master, moment1, moment2; between rows */
} owned_box;

typedef struct owned {
    owned_box *boxes; /* [count], in the order of params.list */
    int count;
} owned;

/* Lists the boxes of this rank: of a sharded parameter its own share, of a replicated one the whole, on tensor-parallel
 * rank l mod P for layer l. Under ZeRO-1 that is what lies in the rank's piece of the bucket: up to three boxes a
 * parameter. Else all data-parallel ranks hold the same and rank l mod Q takes it. INTERNAL when memory runs out; the
 * caller frees with owned_free in any case. */
status owned_list(owned *out, const params *p, const comm_roles *roles);

/* The layer in the global name "layers.N.…", 0 for what is outside the layers. */
int owned_layer_of(const char *name);

void owned_free(owned *o);
