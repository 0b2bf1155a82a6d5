/* A checksum of a matrix's bits: the sum of each element's, mixed with its place, modulo 2^64. Sums of integers have no
 * order. */
#include "core/ops/cuda/device.cuh"
#include "core/ops/cuda/kernels.h"

enum { CHECKSUM_BLOCKS = 1024, CHECKSUM_THREADS = 256 };

/* The finalizer of SplitMix64 (Steele, Lea & Flood 2014). */
static __device__ __forceinline__ unsigned long long mix(unsigned long long x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

template <typename Bits>
static __global__ void __launch_bounds__(CHECKSUM_THREADS)
    checksum(unsigned long long *out, view<const Bits> y, int64_t rows, int64_t cols) {
    unsigned long long total = 0;
    for (int64_t i = blockIdx.x; i < rows; i += gridDim.x)
        for (int64_t j = threadIdx.x; j < cols; j += CHECKSUM_THREADS)
            total += mix(mix((unsigned long long)(i * cols + j) + 1) + y.row(i)[j]);
    total = block_reduce<sum>(total);
    if (threadIdx.x == 0) atomicAdd(out, total);
}

extern "C" cudaError_t launch_checksum(void *sum, tensor y, cudaStream_t stream) {
    unsigned long long *out = (unsigned long long *)sum;
    cudaError_t cleared = cudaMemsetAsync(out, 0, sizeof *out, stream);
    if (cleared != cudaSuccess) return cleared;
    if (y.type == DTYPE_BF16)
        checksum<<<CHECKSUM_BLOCKS, CHECKSUM_THREADS, 0, stream>>>(out, view_of<const uint16_t>(y), y.rows, y.cols);
    else
        checksum<<<CHECKSUM_BLOCKS, CHECKSUM_THREADS, 0, stream>>>(out, view_of<const uint32_t>(y), y.rows, y.cols);
    return cudaGetLastError();
}
