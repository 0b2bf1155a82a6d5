/* Products of the CUDA table by cuBLASLt. */
#pragma once

#include "core/ops/cuda/context.h"

/* The tables of algorithms and their workspace; the context's fields blas, workspace and plans are set. */
status cuda_matmul_open(cuda_context *c);
void cuda_matmul_close(cuda_context *c);

/* ops.matmul: a and b of one type, fp32 or bf16; y of that type, or fp32. Products accumulate in fp32;
 * added to a bf16 y, they are rounded to bf16 first. */
void cuda_matmul(ops *o, tensor y, tensor a, bool transpose_a, tensor b, bool transpose_b, float beta);
