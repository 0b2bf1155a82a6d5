/* Launchers of attention/cuda/, queued on stream; each returns the launch's cudaError_t. Argument layouts are those of
 * attention/core.h. */
#pragma once

#include "attention/core.h"

#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { PLAIN_MOST_DIM = 256 }; /* D_n + D_r and D_v at most, of both families */

/* The fused kernels, on tensor cores: bf16; D_n, D_r and D_v multiples of 8; every operand's head begins on 16 bytes;
 * H = G where D_r > 0. fused_dq writes delta too, which fused_dkv reads. warpgroups: multiply by wgmma, for devices of
 * capability 9.0, heads up to 192 / 128; else by mma.sync, for 8.0 and up. */
cudaError_t fused_forward(const attn_core_args *a, bool warpgroups, cudaStream_t stream);
cudaError_t fused_dq(const attn_core_args *a, const attn_core_grads *g, float *delta, bool warpgroups,
                     cudaStream_t stream);
cudaError_t fused_dkv(const attn_core_args *a, const attn_core_grads *g, const float *delta, float *shares,
                      bool warpgroups, cudaStream_t stream);

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
