/* Singular values of many small matrices: one-sided Jacobi (Hestenes 1958), a block a matrix, the matrix in shared
 * memory all the time. Outputs are overwritten. Limits: fp32, side <= JACOBI_MOST_SIDE, and what a block's shared
 * memory holds.
 *
 * Columns are rotated in pairs until all are orthogonal; their norms are the singular values. In a round every column
 * is in one pair, by the schedule of a round-robin tournament, and eight lanes work on a pair: column c lies in
 * LANES * K float4, zero below the matrix, so that a lane's loads are whole and free of bank conflicts.
 *
 * A column is changed by a small multiple of the other, x - s (y + (s/(1+c)) x), and not by c x - s y: then the
 * rounding error of a rotation shrinks with its angle. Measured on 64 to 224 columns: 2e-7 of the largest value in
 * place of 5e-6 to 2e-5. */
#include "diag/cuda/kernels.h"

#include <math_constants.h>
#include <stdint.h>

namespace {

constexpr int LANES = 8;        /* that share a pair */
constexpr int ROWS = 4 * LANES; /* of a column, that they take at once */
constexpr int MOST_SWEEPS = 40; /* 9 to 19 are used */
constexpr int THREADS_A_COLUMN = LANES / 2;
constexpr int COLUMN_MULTIPLE = 8; /* whole warps */
constexpr int ELEMENT_THREADS = 256;

/* An angle whose effect on a value is under this share of the largest value is not worth a sweep; it also keeps pairs
 * of vanishing columns from rotating for ever. */
constexpr float LEAST_EFFECT = 0x1p-30f;

int columns_of(int side) {
    return (side + COLUMN_MULTIPLE - 1) / COLUMN_MULTIPLE * COLUMN_MULTIPLE;
}

/* The pair's sum, the same bits in each of its lanes. */
__device__ float sum_of_lanes(float x) {
    for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ float dot4(float4 a, float4 b, float sum) {
    return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

template <int K> __device__ float dot(const float4 *a, const float4 *b) {
    float sum = 0;
#pragma unroll
    for (int k = 0; k < K; k++) sum = dot4(a[k], b[k], sum);
    return sum_of_lanes(sum);
}

/* x - s (y + tau x), y + s (x - tau y) */
__device__ void rotate(float &x, float &y, float s, float tau) {
    float u = x, v = y;
    x = fmaf(-s, fmaf(tau, u, v), u);
    y = fmaf(s, fmaf(-tau, v, u), v);
}

/* Round-robin: column `last` stays, the others go round. */
__device__ void pair_of(int round, int pair, int last, int *p, int *q) {
    *p = pair ? (round + pair) % last : last;
    *q = pair ? (round - pair + last) % last : round;
}

template <int K> __device__ void load(float4 (&x)[K], const float4 *column) {
#pragma unroll
    for (int k = 0; k < K; k++) x[k] = column[k * LANES];
}

/* Makes two columns orthogonal; false when they are already. Called by all lanes of a warp. */
template <int K> __device__ bool make_orthogonal(float4 *p, float4 *q, float tolerance, float least) {
    float4 x[K], y[K];
    load<K>(x, p);
    load<K>(y, q);
    float a = dot<K>(x, x), b = dot<K>(y, y), c = dot<K>(x, y), ra = sqrtf(a), rb = sqrtf(b);
    if (!(fabsf(c) > tolerance * ra * rb && fabsf(c) > least * fmaxf(ra, rb))) return false;
    float zeta = (b - a) / (2 * c);
    float t = copysignf(1.0f, zeta) / (fabsf(zeta) + sqrtf(1 + zeta * zeta));
    float cosine = 1 / sqrtf(1 + t * t), sine = cosine * t, tau = sine / (1 + cosine);
#pragma unroll
    for (int k = 0; k < K; k++) {
        rotate(x[k].x, y[k].x, sine, tau);
        rotate(x[k].y, y[k].y, sine, tau);
        rotate(x[k].z, y[k].z, sine, tau);
        rotate(x[k].w, y[k].w, sine, tau);
        p[k * LANES] = x[k];
        q[k * LANES] = y[k];
    }
    return true;
}

/* norms [columns] of the columns, the pair's threads doing two. */
template <int K> __device__ void take_norms(float *norms, const float4 *columns, int pair, int lane) {
    for (int i = 0; i < 2; i++) {
        float4 x[K];
        load<K>(x, columns + (size_t)(2 * pair + i) * K * LANES + lane);
        float norm = sqrtf(dot<K>(x, x));
        if (lane == 0) norms[2 * pair + i] = norm;
    }
    __syncthreads();
}

/* Every thread adds in the same order. */
__device__ float frobenius(const float *norms, int count) {
    float sum = 0;
    for (int i = 0; i < count; i++) sum = fmaf(norms[i], norms[i], sum);
    return sqrtf(sum);
}

/* Until a sweep rotates nothing; false when that does not come. */
template <int K>
__device__ bool sweep_until_orthogonal(float4 *columns, int count, float tolerance, float least, int pair, int lane) {
    for (int sweep = 0; sweep < MOST_SWEEPS; sweep++) {
        bool rotated = false;
        for (int round = 0; round < count - 1; round++) {
            int p, q;
            pair_of(round, pair, count - 1, &p, &q);
            rotated |= make_orthogonal<K>(columns + (size_t)p * K * LANES + lane,
                                          columns + (size_t)q * K * LANES + lane, tolerance, least);
            __syncthreads();
        }
        if (!__syncthreads_or(rotated)) return true;
    }
    return false;
}

/* K: float4 a lane and column, side <= K * ROWS. Threads: four a column. */
template <int K>
__global__ void __launch_bounds__(THREADS_A_COLUMN *ROWS *K)
    jacobi(float *values, const float *matrices, int side, int count) {
    extern __shared__ float4 columns[]; /* [count, K * LANES] */
    float *flat = (float *)columns, *norms = flat + (size_t)count * K * ROWS;
    int thread = threadIdx.x, pair = thread / LANES, lane = thread % LANES;
    const float *matrix = matrices + (size_t)blockIdx.x * side * side;
    float *out = values + (size_t)blockIdx.x * side;
    for (int i = thread; i < count * K * ROWS; i += blockDim.x) flat[i] = 0;
    __syncthreads();
    for (int i = thread; i < side * side; i += blockDim.x) flat[i / side * (K * ROWS) + i % side] = matrix[i];
    __syncthreads();
    take_norms<K>(norms, columns, pair, lane);
    float tolerance = sqrtf((float)side) * 0x1p-24f, least = LEAST_EFFECT * frobenius(norms, count);
    bool done = sweep_until_orthogonal<K>(columns, count, tolerance, least, pair, lane);
    take_norms<K>(norms, columns, pair, lane);
    for (int i = thread; i < count; i += blockDim.x) {
        int place = 0;
        for (int k = 0; k < count; k++) place += norms[k] > norms[i] || (norms[k] == norms[i] && k < i);
        if (place < side)
            out[place] = done ? norms[i] : CUDART_NAN_F; /* behind them are the columns that are not there */
    }
}

template <int K>
cudaError_t launch_jacobi_of(float *values, const float *matrices, int side, int count, cudaStream_t stream) {
    int columns = columns_of(side);
    size_t shared = jacobi_shared_bytes(side);
    cudaError_t code = cudaFuncSetAttribute(jacobi<K>, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (code != cudaSuccess) return code;
    jacobi<K><<<count, THREADS_A_COLUMN * columns, shared, stream>>>(values, matrices, side, columns);
    return cudaGetLastError();
}

__global__ void embed(float *out, const float *matrices, int side, int64_t total) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= total) return;
    int wide = 2 * side, column = (int)(at % wide), row = (int)(at / wide % wide);
    const float *matrix = matrices + at / wide / wide * side * side;
    float x = 0;
    if (row < side && column >= side) x = matrix[(int64_t)row * side + column - side];
    if (row >= side && column < side) x = matrix[(int64_t)column * side + row - side];
    out[at] = x;
}

__global__ void upper_half(float *values, const float *eigenvalues, const int *info, int side, int64_t total) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= total) return;
    int64_t matrix = at / side;
    float x = eigenvalues[2 * side * (matrix + 1) - 1 - at % side];
    values[at] = info[matrix] == 0 ? fmaxf(x, 0.0f) : CUDART_NAN_F;
}

unsigned blocks_of(int64_t elements) {
    return (unsigned)((elements + ELEMENT_THREADS - 1) / ELEMENT_THREADS);
}

} // namespace

size_t jacobi_shared_bytes(int side) {
    int rows = (side + ROWS - 1) / ROWS * ROWS;
    return (size_t)columns_of(side) * (size_t)(rows + 1) * sizeof(float);
}

cudaError_t launch_jacobi(float *values, const float *matrices, int side, int count, cudaStream_t stream) {
    switch ((side + ROWS - 1) / ROWS) {
    case 1:
        return launch_jacobi_of<1>(values, matrices, side, count, stream);
    case 2:
        return launch_jacobi_of<2>(values, matrices, side, count, stream);
    case 3:
        return launch_jacobi_of<3>(values, matrices, side, count, stream);
    case 4:
        return launch_jacobi_of<4>(values, matrices, side, count, stream);
    case 5:
        return launch_jacobi_of<5>(values, matrices, side, count, stream);
    case 6:
        return launch_jacobi_of<6>(values, matrices, side, count, stream);
    case 7:
        return launch_jacobi_of<7>(values, matrices, side, count, stream);
    default:
        return cudaErrorInvalidValue;
    }
}

cudaError_t launch_embed(float *out, const float *matrices, int side, int count, cudaStream_t stream) {
    int64_t total = (int64_t)count * 4 * side * side;
    embed<<<blocks_of(total), ELEMENT_THREADS, 0, stream>>>(out, matrices, side, total);
    return cudaGetLastError();
}

cudaError_t launch_upper_half(float *values, const float *eigenvalues, const int *info, int side, int count,
                              cudaStream_t stream) {
    int64_t total = (int64_t)count * side;
    upper_half<<<blocks_of(total), ELEMENT_THREADS, 0, stream>>>(values, eigenvalues, info, side, total);
    return cudaGetLastError();
}
