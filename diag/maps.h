/* From a snapshot's weights to the spectra of the effective maps (docs/design.md sections 6.1 and 6.2).
 *
 * A_h (queries) and B_h (keys) of head h act on the block norm's output without its gain. form: score is A_h^T B_h, by
 * QR factors and never d x d for a head; channel is A_h B_h^T; weight is one head's (or one shared) weight matrix as it
 * is. scope: one head, or the layer, sum_h A_h^T B_h. part: full, content (without rotary), rope; mha and mla-prerope
 * have only full. ov, in all variants: outputs and values, A_h^T = W_O^h and B_h what makes the head's values. */
#pragma once

#include "comm/snapshot.h"
#include "core/config.h"
#include "diag/spectrum.h"
#include "diag/svd.h"

#define MAPS_FORMS(X)  X(score) X(channel) X(weight)
#define MAPS_PARTS(X)  X(full) X(content) X(rope) X(ov)
#define MAPS_SCOPES(X) X(head) X(layer)

enum {
#define X(name) MAPS_##name,
    MAPS_FORMS(X) MAPS_FORM_COUNT
};
enum { MAPS_PARTS(X) MAPS_PART_COUNT };
enum {
    MAPS_SCOPES(X) MAPS_SCOPE_COUNT
#undef X
};

extern const char *const maps_form_names[MAPS_FORM_COUNT], *const maps_part_names[MAPS_PART_COUNT],
                                                               *const maps_scope_names[MAPS_SCOPE_COUNT];

typedef struct maps_matrix {
    int form, part, scope, layer, head; /* head -1: the layer's */
    const char *tensor;                 /* "" for maps, the weight's name for form weight */
    int rows, cols;                     /* of the core: r x r for products */
    int rank;                           /* r, the number of singular values */
    int64_t first_value;                /* where they start among the values of all matrices */
    int left, right;                    /* lengths of the top pair's u and v */
    int64_t first_pair;                 /* where it starts among all pairs: u, then v */
} maps_matrix;

typedef struct maps maps;

/* Which matrices the config asks for, and the workers' memory. threads workers at most. CONFIG when a list of the
 * config names an unknown form, part or scope. */
status maps_open(maps **out, const config *c, int threads);
void maps_close(maps *m);

/* How many matrices the config asks for, their singular values, and the entries of their top pairs. CONFIG as
 * maps_open. */
typedef struct maps_size {
    int64_t rows, values, pairs;
} maps_size;

status maps_measure(const config *c, maps_size *out);

/* From here on the singular values come from the device, in fp32; what it does not find, LAPACK does. device stays the
 * caller's and outlives m. CONFIG when there is not the memory. */
status maps_use_device(maps *m, svd_device *device);

/* Why the device is no longer used; NULL while it is, or where there never was one. */
const char *maps_device_fault(const maps *m);

/* The recorded matrices, ordered by form, part, scope, layer, head, tensor. */
int maps_count(const maps *m);
const maps_matrix *maps_matrices(const maps *m);
int64_t maps_value_count(const maps *m);

/* From here on only layers share, share + shares, ... are computed, and needed in a snapshot; what belongs to the
 * others is left as it is. */
void maps_share(maps *m, int share, int shares);

/* From here on told(user) is called now and then while maps are computed, several times a layer, by any thread. */
void maps_tell(maps *m, void (*told)(void *user), void *user);

/* Floats of all top pairs. */
int64_t maps_pair_count(const maps *m);

/* Asked for the top pairs of which matrices [maps_count], and where they go, pairs [maps_pair_count]: the singular pair
 * u, v of s_1, of norm 1, the first largest entry of u positive; NaN where the matrix has no spectrum or is zero. Pairs
 * that are not wanted are left as they are. In score form both have the width d: u weighs what queries look at (ov: is
 * what a head writes), v what keys show (ov: what a head reads). channel: rows of A and of B; weight: rows and columns.
 * Always LAPACK's, in float64 up to the end. */
typedef struct maps_pairs {
    const bool *wanted;
    float *pairs;
} maps_pairs;

/* One spectrum a matrix, out [maps_count], and all singular values, values [maps_value_count]; those of a matrix
 * without spectrum are NaN. DATA when the snapshot lacks a tensor or one has another shape. */
status maps_compute(maps *m, const snapshot *s, spectrum *out, double *values);

/* The same, and top pairs; top NULL: none. */
status maps_compute_pairs(maps *m, const snapshot *s, spectrum *out, double *values, const maps_pairs *top);

/* Whether the spectra of this config need the parameter of that global name: what a snapshot carries. */
bool maps_wants(const config *c, const char *name);
