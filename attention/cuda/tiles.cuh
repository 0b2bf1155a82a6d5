/* Tiles of bf16 in shared memory and their products on tensor cores, for compute capability 8.0 and up: cp.async fills
 * a tile, ldmatrix reads it, mma.sync m16n8k16 multiplies with fp32 sums.
 *
 * A tile is rows of D columns, D a multiple of 32. Its 16-byte chunks are stored exclusive-or'ed with a pattern of the
 * row, so that the eight rows that are read at once lie in different banks.
 *
 * A warp holds MT blocks of 16 rows. In a fragment c[m][n][4] lane l = 4 g + t has (row 16 m + g, columns 8 n + 2 t and
 * + 1) in [0], [1] and row 16 m + g + 8 in [2], [3] (PTX ISA, "Matrix Fragments for mma.m16n8k16"). */
#pragma once

#include "attention/cuda/kernels.h"

#include <cuda_bf16.h>

namespace tiles {

constexpr int LANES = 32;
constexpr float LOG2_E = 1.4426950408889634f;

__device__ __forceinline__ int lane() {
    return threadIdx.x % LANES;
}

__device__ __forceinline__ uint32_t shared_address(const void *p) {
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* 16 bytes, of which the first `bytes` come from `from` and the rest are zero. */
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes));
}
__device__ __forceinline__ void close_group() {
    asm volatile("cp.async.commit_group;");
}
__device__ __forceinline__ void wait_for_groups() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ void load_blocks(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void load_blocks_transposed(uint32_t (&r)[4], uint32_t at) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
__device__ __forceinline__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ uint32_t pack(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *(uint32_t *)&both;
}

/* Rows of one head and sample in global memory. */
struct rows {
    const __nv_bfloat16 *data;
    int64_t ld;
    int cols;
};

/* The largest power of 2 that is n at most. */
__host__ __device__ constexpr int power_below(int n) {
    return n < 2 ? 1 : 2 * power_below(n / 2);
}

/* Bytes from the start of a tile [ROWS, D] to a chunk of 8 columns. */
template <int D, int ROWS> __device__ __forceinline__ uint32_t chunk_at(int row, int chunk) {
    static_assert(D % 32 == 0, "a row is whole groups of four chunks");
    int pattern = D % 64 == 0 ? row & 7 : row >> 1 & 3;
    return (uint32_t)(row * (D / 8) + (chunk ^ pattern)) * 16;
}

/* Fills ROWS rows of a tile from row `first` of the operand: left's columns, then right's, then zeros; rows from
 * `count` on are zeros. Columns come in whole chunks. A thread keeps its column and walks down the rows. */
template <int D, int ROWS, int THREADS>
__device__ __forceinline__ void fill(uint32_t tile, rows left, rows right, int first, int count) {
    constexpr int CHUNKS = D / 8, PASS = power_below(THREADS / CHUNKS);
    int row = threadIdx.x / CHUNKS, chunk = threadIdx.x % CHUNKS, col = chunk * 8;
    if (row >= PASS) return;
    rows from = col < left.cols ? left : right;
    int bytes = col < left.cols + right.cols ? 16 : 0;
    const __nv_bfloat16 *data =
        bytes ? from.data + (first + row) * from.ld + col - (col < left.cols ? 0 : left.cols) : left.data;
    int64_t stride = bytes ? PASS * from.ld : 0;
    if (first + ROWS <= count) {
#pragma unroll
        for (int i = 0; i < ROWS / PASS; i++, data += stride)
            copy_async(tile + chunk_at<D, ROWS>(row + i * PASS, chunk), data, bytes);
    } else {
#pragma unroll
        for (int i = 0; i < ROWS / PASS; i++, data += stride) {
            bool inside = first + row + i * PASS < count;
            copy_async(tile + chunk_at<D, ROWS>(row + i * PASS, chunk), inside ? data : left.data, inside ? bytes : 0);
        }
    }
}

template <int MT, int N> __device__ __forceinline__ void clear(float (&c)[MT][N][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) c[m][n][i] = 0;
}

/* c [16 MT, N] = a bt over D columns: the warp's rows of tile a [ROWS, D] from row `first`, all rows of tile b. */
template <int D, int ROWS, int MT, int N>
__device__ __forceinline__ void multiply_a_bt(float (&c)[MT][N / 8][4], uint32_t a, int first, uint32_t b) {
    int a_row = first + lane() % 16, b_row = lane() % 8 + lane() / 16 * 8;
    clear(c);
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t left[MT][4];
#pragma unroll
        for (int m = 0; m < MT; m++) load_blocks(left[m], a + chunk_at<D, ROWS>(a_row + 16 * m, 2 * k + lane() / 16));
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            uint32_t right[4];
            load_blocks(right, b + chunk_at<D, N>(b_row + 16 * n, 2 * k + lane() / 8 % 2));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                multiply(c[m][2 * n], left[m], right[0], right[1]);
                multiply(c[m][2 * n + 1], left[m], right[2], right[3]);
            }
        }
    }
}

/* c [16 MT, D] += p b: p [16 MT, K] in registers as left operands, tile b [K, D]. */
template <int D, int MT, int K>
__device__ __forceinline__ void add_p_b(float (&c)[MT][D / 8][4], uint32_t (&p)[MT][K / 16][4], uint32_t b) {
#pragma unroll
    for (int k = 0; k < K / 16; k++)
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            uint32_t right[4];
            load_blocks_transposed(right, b + chunk_at<D, K>(16 * k + lane() % 16, 2 * n + lane() / 16));
#pragma unroll
            for (int m = 0; m < MT; m++) {
                multiply(c[m][2 * n], p[m][k], right[0], right[1]);
                multiply(c[m][2 * n + 1], p[m][k], right[2], right[3]);
            }
        }
}

/* A sum's fragment, rounded to bf16, as left operands of the next product. */
template <int MT, int N>
__device__ __forceinline__ void as_left(uint32_t (&p)[MT][N / 16][4], const float (&c)[MT][N / 8][4]) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int k = 0; k < N / 16; k++) {
            p[m][k][0] = pack(c[m][2 * k][0], c[m][2 * k][1]);
            p[m][k][1] = pack(c[m][2 * k][2], c[m][2 * k][3]);
            p[m][k][2] = pack(c[m][2 * k + 1][0], c[m][2 * k + 1][1]);
            p[m][k][3] = pack(c[m][2 * k + 1][2], c[m][2 * k + 1][3]);
        }
}

/* Calls out(row, col, low, high) for the fragment's pairs of columns; rows within the warp's. */
template <int MT, int N, typename F> __device__ __forceinline__ void each_pair(const float (&c)[MT][N][4], F out) {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < N; n++)
                out(16 * m + 8 * half + lane() / 4, 8 * n + lane() % 4 * 2, c[m][n][2 * half], c[m][n][2 * half + 1]);
}

/* The operands of head h (of kv head g) in one sample, rows at its first token. */
struct head {
    rows q, k, k_rope, v;
    int64_t token; /* the sample's first */
    int64_t at;    /* of lse and delta */
};

__device__ __forceinline__ head head_of(const attn_core_args &a, int64_t sample, int h, int g) {
    int64_t token = sample * a.context;
    head x;
    x.token = token;
    x.at = (sample * a.heads + h) * a.context;
    x.q = {(const __nv_bfloat16 *)a.q.data + token * a.q.ld + (int64_t)h * (a.nope + a.rope), a.q.ld, a.nope + a.rope};
    x.k = {(const __nv_bfloat16 *)a.k.data + token * a.k.ld + g * a.k_head, a.k.ld, a.nope};
    x.k_rope = {(const __nv_bfloat16 *)a.k_rope.data + token * a.k_rope.ld, a.k_rope.ld, a.rope};
    x.v = {(const __nv_bfloat16 *)a.v.data + token * a.v.ld + g * a.v_head, a.v.ld, a.value};
    return x;
}

/* The block of head h in a matrix [B T, H D_v] such as o. */
__device__ __forceinline__ rows values_of(const tensor &t, const attn_core_args &a, const head &x, int h) {
    return {(const __nv_bfloat16 *)t.data + x.token * t.ld + (int64_t)h * a.value, t.ld, a.value};
}

/* How a kernel is cut for one pair of head sizes. TILE: tokens of the other side in a step; BLOCKS: on a multiprocessor
 * at once. */
template <int QK_, int V_, int MT_, int TILE_, int WARPS_ = 4, int BLOCKS_ = 2> struct cut {
    static constexpr int QK = QK_, V = V_, MT = MT_, TILE = TILE_, WARPS = WARPS_, BLOCKS = BLOCKS_;
    static constexpr int THREADS = WARPS * LANES;
    static constexpr int ROWS = 16 * MT * WARPS; /* tokens of a block's own side */
    /* Bytes of the tiles. */
    static constexpr int OWN_QK = ROWS * QK * 2, OWN_V = ROWS * V * 2;
    static constexpr int STEP_QK = TILE * QK * 2, STEP_V = TILE * V * 2;

    /* The first of the warp's rows. */
    static __device__ __forceinline__ int warp_row() { return threadIdx.x / LANES * 16 * MT; }

    static __device__ __forceinline__ void own_qk(uint32_t to, rows left, rows right, int first, int count) {
        fill<QK, ROWS, THREADS>(to, left, right, first, count);
    }
    static __device__ __forceinline__ void own_v(uint32_t to, rows values, int first, int count) {
        fill<V, ROWS, THREADS>(to, values, {}, first, count);
    }
    static __device__ __forceinline__ void step_qk(uint32_t to, rows left, rows right, int first, int count) {
        fill<QK, TILE, THREADS>(to, left, right, first, count);
    }
    static __device__ __forceinline__ void step_v(uint32_t to, rows values, int first, int count) {
        fill<V, TILE, THREADS>(to, values, {}, first, count);
    }
    /* Everything copied so far is there, for all threads. */
    static __device__ __forceinline__ void arrive() {
        wait_for_groups();
        __syncthreads();
    }
};

template <typename Kernel, typename... Args>
cudaError_t launch(Kernel kernel, int64_t blocks, int threads, size_t shared, cudaStream_t stream, Args... args) {
    cudaError_t code = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared);
    if (code != cudaSuccess) return code;
    kernel<<<(unsigned)blocks, threads, shared, stream>>>(args...);
    return cudaGetLastError();
}

} // namespace tiles
