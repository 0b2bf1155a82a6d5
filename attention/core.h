/* The fused causal attention core: softmax(scale (q_n k_nt + q_r k_rt), causal) v, forward and backward, without ever
 * storing the T x T scores. One table a device: cpu/, cuda/.
 *
 * The rotary key k_r [B T, D_r] is one operand shared by all heads; it is never copied per head. With D_r = 0 it is
 * absent. Head h reads kv head floor(h G / H). Every head's block lies inside a token's row: q at h (D_n + D_r) = [q_n
 * | q_r], k_n at g k_head, v at g v_head, o at h D_v. */
#pragma once

#include "core/arena.h"
#include "core/ops/ops.h"

typedef struct attn_core_args {
    int64_t batch, context; /* T: keys of a sample */
    int64_t first;          /* forward only: queries are those of positions first to T - 1; below: T' = T - first */
    int heads, kv_heads;    /* on this rank */
    int nope, rope, value;
    float scale;
    tensor q;               /* [B T', H (D_n + D_r)] */
    tensor k, v;            /* [B T, ...]: head g's block starts at column g k_head (g v_head) */
    int64_t k_head, v_head; /* columns from one kv head to the next */
    tensor k_rope;          /* [B T, D_r]; data NULL when D_r = 0 */
    tensor o;               /* [B T', H D_v] */
    float *lse;             /* [B, H, T']: log of the sum of exp of the scaled scores */
} attn_core_args;

typedef struct attn_core_grads {
    tensor dout;       /* [B T, H D_v] */
    tensor dq, dk, dv; /* overwritten, laid out as q, k, v */
    tensor dk_rope;    /* overwritten: summed over the heads of this rank in a fixed order */
} attn_core_grads;

typedef struct attn_core {
    const char *name;
    /* Writes o and lse. */
    void (*forward)(ops *o, const attn_core_args *args, arena *scratch);
    void (*backward)(ops *o, const attn_core_args *args, const attn_core_grads *grads, arena *scratch);
} attn_core;

extern const attn_core attn_core_cpu;

/* The core for the CUDA table (bf16 or fp32 activations); NULL where the program was built without CUDA. */
const attn_core *attn_core_cuda(void);

/* Takes that core's scratch and computes nothing, in any build: for counting. */
extern const attn_core attn_core_cuda_room;

/* The same by one family of its kernels and no later one: "plain" (every shape and type), "mma" (tensor cores of
 * compute capability 8.0 and up) or "wgmma" (9.0). What a family does not take, or the device lacks, goes to the one
 * before it. NULL: no such family. */
const attn_core *attn_core_cuda_family(const char *name);
