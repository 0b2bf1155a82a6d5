/* The gradient's norm, AdamW and the cast of weights: flat fp32 arrays, four elements a thread. */
#include "core/ops/cuda/device.cuh"
#include "core/ops/cuda/kernels.h"

#include <math.h>

enum { FLAT_THREADS = 256, FLAT = 4, SUM_BLOCKS = 1024 };
static_assert(SUM_BLOCKS * sizeof(double) == SUM_SQUARES_SCRATCH_BYTES, "one partial sum a block");

/* partial[block] = sum of squares of x[block * size ...). A thread adds the same elements in the same order whatever W:
 * the result depends on count alone, not on where x lies. size is a multiple of FLAT. */
template <int W>
static __global__ void __launch_bounds__(FLAT_THREADS)
    sum_squares(double *partial, const float *x, int64_t count, int64_t size) {
    int64_t begin = blockIdx.x * size, end = begin + size < count ? begin + size : count;
    double lanes[FLAT] = {};
    int64_t i = begin + threadIdx.x * FLAT;
#pragma unroll 4
    for (; i + FLAT <= end; i += FLAT_THREADS * FLAT) {
        float v[FLAT];
#pragma unroll
        for (int k = 0; k < FLAT; k += W) load(*(float(*)[W]) & v[k], x + i + k);
#pragma unroll
        for (int k = 0; k < FLAT; k++) lanes[k] += (double)v[k] * (double)v[k];
    }
    for (int k = 0; i + k < end; k++) lanes[0] += (double)x[i + k] * (double)x[i + k]; /* the last thread's rest */
    double total = block_reduce<sum>((lanes[0] + lanes[1]) + (lanes[2] + lanes[3]));
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

static __global__ void __launch_bounds__(SUM_BLOCKS) finish_sum(double *out, const double *partial) {
    double total = block_reduce<sum>(partial[threadIdx.x]);
    if (threadIdx.x == 0) *out += total;
}

static __global__ void adamw_begin(adamw_update *u, adamw_args args) {
    double norm = sqrt(*args.norm_sq);
    bool finite = isfinite(norm);
    for (int64_t i = 0; i < args.loss_count; i++) finite = finite && isfinite(args.losses[i]);
    u->is_left_out = !finite;
    if (!finite) return;
    double updates = (double)++u->count;
    u->lr = args.lr;
    u->beta1 = args.beta1;
    u->beta2 = args.beta2;
    u->eps = args.eps;
    u->scale = args.clip > 0 && norm > args.clip ? (float)(args.clip / norm) : 1.0f;
    u->correct1 = (float)(1.0 / (1.0 - pow((double)args.beta1, updates)));
    u->correct2 = (float)(1.0 / (1.0 - pow((double)args.beta2, updates)));
}

template <typename T, int W>
static __global__ void __launch_bounds__(FLAT_THREADS)
    adamw(float *weight, float *m, float *v, const float *gradient, T *copy, int64_t count, float weight_decay,
          const adamw_update *update) {
    const adamw_update step = *update;
    if (step.is_left_out) return;
    float keep = 1.0f - step.lr * weight_decay;
    int64_t i = ((int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x) * W;
    if (i >= count) return;
    float w[W], a[W], b[W], g[W];
    load(w, weight + i);
    load(a, m + i);
    load(b, v + i);
    load(g, gradient + i);
#pragma unroll
    for (int k = 0; k < W; k++) {
        float d = g[k] * step.scale;
        a[k] = step.beta1 * a[k] + (1.0f - step.beta1) * d;
        b[k] = step.beta2 * b[k] + (1.0f - step.beta2) * d * d;
        w[k] = keep * w[k] - step.lr * (a[k] * step.correct1) / (sqrtf(b[k] * step.correct2) + step.eps);
    }
    store(weight + i, w);
    store(m + i, a);
    store(v + i, b);
    if (copy) store(copy + i, w);
}

template <typename T, int W>
static __global__ void __launch_bounds__(FLAT_THREADS) cast(T *out, const float *x, int64_t count) {
    int64_t i = ((int64_t)blockIdx.x * FLAT_THREADS + threadIdx.x) * W;
    if (i >= count) return;
    float v[W];
    load(v, x + i);
    store(out + i, v);
}

/* Calls launch(T(), width<W>(), begin, count, blocks): whole packs of FLAT where wide, then what is left. */
template <typename Launch> static cudaError_t flat(dtype type, int64_t count, bool is_wide, Launch launch) {
    int64_t packed = is_wide ? count / FLAT * FLAT : 0;
    auto run = [&](auto t) {
        int64_t per_block = (int64_t)FLAT_THREADS * FLAT, rest = count - packed;
        if (packed > 0) launch(t, width<FLAT>(), (int64_t)0, packed, (unsigned)((packed + per_block - 1) / per_block));
        if (rest > 0) launch(t, width<1>(), packed, rest, (unsigned)((rest + FLAT_THREADS - 1) / FLAT_THREADS));
    };
    if (type == DTYPE_BF16)
        run(__nv_bfloat16());
    else if (type == DTYPE_F32)
        run(float());
    else
        return cudaErrorInvalidValue;
    return cudaGetLastError();
}

extern "C" cudaError_t launch_sum_squares(double *out, const float *x, int64_t count, void *scratch,
                                          cudaStream_t stream) {
    double *partial = (double *)scratch;
    int64_t size = ((count + SUM_BLOCKS - 1) / SUM_BLOCKS + FLAT - 1) / FLAT * FLAT;
    if (wide_pointer(x))
        sum_squares<FLAT><<<SUM_BLOCKS, FLAT_THREADS, 0, stream>>>(partial, x, count, size);
    else
        sum_squares<1><<<SUM_BLOCKS, FLAT_THREADS, 0, stream>>>(partial, x, count, size);
    finish_sum<<<1, SUM_BLOCKS, 0, stream>>>(out, partial);
    return cudaGetLastError();
}

extern "C" cudaError_t launch_adamw_begin(adamw_update *u, adamw_args args, cudaStream_t stream) {
    adamw_begin<<<1, 1, 0, stream>>>(u, args);
    return cudaGetLastError();
}

extern "C" cudaError_t launch_adamw(float *weight, float *m, float *v, const float *gradient, void *copy, dtype type,
                                    int64_t count, float weight_decay, const adamw_update *u, cudaStream_t stream) {
    bool is_wide = wide_pointer(weight) && wide_pointer(m) && wide_pointer(v) && wide_pointer(gradient) &&
                   (uintptr_t)copy % (FLAT * dtype_bytes(type)) == 0;
    return flat(type, count, is_wide, [&](auto t, auto w, int64_t begin, int64_t n, unsigned blocks) {
        using T = decltype(t);
        adamw<T, w.value><<<blocks, FLAT_THREADS, 0, stream>>>(weight + begin, m + begin, v + begin, gradient + begin,
                                                               copy ? (T *)copy + begin : NULL, n, weight_decay, u);
    });
}

extern "C" cudaError_t launch_cast(void *out, dtype type, const float *x, int64_t count, cudaStream_t stream) {
    bool is_wide = wide_pointer(x) && (uintptr_t)out % (FLAT * dtype_bytes(type)) == 0;
    return flat(type, count, is_wide, [&](auto t, auto w, int64_t begin, int64_t n, unsigned blocks) {
        using T = decltype(t);
        cast<T, w.value><<<blocks, FLAT_THREADS, 0, stream>>>((T *)out + begin, x + begin, n);
    });
}
