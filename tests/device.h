/* The device that a test computes on: the CPU, or with BULKHEAD_TEST_DEVICE=cuda a GPU in fp32, so that one source
 * tests both tables. */
#pragma once

#include "check.h"

#include "attention/core.h"

#include <stdbool.h>

static inline bool test_on_cuda(void) {
    const char *device = getenv("BULKHEAD_TEST_DEVICE");
    return device && strcmp(device, "cuda") == 0;
}

/* GPU `index` of as many as the test's ranks take; the test skips where they are not there. Ends with o->close, if any.
 */
static inline const attn_core *test_device(ops *o, int threads, int index, int gpus) {
    if (!test_on_cuda()) {
        check_status(ops_cpu(o, threads), STATUS_OK);
        return &attn_core_cpu;
    }
    if (ops_cuda_devices() < gpus) {
        print_message("skipped: %d of %d NVIDIA GPUs on this machine\n", ops_cuda_devices(), gpus);
        skip();
    }
    check_status(ops_cuda(o, index, true), STATUS_OK);
    return attn_core_cuda();
}

/* A malloc'ed copy in host memory of t, fp32 and dense. */
static inline tensor test_to_host(ops *o, tensor t) {
    size_t bytes = (size_t)(t.rows * t.cols) * sizeof(float);
    assert_int_equal(t.ld, t.cols);
    assert_int_equal(t.type, DTYPE_F32);
    float *host = malloc(bytes ? bytes : 1);
    assert_non_null(host);
    o->download(o, host, t.data, bytes);
    return tensor_make(host, DTYPE_F32, t.rows, t.cols);
}

/* values[rows, cols] in new memory of the device; ends with o->release. */
static inline tensor test_to_device(ops *o, const float *values, int64_t rows, int64_t cols) {
    size_t bytes = (size_t)(rows * cols) * sizeof *values;
    void *data = o->alloc(o, bytes);
    assert_non_null(data);
    o->upload(o, data, values, bytes);
    return tensor_make(data, DTYPE_F32, rows, cols);
}
