/* Factors, cores and spectra of every recorded matrix of a snapshot (docs/design.md sections 6.1 and 6.2).
 *
 * d width, H heads, G kv heads, D_n / D_r the parts of a head's query and key without and with rotary (D_r = 0: whole
 * heads), D_qk = D_n + D_r, R_kv latent, R_q query latent. All in float64; a row-major [m, d] factor is its d x m
 * transpose to LAPACK.
 *
 * A head's factors A, B [D_qk, d] hold the content rows first, then the rotary rows; a layer's hold the same two
 * blocks, [G D | 0] or [R_kv | D_r] rows. So one code makes every score spectrum: QR of all rows, of which content is
 * the leading block of R, and rope a small QR of R's last columns.
 *
 * Workers take layers. Each has its own memory, allocated once; nothing here writes what another worker reads. With a
 * device they leave square cores to it (diag/solver.h), and take matrices when it has the singular values. */
#include "diag/maps.h"

#include "core/arena.h"
#include "core/log.h"
#include "diag/solver.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define X(name) #name,
const char *const maps_form_names[] = {MAPS_FORMS(X)};
const char *const maps_part_names[] = {MAPS_PARTS(X)};
const char *const maps_scope_names[] = {MAPS_SCOPES(X)};
#undef X

/* ---------------------------------------------------------------- the chain of tensors from x to queries and keys */

enum { NORM, QUERY, Q_DOWN, Q_NORM, KEY, VALUE, DOWN_K, DOWN_V, DOWN, KV_NORM, UP, KEY_ROPE, SLOTS };

typedef struct chain_tensor {
    const char *name; /* within its layer; NULL: this chain has none */
    int64_t rows, cols;
    int heads, used;    /* heads blocks of rows, of which the first `used` rows count; heads 0: shared, all rows */
    const char *weight; /* its name in form weight; NULL: not recorded there */
} chain_tensor;

typedef struct chain {
    int content, rope; /* D_n, D_r */
    chain_tensor slot[SLOTS];
} chain;

static chain_tensor shared(const char *name, int64_t rows, int64_t cols) {
    const char *weight = rows > 1 ? strchr(name, '.') + 1 : NULL;
    return (chain_tensor){.name = name, .rows = rows, .cols = cols, .used = (int)rows, .weight = weight};
}

static chain_tensor by_head(const char *name, int64_t heads, int64_t block, int64_t cols) {
    return (chain_tensor){name, heads * block, cols, (int)heads, (int)block, strchr(name, '.') + 1};
}

static chain chain_of(const config *c) {
    int64_t d = c->model.width, heads = c->model.heads, dim = c->model.head_dim, latent = c->attention.kv_lora_rank;
    chain k = {.content = (int)dim};
    chain_tensor *t = k.slot;
    t[NORM] = (chain_tensor){.name = "attention_norm", .rows = 1, .cols = d, .used = 1};
    if (c->attention.variant == VARIANT_MHA) {
        t[QUERY] = by_head("attention.W_Q", heads, dim, d);
        t[KEY] = by_head("attention.W_K", c->model.kv_heads, dim, d);
        return k;
    }
    if (c->attention.latent_norm) t[KV_NORM] = shared("attention.latent_norm", 1, latent);
    if (c->attention.variant == VARIANT_MLA_PREROPE) {
        t[QUERY] = by_head("attention.W_Q", heads, dim, d);
        t[UP] = by_head("attention.W_UK", heads, dim, latent);
        if (c->attention.prerope_source == SOURCE_HIDDEN) {
            t[DOWN] = shared("attention.W_D", latent, d);
            return k;
        }
        t[KEY] = by_head("attention.W_K", heads, dim, d);
        t[VALUE] = by_head("attention.W_V", heads, dim, d);
        t[DOWN_K] = shared("attention.W_DK", latent, heads * dim);
        t[DOWN_V] = shared("attention.W_DV", latent, heads * dim);
        return k;
    }
    int64_t nope = c->attention.qk_nope_head_dim, rope = c->attention.qk_rope_head_dim,
            q_latent = c->attention.q_lora_rank;
    k.content = (int)nope;
    k.rope = (int)rope;
    t[QUERY] = by_head(q_latent ? "attention.W_UQ" : "attention.W_Q", heads, nope + rope, q_latent ? q_latent : d);
    if (q_latent) t[Q_DOWN] = shared("attention.W_DQ", q_latent, d);
    if (q_latent && c->attention.latent_norm) t[Q_NORM] = shared("attention.q_latent_norm", 1, q_latent);
    t[DOWN] = shared("attention.W_DKV", latent, d);
    t[UP] = by_head("attention.W_UKV", heads, nope + c->attention.v_head_dim, latent);
    t[UP].used = (int)nope; /* a head's rows are [k_n | v] */
    t[UP].weight = "W_UK";
    t[KEY_ROPE] = shared("attention.W_KR", rope, d);
    return k;
}

bool maps_wants(const config *c, const char *name) {
    int layer, used = 0;
    if (sscanf(name, "layers.%d.%n", &layer, &used) != 1 || used == 0) return false;
    chain k = chain_of(c);
    for (int i = 0; i < SLOTS; i++)
        if (k.slot[i].name && strcmp(k.slot[i].name, name + used) == 0) return true;
    return false;
}

/* ---------------------------------------------------------------- state */

typedef struct worker {
    double *gain;              /* [d] g_in */
    double *q_down;            /* [R_q, d] diag(g_q) W_DQ diag(g_in) */
    double *down;              /* [R_kv, d] diag(g_kv) W_D diag(g_in) */
    double *key_rope;          /* [D_r, d] W_KR diag(g_in) */
    double *left, *right;      /* operands of a product on their way from fp32 */
    double *up;                /* [D_n, R_kv] the head's W_UK */
    double *A, *B;             /* [D_qk, d] the head's factors */
    double *layer_A, *layer_B; /* [M, d] the layer's */
    double *factor, *tau;      /* what a QR overwrites */
    double *RA, *RB;           /* [m, m] triangular factors, column-major */
    double *core, *lapack;
    double c_rms; /* what the content rows of B were divided by */
    spectrum_work spectrum;
    arena memory;
} worker;

struct maps {
    chain chain;
    config_variant variant;
    config_sigma2 sigma2;
    bool latent_norm;
    int layers, width, heads, kv_heads, latent, q_latent;
    int share, shares; /* this one computes layers share, share + shares, ... */
    int layer_content; /* content rows of a layer's factors */
    bool form[MAPS_FORM_COUNT], part[MAPS_PART_COUNT], scope[MAPS_SCOPE_COUNT];
    int count, capacity;
    maps_matrix *matrices;
    int64_t value_count;
    int first[MAPS_FORM_COUNT][MAPS_PART_COUNT]
             [MAPS_SCOPE_COUNT]; /* index of the block's first matrix, -1: not recorded */
    int lapack_size;
    int workers;
    worker *worker;
    const float **tensors; /* [layers, SLOTS] of the snapshot at work */
    solver *solver;        /* NULL: LAPACK finds all singular values */
    bool solver_works;
    char solver_fault[256];
};

/* One snapshot at work. */
typedef struct job {
    const maps *m;
    const float *const *tensor; /* [SLOTS] the layer's */
    spectrum *out;
    double *values;
} job;

enum { LAPACK_BLOCK = 32 };

static int least(int a, int b) {
    return a < b ? a : b;
}
static int greatest(int a, int b) {
    return a > b ? a : b;
}

/* ---------------------------------------------------------------- which matrices */

/* r: the smallest dimension of the chain (docs/design.md section 6.4 lists the chains). */
static int map_rank(const maps *m, int part, int scope) {
    bool layer = scope == MAPS_layer;
    int content = layer ? m->heads * m->chain.content : m->chain.content, rope = m->chain.rope;
    if (m->variant == VARIANT_MHA && layer) content = m->kv_heads * m->chain.content;
    if (m->latent) content = least(content, m->latent);
    int rank = part == MAPS_content ? content : part == MAPS_rope ? rope : content + rope;
    rank = least(rank, m->width);
    return m->q_latent ? least(rank, m->q_latent) : rank;
}

static status add_matrix(maps *m, maps_matrix matrix) {
    if (m->count == m->capacity) {
        int capacity = greatest(2 * m->capacity, 256);
        maps_matrix *more = realloc(m->matrices, (size_t)capacity * sizeof(*more));
        if (!more) return status_fail(STATUS_INTERNAL, "out of memory for the list of %d matrices", capacity);
        m->matrices = more;
        m->capacity = capacity;
    }
    matrix.first_value = m->value_count;
    m->value_count += matrix.rank;
    m->matrices[m->count++] = matrix;
    return STATUS_OK;
}

static status add_maps(maps *m, int form, int part, int scope) {
    int r = map_rank(m, part, scope), heads = scope == MAPS_layer ? 1 : m->heads;
    m->first[form][part][scope] = m->count;
    for (int layer = 0; layer < m->layers; layer++)
        for (int h = 0; h < heads; h++)
            TRY(add_matrix(m, (maps_matrix){form, part, scope, layer, scope == MAPS_layer ? -1 : h, "", r, r, r, 0}));
    return STATUS_OK;
}

/* The weights of one scope, layer by layer, head by head (shared ones: head -1), in the order of the slots. */
static status add_weights(maps *m, int scope) {
    m->first[MAPS_weight][MAPS_full][scope] = m->count;
    for (int layer = 0; layer < m->layers; layer++)
        for (int h = 0; h < (scope == MAPS_layer ? 1 : m->heads); h++)
            for (int i = 0; i < SLOTS; i++) {
                const chain_tensor *t = &m->chain.slot[i];
                if (!t->weight || (t->heads == 0) != (scope == MAPS_layer) || h >= greatest(t->heads, 1)) continue;
                int rows = t->used, cols = (int)t->cols;
                TRY(add_matrix(m, (maps_matrix){MAPS_weight, MAPS_full, scope, layer, scope == MAPS_layer ? -1 : h,
                                                t->weight, rows, cols, least(rows, cols), 0}));
            }
    return STATUS_OK;
}

static status list_matrices(maps *m) {
    memset(m->first, -1, sizeof(m->first));
    for (int form = 0; form < MAPS_weight; form++)
        for (int part = 0; part < MAPS_PART_COUNT; part++)
            for (int scope = 0; scope < MAPS_SCOPE_COUNT; scope++) {
                bool exists =
                    (part == MAPS_full || m->chain.rope > 0) && !(form == MAPS_channel && scope == MAPS_layer);
                if (exists && m->form[form] && m->part[part] && m->scope[scope]) TRY(add_maps(m, form, part, scope));
            }
    for (int scope = 0; scope < MAPS_SCOPE_COUNT; scope++)
        if (m->form[MAPS_weight] && m->scope[scope]) TRY(add_weights(m, scope));
    return STATUS_OK;
}

static status choose(const char *key, config_list chosen, const char *const *names, int count, bool *on) {
    for (int i = 0; i < chosen.count; i++) {
        int k = 0;
        while (k < count && strcmp(names[k], chosen.items[i]) != 0) k++;
        if (k == count) return status_fail(STATUS_CONFIG, "diagnostics.%s: there is no \"%s\"", key, chosen.items[i]);
        on[k] = true;
    }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- memory */

static double *numbers(arena *a, int64_t n) {
    return arena_push(a, (size_t)n * sizeof(double));
}

/* Called twice: to count, and to hand out. */
static void lay_out(const maps *m, worker *w, arena *a) {
    const chain_tensor *t = m->chain.slot;
    int64_t d = m->width, head = m->chain.content + m->chain.rope, layer = m->layer_content + m->chain.rope;
    int64_t most = head > layer ? head : layer, triangle = head * head, core = 1;
    if (layer < d && layer > head) triangle = layer * layer;
    for (int i = 0; i < m->count; i++) {
        int64_t size = (int64_t)m->matrices[i].rows * m->matrices[i].cols;
        core = core > size ? core : size;
    }
    int64_t side = most < d ? most : d; /* of a score core before the zeros by shape are dropped */
    if (core < side * side) core = side * side;
    if (core < head * head) core = head * head;
    int64_t left = head * m->q_latent, right = 0;
    if (t[DOWN_K].name) {
        left = t[DOWN_K].rows * t[DOWN_K].cols;
        right = t[KEY].rows * t[KEY].cols;
    }
    w->gain = numbers(a, d);
    w->q_down = numbers(a, m->q_latent * d);
    w->down = numbers(a, m->latent * d);
    w->key_rope = numbers(a, m->chain.rope * d);
    w->left = numbers(a, left);
    w->right = numbers(a, right);
    w->up = numbers(a, (int64_t)m->chain.content * m->latent);
    w->A = numbers(a, head * d);
    w->B = numbers(a, head * d);
    w->layer_A = numbers(a, layer * d);
    w->layer_B = numbers(a, layer * d);
    w->factor = numbers(a, most * d);
    w->tau = numbers(a, most);
    w->RA = numbers(a, triangle);
    w->RB = numbers(a, triangle);
    w->core = numbers(a, core);
    w->lapack = numbers(a, m->lapack_size);
}

static status worker_open(const maps *m, worker *w) {
    lay_out(m, w, &w->memory);
    arena counted = w->memory;
    w->memory = (arena){.base = malloc(counted.peak_bytes), .size_bytes = counted.peak_bytes};
    if (!w->memory.base)
        return status_fail(STATUS_INTERNAL, "out of memory: a diagnostics worker needs %zu bytes", counted.peak_bytes);
    lay_out(m, w, &w->memory);
    int head = m->chain.content + m->chain.rope, layer = m->layer_content + m->chain.rope;
    int small = greatest(least(greatest(head, layer), m->width), head), large = small;
    for (int i = 0; i < m->count; i++) {
        const maps_matrix *x = &m->matrices[i];
        small = greatest(small, least(x->rows, x->cols));
        large = greatest(large, greatest(x->rows, x->cols));
    }
    return spectrum_work_open(&w->spectrum, small, greatest(small, large));
}

status maps_open(maps **out, const config *c, int threads) {
    maps *m = calloc(1, sizeof(*m));
    if (!m) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    *out = m;
    m->chain = chain_of(c);
    m->variant = c->attention.variant;
    m->sigma2 = c->diagnostics.sigma2;
    m->latent_norm = c->attention.latent_norm;
    m->layers = (int)c->model.layers;
    m->shares = 1;
    m->width = (int)c->model.width;
    m->heads = (int)c->model.heads;
    m->kv_heads = m->variant == VARIANT_MHA ? (int)c->model.kv_heads : m->heads;
    m->latent = m->variant == VARIANT_MHA ? 0 : (int)c->attention.kv_lora_rank;
    m->q_latent = m->variant == VARIANT_MLA_DECOUPLED ? (int)c->attention.q_lora_rank : 0;
    m->layer_content = m->latent ? m->latent : m->kv_heads * m->chain.content;
    m->lapack_size = LAPACK_BLOCK * greatest(m->layer_content + m->chain.rope, m->chain.content + m->chain.rope);
    status s = choose("forms", c->diagnostics.forms, maps_form_names, MAPS_FORM_COUNT, m->form);
    if (s == STATUS_OK) s = choose("parts", c->diagnostics.parts, maps_part_names, MAPS_PART_COUNT, m->part);
    if (s == STATUS_OK) s = choose("scopes", c->diagnostics.scopes, maps_scope_names, MAPS_SCOPE_COUNT, m->scope);
    if (s == STATUS_OK) s = list_matrices(m);
    if (s != STATUS_OK) goto failed;
    m->workers = greatest(least(threads, m->layers), 1);
    m->worker = calloc((size_t)m->workers, sizeof(*m->worker));
    m->tensors = calloc((size_t)m->layers * SLOTS, sizeof(*m->tensors));
    if (!m->worker || !m->tensors) {
        s = status_fail(STATUS_INTERNAL, "out of memory for %d diagnostics workers", m->workers);
        goto failed;
    }
    for (int i = 0; i < m->workers; i++)
        if ((s = worker_open(m, &m->worker[i])) != STATUS_OK) goto failed;
    return STATUS_OK;
failed:
    maps_close(m);
    *out = NULL;
    return s;
}

void maps_close(maps *m) {
    if (!m) return;
    solver_close(m->solver);
    for (int i = 0; m->worker && i < m->workers; i++) {
        spectrum_work_close(&m->worker[i].spectrum);
        free(m->worker[i].memory.base);
    }
    free(m->worker);
    free(m->tensors);
    free(m->matrices);
    free(m);
}

int maps_count(const maps *m) {
    return m->count;
}
const maps_matrix *maps_matrices(const maps *m) {
    return m->matrices;
}
int64_t maps_value_count(const maps *m) {
    return m->value_count;
}

void maps_share(maps *m, int share, int shares) {
    m->share = share;
    m->shares = shares;
}

/* ---------------------------------------------------------------- small linear algebra */

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

static bool finite_rows(const double *x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(x[i])) return false;
    return true;
}

/* R [n, n] of the QR factors of the column-major [length, n] matrix in w->factor, n <= length. */
static void triangular_factor(const maps *m, worker *w, int length, int n, double *R) {
    LAPACKE_dgeqrf_work(LAPACK_COL_MAJOR, length, n, w->factor, length, w->tau, w->lapack, m->lapack_size);
    for (int j = 0; j < n; j++)
        for (int i = 0; i < n; i++) R[i + (int64_t)j * n] = i <= j ? w->factor[i + (int64_t)j * length] : 0;
}

/* ---------------------------------------------------------------- spectra of cores */

static void record(const job *j, int index, spectrum_status why) {
    const maps_matrix *x = &j->m->matrices[index];
    spectrum_clear(&j->out[index], why);
    for (int i = 0; i < x->rank; i++) j->values[x->first_value + i] = NAN;
}

/* The spectrum of the singular values in w. */
static void record_values(const job *j, worker *w, int index) {
    const maps_matrix *x = &j->m->matrices[index];
    memcpy(j->values + x->first_value, w->spectrum.values, (size_t)x->rank * sizeof(double));
    spectrum_measure(&w->spectrum, w->spectrum.values, x->rank, x->rows, x->cols, j->m->sigma2, &j->out[index]);
}

static void solve_here(const job *j, worker *w, int index, int rows, int cols) {
    spectrum_status why = spectrum_solve(&w->spectrum, w->core, rows, cols);
    if (why == SPECTRUM_STATUS_ok) {
        record_values(j, w, index);
    } else {
        record(j, index, why);
    }
}

/* The spectrum of w->core, which has rows x cols before the zeros by shape are dropped: now, or when the device has its
 * singular values. */
static void measure(const job *j, worker *w, int index, int rows, int cols) {
    if (!j->m->solver_works || !solver_takes(j->m->solver, index)) {
        solve_here(j, w, index, rows, cols);
    } else if (finite_rows(w->core, (int64_t)rows * cols)) {
        solver_put(j->m->solver, index, w->core);
    } else {
        record(j, index, SPECTRUM_STATUS_nonfinite);
    }
}

/* A recorded part of a pair of factors: rows [first, first + count) of both; its core is multiplied by scale. */
typedef struct part_rows {
    int index, first, count;
    double scale;
} part_rows;

/* The parts to record of factors with these blocks of rows; returns how many. */
static int list_parts(const maps *m, int form, int scope, int matrix, int content, int rope, double c_rms,
                      part_rows *out) {
    const part_rows all[MAPS_PART_COUNT] = {[MAPS_full] = {0, 0, content + rope, 1},
                                            [MAPS_content] = {0, 0, content, c_rms},
                                            [MAPS_rope] = {0, content, rope, 1}};
    int count = 0;
    for (int part = 0; part < MAPS_PART_COUNT; part++) {
        if (m->first[form][part][scope] < 0) continue;
        out[count] = all[part];
        out[count++].index = m->first[form][part][scope] + matrix;
    }
    return count;
}

/* The core of a part's rows by themselves, wide ones: A^T B, d x d. */
static void measure_square(const job *j, worker *w, const double *A, const double *B, part_rows p) {
    int d = j->m->width;
    int64_t skip = (int64_t)p.first * d;
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, d, d, p.count, p.scale, A + skip, d, B + skip, d, 0, w->core,
                d);
    measure(j, w, p.index, d, d);
}

/* R [count, count] of columns [first, first + count) of the triangular [m, m] R: they are the same up to a rotation. */
static const double *last_columns(const maps *m, worker *w, double *R, int rows, part_rows p) {
    memcpy(w->factor, R + (int64_t)p.first * rows, (size_t)rows * (size_t)p.count * sizeof(double));
    triangular_factor(m, w, rows, p.count, R);
    return R;
}

/* Parts of factors A, B of `rows` < d rows, all finite. The parts come with the full and the content rows first: the
 * last one, rope, destroys R. */
static void measure_by_qr(const job *j, worker *w, const double *A, const double *B, int rows, const part_rows *parts,
                          int count) {
    const maps *m = j->m;
    int d = m->width;
    memcpy(w->factor, A, (size_t)rows * (size_t)d * sizeof(double));
    triangular_factor(m, w, d, rows, w->RA);
    memcpy(w->factor, B, (size_t)rows * (size_t)d * sizeof(double));
    triangular_factor(m, w, d, rows, w->RB);
    for (int i = 0; i < count; i++) {
        part_rows p = parts[i];
        const double *RA = w->RA, *RB = w->RB;
        int ld = rows;
        if (p.first > 0) {
            RA = last_columns(m, w, w->RA, rows, p);
            RB = last_columns(m, w, w->RB, rows, p);
            ld = p.count;
        }
        cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, p.count, p.count, p.count, p.scale, RA, ld, RB, ld, 0,
                    w->core, p.count);
        measure(j, w, p.index, p.count, p.count);
    }
}

/* Score spectra of the parts of factors A, B [rows, d]. A NaN spoils only the parts that it is in. */
static void measure_score(const job *j, worker *w, const double *A, const double *B, int rows, const part_rows *parts,
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

/* Channel spectra of a head: diagonal blocks of A B^T. */
static void measure_channel(const job *j, worker *w, int rows, const part_rows *parts, int count) {
    int d = j->m->width;
    double *whole = w->RA;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, rows, rows, d, 1, w->A, d, w->B, d, 0, whole, rows);
    for (int k = 0; k < count; k++) {
        part_rows p = parts[k];
        for (int row = 0; row < p.count; row++)
            for (int col = 0; col < p.count; col++)
                w->core[row * p.count + col] = p.scale * whole[(p.first + row) * rows + p.first + col];
        measure(j, w, p.index, p.count, p.count);
    }
}

/* ---------------------------------------------------------------- factors */

/* What all heads of a layer share. */
static void load_layer(const job *j, worker *w) {
    const maps *m = j->m;
    const chain_tensor *t = m->chain.slot;
    int d = m->width, wide = m->heads * m->chain.content, R = m->latent;
    w->c_rms = 1;
    widen(w->gain, j->tensor[NORM], 1, d, NULL, NULL);
    if (t[Q_DOWN].name) widen(w->q_down, j->tensor[Q_DOWN], m->q_latent, d, j->tensor[Q_NORM], w->gain);
    if (t[KEY_ROPE].name) widen(w->key_rope, j->tensor[KEY_ROPE], m->chain.rope, d, NULL, w->gain);
    if (t[DOWN].name) {
        widen(w->down, j->tensor[DOWN], R, d, NULL, w->gain);
    } else if (t[DOWN_K].name) {
        widen(w->left, j->tensor[DOWN_K], R, wide, NULL, NULL);
        widen(w->right, j->tensor[KEY], wide, d, NULL, w->gain);
        multiply(w->down, w->left, w->right, R, d, wide, 1, 0);
        widen(w->left, j->tensor[DOWN_V], R, wide, NULL, NULL);
        widen(w->right, j->tensor[VALUE], wide, d, NULL, w->gain);
        multiply(w->down, w->left, w->right, R, d, wide, 1, 1);
    }
    /* RMSNorm rescales the content key alone: this is the latent's rms for isotropic tokens. */
    if (m->chain.rope > 0 && m->latent_norm) {
        double c = cblas_dnrm2(R * d, w->down, 1) / sqrt(R);
        if (c > 0 && isfinite(c)) w->c_rms = c;
    }
    if (j->tensor[KV_NORM])
        for (int i = 0; i < R; i++) cblas_dscal(d, j->tensor[KV_NORM][i], w->down + (int64_t)i * d, 1);
}

/* w->A [D_qk, d] of head h. */
static void load_query(const job *j, worker *w, int h) {
    const maps *m = j->m;
    int rows = m->chain.content + m->chain.rope, d = m->width;
    if (!m->q_latent) {
        widen(w->A, j->tensor[QUERY] + (int64_t)h * rows * d, rows, d, NULL, w->gain);
        return;
    }
    widen(w->left, j->tensor[QUERY] + (int64_t)h * rows * m->q_latent, rows, m->q_latent, NULL, NULL);
    multiply(w->A, w->left, w->q_down, rows, d, m->q_latent, 1, 0);
}

/* w->B [D_qk, d] of kv head g, content rows divided by c_rms. */
static void load_key(const job *j, worker *w, int g) {
    const maps *m = j->m;
    int content = m->chain.content, d = m->width;
    if (!m->latent) {
        widen(w->B, j->tensor[KEY] + (int64_t)g * content * d, content, d, NULL, w->gain);
        return;
    }
    int64_t block = m->chain.slot[UP].rows / m->heads;
    widen(w->up, j->tensor[UP] + g * block * m->latent, content, m->latent, NULL, NULL);
    multiply(w->B, w->up, w->down, content, d, m->latent, 1 / w->c_rms, 0);
    memcpy(w->B + (int64_t)content * d, w->key_rope, (size_t)m->chain.rope * (size_t)d * sizeof(double));
}

static void add_rows(double *to, const double *from, int64_t n) {
    for (int64_t i = 0; i < n; i++) to[i] += from[i];
}

/* Adds a head to the layer's factors: sum_h A_h^T B_h is (sum of the group's A)^T B for a kv head that is shared, and
 * (sum_h W_UK^hT A_h)^T down for a latent that is. */
static void add_head(const maps *m, worker *w, int g) {
    int content = m->chain.content, rope = m->chain.rope, d = m->width, R = m->latent;
    if (!R) {
        int64_t block = (int64_t)content * d;
        add_rows(w->layer_A + g * block, w->A, block);
        memcpy(w->layer_B + g * block, w->B, (size_t)block * sizeof(double));
        return;
    }
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, R, d, content, 1, w->up, R, w->A, d, 1, w->layer_A, d);
    add_rows(w->layer_A + (int64_t)R * d, w->A + (int64_t)content * d, (int64_t)rope * d);
}

static void finish_layer_keys(const maps *m, worker *w) {
    if (!m->latent) return;
    int64_t content = (int64_t)m->latent * m->width;
    for (int64_t i = 0; i < content; i++) w->layer_B[i] = w->down[i] / w->c_rms;
    memcpy(w->layer_B + content, w->key_rope, (size_t)m->chain.rope * (size_t)m->width * sizeof(double));
}

/* ---------------------------------------------------------------- a layer, a snapshot */

static void compute_maps(const job *j, worker *w, int layer) {
    const maps *m = j->m;
    int content = m->chain.content, rope = m->chain.rope, per_kv = m->heads / m->kv_heads, last = -1;
    int64_t layer_rows = m->layer_content + rope;
    part_rows parts[MAPS_PART_COUNT];
    load_layer(j, w);
    memset(w->layer_A, 0, (size_t)layer_rows * (size_t)m->width * sizeof(double));
    for (int h = 0; h < m->heads; h++) {
        int g = h / per_kv;
        load_query(j, w, h);
        if (g != last) load_key(j, w, g);
        last = g;
        if (m->scope[MAPS_layer]) add_head(m, w, g);
        int matrix = layer * m->heads + h;
        int count = list_parts(m, MAPS_channel, MAPS_head, matrix, content, rope, w->c_rms, parts);
        if (count) measure_channel(j, w, content + rope, parts, count);
        count = list_parts(m, MAPS_score, MAPS_head, matrix, content, rope, w->c_rms, parts);
        if (count) measure_score(j, w, w->A, w->B, content + rope, parts, count);
    }
    int count = list_parts(m, MAPS_score, MAPS_layer, layer, m->layer_content, rope, w->c_rms, parts);
    if (count == 0) return;
    finish_layer_keys(m, w);
    measure_score(j, w, w->layer_A, w->layer_B, (int)layer_rows, parts, count);
}

static void compute_weights(const job *j, worker *w, int layer) {
    const maps *m = j->m;
    for (int scope = 0; scope < MAPS_SCOPE_COUNT; scope++) {
        int first = m->first[MAPS_weight][MAPS_full][scope];
        for (int i = first; first >= 0 && i < m->count && m->matrices[i].scope == scope; i++) {
            const maps_matrix *x = &m->matrices[i];
            if (x->layer != layer) continue;
            int slot = 0;
            while (!m->chain.slot[slot].weight || strcmp(m->chain.slot[slot].weight, x->tensor) != 0) slot++;
            const chain_tensor *t = &m->chain.slot[slot];
            int64_t block = x->head < 0 ? 0 : x->head * (t->rows / t->heads) * t->cols;
            widen(w->core, j->tensor[slot] + block, x->rows, x->cols, NULL, NULL);
            measure(j, w, i, x->rows, x->cols);
        }
    }
}

static status find_tensors(maps *m, const snapshot *s) {
    for (int layer = m->share; layer < m->layers; layer += m->shares)
        for (int i = 0; i < SLOTS; i++) {
            const chain_tensor *want = &m->chain.slot[i];
            m->tensors[layer * SLOTS + i] = NULL;
            if (!want->name) continue;
            char name[64];
            snprintf(name, sizeof(name), "layers.%d.%s", layer, want->name);
            const snapshot_tensor *got = snapshot_find(s, name);
            if (!got) return status_fail(STATUS_DATA, "the snapshot of step %lld lacks %s", (long long)s->step, name);
            if (got->rows != want->rows || got->cols != want->cols)
                return status_fail(STATUS_DATA, "%s is %lld x %lld in the snapshot of step %lld, not %lld x %lld", name,
                                   (long long)got->rows, (long long)got->cols, (long long)s->step,
                                   (long long)want->rows, (long long)want->cols);
            m->tensors[layer * SLOTS + i] = got->data;
        }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- with a device */

/* The side of the core that measure() gets; 0: it is not square. */
static int core_side(const maps *m, const maps_matrix *x) {
    int content = x->scope == MAPS_layer ? m->layer_content : m->chain.content, rope = m->chain.rope;
    if (x->form == MAPS_weight) return x->rows == x->cols ? x->rows : 0;
    int rows = x->part == MAPS_content ? content : x->part == MAPS_rope ? rope : content + rope;
    return x->form == MAPS_channel ? rows : least(rows, m->width);
}

status maps_use_device(maps *m, svd_device *device) {
    int *sides = malloc((size_t)(m->count + 1) * sizeof(*sides));
    if (!sides) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    for (int i = 0; i < m->count; i++) sides[i] = core_side(m, &m->matrices[i]);
    status s = solver_open(&m->solver, device, sides, m->count);
    m->solver_works = s == STATUS_OK;
    free(sides);
    return s;
}

const char *maps_device_fault(const maps *m) {
    return m->solver && !m->solver_works ? m->solver_fault : NULL;
}

/* A device that fails is not asked again: what it was to solve is solved here. */
static void run_device(maps *m) {
    if (solver_run(m->solver) == STATUS_OK) return;
    snprintf(m->solver_fault, sizeof(m->solver_fault), "%s", status_message());
    log_warn("from now on the CPU computes the spectra: %s", m->solver_fault);
    m->solver_works = false;
    status_clear();
}

static void take_from_device(const job *j, worker *w, int index) {
    const solver *s = j->m->solver;
    if (!solver_has(s, index)) return;
    if (solver_values(s, index, w->spectrum.values)) {
        record_values(j, w, index);
        return;
    }
    int side = core_side(j->m, &j->m->matrices[index]);
    solver_core(s, index, w->core);
    solve_here(j, w, index, side, side);
}

static void compute_layer(const job *j, worker *w, int layer) {
    if (j->m->form[MAPS_score] || j->m->form[MAPS_channel]) compute_maps(j, w, layer);
    if (j->m->form[MAPS_weight]) compute_weights(j, w, layer);
}

status maps_compute(maps *m, const snapshot *s, spectrum *out, double *values) {
    TRY(find_tensors(m, s));
    bool device = m->solver_works;
    int blas_threads = openblas_get_num_threads();
    openblas_set_num_threads(1); /* the workers are the parallelism */
    if (device) solver_start(m->solver);
#pragma omp parallel for num_threads(m->workers) schedule(dynamic)
    for (int layer = m->share; layer < m->layers; layer += m->shares) {
        job j = {m, m->tensors + (size_t)layer * SLOTS, out, values};
        compute_layer(&j, &m->worker[omp_get_thread_num()], layer);
    }
    if (device) {
        run_device(m);
#pragma omp parallel for num_threads(m->workers) schedule(dynamic)
        for (int i = 0; i < m->count; i++) {
            job j = {m, NULL, out, values};
            take_from_device(&j, &m->worker[omp_get_thread_num()], i);
        }
    }
    openblas_set_num_threads(blas_threads);
    return STATUS_OK;
}
