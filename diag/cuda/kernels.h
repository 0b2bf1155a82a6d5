/* Private to diag/cuda/: the kernels' launchers. */
#pragma once

#include <cuda_runtime.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { JACOBI_MOST_SIDE = 224 };

/* Shared memory that launch_jacobi takes a block, in bytes. */
size_t jacobi_shared_bytes(int side);

/* values [count, side], descending, of matrices [count, side, side], side <= JACOBI_MOST_SIDE; NaN without convergence.
 */
cudaError_t launch_jacobi(float *values, const float *matrices, int side, int count, cudaStream_t stream);

/* out [count, 2 side, 2 side] = [0 X; Xt 0] of each matrix X. */
cudaError_t launch_embed(float *out, const float *matrices, int side, int count, cudaStream_t stream);

/* values [count, side] = the upper half of ascending eigenvalues [count, 2 side], turned round; NaN where info is not
 * 0. */
cudaError_t launch_upper_half(float *values, const float *eigenvalues, const int *info, int side, int count,
                              cudaStream_t stream);

#ifdef __cplusplus
}
#endif
