/* See pair.h. Outputs are overwritten; all memory is the work's. */
#include "diag/pair.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 32 };

status pair_work_open(pair_work *w, int max_side) {
    size_t n = (size_t)max_side;
    *w = (pair_work){.max_side = max_side, .lwork = 2 * BLOCK * max_side};
    w->memory = malloc((4 * n + 6 * n + 2 * n + (size_t)w->lwork) * sizeof(double));
    w->integers = malloc(12 * n * sizeof(int));
    if (!w->memory || !w->integers) {
        pair_work_close(w);
        return status_fail(STATUS_INTERNAL, "out of memory for the singular vectors of %d x %d matrices", max_side,
                           max_side);
    }
    double *at = w->memory;
    double **const parts[] = {&w->diagonal, &w->off, &w->tau_left, &w->tau_right, &w->u, &w->v};
    double **const doubles[] = {&w->zero, &w->golub, &w->vector};
    for (int i = 0; i < 6; i++, at += n) *parts[i] = at;
    for (int i = 0; i < 3; i++, at += 2 * n) *doubles[i] = at;
    w->work = at;
    return STATUS_OK;
}

void pair_work_close(pair_work *w) {
    free(w->memory);
    free(w->integers);
    *w = (pair_work){0};
}

/* Entries near 1 after multiplying by 2^-exponent, so that squares neither overflow nor vanish. False for zero. */
static bool scale_to_one(double *x, size_t n, int *exponent) {
    double most = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs(x[i]));
    if (most == 0) return false;
    *exponent = ilogb(most);
    for (size_t i = 0; i < n; i++) x[i] = ldexp(x[i], -*exponent);
    return true;
}

/* All singular values of the bidiagonal matrix in w, which is kept, times 2^exponent. */
static bool bidiagonal_values(pair_work *w, int n, int exponent, double *values) {
    memcpy(values, w->diagonal, (size_t)n * sizeof(double));
    memcpy(w->zero, w->off, (size_t)(n - 1) * sizeof(double));
    if (LAPACKE_dbdsqr_work(LAPACK_COL_MAJOR, 'U', n, 0, 0, 0, values, w->zero, NULL, 1, NULL, 1, NULL, 1, w->work) !=
        0)
        return false;
    for (int i = 0; i < n; i++) values[i] = ldexp(values[i], exponent);
    return isfinite(values[0]);
}

/* The top pair (x, y), B y = s x, of the upper bidiagonal matrix in w, [n] each, not yet of norm 1. */
static bool bidiagonal_top(pair_work *w, int n, double *x, double *y) {
    int order = 2 * n, found = 0, splits = 0, failed = 0;
    int *block = w->integers, *split = block + order, *rest = split + order;
    double top;
    for (int i = 0; i < n; i++) {
        w->golub[2 * i] = w->diagonal[i];
        if (i + 1 < n) w->golub[2 * i + 1] = w->off[i];
    }
    memset(w->zero, 0, (size_t)order * sizeof(double));
    int info = LAPACKE_dstebz_work('I', 'B', order, 0, 0, order, order, 0, w->zero, w->golub, &found, &splits, &top,
                                   block, split, w->work, rest);
    if (info != 0 || found != 1) return false;
    info = LAPACKE_dstein_work(LAPACK_COL_MAJOR, order, w->zero, w->golub, 1, &top, block, split, w->vector, order,
                               w->work, rest, &failed);
    if (info != 0) return false;
    for (int i = 0; i < n; i++) {
        y[i] = w->vector[2 * i];
        x[i] = w->vector[2 * i + 1];
    }
    return true;
}

/* x / its norm, with the sign of its first largest entry, which is returned; 0, and x as it was, when x has no norm. */
static double normalize(double *x, int n) {
    double norm = cblas_dnrm2(n, x, 1);
    if (!(norm > 0) || !isfinite(norm)) return 0;
    double sign = x[cblas_idamax(n, x, 1)] < 0 ? -1 : 1;
    cblas_dscal(n, sign / norm, x, 1);
    return sign;
}

bool pair_top(pair_work *w, double *matrix, int rows, int cols, double *values) {
    int n = rows < cols ? rows : cols, exponent;
    if (!scale_to_one(matrix, (size_t)rows * (size_t)cols, &exponent)) return false;
    if (LAPACKE_dgebrd_work(LAPACK_COL_MAJOR, rows, cols, matrix, rows, w->diagonal, w->off, w->tau_left, w->tau_right,
                            w->work, w->lwork) != 0)
        return false;
    if (!bidiagonal_values(w, n, exponent, values)) return false;
    memset(w->u, 0, (size_t)rows * sizeof(double));
    memset(w->v, 0, (size_t)cols * sizeof(double));
    /* A wide matrix becomes a lower bidiagonal one: the transpose of the upper one with the same entries. */
    bool upper = rows >= cols;
    if (!bidiagonal_top(w, n, upper ? w->u : w->v, upper ? w->v : w->u)) return false;
    int left = LAPACKE_dormbr_work(LAPACK_COL_MAJOR, 'Q', 'L', 'N', rows, 1, cols, matrix, rows, w->tau_left, w->u,
                                   rows, w->work, w->lwork);
    int right = LAPACKE_dormbr_work(LAPACK_COL_MAJOR, 'P', 'L', 'N', cols, 1, rows, matrix, rows, w->tau_right, w->v,
                                    cols, w->work, w->lwork);
    if (left != 0 || right != 0) return false;
    double sign = normalize(w->u, rows);
    double other = normalize(w->v, cols);
    cblas_dscal(cols, sign * other, w->v, 1);
    return sign != 0 && other != 0;
}
