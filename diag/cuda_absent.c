/* Stands for diag/cuda/ in a program built without CUDA. */
#include "diag/svd.h"

status svd_cuda(svd_device *out) {
    *out = (svd_device){0};
    return status_fail(STATUS_CONFIG, "this program was built without CUDA; set diagnostics.device: cpu, or build it "
                                      "with -DBULKHEAD_CUDA=ON");
}
