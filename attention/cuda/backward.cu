/* The fused backward pass on tensor cores, in two kernels that add in a fixed order and need no atomics: one whose
 * blocks own queries (delta, dq) and one whose blocks own keys (dk, dv, the rotary key's shares). The scores are
 * computed in both, seven products in place of five, and neither writes them anywhere: the second computes them
 * transposed, so that probabilities and their gradients are left operands in registers.
 *
 * p = exp(scale s - lse), dp = dout vt, ds = p (dp - delta), delta = dout . o of a query (Dao 2023, algorithm 2). */
#include "attention/cuda/tiles.cuh"

using namespace tiles;

namespace {

/* delta of the block's queries, a thread a row, into shared and global memory. dout: its tile. */
template <typename C>
__device__ __forceinline__ void write_deltas(const char *dout, rows o, float *shared_delta, float *delta, int first,
                                             int context) {
    for (int i = threadIdx.x; i < C::ROWS; i += C::THREADS) {
        float sum = 0;
        if (first + i < context) {
            const __nv_bfloat16 *row = o.data + (first + i) * o.ld;
            for (int chunk = 0; chunk < o.cols / 8; chunk++) {
                uint4 a = *(const uint4 *)(row + chunk * 8),
                      b = *(const uint4 *)(dout + chunk_at<C::V, C::ROWS>(i, chunk));
                const __nv_bfloat162 *left = (const __nv_bfloat162 *)&a, *right = (const __nv_bfloat162 *)&b;
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    float2 u = __bfloat1622float2(left[c]), w = __bfloat1622float2(right[c]);
                    sum += u.x * w.x + u.y * w.y;
                }
            }
            delta[first + i] = sum;
        }
        shared_delta[i] = sum;
    }
}

template <typename C>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS) dq_kernel(attn_core_args a, attn_core_grads g, float *delta) {
    extern __shared__ __align__(1024) char shared[];
    uint32_t q = shared_address(shared), dout = q + C::OWN_QK, k = dout + C::OWN_V, v = k + 2 * C::STEP_QK;
    float *deltas = (float *)(shared + C::OWN_QK + C::OWN_V + 2 * (C::STEP_QK + C::STEP_V));
    int blocks = (int)((a.context + C::ROWS - 1) / C::ROWS), context = (int)a.context;
    int first = (blocks - 1 - (int)(blockIdx.x % blocks)) * C::ROWS;
    int h = (int)(blockIdx.x / blocks % a.heads);
    head x = head_of(a, blockIdx.x / blocks / a.heads, h, h * a.kv_heads / a.heads);
    int row = C::warp_row(), mine = first + row + lane() / 4, last = first + row + 16 * C::MT - 1;
    int keys = min(first + C::ROWS, context), steps = (keys + C::TILE - 1) / C::TILE;

    C::own_qk(q, x.q, {}, first, context);
    C::own_v(dout, values_of(g.dout, a, x, h), first, context);
    C::arrive();
    C::step_qk(k, x.k, x.k_rope, 0, context);
    C::step_v(v, x.v, 0, context);
    write_deltas<C>(shared + C::OWN_QK, values_of(a.o, a, x, h), deltas, delta + x.at, first, context);
    __syncthreads();

    float lse[C::MT][2], d[C::MT][2], dq[C::MT][C::QK / 8][4], factor = a.scale * LOG2_E;
#pragma unroll
    for (int m = 0; m < C::MT; m++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int i = 16 * m + 8 * half;
            lse[m][half] = mine + i < context ? a.lse[x.at + mine + i] * LOG2_E : INFINITY;
            d[m][half] = deltas[row + lane() / 4 + i];
        }
    clear(dq);
    for (int step = 0; step < steps; step++) {
        int key = step * C::TILE, buffer = step % 2;
        C::arrive();
        if (step + 1 < steps) {
            C::step_qk(k + (1 - buffer) * C::STEP_QK, x.k, x.k_rope, key + C::TILE, context);
            C::step_v(v + (1 - buffer) * C::STEP_V, x.v, key + C::TILE, context);
        }
        if (key > last) continue;
        float s[C::MT][C::TILE / 8][4], dp[C::MT][C::TILE / 8][4];
        multiply_a_bt<C::QK, C::ROWS, C::MT, C::TILE>(s, q, row, k + buffer * C::STEP_QK);
        multiply_a_bt<C::V, C::ROWS, C::MT, C::TILE>(dp, dout, row, v + buffer * C::STEP_V);
        bool diagonal = key + C::TILE - 1 > first + row;
#pragma unroll
        for (int m = 0; m < C::MT; m++)
#pragma unroll
            for (int n = 0; n < C::TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[m][n][i] = power_of_2(s[m][n][i] * factor - lse[m][i / 2]);
                    if (diagonal && key + 8 * n + lane() % 4 * 2 + i % 2 > mine + 16 * m + i / 2 * 8) s[m][n][i] = 0;
                }
#pragma unroll
        for (int m = 0; m < C::MT; m++)
#pragma unroll
            for (int n = 0; n < C::TILE / 8; n++)
#pragma unroll
                for (int i = 0; i < 4; i++) s[m][n][i] *= dp[m][n][i] - d[m][i / 2];
        uint32_t ds[C::MT][C::TILE / 16][4];
        as_left<C::MT, C::TILE>(ds, s);
        add_p_b<C::QK, C::MT, C::TILE>(dq, ds, k + buffer * C::STEP_QK);
    }
    __nv_bfloat16 *out = (__nv_bfloat16 *)g.dq.data + x.token * g.dq.ld + (int64_t)h * (a.nope + a.rope);
    each_pair(dq, [&](int i, int col, float low, float high) {
        if (first + row + i < context && col < a.nope + a.rope)
            *(uint32_t *)(out + (first + row + i) * g.dq.ld + col) = pack(low * a.scale, high * a.scale);
    });
}

/* lse (in powers of 2) and delta of a tile's queries; +inf after the last, which makes p = 0. */
template <typename C>
__device__ __forceinline__ void fill_rows(float *lse, float *delta, const float *from_lse, const float *from_delta,
                                          int first, int context) {
    for (int i = threadIdx.x; i < C::TILE; i += C::THREADS) {
        lse[i] = first + i < context ? from_lse[first + i] * LOG2_E : INFINITY;
        delta[i] = first + i < context ? from_delta[first + i] : 0;
    }
}

/* Which of dk and dv a launch makes: both unless their sums do not fit the registers together. */
enum { DK = 1, DV = 2 };

template <typename C, int WHICH>
__global__ void __launch_bounds__(C::THREADS, C::BLOCKS)
    dkv_kernel(attn_core_args a, attn_core_grads g, const float *delta, float *shares) {
    extern __shared__ __align__(1024) char shared[];
    uint32_t k = shared_address(shared), v = k + C::OWN_QK, q = v + C::OWN_V, dout = q + 2 * C::STEP_QK;
    float *lse = (float *)(shared + C::OWN_QK + C::OWN_V + 2 * (C::STEP_QK + C::STEP_V)), *deltas = lse + 2 * C::TILE;
    int blocks = (int)((a.context + C::ROWS - 1) / C::ROWS), context = (int)a.context, group = a.heads / a.kv_heads;
    int first = (int)(blockIdx.x % blocks) * C::ROWS, kv = (int)(blockIdx.x / blocks % a.kv_heads);
    int64_t sample = blockIdx.x / blocks / a.kv_heads;
    int row = C::warp_row(), mine = first + row + lane() / 4;
    int start = first / C::TILE * C::TILE; /* the first queries that see these keys */
    head x = head_of(a, sample, kv * group, kv);

    float dk[C::MT][C::QK / 8][4], dv[C::MT][C::V / 8][4], factor = a.scale * LOG2_E;
    clear(dk);
    clear(dv);
    C::own_qk(k, x.k, x.k_rope, first, context);
    C::own_v(v, x.v, first, context);
    /* The steps of the group's query heads are one loop: the next head's first tile loads under the last of this. */
    auto load = [&](int member, int query, int buffer) {
        int h = kv * group + member;
        head y = head_of(a, sample, h, kv);
        C::step_qk(q + buffer * C::STEP_QK, y.q, {}, query, context);
        C::step_v(dout + buffer * C::STEP_V, values_of(g.dout, a, y, h), query, context);
        fill_rows<C>(lse + buffer * C::TILE, deltas + buffer * C::TILE, a.lse + y.at, delta + y.at, query, context);
    };
    int member = 0, query = start, next = start;
    load(0, start, 0);
    for (int buffer = 0; member < group; query = next, buffer = 1 - buffer) {
        C::arrive();
        next = query + C::TILE;
        if (next >= context) next = start, member++;
        if (member < group) load(member, next, 1 - buffer);
        if (query + C::TILE - 1 < first + C::warp_row()) continue; /* all earlier than the warp's keys */
        float s[C::MT][C::TILE / 8][4], dp[C::MT][C::TILE / 8][4];
        multiply_a_bt<C::QK, C::ROWS, C::MT, C::TILE>(s, k, row, q + buffer * C::STEP_QK);
        if (WHICH & DK) multiply_a_bt<C::V, C::ROWS, C::MT, C::TILE>(dp, v, row, dout + buffer * C::STEP_V);
        bool diagonal = query < first + row + 16 * C::MT - 1;
        const float *tile_lse = lse + buffer * C::TILE + lane() % 4 * 2, *tile_delta = tile_lse + 2 * C::TILE;
#pragma unroll
        for (int n = 0; n < C::TILE / 8; n++) {
            float2 l = *(const float2 *)(tile_lse + 8 * n);
#pragma unroll
            for (int m = 0; m < C::MT; m++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    s[m][n][i] = power_of_2(s[m][n][i] * factor - (i % 2 ? l.y : l.x));
                    if (diagonal && query + 8 * n + lane() % 4 * 2 + i % 2 < mine + 16 * m + i / 2 * 8) s[m][n][i] = 0;
                }
        }
        uint32_t p[C::MT][C::TILE / 16][4], ds[C::MT][C::TILE / 16][4];
        if (WHICH & DV) {
            as_left<C::MT, C::TILE>(p, s);
            add_p_b<C::V, C::MT, C::TILE>(dv, p, dout + buffer * C::STEP_V);
        }
        if (WHICH & DK) {
#pragma unroll
            for (int n = 0; n < C::TILE / 8; n++) {
                float2 d = *(const float2 *)(tile_delta + 8 * n);
#pragma unroll
                for (int m = 0; m < C::MT; m++)
#pragma unroll
                    for (int i = 0; i < 4; i++) s[m][n][i] *= dp[m][n][i] - (i % 2 ? d.y : d.x);
            }
            as_left<C::MT, C::TILE>(ds, s);
            add_p_b<C::QK, C::MT, C::TILE>(dk, ds, q + buffer * C::STEP_QK);
        }
    }
    __nv_bfloat16 *out_k = (__nv_bfloat16 *)g.dk.data + x.token * g.dk.ld + kv * a.k_head;
    __nv_bfloat16 *out_v = (__nv_bfloat16 *)g.dv.data + x.token * g.dv.ld + kv * a.v_head;
    if (WHICH & DK)
        each_pair(dk, [&](int i, int col, float low, float high) {
            int j = first + row + i;
            if (j >= context || col >= a.nope + a.rope) return;
            if (col < a.nope)
                *(uint32_t *)(out_k + j * g.dk.ld + col) = pack(low * a.scale, high * a.scale);
            else
                *(float2 *)(shares + (x.at + j) * a.rope + col - a.nope) = make_float2(low * a.scale, high * a.scale);
        });
    if (WHICH & DV)
        each_pair(dv, [&](int i, int col, float low, float high) {
            int j = first + row + i;
            if (j < context && col < a.value) *(uint32_t *)(out_v + j * g.dv.ld + col) = pack(low, high);
        });
}

int64_t blocks_of(const attn_core_args *a, int rows, int heads) {
    return (a->context + rows - 1) / rows * heads * a->batch;
}

template <typename C>
cudaError_t run_dq(const attn_core_args *a, const attn_core_grads *g, float *delta, cudaStream_t stream) {
    return launch(dq_kernel<C>, blocks_of(a, C::ROWS, a->heads), C::THREADS,
                  C::OWN_QK + C::OWN_V + 2 * (C::STEP_QK + C::STEP_V) + C::ROWS * sizeof(float), stream, *a, *g, delta);
}

template <typename C, int WHICH>
cudaError_t run_dkv(const attn_core_args *a, const attn_core_grads *g, const float *delta, float *shares,
                    cudaStream_t stream) {
    return launch(dkv_kernel<C, WHICH>, blocks_of(a, C::ROWS, a->kv_heads), C::THREADS,
                  C::OWN_QK + C::OWN_V + 2 * (C::STEP_QK + C::STEP_V) + 4 * C::TILE * sizeof(float), stream, *a, *g,
                  delta, shares);
}

} // namespace

cudaError_t fused_dq(const attn_core_args *a, const attn_core_grads *g, float *delta, cudaStream_t stream) {
    int qk = a->nope + a->rope, v = a->value;
    if (qk <= 64 && v <= 64) return run_dq<cut<64, 64, 2, 64>>(a, g, delta, stream);
    if (qk <= 96 && v <= 64) return run_dq<cut<96, 64, 1, 64, 4, 3>>(a, g, delta, stream);
    if (qk <= 128 && v <= 128) return run_dq<cut<128, 128, 1, 64>>(a, g, delta, stream);
    if (qk <= 192 && v <= 128) return run_dq<cut<192, 128, 1, 32>>(a, g, delta, stream);
    return run_dq<cut<256, 256, 1, 32>>(a, g, delta, stream);
}

cudaError_t fused_dkv(const attn_core_args *a, const attn_core_grads *g, const float *delta, float *shares,
                      cudaStream_t stream) {
    int qk = a->nope + a->rope, v = a->value;
    enum { BOTH = DK | DV };
    if (qk <= 64 && v <= 64) return run_dkv<cut<64, 64, 1, 64, 4, 3>, BOTH>(a, g, delta, shares, stream);
    if (qk <= 96 && v <= 64) return run_dkv<cut<96, 64, 1, 64, 4, 3>, BOTH>(a, g, delta, shares, stream);
    if (qk <= 128 && v <= 128) return run_dkv<cut<128, 128, 1, 64>, BOTH>(a, g, delta, shares, stream);
    if (qk <= 192 && v <= 128) return run_dkv<cut<192, 128, 1, 32>, BOTH>(a, g, delta, shares, stream);
    cudaError_t code = run_dkv<cut<256, 256, 1, 32>, DK>(a, g, delta, shares, stream);
    return code == cudaSuccess ? run_dkv<cut<256, 256, 1, 32>, DV>(a, g, delta, shares, stream) : code;
}
