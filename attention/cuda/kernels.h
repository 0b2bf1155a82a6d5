/* Launchers of attention/cuda/, queued on stream; each returns the launch's cudaError_t. Argument layouts are those of
 * attention/core.h. */
#pragma once

#include "attention/core.h"
#include "attention/cuda/hopper_cuts.h"

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PLAIN_MOST_DIM = 256 }; /* D_n + D_r and D_v at most, of plain and fused kernels */

/* The fused kernels, on tensor cores: bf16; D_n, D_r and D_v multiples of 8; every operand's head begins on 16 bytes;
 * H = G where D_r > 0. For compute capability 8.0 and up. fused_dq writes delta [B, H, T] too, which fused_dkv reads;
 * shares as plain_dkv's. */
cudaError_t fused_forward(const attn_core_args *a, cudaStream_t stream);
cudaError_t fused_dq(const attn_core_args *a, const attn_core_grads *g, float *delta, cudaStream_t stream);
cudaError_t fused_dkv(const attn_core_args *a, const attn_core_grads *g, const float *delta, float *shares,
                      cudaStream_t stream);

/* The same on a device of capability 9.0 with `sms` multiprocessors, whose own instructions they use; size: what
 * hopper_size_of says of the heads, not HOPPER_NONE. cudaErrorNotSupported: the driver makes no tensor maps.
 * hopper_forward: tickets, two ints that are 0 before and after. hopper_backward: dq, dk, dv and the shares of dk_rope;
 * scratch: hopper_room_of's bytes, on 256. */
cudaError_t hopper_forward(const attn_core_args *a, hopper_size size, int *tickets, int sms, cudaStream_t stream);
cudaError_t hopper_backward(const attn_core_args *a, const attn_core_grads *g, hopper_size size, void *scratch,
                            float *shares, int sms, cudaStream_t stream);

/* The plain kernels: every shape, fp32 and bf16. */

/* o and lse. */
cudaError_t plain_forward(const attn_core_args *a, cudaStream_t stream);

/* delta [B, H, T] fp32: dout . o of every query. */
cudaError_t plain_delta(const attn_core_args *a, const attn_core_grads *g, float *delta, cudaStream_t stream);

/* dq; then dk, dv and each query head's share [B, H, T, D_r] (fp32) of dk_rope. */
cudaError_t plain_dq(const attn_core_args *a, const attn_core_grads *g, const float *delta, cudaStream_t stream);
cudaError_t plain_dkv(const attn_core_args *a, const attn_core_grads *g, const float *delta, float *shares,
                      cudaStream_t stream);

/* dk_rope = the sum of the shares over heads, in their order. */
cudaError_t plain_rope_sum(const attn_core_args *a, const attn_core_grads *g, const float *shares, cudaStream_t stream);

#ifdef __cplusplus
}
#endif
