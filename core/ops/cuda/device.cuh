/* What kernels share: typed views, packs of W elements loaded and stored 16 bytes at a time, reductions in a fixed
 * order, and the choice of a kernel's instance. Kernels compute in fp32 whatever the stored type.
 *
 * W is 16 / sizeof(T) where every pointer and row lies on 16 bytes, else 1. */
#pragma once

#include "core/tensor.h"

#include <cuda_bf16.h>
#include <cuda_runtime.h>

enum { WARP = 32, ROW_WARPS = 8 };

template <typename T> struct view {
    T *data;
    int64_t ld;
    __device__ T *row(int64_t i) const { return data + i * ld; }
};

template <typename T> view<T> view_of(tensor t) {
    return {(T *)t.data, t.ld};
}

template <int BYTES> struct word;
template <> struct word<16> { typedef uint4 type; };
template <> struct word<8> { typedef uint2 type; };
template <> struct word<4> { typedef unsigned type; };
template <> struct word<2> { typedef unsigned short type; };

template <int W, typename T> __device__ __forceinline__ void load(float (&out)[W], const T *from) {
    constexpr int bytes = W * sizeof(T), unit = bytes < 16 ? bytes : 16, units = bytes / unit;
    typedef typename word<unit>::type part;
    alignas(unit) T values[W];
#pragma unroll
    for (int u = 0; u < units; u++) ((part *)values)[u] = ((const part *)from)[u];
#pragma unroll
    for (int i = 0; i < W; i++) out[i] = (float)values[i];
}

template <int W, typename T> __device__ __forceinline__ void store(T *to, const float (&in)[W]) {
    constexpr int bytes = W * sizeof(T), unit = bytes < 16 ? bytes : 16, units = bytes / unit;
    typedef typename word<unit>::type part;
    alignas(unit) T values[W];
#pragma unroll
    for (int i = 0; i < W; i++) values[i] = (T)in[i];
#pragma unroll
    for (int u = 0; u < units; u++) ((part *)to)[u] = ((const part *)values)[u];
}

/* The larger, and NaN if either is. */
struct larger {
    __device__ float operator()(float a, float b) const { return b > a || b != b ? b : a; }
};
struct sum {
    template <typename V> __device__ V operator()(V a, V b) const { return a + b; }
};

/* All lanes get the result. */
template <typename Op, typename V> __device__ __forceinline__ V warp_reduce(V value) {
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value = Op()(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

/* Over a block of whole warps; all threads get the result. */
template <typename Op, typename V> __device__ V block_reduce(V value) {
    __shared__ V parts[WARP];
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    value = warp_reduce<Op>(value);
    if (lane == 0) parts[warp] = value;
    __syncthreads();
    value = parts[0];
    for (int w = 1; w < warps; w++) value = Op()(value, parts[w]);
    __syncthreads(); /* parts may be used again */
    return value;
}

/* One warp a row: the kernel's block is [ROW_WARPS, WARP] threads. */
static inline dim3 row_block() {
    return dim3(WARP, ROW_WARPS);
}
static inline unsigned row_grid(int64_t rows) {
    return (unsigned)((rows + ROW_WARPS - 1) / ROW_WARPS);
}
static __device__ __forceinline__ int64_t warp_row() {
    return (int64_t)blockIdx.x * ROW_WARPS + threadIdx.y;
}

static inline bool wide_pointer(const void *p) {
    return (uintptr_t)p % 16 == 0;
}
/* Every row of t is whole 16-byte words. */
static inline bool wide(tensor t) {
    size_t size = dtype_bytes(t.type);
    return wide_pointer(t.data) && (size_t)t.ld * size % 16 == 0 && (size_t)t.cols * size % 16 == 0;
}

template <int W> struct width { static constexpr int value = W; };

/* Calls launch(T(), width<W>()) and returns the launch's error. */
template <typename Launch> cudaError_t dispatch(dtype type, int64_t rows, bool is_wide, Launch launch) {
    if (rows <= 0) return cudaSuccess;
    if (type == DTYPE_BF16 && is_wide)
        launch(__nv_bfloat16(), width<8>());
    else if (type == DTYPE_BF16)
        launch(__nv_bfloat16(), width<1>());
    else if (type == DTYPE_F32 && is_wide)
        launch(float(), width<4>());
    else if (type == DTYPE_F32)
        launch(float(), width<1>());
    else
        return cudaErrorInvalidValue;
    return cudaGetLastError();
}
