/* Tensor maps of attention's operands: a matrix [B T, heads of columns] seen as (column, head, token, sample), so that
 * a box never crosses the end of a head or of a sample: what lies beyond reads as zeros and is not written. Made on the
 * host for each call, about a microsecond each; kernels take them as parameters. */
#pragma once

#include "attention/core.h"

#include <cuda.h>
#include <cuda_runtime.h>

namespace maps {

typedef CUresult (*encode_tiled)(CUtensorMap *, CUtensorMapDataType, cuuint32_t, void *, const cuuint64_t *,
                                 const cuuint64_t *, const cuuint32_t *, const cuuint32_t *, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

/* The driver's function, without a link to libcuda; NULL where the driver has none. */
static encode_tiled find_encoder() {
    void *entry = NULL;
    cudaDriverEntryPointQueryResult result;
    cudaError_t code =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &result);
    return code == cudaSuccess && result == cudaDriverEntryPointSuccess ? (encode_tiled)entry : NULL;
}

/* The maps of one call; `code` is the first error. */
struct maker {
    const attn_core_args &a;
    cudaError_t code;

    /* Boxes [rows, 64] of t: `cols` columns a head, heads `stride` columns apart, from column `first` of each. The
     * address and all strides are multiples of 16 bytes. */
    void make(CUtensorMap &map, const tensor &t, int64_t first, int64_t cols, int64_t stride, int64_t heads, int rows) {
        static const encode_tiled encode = find_encoder();
        if (code != cudaSuccess) return;
        if (!encode) {
            code = cudaErrorNotSupported;
            return;
        }
        cuuint64_t sizes[4] = {(cuuint64_t)cols, (cuuint64_t)heads, (cuuint64_t)a.context, (cuuint64_t)a.batch};
        cuuint64_t strides[3] = {(cuuint64_t)stride * 2, (cuuint64_t)t.ld * 2, (cuuint64_t)(a.context * t.ld) * 2};
        cuuint32_t box[4] = {64, 1, (cuuint32_t)rows, 1}, steps[4] = {1, 1, 1, 1};
        CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 4, (char *)t.data + first * 2, sizes, strides,
                                 box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
        if (result != CUDA_SUCCESS) code = cudaErrorInvalidValue;
    }
};

} // namespace maps
