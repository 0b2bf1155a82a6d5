/* The fused forward pass on tensor cores: FlashAttention-2's loop (Dao 2023, algorithm 1). A block owns ROWS queries of
 * one head, a warp 16 or 32 of them; keys and values pass through two buffers of shared memory, so that the next tile
 * loads under this one's products. The cuts are those that measured best (bench/notes.md). */
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
    extern __shared__ __align__(1024) char shared[];
    uint32_t q = shared_address(shared), k = q + C::OWN_QK, v = k + 2 * C::STEP_QK;
    int blocks = (int)((a.context + C::ROWS - 1) / C::ROWS), context = (int)a.context;
    int first = (blocks - 1 - (int)(blockIdx.x % blocks)) * C::ROWS; /* the longest rows begin first */
    int h = (int)(blockIdx.x / blocks % a.heads);
    head x = head_of(a, blockIdx.x / blocks / a.heads, h, h * a.kv_heads / a.heads);
    int row = first + C::warp_row(), last = row + 16 * C::MT - 1;
    int keys = min(first + C::ROWS, context), steps = (keys + C::TILE - 1) / C::TILE;

    running<C> r;
    clear(r.o);
#pragma unroll
    for (int m = 0; m < C::MT; m++)
        for (int half = 0; half < 2; half++) r.top[m][half] = -INFINITY, r.sum[m][half] = 0;
    C::own_qk(q, x.q, {}, first, context);
    C::step_qk(k, x.k, x.k_rope, 0, context);
    C::step_v(v, x.v, 0, context);
    for (int step = 0; step < steps; step++) {
        int key = step * C::TILE, buffer = step % 2;
        C::arrive();
        if (step + 1 < steps) {
            C::step_qk(k + (1 - buffer) * C::STEP_QK, x.k, x.k_rope, key + C::TILE, context);
            C::step_v(v + (1 - buffer) * C::STEP_V, x.v, key + C::TILE, context);
        }
        if (key > last) continue; /* all later than the warp's queries */
        float s[C::MT][C::TILE / 8][4];
        multiply_a_bt<C::QK, C::ROWS, C::MT, C::TILE>(s, q, row - first, k + buffer * C::STEP_QK);
        if (key + C::TILE - 1 > row) hide_later_keys<C>(s, row, key);
        softmax<C>(r, s, a.scale * LOG2_E);
        uint32_t p[C::MT][C::TILE / 16][4];
        as_left<C::MT, C::TILE>(p, s);
        add_p_b<C::V, C::MT, C::TILE>(r.o, p, v + buffer * C::STEP_V);
    }
    store_rows<C>(r, a, x, h, row);
}

template <typename C> cudaError_t run(const attn_core_args *a, cudaStream_t stream) {
    int64_t blocks = (a->context + C::ROWS - 1) / C::ROWS * a->heads * a->batch;
    return launch(forward_kernel<C>, blocks, C::THREADS, C::OWN_QK + 2 * (C::STEP_QK + C::STEP_V), stream, *a);
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
