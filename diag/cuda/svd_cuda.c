/* The GPU's singular values: roots of the eigenvalues of Gram matrices, which cuBLAS makes in float64. */
#include "diag/cuda/kernels.h"
#include "diag/svd.h"

#include "core/log.h"
#include "core/ops/cuda/context.h"

#include <cublas_v2.h>
#include <stdlib.h>

enum { PIECE_BYTES = 128 << 20 }; /* widened and squared, four times as much */

typedef struct svd_context {
    cublasHandle_t blas;
    double *wide, *grams, *vectors; /* see launch_widen and launch_tridiagonal_values */
    unsigned *arrivals;
    size_t wide_bytes, gram_bytes, vector_bytes, arrival_bytes;
} svd_context;

static svd_context *context_of(const svd_device *d) {
    return d->context;
}

static status no_memory(const svd_device *d, int side, int count) {
    return status_fail(STATUS_CONFIG,
                       "the spectra of %d matrices of %d x %d do not fit GPU %d's memory; set diagnostics.device: cpu",
                       count, side, side, cuda_of(&d->ops)->device);
}

/* Room for that many bytes at *data, which has *had. */
static bool grow(ops *o, void *data, size_t *had, size_t bytes) {
    void **at = data;
    if (*had >= bytes) return true;
    if (*at) o->release(o, *at);
    *at = o->alloc(o, bytes);
    *had = *at ? bytes : 0;
    return *at != NULL;
}

static bool blas_check(svd_device *d, cublasStatus_t code, const char *what) {
    if (code == CUBLAS_STATUS_SUCCESS) return true;
    if (d->ops.first_error == STATUS_OK)
        d->ops.first_error = status_fail(STATUS_INTERNAL, "GPU %d: cuBLAS: %s: %s", cuda_of(&d->ops)->device, what,
                                         cublasGetStatusString(code));
    return false;
}

static bool plan_for(svd_device *d, tridiagonal_plan *p, int side, int count) {
    return cuda_check(&d->ops, tridiagonal_plan_for(p, side, count, cuda_of(&d->ops)->device), "blocks");
}

static status cuda_reserve(svd_device *d, int side, int count) {
    svd_context *c = context_of(d);
    tridiagonal_plan p;
    if (!plan_for(d, &p, side, count)) return ops_status(&d->ops);
    size_t row_bytes = (size_t)count * (size_t)p.stride * sizeof(double);
    bool got = grow(&d->ops, &c->wide, &c->wide_bytes, row_bytes * (size_t)side) &&
               grow(&d->ops, &c->grams, &c->gram_bytes, row_bytes * (size_t)p.stride) &&
               grow(&d->ops, &c->vectors, &c->vector_bytes, tridiagonal_vector_bytes(&p)) &&
               grow(&d->ops, &c->arrivals, &c->arrival_bytes, (size_t)count * sizeof *c->arrivals);
    return got ? STATUS_OK : no_memory(d, side, count);
}

/* grams = Xt X of each matrix X. */
static bool square(svd_device *d, const tridiagonal_plan *p) {
    svd_context *c = context_of(d);
    const double one = 1, zero = 0;
    long long stride = p->stride;
    return blas_check(d,
                      cublasDgemmStridedBatched(c->blas, CUBLAS_OP_N, CUBLAS_OP_T, p->stride, p->stride, p->side, &one,
                                                c->wide, p->stride, p->side * stride, c->wide, p->stride,
                                                p->side * stride, &zero, c->grams, p->stride, stride * stride,
                                                p->count),
                      "Gram matrices");
}

static void cuda_solve(svd_device *d, float *values, float *matrices, int side, int count) {
    svd_context *c = context_of(d);
    cudaStream_t stream = cuda_of(&d->ops)->stream;
    tridiagonal_plan p;
    if (!plan_for(d, &p, side, count) ||
        !cuda_check(&d->ops, launch_widen(c->wide, matrices, side, count, stream), "widening") || !square(d, &p))
        return;
    cuda_check(&d->ops, launch_tridiagonal_values(values, c->grams, c->vectors, c->arrivals, &p, stream),
               "singular values");
}

static void cuda_close(svd_device *d) {
    svd_context *c = context_of(d);
    void *const memory[] = {c->wide, c->grams, c->vectors, c->arrivals};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        if (memory[i]) d->ops.release(&d->ops, memory[i]);
    if (c->blas) cublasDestroy(c->blas);
    free(c);
    if (d->ops.close) d->ops.close(&d->ops);
    *d = (svd_device){0};
}

/* A GPU tells what is free only to a process that has memory there itself, which is given back at once: the GPUs are
 * the compute ranks'. */
static size_t free_bytes(int device) {
    size_t left = 0, all = 0;
    bool known = cudaSetDevice(device) == cudaSuccess && cudaMemGetInfo(&left, &all) == cudaSuccess;
    cudaDeviceReset();
    cudaGetLastError();
    return known ? left : 0;
}

static int freest_device(void) {
    int devices = ops_cuda_devices(), best = 0;
    size_t most = 0;
    for (int i = 0; i < devices && devices > 1; i++) {
        size_t left = free_bytes(i);
        if (left <= most) continue;
        most = left;
        best = i;
    }
    return best;
}

static status open_device(svd_device *d, int device) {
    svd_context *c = context_of(d);
    TRY(ops_cuda(&d->ops, device, true));
    bool opened = blas_check(d, cublasCreate(&c->blas), "start") &&
                  blas_check(d, cublasSetStream(c->blas, cuda_of(&d->ops)->stream), "stream");
    return opened ? STATUS_OK : ops_status(&d->ops);
}

status svd_cuda(svd_device *out) {
    *out = (svd_device){0};
    if (ops_cuda_devices() == 0)
        return status_fail(STATUS_CONFIG,
                           "diagnostics.device: this process sees no NVIDIA GPU; set it to cpu, or check "
                           "nvidia-smi and CUDA_VISIBLE_DEVICES");
    svd_context *c = calloc(1, sizeof *c);
    if (!c) return status_fail(STATUS_INTERNAL, "out of memory");
    *out = (svd_device){
        .context = c, .piece_bytes = PIECE_BYTES, .reserve = cuda_reserve, .solve = cuda_solve, .close = cuda_close};
    status result = open_device(out, freest_device());
    if (result == STATUS_OK) {
        log_info("spectra are computed on GPU %d", cuda_of(&out->ops)->device);
    } else {
        cuda_close(out);
    }
    return result;
}
