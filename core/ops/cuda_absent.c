/* Stands for core/ops/cuda/ in a program built without CUDA. */
#include "core/ops/ops.h"

status ops_cuda(ops *out, int device, bool fp32) {
    *out = (ops){0};
    return status_fail(STATUS_CONFIG, "this program was built without CUDA; set run.device: cpu, or build it with "
                                      "-DBULKHEAD_CUDA=ON");
}

int ops_cuda_devices(void) {
    return 0;
}

bool ops_cuda_gpu(ops_gpu *out, int device) {
    return false;
}

int ops_cuda_built(void) {
    return 0;
}

int ops_cuda_driver(void) {
    return 0;
}
