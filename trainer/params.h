/* The parameter table: where each parameter of the model lies in flat storage, which box of the global tensor this rank
 * holds, and its gradient class. It alone decides what is reduced (docs/design.md section 4).
 *
 * Flat storage has three regions: sharded, replicated with a partial gradient, replicated with a complete one. A
 * reduction or a norm over a class is one call over its region. Local shapes are padded to equal shares; padding stays
 * zero.
 *
 * Flat storage is cut into buckets as well, each reduced over the data-parallel ranks at once: sharded parameters as
 * the model names their buckets, replicated matrices, and last all gains, which are read in fp32. Under ZeRO-1
 * (Rajbhandari et al. 2020) a bucket is `pieces` equal pieces, of which each data-parallel rank keeps one: it alone has
 * the master weights and moments of that piece, [owned] floats in the order of the buckets. Gradients and compute
 * copies are whole on every rank; of other ranks' pieces the copies arrive while the next forward pass goes on, which
 * waits for a bucket when it first reads it. Without ZeRO a rank keeps all: one piece a bucket. */
#pragma once

#include "comm/comm.h"
#include "core/arena.h"
#include "core/ops/ops.h"
#include "core/param.h"

enum { PARAM_NAME_BYTES = 64 };

typedef enum param_region { REGION_SHARDED, REGION_PARTIAL, REGION_COMPLETE, REGIONS } param_region;

typedef struct param {
    char name[PARAM_NAME_BYTES]; /* global: "layers.3.attention.W_Q" */
    param_spec spec;
    param_region region;
    int64_t rows, cols; /* local storage, padded */
    int64_t row, col, n_rows,
        n_cols;     /* the valid box: its place in the global tensor and its size; n_rows, n_cols may be 0 */
    int64_t offset; /* in floats, from the start of flat storage */
    int bucket;
} param;

/* A range of flat storage, in floats, and this rank's piece of it. */
typedef struct param_bucket {
    int64_t first, piece; /* the bucket is [first, first + pieces * piece) */
    int64_t own;          /* where this rank's piece starts */
    int64_t at;           /* where the piece lies in master, moment1, moment2 */
    comm_ticket arrival;  /* of the other ranks' pieces of the compute copies, over the data-parallel group */
} param_bucket;

/* The elements of a parameter's local storage that lie in this rank's piece. */
typedef struct param_range {
    int64_t first, count; /* count may be 0 */
    int64_t at;           /* where the first lies in master, moment1, moment2 */
} param_range;

typedef struct params {
    int count, capacity;
    param *list;
    int64_t region_first[REGIONS + 1]; /* in floats; the last is the total */
    int sharded_buckets;               /* the first ones; two follow: replicated matrices, and gains */
    int buckets;
    param_bucket *bucket;
    int pieces, own_piece; /* of each bucket; which one is this rank's */
    int64_t gains_first, owned;
    float *master, *moment1, *moment2; /* [owned], device */
    float *gradient;                   /* [total], device */
    void *compute; /* [gains_first] of compute_type, what products read; master itself where that is the same */
    dtype compute_type;
    float *gains; /* [total - gains_first], what norms read; part of master where that is the same */
} params;

/* Sharded parameters added from here on are a bucket of their own; returns its index. */
int params_new_bucket(params *p);

/* Adds a parameter; its name is prefix + spec->name. INTERNAL when memory runs out. */
status params_add(params *p, const char *prefix, const param_spec *spec);

/* Cuts every parameter for tensor-parallel rank `rank` of `size`, gives each its place, and this rank piece
 * `own_piece` of `pieces` of each bucket (0 of 1: all). After the last params_add. INTERNAL when memory runs out. */
status params_layout(params *p, int rank, int size, int own_piece, int pieces);

/* Storage from the arena (uninitialized; the caller zeroes it). */
void params_reserve(params *p, dtype activation, arena *a);

/* What params_reserve takes, without the arena's rounding. */
size_t params_bytes(const params *p);

/* This rank's part of parameter i. */
param_range params_owned(const params *p, int i);

/* Where the compute copy of parameter i starts, NULL where master serves as one; of matrices in compute_type, of gains
 * fp32. */
void *params_copy(const params *p, int i);

/* This rank's piece of bucket b's compute copies, NULL where master serves as them; types as in params_copy. */
void *params_bucket_copy(const params *p, int b);

/* Where weights come from: the values of row r of q's box, [n_cols]. */
typedef status (*params_source)(void *user, const param *q, int64_t r, float *row);

/* Master weights and all compute copies on the device, box by box from the source; padding is zero. Uses the gradients'
 * memory and leaves it zero. The source's failure, or CONFIG when memory runs out. */
status params_fill(params *p, ops *o, params_source source, void *user);

/* This rank's part of AdamW's moment 1 or 2; rows that it has no part of are not asked for. */
status params_fill_moment(params *p, ops *o, int moment, params_source source, void *user);

/* Initial weights on the device: a pure function of (seed, name, global index). CONFIG when memory runs out. */
status params_init(params *p, ops *o, uint64_t seed);

/* Views of parameter i, [rows, cols], local and padded. Matrices are of the activation type, gains fp32. */
tensor params_weight(const params *p, int i);
tensor params_gradient(const params *p, int i);

/* The index of a global name, or -1. */
int params_find(const params *p, const char *name);

int64_t params_total(const params *p);

/* Parameters of the whole model, unpadded. */
int64_t params_global_count(const params *p);

void params_free(params *p);
