/* The plain attention core on GPUs: right for every shape and for fp32 and bf16 alike, and slow. fp32 runs take it, and
 * shapes or views that the fused kernels do not take.
 *
 * One block a query (forward, dq) or a key (dk, dv); its warps take the other side's tokens in turn and keep sums of
 * their own in registers, which are added in the order of the warps: the same bits every time. All arithmetic is fp32.
 * Limits: D_n + D_r and D_v up to PLAIN_MOST_DIM. */
#include "attention/cuda/kernels.h"

#include <cuda_bf16.h>

namespace {

constexpr int WARPS = 4, LANES = 32, PER_LANE = PLAIN_MOST_DIM / LANES;

__device__ float load(const float *p) {
    return *p;
}
__device__ float load(const __nv_bfloat16 *p) {
    return __bfloat162float(*p);
}
__device__ void store(float *p, float x) {
    *p = x;
}
__device__ void store(__nv_bfloat16 *p, float x) {
    *p = __float2bfloat16(x);
}

/* One head of one sample: first token's row of each operand, strides in elements. */
template <typename T> struct head {
    const T *q, *k, *v, *k_rope;
    int64_t q_ld, k_ld, v_ld, rope_ld;
    int nope, rope, value;
    float scale;

    __device__ int qk() const { return nope + rope; }
    __device__ float key(int64_t token, int c) const {
        return c < nope ? load(k + token * k_ld + c) : load(k_rope + token * rope_ld + c - nope);
    }
};

template <typename T> __device__ head<T> head_of(const attn_core_args &a, int64_t sample, int h) {
    int64_t token = sample * a.context, g = (int64_t)h * a.kv_heads / a.heads;
    head<T> r;
    r.q = (const T *)a.q.data + sample * (a.context - a.first) * a.q.ld + (int64_t)h * (a.nope + a.rope);
    r.k = (const T *)a.k.data + token * a.k.ld + g * a.k_head;
    r.v = (const T *)a.v.data + token * a.v.ld + g * a.v_head;
    r.k_rope = (const T *)a.k_rope.data + token * a.k_rope.ld;
    r.q_ld = a.q.ld, r.k_ld = a.k.ld, r.v_ld = a.v.ld, r.rope_ld = a.k_rope.ld;
    r.nope = a.nope, r.rope = a.rope, r.value = a.value, r.scale = a.scale;
    return r;
}

__device__ float warp_sum(float x) {
    for (int offset = LANES / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(0xffffffffu, x, offset);
    return x;
}

/* sum over c of a[c] b(c), on every lane; c strides over the lanes. */
template <typename F> __device__ float warp_dot(int count, F product) {
    float sum = 0;
    for (int c = threadIdx.x % LANES; c < count; c += LANES) sum += product(c);
    return warp_sum(sum);
}

/* The warps' register sums into one, written by out(c, sum), warp by warp in order. parts: [WARPS, PLAIN_MOST_DIM]
 * shared. */
template <typename F> __device__ void combine(float *parts, const float *mine, int count, F out) {
    int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    __syncthreads();
    for (int i = 0; i < PER_LANE; i++)
        if (lane + i * LANES < count) parts[warp * PLAIN_MOST_DIM + lane + i * LANES] = mine[i];
    __syncthreads();
    for (int c = threadIdx.x; c < count; c += WARPS * LANES) {
        float sum = 0;
        for (int w = 0; w < WARPS; w++) sum += parts[w * PLAIN_MOST_DIM + c];
        out(c, sum);
    }
}

template <typename T> __global__ void forward_kernel(attn_core_args a) {
    __shared__ float q[PLAIN_MOST_DIM], parts[WARPS * PLAIN_MOST_DIM], most[WARPS], sums[WARPS];
    int64_t i = blockIdx.x, sample = blockIdx.y / a.heads, queries = a.context - a.first;
    int h = blockIdx.y % a.heads, warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    head<T> x = head_of<T>(a, sample, h);
    for (int c = threadIdx.x; c < x.qk(); c += WARPS * LANES) q[c] = load(x.q + i * x.q_ld + c);
    __syncthreads();

    float top = -INFINITY, sum = 0, o[PER_LANE] = {0};
    for (int64_t j = warp; j <= a.first + i; j += WARPS) {
        float s = x.scale * warp_dot(x.qk(), [&](int c) { return q[c] * x.key(j, c); });
        float next = s > top ? s : top, shrink = expf(top - next), p = expf(s - next);
        sum = sum * shrink + p;
        for (int k = 0; k < PER_LANE; k++)
            if (lane + k * LANES < x.value) o[k] = o[k] * shrink + p * load(x.v + j * x.v_ld + lane + k * LANES);
        top = next;
    }
    if (lane == 0) most[warp] = top, sums[warp] = sum;
    __syncthreads();
    float all = most[0], total = 0;
    for (int w = 1; w < WARPS; w++) all = fmaxf(all, most[w]);
    for (int w = 0; w < WARPS; w++) total += sums[w] * expf(most[w] - all);
    float factor = expf(top - all) / total; /* 0 for a warp that had no key */
    if (top == -INFINITY) factor = 0;
    for (int k = 0; k < PER_LANE; k++) o[k] *= factor;
    T *out = (T *)a.o.data + (sample * queries + i) * a.o.ld + (int64_t)h * a.value;
    combine(parts, o, x.value, [&](int c, float value) { store(out + c, value); });
    if (threadIdx.x == 0) a.lse[(sample * a.heads + h) * queries + i] = all + logf(total);
}

/* The row of dout or o of (sample, head, token). */
template <typename T>
__device__ const T *row_of(tensor t, const attn_core_args &a, int64_t sample, int h, int64_t token) {
    return (const T *)t.data + (sample * a.context + token) * t.ld + (int64_t)h * a.value;
}

template <typename T> __global__ void delta_kernel(attn_core_args a, attn_core_grads g, float *delta) {
    int64_t i = (int64_t)blockIdx.x * WARPS + threadIdx.x / LANES, sample = blockIdx.y / a.heads;
    int h = blockIdx.y % a.heads;
    if (i >= a.context) return;
    const T *dout = row_of<T>(g.dout, a, sample, h, i), *o = row_of<T>(a.o, a, sample, h, i);
    float sum = warp_dot(a.value, [&](int c) { return load(dout + c) * load(o + c); });
    if (threadIdx.x % LANES == 0) delta[(sample * a.heads + h) * a.context + i] = sum;
}

/* P and dS of query i and key j, on every lane. */
template <typename T>
__device__ void gradient_of_score(const head<T> &x, const T *dout, int64_t i, int64_t j, float lse, float delta,
                                  float *p, float *ds) {
    float s = x.scale * warp_dot(x.qk(), [&](int c) { return load(x.q + i * x.q_ld + c) * x.key(j, c); });
    float dp = warp_dot(x.value, [&](int c) { return load(dout + c) * load(x.v + j * x.v_ld + c); });
    *p = expf(s - lse);
    *ds = *p * (dp - delta) * x.scale;
}

template <typename T> __global__ void dq_kernel(attn_core_args a, attn_core_grads g, const float *delta) {
    __shared__ float parts[WARPS * PLAIN_MOST_DIM];
    int64_t i = blockIdx.x, sample = blockIdx.y / a.heads;
    int h = blockIdx.y % a.heads, warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    head<T> x = head_of<T>(a, sample, h);
    const T *dout = row_of<T>(g.dout, a, sample, h, i);
    int64_t at = (sample * a.heads + h) * a.context + i;
    float dq[PER_LANE] = {0}, p, ds;
    for (int64_t j = warp; j <= i; j += WARPS) {
        gradient_of_score(x, dout, i, j, a.lse[at], delta[at], &p, &ds);
        for (int k = 0; k < PER_LANE; k++)
            if (lane + k * LANES < x.qk()) dq[k] += ds * x.key(j, lane + k * LANES);
    }
    T *out = (T *)g.dq.data + (sample * a.context + i) * g.dq.ld + (int64_t)h * x.qk();
    combine(parts, dq, x.qk(), [&](int c, float value) { store(out + c, value); });
}

template <typename T>
__global__ void dkv_kernel(attn_core_args a, attn_core_grads g, const float *delta, float *shares) {
    __shared__ float parts[WARPS * PLAIN_MOST_DIM];
    int64_t j = blockIdx.x, sample = blockIdx.y / a.kv_heads;
    int kv = blockIdx.y % a.kv_heads, group = a.heads / a.kv_heads;
    int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    float dk[PER_LANE] = {0}, dv[PER_LANE] = {0}, p, ds;
    for (int h = kv * group; h < (kv + 1) * group; h++) {
        head<T> x = head_of<T>(a, sample, h);
        int64_t at = (sample * a.heads + h) * a.context;
        for (int k = 0; k < PER_LANE; k++) /* the rotary part is each query head's own */
            if (lane + k * LANES >= a.nope) dk[k] = 0;
        for (int64_t i = j + warp; i < a.context; i += WARPS) {
            const T *dout = row_of<T>(g.dout, a, sample, h, i);
            gradient_of_score(x, dout, i, j, a.lse[at + i], delta[at + i], &p, &ds);
            for (int k = 0; k < PER_LANE; k++) {
                int c = lane + k * LANES;
                if (c < x.qk()) dk[k] += ds * load(x.q + i * x.q_ld + c);
                if (c < x.value) dv[k] += p * load(dout + c);
            }
        }
        if (a.rope)
            combine(parts, dk, x.qk(), [&](int c, float value) {
                if (c >= a.nope) shares[(at + j) * a.rope + c - a.nope] = value;
            });
    }
    int64_t token = sample * a.context + j;
    T *out_k = (T *)g.dk.data + token * g.dk.ld + (int64_t)kv * a.k_head;
    T *out_v = (T *)g.dv.data + token * g.dv.ld + (int64_t)kv * a.v_head;
    combine(parts, dk, a.nope, [&](int c, float value) { store(out_k + c, value); });
    combine(parts, dv, a.value, [&](int c, float value) { store(out_v + c, value); });
}

template <typename T> __global__ void rope_sum_kernel(attn_core_args a, attn_core_grads g, const float *shares) {
    int64_t sample = blockIdx.y, token = blockIdx.x;
    for (int c = threadIdx.x; c < a.rope; c += blockDim.x) {
        float sum = 0;
        for (int h = 0; h < a.heads; h++) sum += shares[((sample * a.heads + h) * a.context + token) * a.rope + c];
        store((T *)g.dk_rope.data + (sample * a.context + token) * g.dk_rope.ld + c, sum);
    }
}

} // namespace

/* The kernel for the operands' type, over (tokens, rows of the second dimension). */
#define LAUNCH(kernel, tokens, others, ...)                                                                            \
    do {                                                                                                               \
        dim3 grid((unsigned)(tokens), (unsigned)(others));                                                             \
        if (a->q.type == DTYPE_BF16)                                                                                   \
            kernel<__nv_bfloat16><<<grid, WARPS * LANES, 0, stream>>>(__VA_ARGS__);                                    \
        else                                                                                                           \
            kernel<float><<<grid, WARPS * LANES, 0, stream>>>(__VA_ARGS__);                                            \
        return cudaGetLastError();                                                                                     \
    } while (0)

cudaError_t plain_forward(const attn_core_args *a, cudaStream_t stream) {
    LAUNCH(forward_kernel, a->context - a->first, a->batch * a->heads, *a);
}

cudaError_t plain_delta(const attn_core_args *a, const attn_core_grads *g, float *delta, cudaStream_t stream) {
    LAUNCH(delta_kernel, (a->context + WARPS - 1) / WARPS, a->batch * a->heads, *a, *g, delta);
}

cudaError_t plain_dq(const attn_core_args *a, const attn_core_grads *g, const float *delta, cudaStream_t stream) {
    LAUNCH(dq_kernel, a->context, a->batch * a->heads, *a, *g, delta);
}

cudaError_t plain_dkv(const attn_core_args *a, const attn_core_grads *g, const float *delta, float *shares,
                      cudaStream_t stream) {
    LAUNCH(dkv_kernel, a->context, a->batch * a->kv_heads, *a, *g, delta, shares);
}

cudaError_t plain_rope_sum(const attn_core_args *a, const attn_core_grads *g, const float *shares,
                           cudaStream_t stream) {
    LAUNCH(rope_sum_kernel, a->context, a->batch, *a, *g, shares);
}
