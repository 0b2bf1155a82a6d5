/* The CPU table of operations: products by product.c, the rest by OpenMP loops over rows. It is the
 * reference that other tables are tested against. Reductions run in an order that does not depend on the number of
 * threads. */
#include "core/clock.h"
#include "core/ops/cpu/product.h"
#include "core/ops/cpu/vector.h"
#include "core/ops/ops.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMN_BLOCK = 64, SUM_BLOCKS = 256, SUM_COLUMNS = 512 };

static float *row(tensor t, int64_t i) {
    return tensor_f32(t) + i * t.ld;
}

/* ---------------------------------------------------------------- memory */

static void *cpu_alloc(ops *o, size_t bytes) {
    size_t rounded = (bytes + 255) / 256 * 256;
    void *data = aligned_alloc(256, rounded ? rounded : 256);
    if (data) memset(data, 0, rounded);
    return data;
}

static void cpu_release(ops *o, void *data) {
    free(data);
}
static void cpu_zero(ops *o, void *data, size_t bytes) {
    memset(data, 0, bytes);
}
static void cpu_upload(ops *o, void *device, const void *host, size_t bytes) {
    memcpy(device, host, bytes);
}
static void cpu_download(ops *o, void *host, const void *device, size_t bytes) {
    memcpy(host, device, bytes);
}
static void cpu_sync(ops *o) {}

static bool cpu_offload_open(ops *o, size_t bytes) {
    return true;
}
static bool cpu_host_lock(ops *o, void *host, size_t bytes) {
    return true;
}
static void cpu_host_unlock(ops *o, void *host) {}
static void cpu_offload(ops *o, int slot, void *host, const offload_part *parts, int count) {
    char *to = host;
    for (int i = 0; i < count; i++) {
        memcpy(to, parts[i].device, parts[i].bytes);
        to += parts[i].bytes;
    }
}
static status cpu_offload_wait(ops *o, int slot) {
    return STATUS_OK;
}

static void cpu_save(ops *o, void *host, const offload_part *parts, int count) {
    cpu_offload(o, 0, host, parts, count);
}
static void cpu_save_fence(ops *o) {}
static status cpu_save_wait(ops *o) {
    return STATUS_OK;
}

static void cpu_mark(ops *o, ops_mark *m, const char *name) {
    m->s = clock_now_s();
}
static double cpu_mark_span_s(ops *o, const ops_mark *from, const ops_mark *to) {
    return to->s - from->s;
}
static void cpu_mark_wait(ops *o, const ops_mark *m) {}
static void cpu_mark_release(ops *o, ops_mark *m) {}

/* ---------------------------------------------------------------- products */

static product_operand operand(tensor t, bool transpose) {
    return transpose ? (product_operand){tensor_f32(t), 1, t.ld} : (product_operand){tensor_f32(t), t.ld, 1};
}

static void cpu_matmul(ops *o, tensor y, tensor a, bool transpose_a, tensor b, bool transpose_b, float beta) {
    int64_t inner = transpose_a ? a.rows : a.cols;
    assert(y.rows == (transpose_a ? a.cols : a.rows));
    assert(y.cols == (transpose_b ? b.rows : b.cols));
    assert(inner == (transpose_b ? b.cols : b.rows));
    double start = clock_now_s();
    product(tensor_f32(y), y.ld, y.rows, y.cols, inner, operand(a, transpose_a), operand(b, transpose_b), beta);
    o->gemm_seconds += clock_now_s() - start;
    o->flops += 2.0 * (double)y.rows * (double)y.cols * (double)inner;
}

/* ---------------------------------------------------------------- RMSNorm */

/* Returns the row's rstd. */
static float norm_row(float *out, const float *in, const float *g, int64_t cols, float eps) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < cols; j++) sum += in[j] * in[j];
    float r = 1.0f / sqrtf(sum / (float)cols + eps);
#pragma omp simd
    for (int64_t j = 0; j < cols; j++) out[j] = in[j] * r * g[j];
    return r;
}

static void cpu_rmsnorm_forward(ops *o, tensor y, float *rstd, tensor x, const float *g, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < x.rows; i++) rstd[i] = norm_row(row(y, i), row(x, i), g, x.cols, eps);
}

static void cpu_add_rmsnorm_forward(ops *o, tensor sum, tensor y, float *rstd, tensor x, tensor branch, const float *g,
                                    float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < x.rows; i++) {
        float *out = row(sum, i);
        const float *p = row(x, i), *q = row(branch, i);
        for (int64_t j = 0; j < x.cols; j++) out[j] = p[j] + q[j];
        rstd[i] = norm_row(row(y, i), out, g, x.cols, eps);
    }
}

/* y_j = r x_j g_j with r = (mean x^2 + eps)^-1/2, so dx_j = r (g_j dy_j - x_j r^2 mean_k(g_k dy_k x_k)). */
static void cpu_rmsnorm_backward(ops *o, tensor dx, bool accumulate, float *dgain, tensor dy, tensor x, const float *g,
                                 const float *rstd) {
#pragma omp parallel
    {
#pragma omp for schedule(static)
        for (int64_t block = 0; block < (x.cols + COLUMN_BLOCK - 1) / COLUMN_BLOCK; block++) {
            int64_t first = block * COLUMN_BLOCK, count = x.cols - first < COLUMN_BLOCK ? x.cols - first : COLUMN_BLOCK;
            double sum[COLUMN_BLOCK] = {0};
            for (int64_t i = 0; i < x.rows; i++) {
                const float *in = row(x, i) + first, *d = row(dy, i) + first;
                for (int64_t j = 0; j < count; j++) sum[j] += (double)(d[j] * in[j] * rstd[i]);
            }
            for (int64_t j = 0; j < count; j++) dgain[first + j] += (float)sum[j];
        }
#pragma omp for schedule(static)
        for (int64_t i = 0; i < x.rows; i++) {
            const float *in = row(x, i), *d = row(dy, i);
            float *out = row(dx, i), dot = 0, r = rstd[i], keep = accumulate ? 1.0f : 0.0f;
#pragma omp simd reduction(+ : dot)
            for (int64_t j = 0; j < x.cols; j++) dot += d[j] * g[j] * in[j];
            float factor = r * r * dot / (float)x.cols;
            if (!accumulate) memset(out, 0, (size_t)x.cols * sizeof *out);
#pragma omp simd
            for (int64_t j = 0; j < x.cols; j++) out[j] = keep * out[j] + r * (d[j] * g[j] - in[j] * factor);
        }
    }
}

/* ---------------------------------------------------------------- rotary, SwiGLU, sums */

static void cpu_rope(ops *o, tensor x, rope_args args) {
    int half = args.dim / 2;
    float sign = args.inverse ? -1.0f : 1.0f;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < x.rows; i++) {
        const float *cosine = args.table + i % args.context * args.dim, *sine = cosine + half;
        for (int h = 0; h < args.heads; h++) {
            float *a = row(x, i) + args.first + h * args.stride, *b = a + half;
#pragma omp simd
            for (int j = 0; j < half; j++) {
                float c = cosine[j], s = sign * sine[j], u = a[j], v = b[j];
                a[j] = u * c - v * s;
                b[j] = v * c + u * s;
            }
        }
    }
}

static void cpu_swiglu_forward(ops *o, tensor h, tensor gate_up) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < h.rows; i++) {
        const float *gate = row(gate_up, i), *up = gate + h.cols;
        float *out = row(h, i);
#pragma omp simd
        for (int64_t j = 0; j < h.cols; j++) out[j] = gate[j] * (1.0f / (1.0f + vector_exp(-gate[j]))) * up[j];
    }
}

/* silu(g) = g s, s = 1/(1 + e^-g); silu'(g) = s (1 + g (1 - s)). */
static void cpu_swiglu_backward(ops *o, tensor dgate_up, tensor dh, tensor gate_up) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < dh.rows; i++) {
        const float *gate = row(gate_up, i), *up = gate + dh.cols;
        float *dgate = row(dgate_up, i), *dup = dgate + dh.cols, *d = row(dh, i);
#pragma omp simd
        for (int64_t j = 0; j < dh.cols; j++) {
            float g = gate[j], s = 1.0f / (1.0f + vector_exp(-g)), u = up[j], of_h = d[j];
            dup[j] = of_h * g * s;
            dgate[j] = of_h * u * s * (1.0f + g * (1.0f - s));
            d[j] = g * s * u;
        }
    }
}

static void cpu_add(ops *o, tensor y, tensor a, tensor b) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < y.rows; i++) {
        float *out = row(y, i);
        const float *p = row(a, i), *q = row(b, i);
        for (int64_t j = 0; j < y.cols; j++) out[j] = p[j] + q[j];
    }
}

static void cpu_copy(ops *o, tensor y, tensor x) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < y.rows; i++) memcpy(row(y, i), row(x, i), (size_t)y.cols * sizeof(float));
}

/* ---------------------------------------------------------------- embedding */

static void cpu_embedding_forward(ops *o, tensor x, tensor table, const int32_t *tokens, int64_t first) {
    size_t bytes = (size_t)x.cols * sizeof(float);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < x.rows; i++) {
        int64_t r = tokens[i] - first;
        if (r >= 0 && r < table.rows)
            memcpy(row(x, i), row(table, r), bytes);
        else
            memset(row(x, i), 0, bytes);
    }
}

/* Each thread owns a range of columns and takes the tokens in order, so equal tokens never meet in two threads. */
static void cpu_embedding_backward(ops *o, tensor dtable, tensor dx, const int32_t *tokens, int64_t first) {
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < (dx.cols + COLUMN_BLOCK - 1) / COLUMN_BLOCK; block++) {
        int64_t begin = block * COLUMN_BLOCK, end = begin + COLUMN_BLOCK < dx.cols ? begin + COLUMN_BLOCK : dx.cols;
        for (int64_t i = 0; i < dx.rows; i++) {
            int64_t r = tokens[i] - first;
            if (r < 0 || r >= dtable.rows) continue;
            float *out = row(dtable, r);
            const float *d = row(dx, i);
            for (int64_t j = begin; j < end; j++) out[j] += d[j];
        }
    }
}

/* ---------------------------------------------------------------- cross-entropy */

static float row_max_of(const float *z, int64_t valid) {
    float most = -INFINITY;
    int nan = 0; /* a comparison would lose it */
#pragma omp simd reduction(max : most) reduction(| : nan)
    for (int64_t j = 0; j < valid; j++) {
        most = z[j] > most ? z[j] : most;
        nan |= z[j] != z[j];
    }
    return nan ? NAN : most;
}

static float row_sum_of(const float *z, int64_t valid, float most) {
    double total = 0; /* in one fp32 sum over 32,000 words the rare ones are lost: 4e-5 of it */
    for (int64_t begin = 0; begin < valid; begin += SUM_COLUMNS) {
        int64_t end = begin + SUM_COLUMNS < valid ? begin + SUM_COLUMNS : valid;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = begin; j < end; j++) sum += vector_exp(z[j] - most);
        total += sum;
    }
    return (float)total;
}

/* target: a column of the row, where it is here. */
static float picked_of(const float *z, int64_t valid, int64_t target) {
    return target >= 0 && target < valid ? z[target] : 0.0f;
}

static void row_gradient(float *z, int64_t valid, int64_t cols, float most, float sum, int64_t target, float scale) {
    float factor = scale / sum;
#pragma omp simd
    for (int64_t j = 0; j < valid; j++) z[j] = vector_exp(z[j] - most) * factor;
    for (int64_t j = valid; j < cols; j++) z[j] = 0;
    if (target >= 0 && target < valid) z[target] -= scale;
}

static void cpu_ce_max(ops *o, float *row_max, tensor logits, int64_t valid) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < logits.rows; i++) row_max[i] = row_max_of(row(logits, i), valid);
}

static void cpu_ce_sums(ops *o, float *sums, float *picked, tensor logits, int64_t valid, const float *row_max,
                        const int32_t *targets, int64_t first) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < logits.rows; i++) {
        const float *z = row(logits, i);
        sums[i] = row_sum_of(z, valid, row_max[i]);
        picked[i] = picked_of(z, valid, targets[i] - first);
    }
}

static void cpu_ce_loss(ops *o, double *loss, const float *sums, const float *picked, const float *row_max, int64_t n) {
    double total = 0;
    for (int64_t i = 0; i < n; i++) total += log((double)sums[i]) + row_max[i] - picked[i];
    *loss += total;
}

static void cpu_ce_backward(ops *o, tensor logits, int64_t valid, const float *row_max, const float *sums,
                            const int32_t *targets, int64_t first, float scale) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < logits.rows; i++)
        row_gradient(row(logits, i), valid, logits.cols, row_max[i], sums[i], targets[i] - first, scale);
}

static void cpu_ce_whole(ops *o, float *row_max, float *sums, float *picked, tensor logits, int64_t valid,
                         const int32_t *targets, float scale) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < logits.rows; i++) {
        float *z = row(logits, i);
        row_max[i] = row_max_of(z, valid);
        sums[i] = row_sum_of(z, valid, row_max[i]);
        picked[i] = picked_of(z, valid, targets[i]);
        row_gradient(z, valid, logits.cols, row_max[i], sums[i], targets[i], scale);
    }
}

/* ---------------------------------------------------------------- optimizer */

static void cpu_sum_squares(ops *o, double *out, const float *x, int64_t count) {
    double partial[SUM_BLOCKS];
    int64_t size = (count + SUM_BLOCKS - 1) / SUM_BLOCKS;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < SUM_BLOCKS; block++) {
        int64_t begin = block * size, end = begin + size < count ? begin + size : count;
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) sum += (double)x[i] * (double)x[i];
        partial[block] = sum;
    }
    for (int block = 0; block < SUM_BLOCKS; block++) *out += partial[block];
}

/* Activations are fp32 here: the copy has the weights' own type. */
static void cpu_cast(ops *o, void *out, const float *x, int64_t count) {
    memcpy(out, x, (size_t)count * sizeof *x);
}

static void cpu_adamw_begin(ops *o, adamw_update *u, adamw_args args) {
    double norm = sqrt(*args.norm_sq);
    bool finite = isfinite(norm);
    for (int64_t i = 0; i < args.loss_count; i++) finite = finite && isfinite(args.losses[i]);
    u->is_left_out = !finite;
    if (!finite) return;
    u->count++;
    u->lr = args.lr;
    u->beta1 = args.beta1;
    u->beta2 = args.beta2;
    u->eps = args.eps;
    u->scale = args.clip > 0 && norm > args.clip ? (float)(args.clip / norm) : 1.0f;
    u->correct1 = (float)(1.0 / (1.0 - pow(args.beta1, (double)u->count)));
    u->correct2 = (float)(1.0 / (1.0 - pow(args.beta2, (double)u->count)));
}

static void cpu_adamw(ops *o, float *weight, float *m, float *v, const float *gradient, void *copy, int64_t count,
                      float weight_decay, const adamw_update *update) {
    const adamw_update u = *update; /* nothing that is written can be it */
    if (u.is_left_out) return;
    float keep = 1.0f - u.lr * weight_decay;
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < count; i++) {
        float g = gradient[i] * u.scale;
        m[i] = u.beta1 * m[i] + (1.0f - u.beta1) * g;
        v[i] = u.beta2 * v[i] + (1.0f - u.beta2) * g * g;
        weight[i] = keep * weight[i] - u.lr * (m[i] * u.correct1) / (sqrtf(v[i] * u.correct2) + u.eps);
    }
    if (copy) cpu_cast(o, copy, weight, count);
}

status ops_cpu(ops *out, int threads) {
    omp_set_dynamic(0);
    omp_set_num_threads(threads);
    openblas_set_num_threads(threads);
    *out = (ops){
        .name = "cpu",
        .device = "cpu",
        .activation = DTYPE_F32,
        .logit_elements = OPS_CPU_LOGITS,
        .alloc = cpu_alloc,
        .release = cpu_release,
        .alloc_shared = cpu_alloc,
        .release_shared = cpu_release,
        .zero = cpu_zero,
        .upload = cpu_upload,
        .download = cpu_download,
        .fetch = cpu_download,
        .sync = cpu_sync,
        .offload_open = cpu_offload_open,
        .host_alloc = cpu_alloc,
        .host_release = cpu_release,
        .host_lock = cpu_host_lock,
        .host_unlock = cpu_host_unlock,
        .offload = cpu_offload,
        .offload_wait = cpu_offload_wait,
        .save = cpu_save,
        .save_fence = cpu_save_fence,
        .save_wait = cpu_save_wait,
        .mark = cpu_mark,
        .mark_wait = cpu_mark_wait,
        .mark_span_s = cpu_mark_span_s,
        .mark_release = cpu_mark_release,
        .matmul = cpu_matmul,
        .rmsnorm_forward = cpu_rmsnorm_forward,
        .add_rmsnorm_forward = cpu_add_rmsnorm_forward,
        .rmsnorm_backward = cpu_rmsnorm_backward,
        .rope = cpu_rope,
        .swiglu_forward = cpu_swiglu_forward,
        .swiglu_backward = cpu_swiglu_backward,
        .embedding_forward = cpu_embedding_forward,
        .embedding_backward = cpu_embedding_backward,
        .ce_max = cpu_ce_max,
        .ce_sums = cpu_ce_sums,
        .ce_loss = cpu_ce_loss,
        .ce_backward = cpu_ce_backward,
        .ce_whole = cpu_ce_whole,
        .add = cpu_add,
        .copy = cpu_copy,
        .sum_squares = cpu_sum_squares,
        .adamw_begin = cpu_adamw_begin,
        .adamw = cpu_adamw,
        .cast = cpu_cast,
    };
    return STATUS_OK;
}
