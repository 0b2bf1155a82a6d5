/* Rotary position, SwiGLU, sums and copies: bound by memory. All but rope run one warp a row; rope runs one thread a
 * pack of pairs of one row and goes through the heads, so that the angles are read once. */
#include "core/ops/cuda/device.cuh"
#include "core/ops/cuda/kernels.h"

enum { ROPE_THREADS = 256 };

template <typename T, int W>
static __global__ void __launch_bounds__(ROPE_THREADS) rope(view<T> x, rope_args args, int64_t rows) {
    int half = args.dim / 2, packs = half / W;
    int64_t index = (int64_t)blockIdx.x * ROPE_THREADS + threadIdx.x, row = index / packs;
    int pair = (int)(index - row * packs) * W;
    if (row >= rows) return;
    float c[W], s[W];
    const float *angles = args.table + row % args.context * args.dim + pair;
    load(c, angles);
    load(s, angles + half);
    float sign = args.inverse ? -1.0f : 1.0f;
    T *at = x.row(row) + args.first + pair;
#pragma unroll 4
    for (int h = 0; h < args.heads; h++, at += args.stride) {
        float a[W], b[W], p[W], q[W];
        load(a, at);
        load(b, at + half);
#pragma unroll
        for (int i = 0; i < W; i++) {
            p[i] = a[i] * c[i] - b[i] * (sign * s[i]);
            q[i] = b[i] * c[i] + a[i] * (sign * s[i]);
        }
        store(at, p);
        store(at + half, q);
    }
}

static __device__ __forceinline__ float sigmoid(float x) {
    return 1.0f / (1.0f + expf(-x));
}

template <typename T, int W>
static __global__ void __launch_bounds__(ROW_WARPS *WARP)
    swiglu_forward(view<T> h, view<const T> gate_up, int64_t rows, int cols) {
    int64_t row = warp_row();
    if (row >= rows) return;
    const T *gate = gate_up.row(row), *up = gate + cols;
    T *out = h.row(row);
    for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
        float g[W], u[W];
        load(g, gate + j);
        load(u, up + j);
#pragma unroll
        for (int i = 0; i < W; i++) g[i] = g[i] * sigmoid(g[i]) * u[i];
        store(out + j, g);
    }
}

/* silu(g) = g s, s = 1/(1 + e^-g); silu'(g) = s (1 + g (1 - s)). */
template <typename T, int W>
static __global__ void __launch_bounds__(ROW_WARPS *WARP)
    swiglu_backward(view<T> dgate_up, view<T> dh, view<const T> gate_up, int64_t rows, int cols) {
    int64_t row = warp_row();
    if (row >= rows) return;
    const T *gate = gate_up.row(row), *up = gate + cols;
    T *dgate = dgate_up.row(row), *dup = dgate + cols, *down = dh.row(row);
    for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
        float g[W], u[W], d[W];
        load(g, gate + j);
        load(u, up + j);
        load(d, down + j);
#pragma unroll
        for (int i = 0; i < W; i++) {
            float s = sigmoid(g[i]), silu = g[i] * s, dsilu = s * (1.0f + g[i] * (1.0f - s)), of_h = d[i];
            d[i] = silu * u[i];
            g[i] = silu * of_h;
            u[i] *= of_h * dsilu;
        }
        store(dup + j, g);
        store(dgate + j, u);
        store(down + j, d);
    }
}

template <typename T, int W>
static __global__ void __launch_bounds__(ROW_WARPS *WARP)
    add(view<T> y, view<const T> a, view<const T> b, int64_t rows, int cols) {
    int64_t row = warp_row();
    if (row >= rows) return;
    for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
        float p[W], q[W];
        load(p, a.row(row) + j);
        load(q, b.row(row) + j);
#pragma unroll
        for (int i = 0; i < W; i++) p[i] += q[i];
        store(y.row(row) + j, p);
    }
}

/* Bits, not values: any NaN stays what it is. */
template <typename T, int W>
static __global__ void __launch_bounds__(ROW_WARPS *WARP) copy(view<T> y, view<const T> x, int64_t rows, int cols) {
    typedef typename word<W * sizeof(T)>::type part;
    int64_t row = warp_row();
    if (row >= rows) return;
#pragma unroll 4
    for (int j = threadIdx.x * W; j < cols; j += WARP * W) *(part *)(y.row(row) + j) = *(const part *)(x.row(row) + j);
}

extern "C" cudaError_t launch_rope(tensor x, rope_args args, cudaStream_t stream) {
    if (args.dim == 0 || args.heads == 0) return cudaSuccess;
    size_t size = dtype_bytes(x.type), half_bytes = (size_t)args.dim / 2 * size;
    bool is_wide = wide_pointer(x.data) && wide_pointer(args.table) && (size_t)x.ld * size % 16 == 0 &&
                   (size_t)args.first * size % 16 == 0 && (size_t)args.stride * size % 16 == 0 && half_bytes % 16 == 0;
    return dispatch(x.type, x.rows, is_wide, [&](auto type, auto w) {
        using T = decltype(type);
        int64_t threads = x.rows * (args.dim / 2 / w.value);
        rope<T, w.value><<<(unsigned)((threads + ROPE_THREADS - 1) / ROPE_THREADS), ROPE_THREADS, 0, stream>>>(
            view_of<T>(x), args, x.rows);
    });
}

extern "C" cudaError_t launch_swiglu_forward(tensor h, tensor gate_up, cudaStream_t stream) {
    return dispatch(h.type, h.rows, wide(h) && wide(gate_up), [&](auto type, auto w) {
        using T = decltype(type);
        swiglu_forward<T, w.value><<<row_grid(h.rows), row_block(), 0, stream>>>(
            view_of<T>(h), view_of<const T>(gate_up), h.rows, (int)h.cols);
    });
}

extern "C" cudaError_t launch_swiglu_backward(tensor dgate_up, tensor dh, tensor gate_up, cudaStream_t stream) {
    bool is_wide = wide(dgate_up) && wide(dh) && wide(gate_up);
    return dispatch(dh.type, dh.rows, is_wide, [&](auto type, auto w) {
        using T = decltype(type);
        swiglu_backward<T, w.value><<<row_grid(dh.rows), row_block(), 0, stream>>>(
            view_of<T>(dgate_up), view_of<T>(dh), view_of<const T>(gate_up), dh.rows, (int)dh.cols);
    });
}

extern "C" cudaError_t launch_add(tensor y, tensor a, tensor b, cudaStream_t stream) {
    return dispatch(y.type, y.rows, wide(y) && wide(a) && wide(b), [&](auto type, auto w) {
        using T = decltype(type);
        add<T, w.value><<<row_grid(y.rows), row_block(), 0, stream>>>(view_of<T>(y), view_of<const T>(a),
                                                                      view_of<const T>(b), y.rows, (int)y.cols);
    });
}

extern "C" cudaError_t launch_copy(tensor y, tensor x, cudaStream_t stream) {
    return dispatch(y.type, y.rows, wide(y) && wide(x), [&](auto type, auto w) {
        using T = decltype(type);
        copy<T, w.value>
            <<<row_grid(y.rows), row_block(), 0, stream>>>(view_of<T>(y), view_of<const T>(x), y.rows, (int)y.cols);
    });
}
