/* Launchers of the CUDA table's kernels, one file a family. The meaning of every argument is that of the operation of
 * the same name in core/ops/ops.h. They queue on stream, allocate nothing and return the launch's error; cudaSuccess at
 * once when there are no rows. Reductions have a fixed order: the same bits in every run on the same device model. */
#pragma once

#include "core/ops/ops.h"

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

/* norm.cu; scratch of at least 4 * x.cols bytes, more is faster */
cudaError_t launch_rmsnorm_forward(tensor y, float *rstd, tensor x, const float *gain, float eps, cudaStream_t stream);
cudaError_t launch_add_rmsnorm_forward(tensor sum, tensor y, float *rstd, tensor x, tensor branch, const float *gain,
                                       float eps, cudaStream_t stream);
cudaError_t launch_rmsnorm_backward(tensor dx, bool accumulate, float *dgain, tensor dy, tensor x, const float *gain,
                                    const float *rstd, void *scratch, size_t scratch_bytes, cudaStream_t stream);

/* elementwise.cu */
cudaError_t launch_rope(tensor x, rope_args args, cudaStream_t stream);
cudaError_t launch_swiglu_forward(tensor h, tensor gate_up, cudaStream_t stream);
cudaError_t launch_swiglu_backward(tensor dgate_up, tensor dh, tensor gate_up, cudaStream_t stream);
cudaError_t launch_add(tensor y, tensor a, tensor b, cudaStream_t stream);
cudaError_t launch_copy(tensor y, tensor x, cudaStream_t stream);

/* embedding.cu */
cudaError_t launch_embedding_forward(tensor x, tensor table, const int32_t *tokens, int64_t first, cudaStream_t stream);
cudaError_t launch_embedding_backward(tensor dtable, tensor dx, const int32_t *tokens, int64_t first, void *scratch,
                                      size_t scratch_bytes, cudaStream_t stream);

/* cross_entropy.cu */
cudaError_t launch_ce_max(float *row_max, tensor logits, int64_t valid, cudaStream_t stream);
cudaError_t launch_ce_sums(float *sums, float *picked, tensor logits, int64_t valid, const float *row_max,
                           const int32_t *targets, int64_t first, cudaStream_t stream);
cudaError_t launch_ce_loss(double *loss, const float *sums, const float *picked, const float *row_max, int64_t n,
                           cudaStream_t stream);
cudaError_t launch_ce_backward(tensor logits, int64_t valid, const float *row_max, const float *sums,
                               const int32_t *targets, int64_t first, float scale, cudaStream_t stream);
cudaError_t launch_ce_whole(float *row_max, float *sums, float *picked, tensor logits, int64_t valid,
                            const int32_t *targets, float scale, cudaStream_t stream);

/* checksum.cu: of y's bits and their places, in *sum */
cudaError_t launch_checksum(void *sum, tensor y, cudaStream_t stream);

/* optimizer.cu; copy and out are of the given type */
enum { SUM_SQUARES_SCRATCH_BYTES = 8192 };
cudaError_t launch_sum_squares(double *out, const float *x, int64_t count, void *scratch, cudaStream_t stream);
cudaError_t launch_adamw_begin(adamw_update *u, adamw_args args, cudaStream_t stream);
cudaError_t launch_adamw(float *weight, float *m, float *v, const float *gradient, void *copy, dtype type,
                         int64_t count, float weight_decay, const adamw_update *u, cudaStream_t stream);
cudaError_t launch_cast(void *out, dtype type, const float *x, int64_t count, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
