/* What maps.c (the door, memory, workers), factors.c and cores.c share. Private to them.
 *
 * d width, H heads, G kv heads, D_n / D_r the parts of a head's query and key without and with rotary (D_r = 0: whole
 * heads), D_qk = D_n + D_r, D_v values, R_kv latent, R_q query latent. All in float64; a row-major [m, d] factor is its
 * d x m transpose to LAPACK.
 *
 * A family is a pair of factors A, B with the parts that are cut out of it: queries and keys (full, content, rope), or
 * outputs and values (ov). Rows of a head's A, B [D_qk or D_v, d]: the content first, then the rotary rows; a layer's
 * hold the same two blocks, [G D | 0] or [R_kv | D_r] rows. */
#pragma once

#include "core/arena.h"
#include "diag/chain.h"
#include "diag/maps.h"
#include "diag/pair.h"
#include "diag/solver.h"

typedef struct family {
    int content, rope; /* rows of a head's factors */
    int layer_content; /* content rows of a layer's */
    bool values;       /* outputs and values, not queries and keys */
} family;

enum { FAMILY_QK, FAMILY_OV, FAMILIES };

/* What all heads of a layer share. */
typedef struct layer_factors {
    double *gain;     /* [d] g_in */
    double *q_down;   /* [R_q, d] diag(g_q) W_DQ diag(g_in) */
    double *down;     /* [R_kv, d] diag(g_kv) W_D diag(g_in) */
    double *key_rope; /* [D_r, d] W_KR diag(g_in) */
    double *triangle; /* [R_kv + D_r, R_kv + D_r] column-major, of [down; key_rope]^T, where m->triangles */
    bool finite;      /* down and key_rope are; else there is no triangle */
    double c_rms;     /* what the content rows of a key are divided by */
    arena memory;
} layer_factors;

/* One of the pieces of work that a layer is made of, for a worker each. */
typedef struct task {
    const family *family; /* NULL: the single weights */
    int head;             /* -1: the layer's own maps */
} task;

typedef struct worker {
    const layer_factors *layer; /* of the task at work */
    double *left, *right;       /* operands of a product on their way from fp32 */
    double *up;                 /* [D_n or D_v, R_kv] the head's W_UK or W_UV */
    double up_scale;            /* the head's B is up_scale up down, and the rotary rows */
    double *A, *B;              /* [D_qk or D_v, d] the head's factors */
    double *layer_A, *layer_B;  /* [M, d] the layer's */
    double *factor, *tau;       /* what a QR overwrites */
    double *RA, *RB;            /* [m, m] triangular factors, column-major */
    double *core, *spare;       /* the matrix that is measured; the same again, for its vectors */
    double *lapack;
    double *top; /* [m] a core's vector on its way to width d */
    spectrum_work spectrum;
    pair_work pair;
    arena memory;
} worker;

struct maps {
    chain chain;
    config_variant variant;
    config_sigma2 sigma2;
    bool latent_norm;
    int layers, width, heads, kv_heads, latent, q_latent;
    int share, shares; /* this one computes layers share, share + shares, ... */
    family family[FAMILIES];
    bool form[MAPS_FORM_COUNT], part[MAPS_PART_COUNT], scope[MAPS_SCOPE_COUNT];
    int count, capacity;
    maps_matrix *matrices;
    int64_t value_count, pair_count;
    int first[MAPS_FORM_COUNT][MAPS_PART_COUNT]
             [MAPS_SCOPE_COUNT]; /* index of the block's first matrix, -1: not recorded */
    int lapack_size;
    int workers;
    worker *worker;
    int layers_at_once;   /* for which there is memory */
    layer_factors *layer; /* [layers_at_once] */
    bool triangles;       /* some score maps of heads are made of them (cores_score_shared) */
    bool loads;           /* some task needs what heads share */
    task *tasks;          /* [task_count] of a layer, the longest first */
    int task_count;
    const float **tensors; /* [layers, CHAIN_SLOTS] of the snapshot at work */
    solver *solver;        /* NULL: LAPACK finds all singular values */
    bool solver_works;
    char solver_fault[256];
    void (*told)(void *user); /* now and then while maps are computed; NULL: nobody */
    void *told_user;
};

/* One snapshot at work. */
typedef struct job {
    const maps *m;
    int layer;
    const float *const *tensor; /* [CHAIN_SLOTS] the layer's */
    spectrum *out;
    double *values;
    const maps_pairs *top; /* NULL: no pairs */
} job;

/* A recorded part of a pair of factors: rows [first, first + count) of both; its core is multiplied by scale. */
typedef struct part_rows {
    int index, first, count;
    double scale;
} part_rows;

/* ---- factors.c ---- */

/* What all heads of a layer share; by way of w's memory. */
void factors_load_layer(const job *j, worker *w, layer_factors *l);

/* w->A of head h. */
void factors_load_left(const job *j, worker *w, const family *f, int h);

/* w->B of kv head g, or with a latent what it is made of: w->up. */
void factors_load_right(const job *j, worker *w, const family *f, int g);

/* With a latent, w->B from w->up: a key's content rows divided by c_rms. */
void factors_form_right(const maps *m, worker *w, const family *f);

/* The layer's factors, w->layer_A and w->layer_B: nothing, then head by head as they are loaded, then complete. */
void factors_start_layer(const maps *m, worker *w, const family *f);
void factors_add_head(const maps *m, worker *w, const family *f, int g);
void factors_finish_layer(const maps *m, worker *w, const family *f);

/* ---- cores.c ---- */

/* The recorded parts of factors with these blocks of rows, the parts in the order of MAPS_PARTS; returns how many.
 * divisor: what B's content rows were divided by. */
int cores_list_parts(const maps *m, const family *f, int form, int scope, int matrix, int content, double divisor,
                     part_rows *out);

/* Score spectra of the parts of factors A, B [rows, d]. A NaN spoils only the parts that it is in. */
void cores_score(const job *j, worker *w, const double *A, const double *B, int rows, const part_rows *parts,
                 int count);

/* The triangle of a layer, by way of w's memory. */
void cores_find_triangle(const maps *m, worker *w, layer_factors *l);

/* Whether score maps of that family's heads may be made of it: else it would be no less work. */
bool cores_shares(const maps *m, const family *f);

/* The same of w->A and the B that w->up stands for, which is not formed: its triangle is that of what the heads of a
 * layer share, times up. False, and nothing done, where something is not finite. */
bool cores_score_shared(const job *j, worker *w, const family *f, const part_rows *parts, int count);

/* Channel spectra of a head: diagonal blocks of A B^T, A and B [rows, d] in w. */
void cores_channel(const job *j, worker *w, int rows, const part_rows *parts, int count);

/* A single weight, row-major in w->core. */
void cores_weight(const job *j, worker *w, int index);

/* The singular values in w are matrix index's. */
void cores_record_values(const job *j, worker *w, int index);

/* LAPACK's singular values of w->core [rows, cols]. */
void cores_solve(const job *j, worker *w, int index, int rows, int cols);

/* The side of the square core that goes to a device; 0: it is not square. */
int cores_side(const maps *m, const maps_matrix *x);
