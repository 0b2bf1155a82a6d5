#include "diag/gram.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>

static const double LEAST_RCOND = 1e-3;
/* Squares and their sums stay far from the ends of double. */
static const double LEAST_ENTRY = 1e-140, MOST_ENTRY = 1e140;

static bool can_be_squared(double largest) {
    return largest >= LEAST_ENTRY && largest <= MOST_ENTRY;
}

bool gram_triangle(const double *F, int length, int n, bool turned, double *R, double *work) {
    double largest = 0, rcond;
    cblas_dsyrk(CblasColMajor, CblasUpper, turned ? CblasNoTrans : CblasTrans, n, length, 1, F, turned ? n : length, 0,
                R, n);
    for (int i = 0; i < n; i++) largest = fmax(largest, R[i + (long)i * n]);
    if (!can_be_squared(sqrt(largest)) || LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', n, R, n) != 0) return false;
    LAPACKE_dtrcon_work(LAPACK_COL_MAJOR, '1', 'U', 'N', n, R, n, &rcond, work, (int *)(void *)(work + 3 * (long)n));
    for (int j = 0; j < n; j++)
        for (int i = j + 1; i < n; i++) R[i + (long)j * n] = 0;
    return rcond >= LEAST_RCOND;
}

bool gram_values(const double *X, int n, double *s, double *gram, double *work) {
    double *beside = work, *tau = work + n, *lapack = work + 2 * (long)n;
    long count = (long)n * n;
    double largest = fabs(X[cblas_idamax((int)count, X, 1)]);
    if (!can_be_squared(largest)) return false;
    cblas_dsyrk(CblasColMajor, CblasLower, CblasNoTrans, n, n, 1, X, n, 0, gram, n);
    if (LAPACKE_dsytrd_work(LAPACK_COL_MAJOR, 'L', n, gram, n, s, beside, tau, lapack, 62 * n) != 0 ||
        LAPACKE_dsterf_work(n, s, beside) != 0)
        return false;
    for (int i = 0; i < n / 2; i++) {
        double low = s[i];
        s[i] = s[n - 1 - i];
        s[n - 1 - i] = low;
    }
    for (int i = 0; i < n; i++) s[i] = sqrt(fmax(s[i], 0));
    return true;
}
