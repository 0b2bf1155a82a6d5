/* What the CUDA table keeps in ops.context, for the CUDA files of other folders. C and C++. */
#pragma once

#include "core/ops/ops.h"

#include <cublasLt.h>
#include <cuda_runtime.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CUDA_TICKETS = 2 };

typedef struct cuda_context {
    int device;
    int sm_count;        /* multiprocessors */
    bool fp32;           /* activations are fp32, products without TF32 */
    bool warpgroups;     /* the device has wgmma: compute capability 9.0 */
    cudaStream_t stream; /* every operation of the table is queued here */
    cublasLtHandle_t blas;
    void *workspace; /* of products */
    size_t workspace_bytes;
    struct cuda_plans *plans; /* product algorithms chosen so far, by shape (core/ops/cuda/matmul.c) */
    void *scratch;            /* of reductions; a call's contents end with it */
    size_t scratch_bytes;
    int *tickets;      /* [CUDA_TICKETS] by which a launch's blocks share out its work; 0 between launches */
    size_t free_bytes; /* of the device, when the table was opened */

    cudaStream_t side; /* offloads leave the device here */
    char *staging;     /* [staging_bytes] an offload's parts, gathered */
    size_t staging_bytes;
    cudaEvent_t gathered, landed[OFFLOAD_SLOTS]; /* the staging is filled; the host memory is */

    cudaStream_t saving;      /* saves leave the device here: a snapshot does not wait for them */
    cudaEvent_t ready, saved; /* what a save carries has been computed; it has arrived */

    bool ranged; /* a range of NVTX is open, that of the last mark */
} cuda_context;

static inline cuda_context *cuda_of(const ops *o) {
    return (cuda_context *)o->context;
}

/* Keeps the first CUDA error as the table's first_error, with what it was about; true when code is cudaSuccess. */
bool cuda_check(ops *o, cudaError_t code, const char *what);

#ifdef __cplusplus
}
#endif
