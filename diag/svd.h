/* Singular values of many matrices at once on a device: what diag/cuda/ provides and diag/solver.c uses. */
#pragma once

#include "core/ops/ops.h"

typedef struct svd_device svd_device;

struct svd_device {
    ops ops;            /* its memory and its queue, and the first error of all calls below */
    void *context;      /* the device's own */
    size_t piece_bytes; /* of matrices, that it is to get at once; one matrix may be more */

    /* Memory of the device's own for solve() with up to `count` matrices of that side. CONFIG when there is none. */
    status (*reserve)(svd_device *d, int side, int count);
    /* values [count, side], descending, of matrices [count, side, side], dense, in either order of storage, which may
     * be overwritten. Device memory; queued. All values of a matrix are NaN when it has entries that are not finite or
     * the solver did not converge. The largest entry of a matrix is to be near 1. */
    void (*solve)(svd_device *d, float *values, float *matrices, int side, int count);
    void (*close)(svd_device *d);
};

/* The GPU with most free memory of those that this process sees: only here does a diagnostics rank touch CUDA. CONFIG
 * when there is none or the program was built without CUDA. The caller ends it with out->close. */
status svd_cuda(svd_device *out);
