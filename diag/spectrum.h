/* The statistics of one spectrum (docs/design.md section 6.3): from a matrix to singular values to one row of the
 * database.
 *
 * s singular values, descending; lambda = s^2, unscaled; r their number: the smallest dimension of the factor chain, so
 * that zeros by shape never enter; gamma = p/n <= 1 of the core; sigma2 the variance estimate, n times that of an
 * entry. Ratios are formed from s / s_1 in float64, so that weights of 1e-30 give the same ratios. MP is
 * Marchenko-Pastur. */
#pragma once

#include "core/config.h"
#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

/* Every column, once: X(name, type). The struct, the tables' columns, the inserts and the queries come from this list.
 */
#define SPECTRUM_COLUMNS(X)                                                                                            \
    X(lambda_max, REAL)                                                                                                \
    X(lambda_sum, REAL)                                                                                                \
    X(sigma2, REAL)                                                                                                    \
    X(sigma2_median, REAL)                                                                                             \
    X(sigma2_fit, REAL)                                                                                                \
    X(mp_lambda_minus, REAL)                                                                                           \
    X(mp_lambda_plus, REAL)                                                                                            \
    X(mp_edge95, REAL)                                                                                                 \
    X(mp_gap, REAL)                                                                                                    \
    X(outliers_above, INTEGER)                                                                                         \
    X(outliers_above95, INTEGER)                                                                                       \
    X(outliers_below, INTEGER)                                                                                         \
    X(outlier_energy, REAL)                                                                                            \
    X(mp_ks, REAL)                                                                                                     \
    X(stable_rank, REAL)                                                                                               \
    X(participation_ratio, REAL)                                                                                       \
    X(effective_rank, REAL)                                                                                            \
    X(effective_rank_rv, REAL)                                                                                         \
    X(effective_rank_rest, REAL)                                                                                       \
    X(spectral_gap, REAL)                                                                                              \
    X(numerical_rank, INTEGER)                                                                                         \
    X(null_edge, REAL)                                                                                                 \
    X(null_edge95, REAL)                                                                                               \
    X(null_gap, REAL)                                                                                                  \
    X(null_outliers, INTEGER)                                                                                          \
    X(null_outlier_energy, REAL)                                                                                       \
    X(tw_score, REAL)                                                                                                  \
    X(tw_score_gains, REAL)                                                                                            \
    X(z_stable_rank, REAL)                                                                                             \
    X(z_effective_rank, REAL)                                                                                          \
    X(z_effective_rank_rest, REAL)                                                                                     \
    X(z_effective_rank_rest_gains, REAL)                                                                               \
    X(z_participation_ratio, REAL)                                                                                     \
    X(top_overlap, REAL)                                                                                               \
    X(alpha, REAL)                                                                                                     \
    X(alpha_xmin, REAL)                                                                                                \
    X(alpha_ks, REAL)                                                                                                  \
    X(alpha_n, INTEGER)

enum {
#define X(name, type) SPECTRUM_##name,
    SPECTRUM_COLUMNS(X)
#undef X
        SPECTRUM_COLUMN_COUNT
};

typedef struct spectrum_column {
    const char *name;
    bool integer;
} spectrum_column;

extern const spectrum_column spectrum_columns[SPECTRUM_COLUMN_COUNT];

/* ok: every column of the list that needs no null holds, but outliers_below is NULL at gamma = 1 and alpha may not
 * exist. rank_deficient: numerical_rank < r. too_small: r < 2. zero: all s = 0. nonfinite: a NaN or infinity in a
 * factor or in the product. failed: the solver did not converge. The last two have no numbers at all. */
#define SPECTRUM_STATUSES(X) X(ok) X(rank_deficient) X(too_small) X(zero) X(nonfinite) X(failed)

typedef enum spectrum_status {
#define X(name) SPECTRUM_STATUS_##name,
    SPECTRUM_STATUSES(X)
#undef X
} spectrum_status;

const char *spectrum_status_name(spectrum_status s);

/* A value that does not exist is NaN here and NULL in SQL; no other NaN and no infinity is ever in it. */
typedef struct spectrum {
    spectrum_status status;
    int64_t null_id;         /* the row of `nulls` that the tw_ and z_ columns are against; 0: none */
    double null_ratio;       /* of standard deviations, where that null depends on one; NaN */
    double null_query_ratio; /* the query's share of it, where the null depends on both; NaN */
    double null_log[2];      /* the log ratios that it is at (diag/nulls_draw.h); NaN: not known */
    union {
        struct {
#define X(name, type) double name;
            SPECTRUM_COLUMNS(X)
#undef X
        };
        double column[SPECTRUM_COLUMN_COUNT];
    };
} spectrum;

/* All columns NULL. */
void spectrum_clear(spectrum *out, spectrum_status why);

/* The CDF of MP with ratio gamma at even steps of sqrt(x), from 0 to its upper edge. */
enum { SPECTRUM_CDF_STEPS = 4096, SPECTRUM_CDFS = 8 };

typedef struct spectrum_cdf {
    double gamma;  /* 0: none yet */
    double margin; /* what lies between two steps is at most so far from the line between them */
    double at[SPECTRUM_CDF_STEPS + 2];
} spectrum_cdf;

/* One worker's memory for matrices of at most max_rows x max_cols. */
typedef struct spectrum_work {
    int max_rows, max_cols, lwork;
    double *work, *copy, *values; /* LAPACK's; the matrix again, for the second solver; [min(max_rows, max_cols)] */
    double *triangle;             /* [min(max_rows, max_cols)^2] of a matrix with a much longer side */
    int *iwork;
    double *lambda, *logs,
        *roots;         /* [min(max_rows, max_cols)]: ascending lambda / lambda_max, logarithms, square roots */
    spectrum_cdf *cdfs; /* [SPECTRUM_CDFS] of the ratios met so far; the next one takes the place next_cdf */
    int next_cdf;
} spectrum_work;

status spectrum_work_open(spectrum_work *w, int max_rows, int max_cols);
void spectrum_work_close(spectrum_work *w);

/* The singular values of the dense rows x cols matrix (row- or column-major: the values are the same), descending, into
 * w->values. The matrix is overwritten. nonfinite and failed leave no values. */
spectrum_status spectrum_solve(spectrum_work *w, double *matrix, int rows, int cols);

/* Every column that needs no null, from r singular values (descending) of a core of rows x cols. s may be w->values. */
void spectrum_measure(spectrum_work *w, const double *s, int r, int rows, int cols, config_sigma2 method,
                      spectrum *out);

/* CDF of MP with ratio 0 < gamma <= 1 and mean 1 at x, in closed form. */
double spectrum_mp_cdf(double x, double gamma);

/* Median of MP with ratio gamma and mean 1: 0.652779 at gamma = 1. */
double spectrum_mp_median(double gamma);

/* exp of the entropy of x / sum(x) over n values, natural logarithm. */
double spectrum_exp_entropy(const double *x, int n);

/* The heavy tail of w->lambda [r], ascending: density ~ lambda^-alpha from xmin on (Clauset, Shalizi and Newman 2009).
 * Every distinct lambda above floor with at least 10 values from it on is a candidate for xmin; alpha = 1 + m / sum
 * ln(lambda / xmin); the least D = max_j |1 - (x_j/xmin)^(1-alpha) - j/m| wins, ties to the smaller xmin. Sets the
 * alpha columns of out, alpha_xmin times scale; leaves them where there is no candidate. */
void spectrum_power_law(spectrum_work *w, int r, double floor, double scale, spectrum *out);
