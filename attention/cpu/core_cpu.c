/* The fused causal attention core on CPUs: tiles of queries against tiles of keys, softmax on the fly (Milakov &
 * Gimelshein 2018; Dao et al. 2022), the T x T scores never stored. Products of tiles are core/ops/cpu/product.h's, of
 * one thread each; OpenMP runs over (sample, head) forward and (sample, kv head) backward, so every output element has
 * one writer and a fixed order of sums. Keys and values are prepared for products once a tile, which then meets all
 * queries that see it.
 *
 * A tile of scores is [TILE_Q, TILE_K] fp32 per thread. Tiles wholly above the diagonal are never visited, and of those
 * that it crosses only the columns that a query sees. */
#include "attention/core.h"
#include "core/ops/cpu/product.h"
#include "core/ops/cpu/vector.h"

#include <math.h>
#include <omp.h>
#include <string.h>

enum { TILE_Q = 64, TILE_K = 128, TILE_LD = TILE_K + 16 }; /* rows of a tile 128 floats apart would share cache sets */

/* One head of one sample: pointers to its first token's row, strides in elements. */
typedef struct head_view {
    const float *q, *k, *v, *k_rope;
    int64_t q_ld, k_ld, v_ld, rope_ld;
} head_view;

static product_operand rows_of(const float *data, int64_t ld) {
    return (product_operand){data, ld, 1};
}

static product_operand columns_of(const float *data, int64_t ld) {
    return (product_operand){data, 1, ld};
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t queries_of(const attn_core_args *a) {
    return a->context - a->first;
}

static head_view view_head(const attn_core_args *a, int64_t sample, int head) {
    int64_t token = sample * a->context, g = (int64_t)head * a->kv_heads / a->heads;
    return (head_view){
        .q = tensor_f32(a->q) + sample * queries_of(a) * a->q.ld + (int64_t)head * (a->nope + a->rope),
        .k = tensor_f32(a->k) + token * a->k.ld + g * a->k_head,
        .v = tensor_f32(a->v) + token * a->v.ld + g * a->v_head,
        .k_rope = a->rope ? tensor_f32(a->k_rope) + token * a->k_rope.ld : NULL,
        .q_ld = a->q.ld,
        .k_ld = a->k.ld,
        .v_ld = a->v.ld,
        .rope_ld = a->k_rope.ld,
    };
}

/* The keys of a tile as right operands of scores: [D_n, n] and [D_r, n]. */
typedef struct key_tile {
    product_right nope, rope;
} key_tile;

/* Floats of a thread's scratch, in whole cache lines. */
static size_t lines(int64_t floats) {
    return ((size_t)floats + 15) / 16 * 16;
}

static size_t key_room(const attn_core_args *a) {
    return product_room(a->nope, TILE_K) + product_room(a->rope, TILE_K);
}

static key_tile prepare_keys(const attn_core_args *a, const head_view *h, int64_t j0, int64_t n, float *room) {
    return (key_tile){
        product_prepare(room, columns_of(h->k + j0 * h->k_ld, h->k_ld), a->nope, n),
        product_prepare(room + product_room(a->nope, TILE_K), columns_of(h->k_rope + j0 * h->rope_ld, h->rope_ld),
                        a->rope, n),
    };
}

/* Scores, not scaled yet, of queries [i0, i0 + m), counted from position first, against the first n keys of the tile at
 * j0; those of the future become -inf. */
static void scores(const attn_core_args *a, const head_view *h, int64_t i0, int64_t m, int64_t j0, int64_t n,
                   const key_tile *keys, float *s) {
    const float *q = h->q + i0 * h->q_ld;
    product_by(s, TILE_LD, m, n, a->nope, rows_of(q, h->q_ld), &keys->nope, 0);
    if (a->rope) product_by(s, TILE_LD, m, n, a->rope, rows_of(q + a->nope, h->q_ld), &keys->rope, 1);
    for (int64_t i = 0; i < m; i++) {
        int64_t seen = a->first + i0 + i + 1; /* keys */
        for (int64_t j = seen > j0 ? seen - j0 : 0; j < n; j++) s[i * TILE_LD + j] = -INFINITY;
    }
}

/* One row of scores of the tile at j0 becomes weights against the greatest score so far, most; what was summed up
 * before, sum and o [D_v], follows when that grows. */
static void softmax_row(const attn_core_args *a, float *p, int64_t n, bool first, float *most, float *sum, float *o) {
    float top = -INFINITY, total = 0, scale = a->scale;
#pragma omp simd reduction(max : top)
    for (int64_t j = 0; j < n; j++) top = p[j] > top ? p[j] : top;
    top *= scale;
    if (!first && *most > top) top = *most;
#pragma omp simd reduction(+ : total)
    for (int64_t j = 0; j < n; j++) {
        p[j] = vector_exp(p[j] * scale - top);
        total += p[j];
    }
    if (!first) {
        float shrink = vector_exp(*most - top);
        total += *sum * shrink;
        for (int64_t c = 0; c < a->value; c++) o[c] *= shrink;
    }
    *sum = total;
    *most = top;
}

static size_t forward_room(const attn_core_args *a) {
    return TILE_Q * TILE_LD + key_room(a) + product_room(TILE_K, a->value) + lines(queries_of(a));
}

static void forward_head(const attn_core_args *a, int64_t sample, int head, float *room) {
    head_view h = view_head(a, sample, head);
    float *s = room, *keys_room = s + TILE_Q * TILE_LD, *values_room = keys_room + key_room(a);
    float *sum = values_room + product_room(TILE_K, a->value);
    int64_t queries = queries_of(a);
    float *o = tensor_f32(a->o) + sample * queries * a->o.ld + (int64_t)head * a->value;
    float *lse = a->lse + (sample * a->heads + head) * queries; /* the greatest score so far, until the end */
    for (int64_t j0 = 0; j0 < a->context; j0 += TILE_K) {
        int64_t all = least(TILE_K, a->context - j0);
        key_tile keys = prepare_keys(a, &h, j0, all, keys_room);
        product_right values = product_prepare(values_room, rows_of(h.v + j0 * h.v_ld, h.v_ld), all, a->value);
        for (int64_t i0 = j0 > a->first ? (j0 - a->first) / TILE_Q * TILE_Q : 0; i0 < queries; i0 += TILE_Q) {
            int64_t m = least(TILE_Q, queries - i0), n = least(all, a->first + i0 + m - j0);
            float *out = o + i0 * a->o.ld;
            scores(a, &h, i0, m, j0, n, &keys, s);
            for (int64_t i = 0; i < m; i++)
                softmax_row(a, s + i * TILE_LD, n, j0 == 0, &lse[i0 + i], &sum[i0 + i], out + i * a->o.ld);
            product_by(out, a->o.ld, m, a->value, n, rows_of(s, TILE_LD), &values, j0 > 0);
        }
    }
    for (int64_t i = 0; i < queries; i++) {
        float inverse = 1.0f / sum[i];
        for (int64_t c = 0; c < a->value; c++) o[i * a->o.ld + c] *= inverse;
        lse[i] += logf(sum[i]);
    }
}

static void cpu_forward(ops *unused, const attn_core_args *a, arena *scratch) {
    size_t mark = arena_mark(scratch);
    float *rooms = arena_push(scratch, (size_t)omp_get_max_threads() * forward_room(a) * sizeof(float));
    if (scratch->base) {
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t sample = 0; sample < a->batch; sample++)
            for (int head = 0; head < a->heads; head++)
                forward_head(a, sample, head, rooms + (size_t)omp_get_thread_num() * forward_room(a));
    }
    arena_release(scratch, mark);
}

static void clear(float *x, int64_t ld, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i++) memset(x + i * ld, 0, (size_t)cols * sizeof *x);
}

static size_t backward_room(const attn_core_args *a) {
    return 2 * TILE_Q * TILE_LD + key_room(a) + product_room(a->value, TILE_K) + product_room(TILE_K, a->nope) +
           product_room(TILE_K, a->rope) + product_room(TILE_Q, a->value) + product_room(TILE_Q, a->nope) +
           product_room(TILE_Q, a->rope) + lines(a->context);
}

/* One query head: adds to dk, dv (which the first head of a kv group clears); overwrites dq, and dk_rope, this head's
 * share of it, [T, D_r]. With P = exp(S - lse): dV = Pt dO, dS = P (dO Vt - delta) scale, dK = dSt Q, dQ = dS K; delta
 * [T] is the sum over the value dims of dout * o. */
static void backward_head(const attn_core_args *a, const attn_core_grads *g, int64_t sample, int head, float *dk_rope,
                          float *room) {
    head_view h = view_head(a, sample, head);
    int64_t token = sample * a->context, kv = (int64_t)head * a->kv_heads / a->heads;
    int nope = a->nope, rope = a->rope, value = a->value;
    const float *o = tensor_f32(a->o) + token * a->o.ld + (int64_t)head * value;
    const float *dout = tensor_f32(g->dout) + token * g->dout.ld + (int64_t)head * value;
    const float *lse = a->lse + (sample * a->heads + head) * a->context;
    float *dq = tensor_f32(g->dq) + token * g->dq.ld + (int64_t)head * (nope + rope);
    float *dk = tensor_f32(g->dk) + token * g->dk.ld + kv * a->k_head;
    float *dv = tensor_f32(g->dv) + token * g->dv.ld + kv * a->v_head;
    float *p = room, *ds = p + TILE_Q * TILE_LD, *key_columns_room = ds + TILE_Q * TILE_LD;
    float *value_columns_room = key_columns_room + key_room(a);
    float *k_room = value_columns_room + product_room(value, TILE_K),
          *k_rope_room = k_room + product_room(TILE_K, nope);
    float *dout_room = k_rope_room + product_room(TILE_K, rope), *q_room = dout_room + product_room(TILE_Q, value);
    float *q_rope_room = q_room + product_room(TILE_Q, nope), *delta = q_rope_room + product_room(TILE_Q, rope);

    clear(dq, g->dq.ld, a->context, nope + rope);
    clear(dk_rope, rope, a->context, rope);
    if (head == 0 || ((int64_t)head - 1) * a->kv_heads / a->heads != kv) {
        clear(dk, g->dk.ld, a->context, nope);
        clear(dv, g->dv.ld, a->context, value);
    }
    for (int64_t i = 0; i < a->context; i++) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t c = 0; c < value; c++) sum += dout[i * g->dout.ld + c] * o[i * a->o.ld + c];
        delta[i] = sum;
    }
    for (int64_t j0 = 0; j0 < a->context; j0 += TILE_K) {
        int64_t all = least(TILE_K, a->context - j0);
        const float *k_at = h.k + j0 * h.k_ld, *k_rope_at = h.k_rope + j0 * h.rope_ld, *v_at = h.v + j0 * h.v_ld;
        key_tile key_columns = prepare_keys(a, &h, j0, all, key_columns_room);
        product_right value_columns = product_prepare(value_columns_room, columns_of(v_at, h.v_ld), value, all);
        product_right k = product_prepare(k_room, rows_of(k_at, h.k_ld), all, nope);
        product_right k_rope = product_prepare(k_rope_room, rows_of(k_rope_at, h.rope_ld), all, rope);
        for (int64_t i0 = j0; i0 < a->context; i0 += TILE_Q) {
            int64_t m = least(TILE_Q, a->context - i0), n = least(all, i0 + m - j0);
            const float *q_at = h.q + i0 * h.q_ld, *dout_at = dout + i0 * g->dout.ld;
            product_right q = product_prepare(q_room, rows_of(q_at, h.q_ld), m, nope);
            product_right q_rope = product_prepare(q_rope_room, rows_of(q_at + nope, h.q_ld), m, rope);
            product_right d = product_prepare(dout_room, rows_of(dout_at, g->dout.ld), m, value);
            scores(a, &h, i0, m, j0, n, &key_columns, p);
            product_by(ds, TILE_LD, m, n, value, rows_of(dout_at, g->dout.ld), &value_columns, 0);
            for (int64_t i = 0; i < m; i++) {
                float *w = p + i * TILE_LD, *dw = ds + i * TILE_LD, top = lse[i0 + i], mean = delta[i0 + i];
                float scale = a->scale;
#pragma omp simd
                for (int64_t j = 0; j < n; j++) {
                    w[j] = vector_exp(w[j] * scale - top);
                    dw[j] = w[j] * (dw[j] - mean) * scale;
                }
            }
            float *dqi = dq + i0 * g->dq.ld;
            product_by(dv + j0 * g->dv.ld, g->dv.ld, n, value, m, columns_of(p, TILE_LD), &d, 1);
            product_by(dk + j0 * g->dk.ld, g->dk.ld, n, nope, m, columns_of(ds, TILE_LD), &q, 1);
            product_by(dqi, g->dq.ld, m, nope, n, rows_of(ds, TILE_LD), &k, 1);
            if (!rope) continue;
            product_by(dk_rope + j0 * rope, rope, n, rope, m, columns_of(ds, TILE_LD), &q_rope, 1);
            product_by(dqi + nope, g->dq.ld, m, rope, n, rows_of(ds, TILE_LD), &k_rope, 1);
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
    size_t mark = arena_mark(scratch);
    float *rooms = arena_push(scratch, (size_t)omp_get_max_threads() * backward_room(a) * sizeof(float));
    float *shares = arena_push(scratch, (size_t)(a->batch * a->heads * a->context * a->rope) * sizeof(float));
    if (scratch->base) {
        int group = a->heads / a->kv_heads;
#pragma omp parallel for collapse(2) schedule(static)
        for (int64_t sample = 0; sample < a->batch; sample++)
            for (int kv = 0; kv < a->kv_heads; kv++)
                for (int head = kv * group; head < (kv + 1) * group; head++)
                    backward_head(a, g, sample, head, shares + (sample * a->heads + head) * a->context * a->rope,
                                  rooms + (size_t)omp_get_thread_num() * backward_room(a));
        if (a->rope) sum_rotary_heads(a, g, shares);
    }
    arena_release(scratch, mark);
}

const attn_core attn_core_cpu = {.name = "cpu", .forward = cpu_forward, .backward = cpu_backward};
