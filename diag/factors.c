/* Factors A_h, B_h of heads and layers from a snapshot's weights (docs/design.md section 6.1). Outputs are the worker's
 * and overwritten, but for the layer's left factor, which accumulates over heads. */
#include "diag/maps_private.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

/* to [rows, cols] = diag(row_gain) from diag(col_gain), in float64; either gain may be absent. */
static void widen(double *to, const float *from, int64_t rows, int64_t cols, const float *row_gain,
                  const double *col_gain) {
    for (int64_t i = 0; i < rows; i++) {
        double g = row_gain ? row_gain[i] : 1;
        for (int64_t j = 0; j < cols; j++) to[i * cols + j] = g * from[i * cols + j] * (col_gain ? col_gain[j] : 1);
    }
}

/* C [rows, cols] = alpha A [rows, inner] B [inner, cols] + beta C, all row-major. */
static void multiply(double *C, const double *A, const double *B, int rows, int cols, int inner, double alpha,
                     double beta) {
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, rows, cols, inner, alpha, A, inner, B, cols, beta, C, cols);
}

static void scale_columns(double *x, int rows, int cols, const double *gain) {
    for (int64_t i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) x[i * cols + j] *= gain[j];
}

/* Head h's block of a tensor that acts on x, with the gain. */
static void load_block(const job *j, const worker *w, double *to, int slot, int h) {
    const chain_tensor *t = &j->m->chain.slot[slot];
    chain_block(to, t, j->tensor[slot], h);
    scale_columns(to, chain_rows(t), chain_cols(t), w->layer->gain);
}

void factors_load_layer(const job *j, worker *w, layer_factors *l) {
    const maps *m = j->m;
    const chain_tensor *t = m->chain.slot;
    int d = m->width, wide = m->heads * m->chain.content, R = m->latent;
    l->c_rms = 1;
    widen(l->gain, j->tensor[CHAIN_NORM], 1, d, NULL, NULL);
    if (t[CHAIN_Q_DOWN].name)
        widen(l->q_down, j->tensor[CHAIN_Q_DOWN], m->q_latent, d, j->tensor[CHAIN_Q_NORM], l->gain);
    if (t[CHAIN_KEY_ROPE].name) widen(l->key_rope, j->tensor[CHAIN_KEY_ROPE], m->chain.rope, d, NULL, l->gain);
    if (t[CHAIN_DOWN].name) {
        widen(l->down, j->tensor[CHAIN_DOWN], R, d, NULL, l->gain);
    } else if (t[CHAIN_DOWN_K].name) {
        widen(w->left, j->tensor[CHAIN_DOWN_K], R, wide, NULL, NULL);
        widen(w->right, j->tensor[CHAIN_KEY], wide, d, NULL, l->gain);
        multiply(l->down, w->left, w->right, R, d, wide, 1, 0);
        widen(w->left, j->tensor[CHAIN_DOWN_V], R, wide, NULL, NULL);
        widen(w->right, j->tensor[CHAIN_VALUE], wide, d, NULL, l->gain);
        multiply(l->down, w->left, w->right, R, d, wide, 1, 1);
    }
    /* RMSNorm rescales the content key alone: this is the latent's rms for isotropic tokens. */
    if (m->chain.rope > 0 && m->latent_norm) {
        double c = cblas_dnrm2(R * d, l->down, 1) / sqrt(R);
        if (c > 0 && isfinite(c)) l->c_rms = c;
    }
    if (j->tensor[CHAIN_KV_NORM])
        for (int i = 0; i < R; i++) cblas_dscal(d, j->tensor[CHAIN_KV_NORM][i], l->down + (int64_t)i * d, 1);
}

/* W_O^h [d, D_v] turned round. */
static void load_output(const job *j, worker *w, int h) {
    int d = j->m->width, value = j->m->chain.value;
    chain_block(w->left, &j->m->chain.slot[CHAIN_OV_OUT], j->tensor[CHAIN_OV_OUT], h);
    for (int r = 0; r < value; r++)
        for (int i = 0; i < d; i++) w->A[(int64_t)r * d + i] = w->left[(int64_t)i * value + r];
}

void factors_load_left(const job *j, worker *w, const family *f, int h) {
    const maps *m = j->m;
    int rows = f->content + f->rope, d = m->width;
    if (f->values) {
        load_output(j, w, h);
    } else if (!m->q_latent) {
        load_block(j, w, w->A, CHAIN_QUERY, h);
    } else {
        chain_block(w->left, &m->chain.slot[CHAIN_QUERY], j->tensor[CHAIN_QUERY], h);
        multiply(w->A, w->left, w->layer->q_down, rows, d, m->q_latent, 1, 0);
    }
}

void factors_load_right(const job *j, worker *w, const family *f, int g) {
    const maps *m = j->m;
    if (!m->latent) {
        load_block(j, w, w->B, f->values ? CHAIN_OV_VALUE : CHAIN_KEY, g);
        return;
    }
    int slot = f->values ? CHAIN_OV_VALUE : CHAIN_UP;
    chain_block(w->up, &m->chain.slot[slot], j->tensor[slot], g);
    w->up_scale = f->values ? 1 : 1 / w->layer->c_rms;
}

void factors_form_right(const maps *m, worker *w, const family *f) {
    int content = f->content, d = m->width;
    multiply(w->B, w->up, w->layer->down, content, d, m->latent, w->up_scale, 0);
    memcpy(w->B + (int64_t)content * d, w->layer->key_rope, (size_t)f->rope * (size_t)d * sizeof(double));
}

static void add_rows(double *to, const double *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

void factors_start_layer(const maps *m, worker *w, const family *f) {
    memset(w->layer_A, 0, (size_t)(f->layer_content + f->rope) * (size_t)m->width * sizeof(double));
}

/* sum_h A_h^T B_h is (sum of the group's A)^T B for a kv head that is shared, and (sum_h up_h^T A_h)^T down for a
 * latent that is. */
void factors_add_head(const maps *m, worker *w, const family *f, int g) {
    int content = f->content, rope = f->rope, d = m->width, R = m->latent;
    if (!R) {
        int64_t block = (int64_t)content * d;
        add_rows(w->layer_A + g * block, w->A, block);
        memcpy(w->layer_B + g * block, w->B, (size_t)block * sizeof(double));
        return;
    }
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, R, d, content, 1, w->up, R, w->A, d, 1, w->layer_A, d);
    add_rows(w->layer_A + (int64_t)R * d, w->A + (int64_t)content * d, (int64_t)rope * d);
}

void factors_finish_layer(const maps *m, worker *w, const family *f) {
    if (!m->latent) return;
    int64_t content = (int64_t)m->latent * m->width;
    double divisor = f->values ? 1 : w->layer->c_rms;
    for (int64_t i = 0; i < content; i++) w->layer_B[i] = w->layer->down[i] / divisor;
    memcpy(w->layer_B + content, w->layer->key_rope, (size_t)f->rope * (size_t)m->width * sizeof(double));
}
