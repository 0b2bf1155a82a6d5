/* Shapes, edges and ratios of the product null. */
#include "diag/nulls_shape.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- shapes */

static void add_dim(nulls_shape *s, int64_t n) {
    s->dim[s->dim_count++] = (int)n;
}

/* What stands between the latent's input and x: R, and with prerope's `key` the keys and values of all heads. */
static void add_down(nulls_shape *s, const config *c) {
    add_dim(s, c->attention.kv_lora_rank);
    if (c->attention.variant != VARIANT_MLA_PREROPE || c->attention.prerope_source != SOURCE_KEY) return;
    s->kind = NULLS_MIXED;
    s->half = (int)(c->model.heads * c->model.head_dim);
    add_dim(s, 2 * s->half);
}

/* What a map is made of, whatever its kind. */
static void add_parts(nulls_shape *s, const config *c, int64_t content, int64_t copies, int64_t rope, bool channel) {
    bool decoupled = c->attention.variant == VARIANT_MLA_DECOUPLED;
    s->channel = channel;
    s->content = (int)content;
    s->copies = (int)copies;
    s->rope = (int)rope;
    s->latent = c->attention.variant == VARIANT_MHA || content == 0 ? 0 : (int)c->attention.kv_lora_rank;
    s->q_latent = decoupled ? (int)c->attention.q_lora_rank : 0;
    s->width = (int)c->model.width;
}

/* Score form: d, [R_q,] rows, what is behind the keys, d. Channel form: the same circle cut open at the rows. */
static void add_chain(nulls_shape *s, const config *c) {
    int rows = s->content + s->rope;
    add_dim(s, s->width);
    if (s->q_latent) add_dim(s, s->q_latent);
    add_dim(s, rows);
    if (s->latent) add_down(s, c);
    add_dim(s, s->channel ? rows : s->width);
}

/* Outputs and values, W_V W_O: no query, and no gain on the side of W_O. */
static void ov_shape(nulls_shape *s, const config *c, bool layer, bool channel) {
    bool mha = c->attention.variant == VARIANT_MHA;
    int64_t heads = !layer ? 1 : mha ? c->model.kv_heads : c->model.heads;
    int64_t rows =
        heads * (c->attention.variant == VARIANT_MLA_DECOUPLED ? c->attention.v_head_dim : c->model.head_dim);
    add_dim(s, c->model.width);
    add_dim(s, rows);
    if (!mha) add_down(s, c);
    add_dim(s, channel ? rows : c->model.width);
}

void nulls_shape_of(const config *c, const maps_matrix *m, nulls_shape *out) {
    bool layer = m->scope == MAPS_layer, channel = m->form == MAPS_channel;
    bool decoupled = c->attention.variant == VARIANT_MLA_DECOUPLED, mha = c->attention.variant == VARIANT_MHA;
    int64_t heads = layer ? c->model.heads : 1, rope = c->attention.qk_rope_head_dim;
    int64_t content = decoupled ? heads * c->attention.qk_nope_head_dim
                                : (layer && mha ? c->model.kv_heads : heads) * c->model.head_dim;
    *out = (nulls_shape){.kind = NULLS_CHAIN};
    if (m->form == MAPS_weight) {
        add_dim(out, m->rows);
        add_dim(out, m->cols);
    } else if (m->part == MAPS_ov) {
        ov_shape(out, c, layer, channel);
    } else {
        bool block = decoupled && m->part == MAPS_full;
        if (block) out->kind = NULLS_BLOCK;
        add_parts(out, c, m->part == MAPS_rope ? 0 : content, heads, block || m->part == MAPS_rope ? rope : 0, channel);
        if (!block) add_chain(out, c);
    }
    nulls_shape_finish(out);
}

/* ---------------------------------------------------------------- edges */

/* The least value of a convex function on [low, high], by golden section. */
static double least_value(double (*f)(double, const void *), const void *user, double low, double high) {
    const double golden = 0.6180339887498949;
    double a = high - golden * (high - low), b = low + golden * (high - low), fa = f(a, user), fb = f(b, user);
    for (int i = 0; i < 90; i++) {
        if (fa <= fb) {
            high = b;
            b = a, fb = fa;
            a = high - golden * (high - low);
            fa = f(a, user);
        } else {
            low = a;
            a = b, fa = fb;
            b = low + golden * (high - low);
            fb = f(b, user);
        }
    }
    return fmin(fa, fb);
}

typedef struct edge_problem {
    const int *dims;
    int count;
    double r;
    const nulls_block *blocks;
    int block_count;
    double most; /* end of u */
} edge_problem;

static double log_chain(double log_z, const void *user) {
    const edge_problem *p = user;
    double sum = -log_z;
    for (int i = 0; i < p->count; i++) sum += log1p(p->r * exp(log_z) / p->dims[i]);
    return sum;
}

double nulls_chain_edge(const int *dims, int count) {
    edge_problem p = {.dims = dims, .count = count, .r = dims[0]};
    for (int i = 1; i < count; i++) p.r = fmin(p.r, dims[i]);
    return exp(least_value(log_chain, &p, -14, 14));
}

static double psi(double u, double c) {
    if (c == 0) return u / (1 - u);
    double b = 1 - u * (1 + c);
    return (b - sqrt(fmax(b * b - 4 * c * u * u, 0))) / (2 * c * u);
}

/* A power series in u with positive coefficients over u: convex in ln u. */
static double log_block(double log_part, const void *user) {
    const edge_problem *p = user;
    double u = p->most * exp(log_part), phi = 0, sum = -log(u);
    for (int i = 0; i < p->block_count; i++) phi += p->blocks[i].m * psi(u * p->blocks[i].t, p->blocks[i].c);
    for (int i = 0; i < p->count; i++) sum += log1p(phi / p->dims[i]);
    return sum;
}

double nulls_block_edge(const int *dims, int dim_count, const nulls_block *blocks, int block_count) {
    edge_problem p = {dims, dim_count, 0, blocks, block_count, INFINITY};
    double r = 0, total = 0;
    for (int i = 0; i < block_count; i++) {
        double q = 1 + sqrt(blocks[i].c);
        r += blocks[i].m;
        total += blocks[i].m * blocks[i].t;
        p.most = fmin(p.most, 1 / (blocks[i].t * q * q));
    }
    for (int i = 0; i < dim_count; i++) r = fmin(r, dims[i]);
    return exp(least_value(log_block, &p, -25, 0)) * r / total;
}

double nulls_edge(const nulls_shape *s, const double *log_ratio) {
    if (s->kind != NULLS_BLOCK) return nulls_chain_edge(s->dim, s->dim_count);
    double small = fmin(s->content, s->latent), large = fmax(s->content, s->latent);
    double sum = log_ratio[0] + (s->channel ? log_ratio[1] : 0);
    /* Relative to content entries of variance 1: W_UK's k eigenvalues have mean max(rows, R) / R. */
    const nulls_block blocks[] = {{small, large / s->latent, small / large}, {s->rope, exp(2 * sum), 0}};
    int dims[3] = {s->channel ? s->content + s->rope : s->width}, count = 1;
    if (s->q_latent) dims[count++] = s->q_latent;
    dims[count++] = s->width;
    return nulls_block_edge(dims, count, blocks, 2);
}

/* ---------------------------------------------------------------- ratios */

static const snapshot_tensor *find(const snapshot *s, int layer, const char *part) {
    char name[64];
    snprintf(name, sizeof(name), "layers.%d.%s", layer, part);
    return snapshot_find(s, name);
}

/* Mean square of rows [first, first + count). Eight sums side by side: one alone waits for each addition. */
static double mean_square(const snapshot_tensor *t, int64_t first, int64_t count) {
    enum { LANES = 8 };
    const float *x = t->data + first * t->cols;
    int64_t n = count * t->cols, whole = n - n % LANES;
    double sum[LANES] = {0}, total = 0;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int k = 0; k < LANES; k++) sum[k] += (double)x[i + k] * x[i + k];
    for (int64_t i = whole; i < n; i++) sum[i - whole] += (double)x[i] * x[i];
    for (int k = 0; k < LANES; k++) total += sum[k];
    return total / (double)n;
}

static double all_square(const snapshot_tensor *t) {
    return mean_square(t, 0, t->rows);
}

static bool prerope_ratios(const config *c, const snapshot *s, int layer, double *key) {
    const char *const names[] = {"attention.W_DK", "attention.W_K", "attention.W_DV", "attention.W_V"};
    double square[4];
    for (int i = 0; i < 4; i++) {
        const snapshot_tensor *t = find(s, layer, names[i]);
        if (!t) return false;
        square[i] = all_square(t);
    }
    for (int h = 0; h <= c->model.heads; h++) key[h] = 0.5 * log(square[0] * square[1] / (square[2] * square[3]));
    return true;
}

/* Mean square of a rope key's entry over that of a latent's, both as they are in the maps: a normed latent has entries
 * of mean square 1 / d for isotropic x, whatever W_DKV is. */
static bool decoupled_scale(const config *c, const snapshot *s, int layer, double *out) {
    const snapshot_tensor *norm = find(s, layer, "attention_norm"), *rope = find(s, layer, "attention.W_KR"),
                          *down = find(s, layer, "attention.W_DKV"), *gain = find(s, layer, "attention.latent_norm");
    if (!norm || !rope || !down || (c->attention.latent_norm && !gain)) return false;
    double R = (double)c->attention.kv_lora_rank, d = (double)c->model.width;
    double content = c->attention.latent_norm ? all_square(gain) * R / d : all_square(down) * all_square(norm) * R;
    *out = all_square(rope) * all_square(norm) / content;
    return true;
}

static bool decoupled_ratios(const config *c, const snapshot *s, int layer, double *query, double *key) {
    int64_t H = c->model.heads, n = c->attention.qk_nope_head_dim, r = c->attention.qk_rope_head_dim;
    int64_t up_rows = n + c->attention.v_head_dim;
    const snapshot_tensor *q = find(s, layer, c->attention.q_lora_rank ? "attention.W_UQ" : "attention.W_Q");
    const snapshot_tensor *up = find(s, layer, "attention.W_UKV");
    double scale, sum_n = 0, sum_r = 0, sum_up = 0;
    if (!q || !up || !decoupled_scale(c, s, layer, &scale)) return false;
    for (int64_t h = 0; h < H; h++) {
        double qn = mean_square(q, h * (n + r), n), qr = mean_square(q, h * (n + r) + n, r);
        double uk = mean_square(up, h * up_rows, n);
        query[h] = 0.5 * log(qr / qn);
        key[h] = 0.5 * log(scale / uk);
        sum_n += qn, sum_r += qr, sum_up += uk / (double)H;
    }
    query[H] = 0.5 * log((double)H * sum_r / sum_n); /* the layer's rope queries are the sum over H heads */
    key[H] = 0.5 * log(scale / sum_up);
    return true;
}

bool nulls_layer_ratios(const config *c, const snapshot *s, int layer, double *query, double *key) {
    for (int h = 0; h <= c->model.heads; h++) query[h] = key[h] = NAN;
    if (c->attention.variant == VARIANT_MLA_DECOUPLED) return decoupled_ratios(c, s, layer, query, key);
    if (c->attention.variant == VARIANT_MLA_PREROPE && c->attention.prerope_source == SOURCE_KEY)
        return prerope_ratios(c, s, layer, key);
    return true;
}
