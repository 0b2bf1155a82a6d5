/* The scratch memory of the CUDA core, which plans count without a device and in any build. */
#pragma once

#include "attention/core.h"
#include "attention/cuda/hopper_cuts.h"

typedef struct attn_room {
    float *delta;  /* [B, H, T], or what the Hopper kernels take in its place; on 256 bytes */
    float *shares; /* [B, H, T, D_r]: of dk_rope */
} attn_room;

/* The cut of the Hopper kernels for these heads, whatever the device: on others its scratch is left unused. */
hopper_size attn_room_cut(const ops *o, const attn_core_args *a);

/* What a backward pass takes; the caller gives it back. */
attn_room attn_room_take(const ops *o, const attn_core_args *a, arena *scratch);
