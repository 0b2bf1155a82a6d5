/* Singular values and triangular factors by way of a Gram matrix X^T X in float64: products at the speed of the cores
 * instead of a sweep of reflections, where what squaring loses does not matter.
 *
 * The eigenvalues s^2 of a Gram matrix have errors of a few 2^-52 s_1^2, so a singular value has one of that over 2 s:
 * 1e-16 (s_1 / s) of s_1. Where a caller cannot bear it, it takes LAPACK's reflections; each function says when it
 * itself refuses. */
#pragma once

#include <stdbool.h>

/* R [n, n], upper triangular, column-major, zeros below its diagonal, with R^T R = F^T F for the column-major [length,
 * n] matrix F, or, turned, for the transpose of the column-major [n, length] one; n <= length. Which is the triangular
 * factor of F's QR factors up to signs. work: 4 n doubles. False, with R undefined, where F's condition is over 1e3, so
 * that errors of singular values stay under 1e-12 of the largest, or where its squares leave the range of double. */
bool gram_triangle(const double *F, int length, int n, bool turned, double *R, double *work);

/* s [n], descending: the singular values of the square matrix X [n, n] (row- or column-major), each within a few
 * 2^-52 s_1^2 / s. gram: n n doubles; work: 64 n. False, with s undefined, where squares leave the range of double or
 * the solver does not converge. X is kept. */
bool gram_values(const double *X, int n, double *s, double *gram, double *work);
