/* RMSNorm, one warp a row. Backward keeps sums of dgain per warp in shared memory, per block in scratch, and a second
 * kernel adds the blocks in order. y and dx overwrite (dx adds when accumulate), dgain adds. */
#include "core/ops/cuda/device.cuh"
#include "core/ops/cuda/kernels.h"

enum { MOST_PARTIALS = 512, SHARED_BYTES = 64 << 10, FINISH_WARPS = 32 };

/* ADD: x + branch is the norm's input, written to `sum` first; else x is, and sum is x. Each lane reads back only what
 * it wrote. */
template <bool ADD, typename T, int W>
static __global__ void __launch_bounds__(ROW_WARPS *WARP)
    rmsnorm_forward(view<T> sum, view<T> y, float *rstd, view<const T> x, view<const T> branch, const float *gain,
                    float eps, int64_t rows, int cols) {
    int64_t row = warp_row();
    if (row >= rows) return;
    T *in = sum.row(row), *out = y.row(row);
    float squares = 0;
    for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
        float v[W];
        load(v, x.row(row) + j);
        if (ADD) {
            float b[W];
            load(b, branch.row(row) + j);
#pragma unroll
            for (int i = 0; i < W; i++) v[i] = (float)(T)(v[i] + b[i]);
            store(in + j, v);
        }
#pragma unroll
        for (int i = 0; i < W; i++) squares += v[i] * v[i];
    }
    float r = 1.0f / sqrtf(warp_reduce<::sum>(squares) / (float)cols + eps);
    if (threadIdx.x == 0) rstd[row] = r;
    for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
        float v[W], g[W];
        load(v, in + j);
        load(g, gain + j);
#pragma unroll
        for (int i = 0; i < W; i++) v[i] = v[i] * r * g[i];
        store(out + j, v);
    }
}

/* partial [gridDim.x, cols]; shared memory [blockDim.y, pitch], each element touched by one lane until the end. */
template <typename T, int W>
static __global__ void __launch_bounds__(ROW_WARPS *WARP)
    rmsnorm_backward(view<T> dx, bool accumulate, float *partial, view<const T> dy, view<const T> x, const float *gain,
                     const float *rstd, int64_t rows, int cols, int pitch) {
    extern __shared__ float4 shared[];
    float *all = (float *)shared, *sums = all + threadIdx.y * pitch;
    for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
        const float zero[W] = {};
        store(sums + j, zero);
    }
    for (int64_t row = (int64_t)blockIdx.x * blockDim.y + threadIdx.y; row < rows;
         row += (int64_t)gridDim.x * blockDim.y) {
        const T *in = x.row(row), *up = dy.row(row);
        T *out = dx.row(row);
        float r = rstd[row], dot = 0;
        for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
            float v[W], d[W], g[W];
            load(v, in + j);
            load(d, up + j);
            load(g, gain + j);
#pragma unroll
            for (int i = 0; i < W; i++) dot += d[i] * g[i] * v[i];
        }
        float factor = r * r * warp_reduce<sum>(dot) / (float)cols;
        for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
            float v[W], d[W], g[W], s[W], result[W] = {};
            load(v, in + j);
            load(d, up + j);
            load(g, gain + j);
            load(s, sums + j);
            if (accumulate) load(result, out + j);
#pragma unroll
            for (int i = 0; i < W; i++) {
                result[i] += r * (d[i] * g[i] - v[i] * factor);
                s[i] += d[i] * v[i] * r;
            }
            store(out + j, result);
            store(sums + j, s);
        }
    }
    __syncthreads();
    for (int j = threadIdx.y * WARP + threadIdx.x; j < cols; j += blockDim.y * WARP) {
        float total = 0;
        for (int w = 0; w < blockDim.y; w++) total += all[w * pitch + j];
        partial[(int64_t)blockIdx.x * cols + j] = total;
    }
}

/* dgain[j] += sum_p partial[p][j]; block [FINISH_WARPS, WARP], one column a lane. */
static __global__ void __launch_bounds__(FINISH_WARPS *WARP)
    finish_dgain(float *dgain, const float *partial, int partials, int cols) {
    __shared__ float parts[FINISH_WARPS][WARP];
    int j = blockIdx.x * WARP + threadIdx.x;
    float total = 0;
    if (j < cols)
        for (int p = threadIdx.y; p < partials; p += FINISH_WARPS) total += partial[(int64_t)p * cols + j];
    parts[threadIdx.y][threadIdx.x] = total;
    __syncthreads();
    if (threadIdx.y != 0 || j >= cols) return;
    for (int w = 1; w < FINISH_WARPS; w++) total += parts[w][threadIdx.x];
    dgain[j] += total;
}

extern "C" cudaError_t launch_rmsnorm_forward(tensor y, float *rstd, tensor x, const float *gain, float eps,
                                              cudaStream_t stream) {
    bool is_wide = wide(x) && wide(y) && wide_pointer(gain);
    return dispatch(x.type, x.rows, is_wide, [&](auto type, auto w) {
        using T = decltype(type);
        rmsnorm_forward<false, T, w.value><<<row_grid(x.rows), row_block(), 0, stream>>>(
            view_of<T>(x), view_of<T>(y), rstd, view_of<const T>(x), {}, gain, eps, x.rows, (int)x.cols);
    });
}

extern "C" cudaError_t launch_add_rmsnorm_forward(tensor sum, tensor y, float *rstd, tensor x, tensor branch,
                                                  const float *gain, float eps, cudaStream_t stream) {
    bool is_wide = wide(sum) && wide(y) && wide(x) && wide(branch) && wide_pointer(gain);
    return dispatch(x.type, x.rows, is_wide, [&](auto type, auto w) {
        using T = decltype(type);
        rmsnorm_forward<true, T, w.value>
            <<<row_grid(x.rows), row_block(), 0, stream>>>(view_of<T>(sum), view_of<T>(y), rstd, view_of<const T>(x),
                                                           view_of<const T>(branch), gain, eps, x.rows, (int)x.cols);
    });
}

extern "C" cudaError_t launch_rmsnorm_backward(tensor dx, bool accumulate, float *dgain, tensor dy, tensor x,
                                               const float *gain, const float *rstd, void *scratch,
                                               size_t scratch_bytes, cudaStream_t stream) {
    bool is_wide = wide(dx) && wide(dy) && wide(x) && wide_pointer(gain);
    int cols = (int)x.cols, pitch = (cols + 3) / 4 * 4;
    /* Warps and blocks are a function of the shape alone, and so is the order of dgain's sum. */
    size_t warp_bytes = (size_t)pitch * sizeof(float), row_bytes = (size_t)cols * sizeof(float);
    int warps = ROW_WARPS;
    while (warps > 1 && (size_t)warps * warp_bytes > SHARED_BYTES) warps /= 2;
    int64_t partials = (x.rows + warps - 1) / warps;
    if (partials > MOST_PARTIALS) partials = MOST_PARTIALS;
    if ((size_t)partials * row_bytes > scratch_bytes) partials = (int64_t)(scratch_bytes / row_bytes);
    if (x.rows > 0 && partials == 0) return cudaErrorInvalidValue;

    float *partial = (float *)scratch;
    cudaError_t result = dispatch(x.type, x.rows, is_wide, [&](auto type, auto w) {
        using T = decltype(type);
        int shared_bytes = (int)(warps * warp_bytes);
        if (cudaFuncSetAttribute(rmsnorm_backward<T, w.value>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 shared_bytes) != cudaSuccess)
            return; /* wider than a multiprocessor holds: dispatch returns this error */
        rmsnorm_backward<T, w.value><<<(unsigned)partials, dim3(WARP, warps), shared_bytes, stream>>>(
            view_of<T>(dx), accumulate, partial, view_of<const T>(dy), view_of<const T>(x), gain, rstd, x.rows, cols,
            pitch);
    });
    if (result != cudaSuccess || x.rows <= 0) return result;
    finish_dgain<<<(cols + WARP - 1) / WARP, dim3(WARP, FINISH_WARPS), 0, stream>>>(dgain, partial, (int)partials,
                                                                                    cols);
    return cudaGetLastError();
}
