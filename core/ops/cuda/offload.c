/* Offloads of the CUDA table: on the table's stream the parts are gathered in one staging buffer, which takes
 * microseconds; a side stream carries it over the bus to page-locked memory, which takes milliseconds. One staging
 * buffer serves all slots: the next gathering waits, on the device, until the one before has left.
 *
 * A save has no staging, and a stream of its own: it may take as long as a step. */
#include "core/ops/cuda/offload.h"

#include "core/log.h"

#include <assert.h>
#include <string.h>

status cuda_offload_start(cuda_context *c) {
    cudaError_t code = cudaStreamCreateWithFlags(&c->side, cudaStreamNonBlocking);
    if (code == cudaSuccess) code = cudaEventCreateWithFlags(&c->gathered, cudaEventDisableTiming);
    /* Who waits for these sleeps: it is a thread beside the training loop. */
    for (int i = 0; i < OFFLOAD_SLOTS && code == cudaSuccess; i++)
        code = cudaEventCreateWithFlags(&c->landed[i], cudaEventDisableTiming | cudaEventBlockingSync);
    if (code == cudaSuccess) code = cudaStreamCreateWithFlags(&c->saving, cudaStreamNonBlocking);
    if (code == cudaSuccess) code = cudaEventCreateWithFlags(&c->ready, cudaEventDisableTiming);
    if (code == cudaSuccess) code = cudaEventCreateWithFlags(&c->saved, cudaEventDisableTiming | cudaEventBlockingSync);
    if (code == cudaSuccess) return STATUS_OK;
    return status_fail(STATUS_CONFIG, "GPU %d does not start: %s", c->device, cudaGetErrorString(code));
}

void cuda_offload_close(cuda_context *c) {
    cudaFree(c->staging);
    for (int i = 0; i < OFFLOAD_SLOTS; i++)
        if (c->landed[i]) cudaEventDestroy(c->landed[i]);
    if (c->gathered) cudaEventDestroy(c->gathered);
    if (c->side) cudaStreamDestroy(c->side);
    if (c->ready) cudaEventDestroy(c->ready);
    if (c->saved) cudaEventDestroy(c->saved);
    if (c->saving) cudaStreamDestroy(c->saving);
}

bool cuda_offload_open(ops *o, size_t bytes) {
    cuda_context *c = cuda_of(o);
    assert(!c->staging);
    c->staging = o->alloc(o, bytes);
    c->staging_bytes = bytes;
    return c->staging != NULL;
}

void *cuda_host_alloc(ops *o, size_t bytes) {
    void *host = NULL;
    cudaError_t code = cudaMallocHost(&host, bytes ? bytes : 1);
    if (code != cudaSuccess) {
        cudaGetLastError(); /* not an error of a later launch */
        log_warn("GPU %d: %zu MiB of page-locked memory: %s", cuda_of(o)->device, bytes >> 20,
                 cudaGetErrorString(code));
        return NULL;
    }
    memset(host, 0, bytes);
    return host;
}

void cuda_host_release(ops *o, void *host) {
    cuda_check(o, cudaFreeHost(host), "freeing page-locked memory");
}

bool cuda_host_lock(ops *o, void *host, size_t bytes) {
    cudaError_t code = cudaHostRegister(host, bytes, cudaHostRegisterDefault);
    if (code == cudaSuccess) return true;
    cudaGetLastError(); /* not an error of a later launch */
    log_info("GPU %d: page-locking %zu MiB: %s", cuda_of(o)->device, bytes >> 20, cudaGetErrorString(code));
    return false;
}

void cuda_host_unlock(ops *o, void *host) {
    cuda_check(o, cudaHostUnregister(host), "unlocking memory");
}

static bool gather(ops *o, const offload_part *parts, int count, size_t *bytes) {
    cuda_context *c = cuda_of(o);
    for (int i = 0; i < OFFLOAD_SLOTS; i++) /* one that has landed, or never was, is not waited for */
        if (!cuda_check(o, cudaStreamWaitEvent(c->stream, c->landed[i], 0), "offload")) return false;
    *bytes = 0;
    for (int i = 0; i < count; i++) {
        assert(parts[i].bytes <= c->staging_bytes - *bytes);
        cudaError_t code =
            cudaMemcpyAsync(c->staging + *bytes, parts[i].device, parts[i].bytes, cudaMemcpyDeviceToDevice, c->stream);
        if (!cuda_check(o, code, "offload")) return false;
        *bytes += parts[i].bytes;
    }
    return true;
}

void cuda_offload(ops *o, int slot, void *host, const offload_part *parts, int count) {
    cuda_context *c = cuda_of(o);
    size_t bytes;
    if (!gather(o, parts, count, &bytes)) return;
    cudaError_t code = cudaEventRecord(c->gathered, c->stream);
    if (code == cudaSuccess) code = cudaStreamWaitEvent(c->side, c->gathered, 0);
    if (code == cudaSuccess) code = cudaMemcpyAsync(host, c->staging, bytes, cudaMemcpyDeviceToHost, c->side);
    if (code == cudaSuccess) code = cudaEventRecord(c->landed[slot], c->side);
    cuda_check(o, code, "offload");
}

/* Waits on any thread for what the event marks. What fails here is not the table's first error: that belongs to the
 * caller's thread. */
static status wait_for(const cuda_context *c, cudaEvent_t event, const char *what) {
    cudaError_t code = cudaSetDevice(c->device); /* a thread begins with GPU 0, and would wake it up */
    if (code == cudaSuccess) code = cudaEventSynchronize(event);
    if (code == cudaSuccess) return STATUS_OK;
    return status_fail(STATUS_INTERNAL, "GPU %d: carrying %s to the host: %s", c->device, what,
                       cudaGetErrorString(code));
}

status cuda_offload_wait(ops *o, int slot) {
    return wait_for(cuda_of(o), cuda_of(o)->landed[slot], "a snapshot");
}

void cuda_save(ops *o, void *host, const offload_part *parts, int count) {
    cuda_context *c = cuda_of(o);
    char *to = host;
    cudaError_t code = cudaEventRecord(c->ready, c->stream);
    if (code == cudaSuccess) code = cudaStreamWaitEvent(c->saving, c->ready, 0);
    for (int i = 0; i < count && code == cudaSuccess; i++) {
        code = cudaMemcpyAsync(to, parts[i].device, parts[i].bytes, cudaMemcpyDeviceToHost, c->saving);
        to += parts[i].bytes;
    }
    if (code == cudaSuccess) code = cudaEventRecord(c->saved, c->saving);
    cuda_check(o, code, "save");
}

void cuda_save_fence(ops *o) {
    cuda_context *c = cuda_of(o);
    cuda_check(o, cudaStreamWaitEvent(c->stream, c->saved, 0), "save");
}

status cuda_save_wait(ops *o) {
    return wait_for(cuda_of(o), cuda_of(o)->saved, "a checkpoint");
}
