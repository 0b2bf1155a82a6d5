/* The fused causal attention core on CPUs: tiles of queries against tiles of keys, softmax on the fly (Milakov &
 * Gimelshein 2018; Dao et al. 2022), the T x T scores never stored. Products of tiles go to OpenBLAS, one thread each;
 * OpenMP runs over (sample, head) forward and (sample, kv head) backward, so every output element has one writer and a
 * fixed order of sums.
 *
 * A tile of scores is [TILE_Q, TILE_K] fp32 per thread. Tiles wholly above the diagonal are never visited. */
#include "attention/core.h"
#include "core/ops/cpu/vector.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <string.h>

enum { TILE_Q = 64, TILE_K = 128 };

/* One head of one sample: pointers to its first token's row, strides in elements. */
typedef struct head_view {
    const float *q, *k, *v, *k_rope;
    int64_t q_ld, k_ld, v_ld, rope_ld;
} head_view;

/* c [m, n] = alpha a [m, k] bt [n, k]t + beta c, and likewise below; row-major. */
static void product_nt(int64_t m, int64_t n, int64_t k, float alpha, const float *a, int64_t lda, const float *b,
                       int64_t ldb, float beta, float *c, int64_t ldc) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (blasint)m, (blasint)n, (blasint)k, alpha, a, (blasint)lda, b,
                (blasint)ldb, beta, c, (blasint)ldc);
}

static void product_nn(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                       float beta, float *c, int64_t ldc) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)m, (blasint)n, (blasint)k, 1.0f, a, (blasint)lda, b,
                (blasint)ldb, beta, c, (blasint)ldc);
}

static void product_tn(int64_t m, int64_t n, int64_t k, const float *a, int64_t lda, const float *b, int64_t ldb,
                       float beta, float *c, int64_t ldc) {
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)m, (blasint)n, (blasint)k, 1.0f, a, (blasint)lda, b,
                (blasint)ldb, beta, c, (blasint)ldc);
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static head_view view_head(const attn_core_args *a, int64_t sample, int head) {
    int64_t token = sample * a->context, g = (int64_t)head * a->kv_heads / a->heads;
    return (head_view){
        .q = tensor_f32(a->q) + token * a->q.ld + (int64_t)head * (a->nope + a->rope),
        .k = tensor_f32(a->k) + token * a->k.ld + g * a->k_head,
        .v = tensor_f32(a->v) + token * a->v.ld + g * a->v_head,
        .k_rope = a->rope ? tensor_f32(a->k_rope) + token * a->k_rope.ld : NULL,
        .q_ld = a->q.ld,
        .k_ld = a->k.ld,
        .v_ld = a->v.ld,
        .rope_ld = a->k_rope.ld,
    };
}

/* Scaled scores of queries [i0, i0 + m) against keys [j0, j0 + n); those of the future become -inf. */
static void scores(const attn_core_args *a, const head_view *h, int64_t i0, int64_t m, int64_t j0, int64_t n,
                   float *s) {
    const float *q = h->q + i0 * h->q_ld;
    product_nt(m, n, a->nope, a->scale, q, h->q_ld, h->k + j0 * h->k_ld, h->k_ld, 0, s, TILE_K);
    if (a->rope)
        product_nt(m, n, a->rope, a->scale, q + a->nope, h->q_ld, h->k_rope + j0 * h->rope_ld, h->rope_ld, 1, s,
                   TILE_K);
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = i0 + i + 1 > j0 ? i0 + i + 1 - j0 : 0; j < n; j++) s[i * TILE_K + j] = -INFINITY;
}

static void forward_tile(const attn_core_args *a, const head_view *h, int64_t i0, int64_t m, float *o, int64_t o_ld,
                         float *lse, float *s) {
    float most[TILE_Q], sum[TILE_Q];
    for (int64_t i = 0; i < m; i++) {
        most[i] = -INFINITY;
        sum[i] = 0;
    }
    for (int64_t j0 = 0; j0 < i0 + m; j0 += TILE_K) {
        int64_t n = least(TILE_K, i0 + m - j0);
        scores(a, h, i0, m, j0, n, s);
        for (int64_t i = 0; i < m; i++) {
            float *p = s + i * TILE_K, top = most[i], total = 0;
#pragma omp simd reduction(max : top)
            for (int64_t j = 0; j < n; j++) top = p[j] > top ? p[j] : top;
            float shrink = vector_exp(most[i] - top);
#pragma omp simd reduction(+ : total)
            for (int64_t j = 0; j < n; j++) {
                p[j] = vector_exp(p[j] - top);
                total += p[j];
            }
            sum[i] = sum[i] * shrink + total;
            most[i] = top;
            if (j0 > 0)
                for (int64_t c = 0; c < a->value; c++) o[i * o_ld + c] *= shrink;
        }
        product_nn(m, a->value, n, s, TILE_K, h->v + j0 * h->v_ld, h->v_ld, j0 > 0, o, o_ld);
    }
    for (int64_t i = 0; i < m; i++) {
        float inverse = 1.0f / sum[i];
        for (int64_t c = 0; c < a->value; c++) o[i * o_ld + c] *= inverse;
        lse[i] = most[i] + logf(sum[i]);
    }
}

static void cpu_forward(ops *unused, const attn_core_args *a, arena *scratch) {
    size_t mark = arena_mark(scratch);
    float *tiles = arena_push(scratch, (size_t)omp_get_max_threads() * TILE_Q * TILE_K * sizeof(float));
    if (scratch->base) {
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t sample = 0; sample < a->batch; sample++) {
            for (int head = 0; head < a->heads; head++) {
                float *s = tiles + (size_t)omp_get_thread_num() * TILE_Q * TILE_K;
                head_view h = view_head(a, sample, head);
                float *o = tensor_f32(a->o) + sample * a->context * a->o.ld + (int64_t)head * a->value;
                float *lse = a->lse + (sample * a->heads + head) * a->context;
                for (int64_t i0 = 0; i0 < a->context; i0 += TILE_Q)
                    forward_tile(a, &h, i0, least(TILE_Q, a->context - i0), o + i0 * a->o.ld, a->o.ld, lse + i0, s);
            }
        }
    }
    arena_release(scratch, mark);
}

/* Scratch of one thread's backward pass. */
typedef struct backward_tiles {
    float *p, *ds; /* [TILE_Q, TILE_K] */
    float *delta;  /* [T]: sum over the value dims of dout * o */
} backward_tiles;

/* One query head: adds to dq, dk, dv (dk, dv are overwritten by the first head of a kv group); overwrites dk_rope, this
 * head's share of it, [T, D_r]. With P = exp(S - lse): dV = Pt dO, dS = P (dO Vt - delta) scale, dK = dSt Q, dQ = dS K.
 */
static void backward_head(const attn_core_args *a, const attn_core_grads *g, int64_t sample, int head, float *dk_rope,
                          backward_tiles t) {
    head_view h = view_head(a, sample, head);
    int64_t token = sample * a->context, kv = (int64_t)head * a->kv_heads / a->heads;
    int qk = a->nope + a->rope;
    const float *o = tensor_f32(a->o) + token * a->o.ld + (int64_t)head * a->value;
    const float *dout = tensor_f32(g->dout) + token * g->dout.ld + (int64_t)head * a->value;
    const float *lse = a->lse + (sample * a->heads + head) * a->context;
    float *dq = tensor_f32(g->dq) + token * g->dq.ld + (int64_t)head * qk;
    float *dk = tensor_f32(g->dk) + token * g->dk.ld + kv * a->k_head;
    float *dv = tensor_f32(g->dv) + token * g->dv.ld + kv * a->v_head;
    bool first_of_group = head == 0 || ((int64_t)head - 1) * a->kv_heads / a->heads != kv;

    for (int64_t i = 0; i < a->context; i++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < a->value; c++) sum += dout[i * g->dout.ld + c] * o[i * a->o.ld + c];
        t.delta[i] = sum;
        memset(dq + i * g->dq.ld, 0, (size_t)qk * sizeof *dq);
    }
    for (int64_t j0 = 0; j0 < a->context; j0 += TILE_K) {
        int64_t n = least(TILE_K, a->context - j0);
        for (int64_t i0 = j0 / TILE_Q * TILE_Q; i0 < a->context; i0 += TILE_Q) {
            int64_t m = least(TILE_Q, a->context - i0);
            bool fresh = i0 <= j0;
            scores(a, &h, i0, m, j0, n, t.p);
            product_nt(m, n, a->value, 1, dout + i0 * g->dout.ld, g->dout.ld, h.v + j0 * h.v_ld, h.v_ld, 0, t.ds,
                       TILE_K);
            for (int64_t i = 0; i < m; i++) {
                float *p = t.p + i * TILE_K, *ds = t.ds + i * TILE_K, top = lse[i0 + i], delta = t.delta[i0 + i];
#pragma omp simd
                for (int64_t j = 0; j < n; j++) {
                    p[j] = vector_exp(p[j] - top);
                    ds[j] = p[j] * (ds[j] - delta) * a->scale;
                }
            }
            const float *q = h.q + i0 * h.q_ld;
            float *dqi = dq + i0 * g->dq.ld, keep = fresh && first_of_group ? 0.0f : 1.0f;
            product_tn(n, a->value, m, t.p, TILE_K, dout + i0 * g->dout.ld, g->dout.ld, keep, dv + j0 * g->dv.ld,
                       g->dv.ld);
            product_tn(n, a->nope, m, t.ds, TILE_K, q, h.q_ld, keep, dk + j0 * g->dk.ld, g->dk.ld);
            product_nn(m, a->nope, n, t.ds, TILE_K, h.k + j0 * h.k_ld, h.k_ld, 1, dqi, g->dq.ld);
            if (!a->rope) continue;
            product_tn(n, a->rope, m, t.ds, TILE_K, q + a->nope, h.q_ld, fresh ? 0.0f : 1.0f, dk_rope + j0 * a->rope,
                       a->rope);
            product_nn(m, a->rope, n, t.ds, TILE_K, h.k_rope + j0 * h.rope_ld, h.rope_ld, 1, dqi + a->nope, g->dq.ld);
        }
    }
}

/* dk_rope[i] = sum over heads, in their order, of each head's share [B, H, T, D_r]. */
static void sum_rotary_heads(const attn_core_args *a, const attn_core_grads *g, const float *shares) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < a->batch * a->context; i++) {
        float *out = tensor_f32(g->dk_rope) + i * g->dk_rope.ld;
        int64_t sample = i / a->context, position = i % a->context;
        memset(out, 0, (size_t)a->rope * sizeof *out);
        for (int head = 0; head < a->heads; head++) {
            const float *in = shares + ((sample * a->heads + head) * a->context + position) * a->rope;
            for (int c = 0; c < a->rope; c++) out[c] += in[c];
        }
    }
}

static void cpu_backward(ops *unused, const attn_core_args *a, const attn_core_grads *g, arena *scratch) {
    size_t mark = arena_mark(scratch), threads = (size_t)omp_get_max_threads();
    float *p = arena_push(scratch, threads * TILE_Q * TILE_K * sizeof(float));
    float *ds = arena_push(scratch, threads * TILE_Q * TILE_K * sizeof(float));
    float *delta = arena_push(scratch, threads * (size_t)a->context * sizeof(float));
    float *shares = arena_push(scratch, (size_t)(a->batch * a->heads * a->context * a->rope) * sizeof(float));
    if (scratch->base) {
        int group = a->heads / a->kv_heads;
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t sample = 0; sample < a->batch; sample++) {
            for (int kv = 0; kv < a->kv_heads; kv++) {
                size_t thread = (size_t)omp_get_thread_num();
                backward_tiles t = {p + thread * TILE_Q * TILE_K, ds + thread * TILE_Q * TILE_K,
                                    delta + thread * (size_t)a->context};
                for (int head = kv * group; head < (kv + 1) * group; head++)
                    backward_head(a, g, sample, head, shares + (sample * a->heads + head) * a->context * a->rope, t);
            }
        }
        if (a->rope) sum_rotary_heads(a, g, shares);
    }
    arena_release(scratch, mark);
}

const attn_core attn_core_cpu = {.name = "cpu", .forward = cpu_forward, .backward = cpu_backward};
