/* The GPU's singular values: small matrices by our Jacobi kernel, large ones as the eigenvalues of [0 X; Xt 0], which
 * are the singular values and their negatives, by cuSOLVER's batched solver. Never those of Xt X: squared, what is
 * under 3e-4 of the largest value would drown in fp32. */
#include "diag/cuda/kernels.h"
#include "diag/svd.h"

#include "core/log.h"
#include "core/ops/cuda/context.h"

#include <cusolverDn.h>
#include <stdlib.h>

enum { PIECE_BYTES = 128 << 20 }; /* embedded, four times as much */

typedef struct svd_context {
    cusolverDnHandle_t solver;
    cusolverDnParams_t params;
    float *embedded, *eigenvalues;
    int *info;
    void *work, *host_work;
    size_t embedded_bytes, eigenvalue_bytes, info_bytes, work_bytes, host_work_bytes;
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

static bool solver_check(svd_device *d, cusolverStatus_t code, const char *what) {
    if (code == CUSOLVER_STATUS_SUCCESS) return true;
    if (d->ops.first_error == STATUS_OK)
        d->ops.first_error =
            status_fail(STATUS_INTERNAL, "GPU %d: cuSOLVER: %s: error %d", cuda_of(&d->ops)->device, what, (int)code);
    return false;
}

static status cuda_reserve(svd_device *d, int side, int count) {
    svd_context *c = context_of(d);
    if (side <= d->small_side) return STATUS_OK;
    size_t wide = 2 * (size_t)side, matrices = (size_t)count, work = 0, host_work = 0;
    if (!grow(&d->ops, &c->embedded, &c->embedded_bytes, matrices * wide * wide * sizeof(float)) ||
        !grow(&d->ops, &c->eigenvalues, &c->eigenvalue_bytes, matrices * wide * sizeof(float)) ||
        !grow(&d->ops, &c->info, &c->info_bytes, matrices * sizeof(int)))
        return no_memory(d, side, count);
    cusolverStatus_t code = cusolverDnXsyevBatched_bufferSize(
        c->solver, c->params, CUSOLVER_EIG_MODE_NOVECTOR, CUBLAS_FILL_MODE_LOWER, (int64_t)wide, CUDA_R_32F,
        c->embedded, (int64_t)wide, CUDA_R_32F, c->eigenvalues, CUDA_R_32F, &work, &host_work, count);
    if (!solver_check(d, code, "workspace")) return ops_status(&d->ops);
    if (!grow(&d->ops, &c->work, &c->work_bytes, work)) return no_memory(d, side, count);
    if (host_work > c->host_work_bytes) {
        free(c->host_work);
        c->host_work = malloc(host_work);
        c->host_work_bytes = c->host_work ? host_work : 0;
        if (!c->host_work) return status_fail(STATUS_CONFIG, "out of memory for cuSOLVER");
    }
    return STATUS_OK;
}

static void solve_embedded(svd_device *d, float *values, const float *matrices, int side, int count) {
    svd_context *c = context_of(d);
    cudaStream_t stream = cuda_of(&d->ops)->stream;
    int64_t wide = 2 * (int64_t)side;
    if (!cuda_check(&d->ops, launch_embed(c->embedded, matrices, side, count, stream), "embedding")) return;
    cusolverStatus_t code =
        cusolverDnXsyevBatched(c->solver, c->params, CUSOLVER_EIG_MODE_NOVECTOR, CUBLAS_FILL_MODE_LOWER, wide,
                               CUDA_R_32F, c->embedded, wide, CUDA_R_32F, c->eigenvalues, CUDA_R_32F, c->work,
                               c->work_bytes, c->host_work, c->host_work_bytes, c->info, count);
    if (!solver_check(d, code, "eigenvalues")) return;
    cuda_check(&d->ops, launch_upper_half(values, c->eigenvalues, c->info, side, count, stream), "singular values");
}

static void cuda_solve(svd_device *d, float *values, float *matrices, int side, int count) {
    if (side > d->small_side) {
        solve_embedded(d, values, matrices, side, count);
        return;
    }
    cuda_check(&d->ops, launch_jacobi(values, matrices, side, count, cuda_of(&d->ops)->stream), "Jacobi");
}

static void cuda_close(svd_device *d) {
    svd_context *c = context_of(d);
    void *const memory[] = {c->embedded, c->eigenvalues, c->info, c->work};
    for (size_t i = 0; i < sizeof memory / sizeof *memory; i++)
        if (memory[i]) d->ops.release(&d->ops, memory[i]);
    if (c->params) cusolverDnDestroyParams(c->params);
    if (c->solver) cusolverDnDestroy(c->solver);
    free(c->host_work);
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

/* The largest side whose matrix a block can hold. */
static int largest_jacobi_side(int device) {
    int bytes = 0, side = JACOBI_MOST_SIDE;
    if (cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) bytes = 0;
    while (side > 0 && jacobi_shared_bytes(side) > (size_t)bytes) side--;
    return side;
}

static status open_device(svd_device *d, int device) {
    svd_context *c = context_of(d);
    TRY(ops_cuda(&d->ops, device, true));
    d->small_side = largest_jacobi_side(device);
    bool opened = solver_check(d, cusolverDnCreate(&c->solver), "start") &&
                  solver_check(d, cusolverDnSetStream(c->solver, cuda_of(&d->ops)->stream), "stream") &&
                  solver_check(d, cusolverDnCreateParams(&c->params), "parameters");
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
