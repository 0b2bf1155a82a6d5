/* The fused forward pass on tensor cores: FlashAttention-2's loop (Dao 2023, algorithm 1). A block owns ROWS queries of
 * one head, a warp 16 or 32 of them; keys and values pass through two buffers of shared memory, so that the next tile
 * loads under this one's products. */
#include "attention/cuda/tiles.cuh"

using namespace tiles;

namespace {

template <typename C> struct running {
    float o[C::MT][C::V / 8][4];
    float top[C::MT][2], sum[C::MT][2]; /* rows g and g + 8; a sum is this lane's share of the row's */
};

/* Scores to probabilities against the row's maximum so far; what was summed under an older maximum shrinks. */
template <typename C>
__device__ __forceinline__ void softmax(running<C> &r, float (&s)[C::MT][C::TILE / 8][4], float factor) {
#pragma unroll
    for (int m = 0; m < C::MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = r.top[m][half];
#pragma unroll
            for (int n = 0; n < C::TILE / 8; n++) top = fmaxf(top, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
            float shrink = power_of_2((r.top[m][half] - top) * factor), offset = top * factor, sum = 0;
#pragma unroll
            for (int n = 0; n < C::TILE / 8; n++)
#pragma unroll
                for (int i = 2 * half; i < 2 * half + 2; i++) {
                    s[m][n][i] = power_of_2(s[m][n][i] * factor - offset);
                    sum += s[m][n][i];
                }
            r.sum[m][half] = r.sum[m][half] * shrink + sum;
            r.top[m][half] = top;
            if (__all_sync(0xffffffffu, shrink == 1)) continue; /* soon no maximum moves */
#pragma unroll
            for (int n = 0; n < C::V / 8; n++) {
                r.o[m][n][2 * half] *= shrink;
                r.o[m][n][2 * half + 1] *= shrink;
            }
        }
}

/* Scores of keys after their query become -inf; row and key: the fragment's first. */
template <typename C>
__device__ __forceinline__ void hide_later_keys(float (&s)[C::MT][C::TILE / 8][4], int row, int key) {
#pragma unroll
    for (int m = 0; m < C::MT; m++)
#pragma unroll
        for (int n = 0; n < C::TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (key + 8 * n + lane() % 4 * 2 + i % 2 > row + 16 * m + lane() / 4 + i / 2 * 8)
                    s[m][n][i] = -INFINITY;
}

template <typename C>
__device__ __forceinline__ void store_rows(const running<C> &r, const attn_core_args &a, const head &x, int h,
                                           int row) {
    float factor[C::MT][2];
#pragma unroll
    for (int m = 0; m < C::MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float sum = r.sum[m][half];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            factor[m][half] = 1 / sum;
            int i = row + 16 * m + 8 * half + lane() / 4;
            if (lane() % 4 == 0 && i < a.context) a.lse[x.at + i] = r.top[m][half] * a.scale + logf(sum);
        }
    __nv_bfloat16 *o = (__nv_bfloat16 *)values_of(a.o, a, x, h).data;
    each_pair(r.o, [&](int i, int col, float low, float high) {
        float f = factor[i / 16][i / 8 % 2];
        if (row + i < a.context && col < a.value) *(uint32_t *)(o + (row + i) * a.o.ld + col) = pack(low * f, high * f);
    });
}

template <typename C> __global__ void __launch_bounds__(C::THREADS, C::BLOCKS) forward_kernel(attn_core_args a) {
    extern __shared__ __align__(128) char shared[];
    uint32_t q = shared_address(shared), k = q + C::ROWS * C::QK * 2, v = k + 2 * C::TILE * C::QK * 2;
    int blocks = (int)((a.context + C::ROWS - 1) / C::ROWS), context = (int)a.context;
    int first = (blocks - 1 - (int)(blockIdx.x % blocks)) * C::ROWS; /* the longest rows begin first */
    int h = (int)(blockIdx.x / blocks % a.heads);
    head x = head_of(a, blockIdx.x / blocks / a.heads, h, h * a.kv_heads / a.heads);
    int row = threadIdx.x / LANES * 16 * C::MT; /* the warp's first */
    int keys = min(first + C::ROWS, context), steps = (keys + C::TILE - 1) / C::TILE;

    running<C> r;
    clear(r.o);
#pragma unroll
    for (int m = 0; m < C::MT; m++)
        for (int half = 0; half < 2; half++) r.top[m][half] = -INFINITY, r.sum[m][half] = 0;
    fill<C::QK, C::ROWS, C::THREADS>(q, x.q, x.nothing, first, context);
    fill<C::QK, C::TILE, C::THREADS>(k, x.k, x.k_rope, 0, context);
    fill<C::V, C::TILE, C::THREADS>(v, x.v, x.nothing, 0, context);
    for (int step = 0; step < steps; step++) {
        int key = step * C::TILE, buffer = step % 2;
        wait_for_groups();
        __syncthreads();
        if (step + 1 < steps) {
            fill<C::QK, C::TILE, C::THREADS>(k + (1 - buffer) * C::TILE * C::QK * 2, x.k, x.k_rope, key + C::TILE,
                                             context);
            fill<C::V, C::TILE, C::THREADS>(v + (1 - buffer) * C::TILE * C::V * 2, x.v, x.nothing, key + C::TILE,
                                            context);
        }
        if (key > first + row + 16 * C::MT - 1) continue; /* all later than the warp's queries */
        float s[C::MT][C::TILE / 8][4];
        clear(s);
        add_a_bt<C::QK, C::MT, C::TILE>(s, q, row, k + buffer * C::TILE * C::QK * 2);
        if (key + C::TILE - 1 > first + row) hide_later_keys<C>(s, first + row, key);
        softmax<C>(r, s, a.scale * LOG2_E);
        uint32_t p[C::MT][C::TILE / 16][4];
        as_left<C::MT, C::TILE>(p, s);
        add_p_b<C::V, C::MT, C::TILE>(r.o, p, v + buffer * C::TILE * C::V * 2);
    }
    store_rows<C>(r, a, x, h, first + row);
}

template <typename C> cudaError_t run(const attn_core_args *a, cudaStream_t stream) {
    int64_t blocks = (a->context + C::ROWS - 1) / C::ROWS * a->heads * a->batch;
    return launch(forward_kernel<C>, blocks, C::THREADS, C::ROWS * C::QK * 2 + C::STEPS_BYTES, stream, *a);
}

} // namespace

cudaError_t fused_forward(const attn_core_args *a, cudaStream_t stream) {
    int qk = a->nope + a->rope, v = a->value;
    if (qk <= 64 && v <= 64) return run<cut<64, 64, 2, 64>>(a, stream);
    if (qk <= 96 && v <= 64) return run<cut<96, 64, 2, 64>>(a, stream);
    if (qk <= 128 && v <= 128) return run<cut<128, 128, 2, 64>>(a, stream);
    if (qk <= 192 && v <= 128) return run<cut<192, 128, 2, 32>>(a, stream);
    return run<cut<256, 256, 1, 32>>(a, stream);
}
