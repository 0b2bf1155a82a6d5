/* Cores: the small matrices that have a map's nonzero singular values, and what is taken from them. One code makes
 * every score spectrum: QR of all rows, of which content is the leading block of R, and rope a small QR of R's last
 * columns. Keys that come out of a latent are not formed for it: B^T = (down^T) up^T has the triangle of R_down up^T.
 *
 * With a device, square cores are left to it (diag/solver.h). The d x d map is only formed where its factors have d
 * rows or more. */
#include "diag/gram.h"
#include "diag/maps_private.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

static bool finite_rows(const double *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* R [n, n] of the QR factors of the column-major [length, n] matrix in w->factor, n <= length, up to signs. */
static void triangular_factor(const maps *m, worker *w, int length, int n, double *R) {
    if (gram_triangle(w->factor, length, n, false, R, w->lapack)) return;
    LAPACKE_dgeqrf_work(LAPACK_COL_MAJOR, length, n, w->factor, length, w->tau, w->lapack, m->lapack_size);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < n; i++) R[i + (int64_t)j * n] = i <= j ? w->factor[i + (int64_t)j * length] : 0;
}

/* ---------------------------------------------------------------- spectra */

static bool wants_pair(const job *j, int index) {
    return j->top && j->top->wanted[index];
}

static void forget_pair(const job *j, int index) {
    const maps_matrix *x = &j->m->matrices[index];
    for (int i = 0; i < x->left + x->right; i++) j->top->pairs[x->first_pair + i] = NAN;
}

static void record(const job *j, int index, spectrum_status why) {
    const maps_matrix *x = &j->m->matrices[index];
    spectrum_clear(&j->out[index], why);
    if (wants_pair(j, index)) forget_pair(j, index);
    for (int i = 0; i < x->rank; i++) j->values[x->first_value + i] = NAN;
}

void cores_record_values(const job *j, worker *w, int index) {
    const maps_matrix *x = &j->m->matrices[index];
    memcpy(j->values + x->first_value, w->spectrum.values, (size_t)x->rank * sizeof(double));
    spectrum_measure(&w->spectrum, w->spectrum.values, x->rank, x->rows, x->cols, j->m->sigma2, &j->out[index]);
}

void cores_solve(const job *j, worker *w, int index, int rows, int cols) {
    spectrum_status why = spectrum_solve(&w->spectrum, w->core, rows, cols);
    if (why == SPECTRUM_STATUS_ok) {
        cores_record_values(j, w, index);
    } else {
        record(j, index, why);
    }
}

/* ---------------------------------------------------------------- top pairs */

/* How the core [rows, cols] in w->core lies, and what leads from its vectors to the map's: where A [count, d] is given,
 * the core is a multiple of R_A R_B^T, the column-major triangles (leading dimension ld) of A^T and B^T. B NULL: rows
 * from `first` on of the one that w->up stands for, whose content has `content` rows. */
typedef struct core_frame {
    int index, rows, cols;
    bool row_major;
    const double *A, *B, *RA, *RB;
    int ld, first, content;
} core_frame;

/* y [cols] = X^T x + beta y, X [rows, cols] row-major. */
static void multiply_turned(double *y, const double *X, const double *x, int rows, int cols, double alpha,
                            double beta) {
    if (rows > 0) cblas_dgemv(CblasRowMajor, CblasTrans, rows, cols, alpha, X, cols, x, 1, beta, y, 1);
}

/* wide [d] = rows [first, first + n) of B, which w->up stands for, turned, times x [n]. */
static void multiply_shared(const maps *m, worker *w, double *wide, const core_frame *c, const double *x) {
    int d = m->width, R = m->latent, content = c->first > 0 ? 0 : c->rows < c->content ? c->rows : c->content;
    memset(wide, 0, (size_t)d * sizeof(double));
    if (content > 0) {
        multiply_turned(w->tau, w->up, x, content, R, w->up_scale, 0);
        multiply_turned(wide, w->layer->down, w->tau, R, d, 1, 0);
    }
    multiply_turned(wide, w->layer->key_rope, x + content, c->rows - content, d, 1, 1);
}

/* to [d] = the map's vector on the side of `factor` [n, d], from the core's vector on the other side, by way of that
 * side's triangle: A^T (R_B^T v) is a multiple of u. */
static bool carry_over(const maps *m, worker *w, float *to, const core_frame *c, const double *factor,
                       const double *triangle, const double *vector) {
    double *wide = w->factor;
    memcpy(w->top, vector, (size_t)c->rows * sizeof(double));
    cblas_dtrmv(CblasColMajor, CblasUpper, CblasTrans, CblasNonUnit, c->rows, triangle, c->ld, w->top, 1);
    if (factor) {
        multiply_turned(wide, factor, w->top, c->rows, m->width, 1, 0);
    } else {
        multiply_shared(m, w, wide, c, w->top);
    }
    double norm = cblas_dnrm2(m->width, wide, 1);
    if (!(norm > 0) || !isfinite(norm)) return false;
    for (int i = 0; i < m->width; i++) to[i] = (float)(wide[i] / norm);
    return true;
}

static void narrow(float *to, const double *from, int n) {
    for (int i = 0; i < n; i++) to[i] = (float)from[i];
}

/* One sign for both vectors: the first largest entry of u is positive. */
static void settle_sign(float *u, int left, float *v, int right) {
    int largest = 0;
    for (int i = 1; i < left; i++)
        if (fabsf(u[i]) > fabsf(u[largest])) largest = i;
    if (u[largest] >= 0) return;
    for (int i = 0; i < left; i++) u[i] = -u[i];
    for (int i = 0; i < right; i++) v[i] = -v[i];
}

/* The pair, and the singular values to w->spectrum; false, with neither, where there is no pair. */
static bool take_pair(const job *j, worker *w, const core_frame *c) {
    const maps_matrix *x = &j->m->matrices[c->index];
    pair_work *p = &w->pair;
    float *u = j->top->pairs + x->first_pair, *v = u + x->left;
    bool turned = c->row_major; /* to LAPACK it is the transpose */
    memcpy(w->spare, w->core, (size_t)c->rows * (size_t)c->cols * sizeof(double));
    if (!pair_top(p, w->spare, turned ? c->cols : c->rows, turned ? c->rows : c->cols, w->spectrum.values)) {
        forget_pair(j, c->index);
        return false;
    }
    const double *core_u = turned ? p->v : p->u, *core_v = turned ? p->u : p->v;
    if (!c->A) {
        narrow(u, core_u, x->left);
        narrow(v, core_v, x->right);
    } else if (!carry_over(j->m, w, u, c, c->A, c->RB, core_v) || !carry_over(j->m, w, v, c, c->B, c->RA, core_u)) {
        forget_pair(j, c->index);
        return true;
    }
    settle_sign(u, x->left, v, x->right);
    return true;
}

/* The spectrum of w->core, which has rows x cols before the zeros by shape are dropped, now or when the device has its
 * singular values; and its top pair. */
static void measure(const job *j, worker *w, const core_frame *c) {
    bool finite = finite_rows(w->core, (int64_t)c->rows * c->cols);
    bool solved = finite && wants_pair(j, c->index) && take_pair(j, w, c);
    if (!finite) {
        record(j, c->index, SPECTRUM_STATUS_nonfinite);
    } else if (j->m->solver_works && solver_takes(j->m->solver, c->index)) {
        solver_put(j->m->solver, c->index, w->core);
    } else if (solved) {
        cores_record_values(j, w, c->index);
    } else {
        cores_solve(j, w, c->index, c->rows, c->cols);
    }
}

/* ---------------------------------------------------------------- maps */

int cores_list_parts(const maps *m, const family *f, int form, int scope, int matrix, int content, double divisor,
                     part_rows *out) {
    const part_rows all[MAPS_PART_COUNT] = {[MAPS_full] = {0, 0, content + f->rope, 1},
                                            [MAPS_content] = {0, 0, content, divisor},
                                            [MAPS_rope] = {0, content, f->rope, 1},
                                            [MAPS_ov] = {0, 0, content, 1}};
    int count = 0;
    for (int part = 0; part < MAPS_PART_COUNT; part++) {
        int first = m->first[form][part][scope];
        if (first < 0 || (part == MAPS_ov) != f->values) continue;
        out[count] = all[part];
        out[count++].index = first + matrix;
    }
    return count;
}

/* The core of a part's rows by themselves, wide ones: A^T B, d x d. */
static void measure_square(const job *j, worker *w, const double *A, const double *B, part_rows p) {
    int d = j->m->width;
    int64_t skip = (int64_t)p.first * d;
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, d, d, p.count, p.scale, A + skip, d, B + skip, d, 0, w->core,
                d);
    measure(j, w, &(core_frame){.index = p.index, .rows = d, .cols = d, .row_major = true});
}

/* R [count, count] of columns [first, first + count) of the triangular [m, m] R: they are the same up to a rotation. */
static const double *last_columns(const maps *m, worker *w, double *R, int rows, part_rows p) {
    memcpy(w->factor, R + (int64_t)p.first * rows, (size_t)rows * (size_t)p.count * sizeof(double));
    triangular_factor(m, w, rows, p.count, R);
    return R;
}

/* Parts of factors of `rows` < d rows, all finite, whose triangles are in w->RA and w->RB; B may be NULL, as in a
 * core_frame. The parts come with the full and the content rows first: the last one, rope, destroys the triangles. */
static void measure_triangles(const job *j, worker *w, const double *A, const double *B, int rows, int content,
                              const part_rows *parts, int count) {
    const maps *m = j->m;
    for (int i = 0; i < count; i++) {
        part_rows p = parts[i];
        int64_t skip = (int64_t)p.first * m->width;
        core_frame c = {.index = p.index,
                        .rows = p.count,
                        .cols = p.count,
                        .A = A + skip,
                        .B = B ? B + skip : NULL,
                        .RA = w->RA,
                        .RB = w->RB,
                        .ld = rows,
                        .first = p.first,
                        .content = content};
        if (p.first > 0) {
            c.RA = last_columns(m, w, w->RA, rows, p);
            c.RB = last_columns(m, w, w->RB, rows, p);
            c.ld = p.count;
        }
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, p.count, p.count, p.count, p.scale, c.RA, c.ld, c.RB, c.ld,
                    0, w->core, p.count);
        measure(j, w, &c);
    }
}

/* R [rows, rows] of a row-major factor [rows, d]. */
static void triangle_of_rows(const maps *m, worker *w, const double *factor, int rows, double *R) {
    memcpy(w->factor, factor, (size_t)rows * (size_t)m->width * sizeof(double));
    triangular_factor(m, w, m->width, rows, R);
}

static void measure_by_qr(const job *j, worker *w, const double *A, const double *B, int rows, const part_rows *parts,
                          int count) {
    triangle_of_rows(j->m, w, A, rows, w->RA);
    triangle_of_rows(j->m, w, B, rows, w->RB);
    measure_triangles(j, w, A, B, rows, 0, parts, count);
}

void cores_find_triangle(const maps *m, worker *w, layer_factors *l) {
    int R = m->latent, rope = m->chain.rope;
    int64_t d = m->width;
    l->finite = finite_rows(l->down, R * d) && finite_rows(l->key_rope, rope * d);
    if (!l->finite) return;
    memcpy(w->factor, l->down, (size_t)(R * d) * sizeof(double));
    memcpy(w->factor + R * d, l->key_rope, (size_t)(rope * d) * sizeof(double));
    triangular_factor(m, w, m->width, R + rope, l->triangle);
}

/* w->factor [R_kv + rope, content + rope], column-major: the layer's triangle times [up^T | 0; 0 | 1], whose triangle
 * is B^T's. */
static void multiply_up(const maps *m, worker *w, const family *f) {
    int R = m->latent, ld = R + m->chain.rope, length = R + f->rope;
    for (int j = 0; j < f->content; j++) {
        double *column = w->factor + (int64_t)j * length;
        for (int i = 0; i < R; i++) column[i] = w->up_scale * w->up[(int64_t)j * R + i];
        for (int i = R; i < length; i++) column[i] = 0;
    }
    cblas_dtrmm(CblasColMajor, CblasLeft, CblasUpper, CblasNoTrans, CblasNonUnit, R, f->content, 1, w->layer->triangle,
                ld, w->factor, length);
    for (int j = 0; j < f->rope; j++)
        memcpy(w->factor + (int64_t)(f->content + j) * length, w->layer->triangle + (int64_t)(R + j) * ld,
               (size_t)length * sizeof(double));
}

bool cores_shares(const maps *m, const family *f) {
    return m->latent && f->content <= m->latent && m->latent + m->chain.rope < m->width;
}

bool cores_score_shared(const job *j, worker *w, const family *f, const part_rows *parts, int count) {
    const maps *m = j->m;
    int R = m->latent, rows = f->content + f->rope, length = R + f->rope;
    if (!w->layer->finite || !finite_rows(w->A, (int64_t)rows * m->width)) return false;
    multiply_up(m, w, f);
    if (!finite_rows(w->factor, (int64_t)length * rows)) return false;
    triangular_factor(m, w, length, rows, w->RB);
    triangle_of_rows(m, w, w->A, rows, w->RA);
    measure_triangles(j, w, w->A, NULL, rows, f->content, parts, count);
    return true;
}

void cores_score(const job *j, worker *w, const double *A, const double *B, int rows, const part_rows *parts,
                 int count) {
    int64_t d = j->m->width;
    bool finite = finite_rows(A, rows * d) && finite_rows(B, rows * d);
    if (finite && rows < d) {
        measure_by_qr(j, w, A, B, rows, parts, count);
        return;
    }
    for (int i = 0; i < count; i++) {
        part_rows p = parts[i];
        const double *a = A + p.first * d, *b = B + p.first * d;
        if (!finite_rows(a, p.count * d) || !finite_rows(b, p.count * d)) {
            record(j, p.index, SPECTRUM_STATUS_nonfinite);
        } else if (p.count < d) {
            p.first = 0;
            measure_by_qr(j, w, a, b, p.count, &p, 1);
        } else {
            measure_square(j, w, A, B, p);
        }
    }
}

void cores_channel(const job *j, worker *w, int rows, const part_rows *parts, int count) {
    int d = j->m->width;
    double *whole = w->RA;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, rows, d, 1, w->A, d, w->B, d, 0, whole, rows);
    for (int k = 0; k < count; k++) {
        part_rows p = parts[k];
        for (int row = 0; row < p.count; row++)
            for (int col = 0; col < p.count; col++)
                w->core[row * p.count + col] = p.scale * whole[(p.first + row) * rows + p.first + col];
        measure(j, w, &(core_frame){.index = p.index, .rows = p.count, .cols = p.count, .row_major = true});
    }
}

void cores_weight(const job *j, worker *w, int index) {
    const maps_matrix *x = &j->m->matrices[index];
    measure(j, w, &(core_frame){.index = index, .rows = x->rows, .cols = x->cols, .row_major = true});
}

int cores_side(const maps *m, const maps_matrix *x) {
    const family *f = &m->family[x->part == MAPS_ov ? FAMILY_OV : FAMILY_QK];
    int content = x->scope == MAPS_layer ? f->layer_content : f->content;
    if (x->form == MAPS_weight) return x->rows == x->cols ? x->rows : 0;
    int rows = x->part == MAPS_full ? content + f->rope : x->part == MAPS_rope ? f->rope : content;
    return x->form == MAPS_channel || rows < m->width ? rows : m->width;
}
