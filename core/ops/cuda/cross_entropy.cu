/* Cross-entropy over logits [n, V], one block a row. With the vocabulary cut over ranks the maximum, the sums and the
 * gradient each read the logits (between them the caller reduces over the ranks); where a rank has it whole, a block
 * keeps its row in registers and reads it once. */
#include "core/ops/cuda/device.cuh"
#include "core/ops/cuda/kernels.h"

#include <math_constants.h>

enum { CE_THREADS = 256, LOSS_THREADS = 1024, WHOLE_THREADS = 512, KEPT = 8 };

template <typename T, int W>
static __global__ void __launch_bounds__(CE_THREADS) ce_max(float *row_max, view<const T> logits, int valid) {
    const T *z = logits.row(blockIdx.x);
    float most = -CUDART_INF_F;
#pragma unroll 4
    for (int j = threadIdx.x * W; j < valid; j += CE_THREADS * W) {
        float v[W];
        load(v, z + j);
#pragma unroll
        for (int i = 0; i < W; i++)
            if (j + i < valid) most = larger()(most, v[i]);
    }
    most = block_reduce<larger>(most);
    if (threadIdx.x == 0) row_max[blockIdx.x] = most;
}

template <typename T, int W>
static __global__ void __launch_bounds__(CE_THREADS)
    ce_sums(float *sums, float *picked, view<const T> logits, int valid, const float *row_max, const int32_t *targets,
            int64_t first) {
    int64_t row = blockIdx.x;
    const T *z = logits.row(row);
    float most = row_max[row], total = 0;
#pragma unroll 4
    for (int j = threadIdx.x * W; j < valid; j += CE_THREADS * W) {
        float v[W];
        load(v, z + j);
#pragma unroll
        for (int i = 0; i < W; i++)
            if (j + i < valid) total += expf(v[i] - most);
    }
    total = block_reduce<sum>(total);
    if (threadIdx.x != 0) return;
    int64_t target = targets[row] - first;
    sums[row] = total;
    picked[row] = target >= 0 && target < valid ? (float)z[target] : 0.0f;
}

static __global__ void __launch_bounds__(LOSS_THREADS)
    ce_loss(double *loss, const float *sums, const float *picked, const float *row_max, int64_t n) {
    double total = 0;
    for (int64_t i = threadIdx.x; i < n; i += LOSS_THREADS) total += log((double)sums[i]) + row_max[i] - picked[i];
    total = block_reduce<sum>(total);
    if (threadIdx.x == 0) *loss += total;
}

template <typename T, int W>
static __global__ void __launch_bounds__(CE_THREADS)
    ce_backward(view<T> logits, int valid, int cols, const float *row_max, const float *sums, const int32_t *targets,
                int64_t first, float scale) {
    int64_t row = blockIdx.x, target = targets[row] - first;
    T *z = logits.row(row);
    float most = row_max[row], factor = scale / sums[row];
#pragma unroll 2
    for (int j = threadIdx.x * W; j < cols; j += CE_THREADS * W) {
        float v[W];
        load(v, z + j);
#pragma unroll
        for (int i = 0; i < W; i++) {
            v[i] = j + i < valid ? expf(v[i] - most) * factor : 0.0f;
            if (j + i == target && target < valid) v[i] -= scale;
        }
        store(z + j, v);
    }
}

/* exp(x) for x <= 0: where the results are rounded to bf16, two instructions, right to 2^-22 + 2^-24 |x|. */
template <typename T> static __device__ __forceinline__ float exp_below_0(float x) {
    if constexpr (sizeof(T) == sizeof(float)) return expf(x);
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * CUDART_L2E_F));
    return y;
}

/* The pack of columns j to j + W with -inf beyond the valid ones: no maximum, nothing in a sum, and its gradient is 0.
 * Few packs need it. */
template <typename T, int W, typename Part> static __device__ __noinline__ Part cut_pack(Part p, int j, int valid) {
    T *values = (T *)&p;
#pragma unroll
    for (int i = 0; i < W; i++)
        if (j + i >= valid) values[i] = (T)-CUDART_INF_F;
    return p;
}

/* This thread's packs of a row: the first KEPT stay in registers, those of a longer row are read each time. */
template <typename T, int W> struct kept_row {
    typedef typename word<W * sizeof(T)>::type part;
    static constexpr int STRIDE = WHOLE_THREADS * W;
    const T *z;
    int valid, cols;
    part kept[KEPT];

    __device__ __forceinline__ kept_row(const T *row, int valid_columns, int columns)
        : z(row), valid(valid_columns), cols(columns) {
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            int j = threadIdx.x * W + k * STRIDE;
            if (j < cols) kept[k] = *(const part *)(z + j);
        }
#pragma unroll
        for (int k = 0; k < KEPT; k++) {
            int j = threadIdx.x * W + k * STRIDE;
            if (j + W > valid) kept[k] = cut_pack<T, W>(kept[k], j, valid);
        }
    }

    template <typename Use> static __device__ __forceinline__ void call(Use use, int j, part p) {
        float v[W];
        load(v, (const T *)&p);
        use(j, v);
    }

    /* use(j, values); j may lie beyond the last column. */
    template <typename Use> __device__ __forceinline__ void each(Use use) const {
#pragma unroll
        for (int k = 0; k < KEPT; k++)
            if (k * STRIDE < cols) call(use, threadIdx.x * W + k * STRIDE, kept[k]);
#pragma unroll 1
        for (int j = threadIdx.x * W + KEPT * STRIDE; j < cols; j += STRIDE) {
            part p = *(const part *)(z + j);
            call(use, j, j + W > valid ? cut_pack<T, W>(p, j, valid) : p);
        }
    }
};

/* A NaN is no maximum, but the sum has it, and so has the loss. */
template <typename T, int W>
static __global__ void __launch_bounds__(WHOLE_THREADS, 2)
    ce_whole(float *row_max, float *sums, float *picked, view<T> logits, int valid, int cols, const int32_t *targets,
             float scale) {
    int64_t row = blockIdx.x;
    T *z = logits.row(row);
    kept_row<T, W> values(z, valid, cols);
    int target = targets[row];
    bool is_here = target >= 0 && target < valid;
    float of_target = is_here && threadIdx.x == 0 ? (float)z[target] : 0.0f; /* before it is overwritten */
    float most = -CUDART_INF_F, total = 0;
    values.each([&](int j, float(&v)[W]) {
#pragma unroll
        for (int i = 0; i < W; i++) most = fmaxf(most, v[i]);
    });
    most = block_reduce<larger>(most);
    values.each([&](int j, float(&v)[W]) {
#pragma unroll
        for (int i = 0; i < W; i++) total += exp_below_0<T>(v[i] - most);
    });
    total = block_reduce<sum>(total);
    float factor = scale / total;
    values.each([&](int j, float(&v)[W]) {
#pragma unroll
        for (int i = 0; i < W; i++) v[i] = exp_below_0<T>(v[i] - most) * factor;
        if (is_here && target >= j && target < j + W)
#pragma unroll
            for (int i = 0; i < W; i++)
                if (j + i == target) v[i] -= scale;
        if (j < cols) store(z + j, v);
    });
    if (threadIdx.x != 0) return;
    row_max[row] = most;
    sums[row] = total;
    picked[row] = of_target;
}

extern "C" cudaError_t launch_ce_max(float *row_max, tensor logits, int64_t valid, cudaStream_t stream) {
    return dispatch(logits.type, logits.rows, wide(logits), [&](auto type, auto w) {
        using T = decltype(type);
        ce_max<T, w.value>
            <<<(unsigned)logits.rows, CE_THREADS, 0, stream>>>(row_max, view_of<const T>(logits), (int)valid);
    });
}

extern "C" cudaError_t launch_ce_sums(float *sums, float *picked, tensor logits, int64_t valid, const float *row_max,
                                      const int32_t *targets, int64_t first, cudaStream_t stream) {
    return dispatch(logits.type, logits.rows, wide(logits), [&](auto type, auto w) {
        using T = decltype(type);
        ce_sums<T, w.value><<<(unsigned)logits.rows, CE_THREADS, 0, stream>>>(sums, picked, view_of<const T>(logits),
                                                                              (int)valid, row_max, targets, first);
    });
}

extern "C" cudaError_t launch_ce_loss(double *loss, const float *sums, const float *picked, const float *row_max,
                                      int64_t n, cudaStream_t stream) {
    ce_loss<<<1, LOSS_THREADS, 0, stream>>>(loss, sums, picked, row_max, n);
    return cudaGetLastError();
}

extern "C" cudaError_t launch_ce_backward(tensor logits, int64_t valid, const float *row_max, const float *sums,
                                          const int32_t *targets, int64_t first, float scale, cudaStream_t stream) {
    return dispatch(logits.type, logits.rows, wide(logits), [&](auto type, auto w) {
        using T = decltype(type);
        ce_backward<T, w.value><<<(unsigned)logits.rows, CE_THREADS, 0, stream>>>(
            view_of<T>(logits), (int)valid, (int)logits.cols, row_max, sums, targets, first, scale);
    });
}

extern "C" cudaError_t launch_ce_whole(float *row_max, float *sums, float *picked, tensor logits, int64_t valid,
                                       const int32_t *targets, float scale, cudaStream_t stream) {
    return dispatch(logits.type, logits.rows, wide(logits), [&](auto type, auto w) {
        using T = decltype(type);
        ce_whole<T, w.value><<<(unsigned)logits.rows, WHOLE_THREADS, 0, stream>>>(
            row_max, sums, picked, view_of<T>(logits), (int)valid, (int)logits.cols, targets, scale);
    });
}
