/* Ensembles of the product null (docs/design.md section 6.4): what the spectrum of a map looks like when its leaf
 * weights are independent Gaussians.
 *
 * d width, H heads, D_n and D_r a head's rows without and with rotary, R latent, R_q query latent (0: none), r the rank
 * of the map. lambda are its r eigenvalues; their statistics do not know the scale. */
#pragma once

#include "core/status.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

/* What is kept of every draw, in the order of the table `nulls`; ln_lambda_max is ln(lambda_max / mean lambda),
 * lambda_max the same ratio itself. */
#define NULLS_STATISTICS(X)                                                                                            \
    X(ln_lambda_max)                                                                                                   \
    X(lambda_max)                                                                                                      \
    X(stable_rank)                                                                                                     \
    X(effective_rank)                                                                                                  \
    X(effective_rank_rest)                                                                                             \
    X(participation_ratio)                                                                                             \
    X(alpha)

enum {
#define X(name) NULLS_##name,
    NULLS_STATISTICS(X)
#undef X
        NULLS_STATISTIC_COUNT
};

/* Mean and standard deviation (n - 1) of each over an ensemble. NaN where a statistic does not exist (alpha with r <
 * 10). */
typedef struct nulls_moments {
    double mean[NULLS_STATISTIC_COUNT], sd[NULLS_STATISTIC_COUNT];
} nulls_moments;

/* chain: a product of Gaussians alone. mixed: one of its inner dimensions is two halves whose columns have different
 * variances (mla-prerope, keys and values before the down projection). block: content and rope added (the score form)
 * or side by side (the channel form). */
typedef enum nulls_kind { NULLS_CHAIN, NULLS_MIXED, NULLS_BLOCK } nulls_kind;

enum { NULLS_MOST_DIMS = 8, NULLS_MOST_RATIOS = 2 };

/* The null of a map. Ratios are of standard deviations, natural logarithms.
 * chain: none. mixed: [keys / values]. block, score: [rope / content of the product's entries]; channel: [rope /
 * content of the query's entries, of the key's]. */
typedef struct nulls_shape {
    nulls_kind kind;
    bool channel;                        /* A B^T, not A^T B */
    int dim_count, dim[NULLS_MOST_DIMS]; /* chain, mixed: all dimensions, any order */
    int half;                            /* mixed: half of one of dim; >= rank */
    int content, copies, rope;           /* maps: rows of the content part; heads whose rope queries are summed; D_r */
    int latent, q_latent, width;         /* maps: R and R_q (0: none), d */
    int rank;                            /* r */
    int ratio_count;
} nulls_shape;

/* Fills rank and ratio_count from the rest. */
void nulls_shape_finish(nulls_shape *s);

/* What other threads see of an ensemble in the making, and may ask of it. */
typedef struct nulls_watch {
    atomic_bool stop;
    atomic_int drawn; /* counts its draws */
} nulls_watch;

/* Moments over `draws` >= 2 draws with those log ratios [ratio_count]. A draw is a function of (seed, its number)
 * alone, so the same ensemble comes from any number of threads, and neighbouring ratios share their noise.
 *
 * Chains are products of r x r triangular factors: with a Gaussian G [r, n] = L Q, Q has orthonormal rows and turns the
 * next factor into Gaussian noise again (Bartlett 1933: squares of L's diagonal are chi^2_n, chi^2_{n-1}, ..., below it
 * are standard normals). Since all factors are invariant under rotations, the order of the dimensions does not matter
 * (Ipsen & Kieburg 2014). A block's leaf weights are scaled to their exact mean squares, as the ratios measure them.
 *
 * INTERNAL when watch (may be NULL) says stop, out of memory, or where LAPACK fails. */
status nulls_ensemble(const nulls_shape *s, const double *log_ratio, int draws, uint64_t seed, int threads,
                      nulls_watch *watch, nulls_moments *out);
