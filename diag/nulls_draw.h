/* Ensembles of the product null (docs/design.md section 6.4): what the spectrum of a map looks like when its leaf
 * weights are independent Gaussians.
 *
 * d width, H heads, D_n and D_r a head's rows without and with rotary, R latent; r the least dimension of the chain.
 * lambda are the r eigenvalues; their statistics do not know the scale. */
#pragma once

#include "core/status.h"

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
