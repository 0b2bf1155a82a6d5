/* Columns against a null. */
#include "diag/nulls_columns.h"

#include <math.h>

static bool has_null(const spectrum *row) {
    return row->status == SPECTRUM_STATUS_ok || row->status == SPECTRUM_STATUS_rank_deficient;
}

/* What left the range of double does not exist. */
static double finite_or_none(double x) {
    return isfinite(x) ? x : NAN;
}

void nulls_edge_columns(const double *s, int r, double edge, spectrum *row) {
    if (!has_null(row) || !isfinite(edge)) return;
    double sum = row->stable_rank, limit = edge * sum / r, energy = 0; /* lambda over lambda_max */
    int above = 0;
    for (int i = 0; i < r; i++) {
        double t = s[i] / s[0];
        if (!(t * t > limit)) break;
        energy += t * t;
        above++;
    }
    row->null_edge = finite_or_none(row->lambda_sum / r * edge);
    row->null_gap = 1 / limit;
    row->null_outliers = above;
    row->null_outlier_energy = energy / sum;
}

static double score(const nulls_moments *m, int r, const spectrum *row) {
    double off = log(r / row->stable_rank) - m->mean[NULLS_ln_lambda_max];
    return NULLS_TW1_SD * off / m->sd[NULLS_ln_lambda_max] + NULLS_TW1_MEAN;
}

static double deviation(const nulls_moments *m, int statistic, double value) {
    return m->sd[statistic] > 0 ? finite_or_none((value - m->mean[statistic]) / m->sd[statistic]) : NAN;
}

void nulls_plain_columns(const nulls_moments *m, int r, spectrum *row) {
    if (!has_null(row)) return;
    double point = (NULLS_TW1_Q95 - NULLS_TW1_MEAN) / NULLS_TW1_SD;
    double edge95 = exp(m->mean[NULLS_ln_lambda_max] + point * m->sd[NULLS_ln_lambda_max]);
    row->null_edge95 = finite_or_none(row->lambda_sum / r * edge95);
    row->tw_score = score(m, r, row);
    row->z_stable_rank = deviation(m, NULLS_stable_rank, row->stable_rank);
    row->z_effective_rank = deviation(m, NULLS_effective_rank, row->effective_rank);
    row->z_effective_rank_rest = deviation(m, NULLS_effective_rank_rest, row->effective_rank_rest);
    row->z_participation_ratio = deviation(m, NULLS_participation_ratio, row->participation_ratio);
}

void nulls_gains_columns(const nulls_moments *m, int r, spectrum *row) {
    if (!has_null(row)) return;
    row->tw_score_gains = score(m, r, row);
    row->z_effective_rank_rest_gains = deviation(m, NULLS_effective_rank_rest, row->effective_rank_rest);
}
