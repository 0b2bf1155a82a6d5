/* The parameter table: where each parameter of the model lies in flat storage, which box of the global tensor this rank
 * holds, and its gradient class. It alone decides what is reduced (docs/design.md section 4).
 *
 * Flat storage has three regions: sharded, replicated with a complete gradient, replicated with a partial one. A
 * reduction or a norm over a class is one call over its region. Local shapes are padded to equal shares; padding stays
 * zero. */
#pragma once

#include "core/arena.h"
#include "core/ops/ops.h"
#include "core/param.h"

enum { PARAM_NAME_BYTES = 64 };

typedef enum param_region { REGION_SHARDED, REGION_COMPLETE, REGION_PARTIAL, REGIONS } param_region;

typedef struct param {
    char name[PARAM_NAME_BYTES]; /* global: "layers.3.attention.W_Q" */
    param_spec spec;
    param_region region;
    int64_t rows, cols; /* local storage, padded */
    int64_t row, col, n_rows,
        n_cols;     /* the valid box: its place in the global tensor and its size; n_rows, n_cols may be 0 */
    int64_t offset; /* in floats, from the start of flat storage */
} param;

typedef struct params {
    int count, capacity;
    param *list;
    int64_t region_first[REGIONS + 1];            /* in floats; the last is the total */
    float *master, *gradient, *moment1, *moment2; /* [total], device */
    void *compute; /* [total] of the activation type, what products read; master itself where that is fp32 */
    dtype compute_type;
} params;

/* Adds a parameter; its name is prefix + spec->name. INTERNAL when memory runs out. */
status params_add(params *p, const char *prefix, const param_spec *spec);

/* Cuts every parameter for rank of size and gives each its place. After the last params_add. */
void params_layout(params *p, int rank, int size);

/* Storage from the arena (uninitialized; the caller zeroes it). */
void params_reserve(params *p, dtype activation, arena *a);

/* The compute copy of parameter i, NULL where master serves as one. */
void *params_copy(const params *p, int i);

/* Where weights come from: the values of row r of q's box, [n_cols]. */
typedef status (*params_source)(void *user, const param *q, int64_t r, float *row);

/* Master weights and their compute copies on the device, box by box from the source; padding is zero. The source's
 * failure, or CONFIG when memory runs out. */
status params_fill(params *p, ops *o, params_source source, void *user);

/* The same for AdamW's moment 1 or 2, which no compute copy follows. */
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
