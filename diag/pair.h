/* The top singular pair of a matrix: u, v of norm 1 with X v = s_1 u, X^T u = s_1 v. Private to diag/.
 *
 * By Householder bidiagonalization and inverse iteration on the bidiagonal's Golub-Kahan form, a tridiagonal matrix
 * with zero diagonal whose eigenvalues are +-s (Golub & Kahan 1965): one vector costs little beside the singular values
 * and is accurate to rounding times s_1 / (s_1 - s_2). The sign: the first largest entry of u is positive. */
#pragma once

#include "core/status.h"

#include <stdbool.h>

typedef struct pair_work {
    int max_side, lwork;
    double *memory;                                /* all of: */
    double *diagonal, *off, *tau_left, *tau_right; /* [max_side] the bidiagonal matrix and the reflectors */
    double *zero, *golub, *vector;                 /* [2 max_side] the tridiagonal matrix, its eigenvector */
    double *work;                                  /* [lwork] */
    int *integers;                                 /* [12 max_side] */
    double *u, *v;                                 /* [max_side] the result */
} pair_work;

/* Memory for matrices with both sides up to max_side. INTERNAL when there is none. */
status pair_work_open(pair_work *w, int max_side);
void pair_work_close(pair_work *w);

/* The top pair of the finite column-major [rows, cols] matrix, which is overwritten, into w->u [rows] and w->v [cols];
 * and out of the same bidiagonal matrix all its singular values, descending, into values [min(rows, cols)]. False, with
 * neither, when there is no pair: the matrix is zero, or LAPACK does not converge. */
bool pair_top(pair_work *w, double *matrix, int rows, int cols, double *values);
