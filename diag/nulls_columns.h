/* The columns of one row that stand against its null (docs/design.md section 6.4). */
#pragma once

#include "diag/nulls_draw.h"
#include "diag/spectrum.h"

/* Tracy-Widom 1: its mean, standard deviation and 95% point. */
#define NULLS_TW1_MEAN (-1.2065335746)
#define NULLS_TW1_SD   1.2679863238
#define NULLS_TW1_Q95  0.9793160535

/* null_edge, null_gap, null_outliers, null_outlier_energy of r singular values s (descending); edge over mean lambda.
 * Nothing where the row's status is neither ok nor rank_deficient. */
void nulls_edge_columns(const double *s, int r, double edge, spectrum *row);

/* tw_score, null_edge95, z_*. tw_score = sd (ln(lambda_max / mean) - m) / s + mean, with m and s of the ensemble and
 * mean and sd of Tracy-Widom 1: its law is that of Tracy-Widom 1 under the null. */
void nulls_plain_columns(const nulls_moments *m, int r, spectrum *row);

/* tw_score_gains and z_effective_rank_rest_gains, the same against an ensemble with gains kept. */
void nulls_gains_columns(const nulls_moments *m, int r, spectrum *row);
