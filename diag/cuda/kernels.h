/* Private to diag/cuda/: the kernels' launchers. */
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { TRIDIAGONAL_MOST_PAIRS = 16 };

/* How `count` matrices of a side are reduced to tridiagonal form. */
typedef struct tridiagonal_plan {
    int side, count;
    int stride;          /* of a row: side, rounded up */
    int threads;         /* of a block */
    int pairs;           /* of vectors, that wait until the matrix is updated; at most TRIDIAGONAL_MOST_PAIRS */
    int blocks;          /* that the device holds at once */
    int groups, members; /* groups of blocks: a group has a matrix at a time; no more groups than matrices */
    size_t shared_bytes; /* that a block keeps its vectors in; 0: they are in global memory */
} tridiagonal_plan;

/* The row stride of Gram matrices of a side. */
int tridiagonal_stride(int side);

/* side, stride, threads, pairs and shared_bytes, where a block may have so much shared memory. */
void tridiagonal_shape(tridiagonal_plan *p, int side, size_t shared_bytes);

/* count, groups and members, where the device holds so many of these blocks at once, at least one. */
void tridiagonal_share(tridiagonal_plan *p, int count, int blocks);

/* Both, for a device. */
cudaError_t tridiagonal_plan_for(tridiagonal_plan *out, int side, int count, int device);

/* Bytes of launch_tridiagonal_values' vectors; no less than those of a smaller count. */
size_t tridiagonal_vector_bytes(const tridiagonal_plan *p);

/* out [count, side, stride], the rows filled up with zeros, of matrices [count, side, side]. */
cudaError_t launch_widen(double *out, const float *matrices, int side, int count, cudaStream_t stream);

/* values [count, side], descending: the roots of the eigenvalues of grams [count, stride, stride], which are lost; NaN
 * where one is not finite. What lies behind side is 0. vectors, arrivals [count]: scratch. */
cudaError_t launch_tridiagonal_values(float *values, double *grams, double *vectors, unsigned *arrivals,
                                      const tridiagonal_plan *p, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
