/* The CUDA table of operations: one stream, on which everything but the last leg of offloads is queued; bf16
 * activations, or fp32 throughout. Nothing is allocated but by alloc, host_alloc and offload_open. A CUDA error is kept
 * as the table's first error: whatever was queued before may be its cause. gemm_seconds stays 0: products run after the
 * call returns. */
#include "core/ops/cuda/context.h"
#include "core/ops/cuda/kernels.h"
#include "core/ops/cuda/mark.h"
#include "core/ops/cuda/matmul.h"
#include "core/ops/cuda/offload.h"

#include "core/log.h"

#include <stdlib.h>

enum { LEAST_COMPUTE_CAPABILITY = 8, SCRATCH_BYTES = 48 << 20 };

bool cuda_check(ops *o, cudaError_t code, const char *what) {
    if (code == cudaSuccess) return true;
    cudaGetLastError(); /* CUDA keeps it too, and would show it to the next launch, of whatever table */
    if (o->first_error == STATUS_OK)
        o->first_error = status_fail(STATUS_INTERNAL, "GPU %d: %s: %s (%s)", cuda_of(o)->device, what,
                                     cudaGetErrorString(code), cudaGetErrorName(code));
    return false;
}

/* ---------------------------------------------------------------- memory */

static void *table_alloc(ops *o, size_t bytes) {
    cuda_context *c = cuda_of(o);
    void *data = NULL;
    cudaError_t code = cudaMalloc(&data, bytes ? bytes : 1);
    if (code == cudaErrorMemoryAllocation) {
        size_t left = 0, all = 0;
        cudaGetLastError(); /* not an error of a later launch */
        cudaMemGetInfo(&left, &all);
        log_warn("GPU %d: out of memory: %zu MiB asked for, %zu of %zu MiB free", c->device, bytes >> 20, left >> 20,
                 all >> 20);
        return NULL;
    }
    if (!cuda_check(o, code, "cudaMalloc")) return NULL;
    cuda_check(o, cudaMemsetAsync(data, 0, bytes, c->stream), "zeroing new memory");
    return data;
}

static void table_release(ops *o, void *data) {
    cuda_check(o, cudaFree(data), "cudaFree");
}

static void table_zero(ops *o, void *data, size_t bytes) {
    cuda_check(o, cudaMemsetAsync(data, 0, bytes, cuda_of(o)->stream), "zero");
}

static void table_upload(ops *o, void *device, const void *host, size_t bytes) {
    cuda_check(o, cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, cuda_of(o)->stream), "upload");
}

static void table_sync(ops *o) {
    cuda_check(o, cudaStreamSynchronize(cuda_of(o)->stream), "sync");
}

static size_t table_used_bytes(ops *o) {
    size_t left = 0, all = 0;
    if (!cuda_check(o, cudaMemGetInfo(&left, &all), "cudaMemGetInfo")) return 0;
    return left < cuda_of(o)->free_bytes ? cuda_of(o)->free_bytes - left : 0;
}

static void table_fetch(ops *o, void *host, const void *device, size_t bytes) {
    cuda_check(o, cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cuda_of(o)->stream), "download");
}

static void table_download(ops *o, void *host, const void *device, size_t bytes) {
    table_fetch(o, host, device, bytes);
    table_sync(o);
}

/* ---------------------------------------------------------------- kernels */

static void table_rmsnorm_forward(ops *o, tensor y, float *rstd, tensor x, const float *gain, float eps) {
    cuda_check(o, launch_rmsnorm_forward(y, rstd, x, gain, eps, cuda_of(o)->stream), "rmsnorm_forward");
}

static void table_add_rmsnorm_forward(ops *o, tensor sum, tensor y, float *rstd, tensor x, tensor branch,
                                      const float *gain, float eps) {
    cuda_check(o, launch_add_rmsnorm_forward(sum, y, rstd, x, branch, gain, eps, cuda_of(o)->stream),
               "add_rmsnorm_forward");
}

static void table_rmsnorm_backward(ops *o, tensor dx, bool accumulate, float *dgain, tensor dy, tensor x,
                                   const float *gain, const float *rstd) {
    cuda_context *c = cuda_of(o);
    cuda_check(
        o, launch_rmsnorm_backward(dx, accumulate, dgain, dy, x, gain, rstd, c->scratch, c->scratch_bytes, c->stream),
        "rmsnorm_backward");
}

static void table_rope(ops *o, tensor x, rope_args args) {
    cuda_check(o, launch_rope(x, args, cuda_of(o)->stream), "rope");
}

static void table_swiglu_forward(ops *o, tensor h, tensor gate_up) {
    cuda_check(o, launch_swiglu_forward(h, gate_up, cuda_of(o)->stream), "swiglu_forward");
}

static void table_swiglu_backward(ops *o, tensor dgate_up, tensor dh, tensor gate_up) {
    cuda_check(o, launch_swiglu_backward(dgate_up, dh, gate_up, cuda_of(o)->stream), "swiglu_backward");
}

static void table_embedding_forward(ops *o, tensor x, tensor table, const int32_t *tokens, int64_t first) {
    cuda_check(o, launch_embedding_forward(x, table, tokens, first, cuda_of(o)->stream), "embedding_forward");
}

static void table_embedding_backward(ops *o, tensor dtable, tensor dx, const int32_t *tokens, int64_t first) {
    cuda_context *c = cuda_of(o);
    cuda_check(o, launch_embedding_backward(dtable, dx, tokens, first, c->scratch, c->scratch_bytes, c->stream),
               "embedding_backward");
}

static void table_ce_max(ops *o, float *row_max, tensor logits, int64_t valid) {
    cuda_check(o, launch_ce_max(row_max, logits, valid, cuda_of(o)->stream), "ce_max");
}

static void table_ce_sums(ops *o, float *sums, float *picked, tensor logits, int64_t valid, const float *row_max,
                          const int32_t *targets, int64_t first) {
    cuda_check(o, launch_ce_sums(sums, picked, logits, valid, row_max, targets, first, cuda_of(o)->stream), "ce_sums");
}

static void table_ce_loss(ops *o, double *loss, const float *sums, const float *picked, const float *row_max,
                          int64_t n) {
    cuda_check(o, launch_ce_loss(loss, sums, picked, row_max, n, cuda_of(o)->stream), "ce_loss");
}

static void table_ce_backward(ops *o, tensor logits, int64_t valid, const float *row_max, const float *sums,
                              const int32_t *targets, int64_t first, float scale) {
    cuda_check(o, launch_ce_backward(logits, valid, row_max, sums, targets, first, scale, cuda_of(o)->stream),
               "ce_backward");
}

static void table_ce_whole(ops *o, float *row_max, float *sums, float *picked, tensor logits, int64_t valid,
                           const int32_t *targets, float scale) {
    cuda_check(o, launch_ce_whole(row_max, sums, picked, logits, valid, targets, scale, cuda_of(o)->stream),
               "ce_whole");
}

static void table_add(ops *o, tensor y, tensor a, tensor b) {
    cuda_check(o, launch_add(y, a, b, cuda_of(o)->stream), "add");
}

static void table_copy(ops *o, tensor y, tensor x) {
    cuda_check(o, launch_copy(y, x, cuda_of(o)->stream), "copy");
}

static void table_sum_squares(ops *o, double *out, const float *x, int64_t count) {
    cuda_context *c = cuda_of(o);
    cuda_check(o, launch_sum_squares(out, x, count, c->scratch, c->stream), "sum_squares");
}

static void table_adamw_begin(ops *o, adamw_update *u, adamw_args args) {
    cuda_check(o, launch_adamw_begin(u, args, cuda_of(o)->stream), "adamw_begin");
}

static void table_adamw(ops *o, float *weight, float *m, float *v, const float *gradient, void *copy, int64_t count,
                        float weight_decay, const adamw_update *u) {
    cuda_check(o, launch_adamw(weight, m, v, gradient, copy, o->activation, count, weight_decay, u, cuda_of(o)->stream),
               "adamw");
}

static void table_cast(ops *o, void *out, const float *x, int64_t count) {
    cuda_check(o, launch_cast(out, o->activation, x, count, cuda_of(o)->stream), "cast");
}

/* ---------------------------------------------------------------- the table */

static const ops TABLE = {
    .name = "cuda",
    .queues = true,
    .alloc = table_alloc,
    .release = table_release,
    .alloc_shared = table_alloc,
    .release_shared = table_release,
    .zero = table_zero,
    .upload = table_upload,
    .download = table_download,
    .fetch = table_fetch,
    .sync = table_sync,
    .used_bytes = table_used_bytes,
    .offload_open = cuda_offload_open,
    .host_alloc = cuda_host_alloc,
    .host_release = cuda_host_release,
    .host_lock = cuda_host_lock,
    .host_unlock = cuda_host_unlock,
    .offload = cuda_offload,
    .offload_wait = cuda_offload_wait,
    .save = cuda_save,
    .save_fence = cuda_save_fence,
    .save_wait = cuda_save_wait,
    .mark = cuda_mark,
    .mark_wait = cuda_mark_wait,
    .mark_span_s = cuda_mark_span_s,
    .mark_release = cuda_mark_release,
    .matmul = cuda_matmul,
    .rmsnorm_forward = table_rmsnorm_forward,
    .add_rmsnorm_forward = table_add_rmsnorm_forward,
    .rmsnorm_backward = table_rmsnorm_backward,
    .rope = table_rope,
    .swiglu_forward = table_swiglu_forward,
    .swiglu_backward = table_swiglu_backward,
    .embedding_forward = table_embedding_forward,
    .embedding_backward = table_embedding_backward,
    .ce_max = table_ce_max,
    .ce_sums = table_ce_sums,
    .ce_loss = table_ce_loss,
    .ce_backward = table_ce_backward,
    .ce_whole = table_ce_whole,
    .add = table_add,
    .copy = table_copy,
    .sum_squares = table_sum_squares,
    .adamw_begin = table_adamw_begin,
    .adamw = table_adamw,
    .cast = table_cast,
};

static void context_free(cuda_context *c) {
    cuda_offload_close(c);
    cuda_matmul_close(c);
    cudaFree(c->scratch);
    cudaFree(c->tickets);
    if (c->stream) cudaStreamDestroy(c->stream);
    free(c);
}

static void table_close(ops *o) {
    context_free(cuda_of(o));
    *o = (ops){0};
}

int ops_cuda_devices(void) {
    int count = 0;
    if (cudaGetDeviceCount(&count) != cudaSuccess) {
        cudaGetLastError();
        return 0;
    }
    return count;
}

bool ops_cuda_gpu(ops_gpu *out, int device) {
    struct cudaDeviceProp found;
    if (cudaGetDeviceProperties(&found, device) != cudaSuccess) return false;
    *out = (ops_gpu){.major = found.major, .minor = found.minor, .memory_bytes = found.totalGlobalMem};
    snprintf(out->name, sizeof out->name, "%.63s", found.name);
    return true;
}

int ops_cuda_built(void) {
    return CUDART_VERSION;
}

int ops_cuda_driver(void) {
    int version = 0;
    return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

static status find_device(int device, struct cudaDeviceProp *found) {
    int count = 0;
    cudaError_t code = cudaGetDeviceCount(&count);
    if (code != cudaSuccess || count == 0) {
        cudaGetLastError();
        return status_fail(STATUS_CONFIG,
                           "no NVIDIA GPU that this process sees (%s); set run.device: cpu, or check "
                           "nvidia-smi and CUDA_VISIBLE_DEVICES",
                           code == cudaSuccess ? "0 devices" : cudaGetErrorString(code));
    }
    if (device < 0 || device >= count)
        return status_fail(STATUS_CONFIG,
                           "there is no GPU %d: this process sees %d GPU%s, numbered from 0; start no "
                           "more compute ranks on a host than it has GPUs",
                           device, count, count == 1 ? "" : "s");
    code = cudaGetDeviceProperties(found, device);
    if (code != cudaSuccess) return status_fail(STATUS_CONFIG, "GPU %d: %s", device, cudaGetErrorString(code));
    if (found->major < LEAST_COMPUTE_CAPABILITY)
        return status_fail(STATUS_CONFIG, "GPU %d (%s) has compute capability %d.%d; %d.0 or more is needed", device,
                           found->name, found->major, found->minor, LEAST_COMPUTE_CAPABILITY);
    return STATUS_OK;
}

static status context_open(cuda_context *c) {
    cudaError_t code = cudaSetDevice(c->device);
    if (code == cudaSuccess) code = cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking);
    size_t all;
    if (code == cudaSuccess) code = cudaMemGetInfo(&c->free_bytes, &all);
    c->scratch_bytes = SCRATCH_BYTES;
    if (code == cudaSuccess) code = cudaMalloc(&c->scratch, c->scratch_bytes);
    size_t bytes = CUDA_TICKETS * sizeof *c->tickets;
    if (code == cudaSuccess) code = cudaMalloc((void **)&c->tickets, bytes);
    if (code == cudaSuccess) code = cudaMemsetAsync(c->tickets, 0, bytes, c->stream);
    if (code != cudaSuccess)
        return status_fail(STATUS_CONFIG, "GPU %d does not start: %s", c->device, cudaGetErrorString(code));
    TRY(cuda_offload_start(c));
    return cuda_matmul_open(c);
}

status ops_cuda(ops *out, int device, bool fp32) {
    struct cudaDeviceProp found;
    *out = (ops){0};
    TRY(find_device(device, &found));
    cuda_context *c = calloc(1, sizeof *c);
    if (!c) return status_fail(STATUS_INTERNAL, "out of memory");
    c->device = device;
    c->sm_count = found.multiProcessorCount;
    c->warpgroups = found.major == 9;
    c->fp32 = fp32;
    status opened = context_open(c);
    if (opened != STATUS_OK) {
        context_free(c);
        return opened;
    }
    *out = TABLE;
    snprintf(out->device, sizeof out->device, "%.63s", found.name);
    out->activation = fp32 ? DTYPE_F32 : DTYPE_BF16;
    out->logit_elements = OPS_CUDA_LOGITS;
    out->context = c;
    out->close = table_close;
    return STATUS_OK;
}
