/* The device that a test computes on: the CPU, or with BULKHEAD_TEST_DEVICE=cuda a GPU, in fp32 or with
 * BULKHEAD_TEST_PRECISION=bf16 in bf16, so that one source tests all tables. */
#pragma once

#include "check.h"

#include "attention/core.h"

#include <stdbool.h>

static inline bool test_on_cuda(void) {
    const char *device = getenv("BULKHEAD_TEST_DEVICE");
    return device && strcmp(device, "cuda") == 0;
}

static inline bool test_in_bf16(void) {
    const char *precision = getenv("BULKHEAD_TEST_PRECISION");
    return test_on_cuda() && precision && strcmp(precision, "bf16") == 0;
}

/* The GPU of rank `index` of as many as the test's ranks take; the test skips where they are not there. With
 * BULKHEAD_TEST_SHARE_GPUS=1 ranks share those that are: NCCL, which takes one rank for each GPU of a host, is told
 * that every rank is a host of its own, and talks over sockets. Without NVIDIA's MPS, which lets their kernels run side
 * by side, that is very slow. */
static inline int test_gpu(int index, int gpus) {
    int there = ops_cuda_devices();
    const char *share = getenv("BULKHEAD_TEST_SHARE_GPUS");
    if (there >= gpus) return index;
    if (there == 0 || !share || strcmp(share, "1") != 0) {
        print_message("skipped: %d of %d NVIDIA GPUs on this machine\n", there, gpus);
        skip();
    }
    char host[32];
    snprintf(host, sizeof host, "rank-%d", index);
    setenv("NCCL_HOSTID", host, 1);
    setenv("NCCL_SOCKET_IFNAME", "lo", 0);
    return index % there;
}

/* Ends with o->close, if any. */
static inline const attn_core *test_device(ops *o, int threads, int index, int gpus) {
    if (!test_on_cuda()) {
        check_status(ops_cpu(o, threads), STATUS_OK);
        return &attn_core_cpu;
    }
    check_status(ops_cuda(o, test_gpu(index, gpus), !test_in_bf16()), STATUS_OK);
    return attn_core_cuda();
}

/* A malloc'ed copy in host memory of t, which is dense, as fp32. */
static inline tensor test_to_host(ops *o, tensor t) {
    size_t count = (size_t)(t.rows * t.cols);
    assert_int_equal(t.ld, t.cols);
    float *host = malloc(count ? count * sizeof *host : 1);
    assert_non_null(host);
    o->download(o, host, t.data, count * dtype_bytes(t.type));
    if (t.type == DTYPE_BF16) /* widened in place, from the last on: bf16 is the upper half of fp32 */
        for (size_t i = count; i-- > 0;) {
            uint16_t half;
            memcpy(&half, (char *)host + i * sizeof half, sizeof half);
            uint32_t bits = (uint32_t)half << 16;
            memcpy(&host[i], &bits, sizeof bits);
        }
    return tensor_make(host, DTYPE_F32, t.rows, t.cols);
}

/* values[rows, cols] in new memory of the device, as activations; ends with o->release. */
static inline tensor test_to_device(ops *o, const float *values, int64_t rows, int64_t cols) {
    size_t bytes = (size_t)(rows * cols) * sizeof *values;
    void *wide = o->alloc(o, bytes);
    assert_non_null(wide);
    o->upload(o, wide, values, bytes);
    if (o->activation == DTYPE_F32) return tensor_make(wide, DTYPE_F32, rows, cols);
    void *narrow = o->alloc(o, (size_t)(rows * cols) * dtype_bytes(o->activation));
    assert_non_null(narrow);
    o->cast(o, narrow, wide, rows * cols);
    o->sync(o);
    o->release(o, wide);
    return tensor_make(narrow, o->activation, rows, cols);
}
