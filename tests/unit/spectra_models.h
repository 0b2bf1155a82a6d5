/* The oracle's models laid out as production lays out its snapshots, and all spectra of a snapshot. */
#pragma once

#include "check.h"
#include "diag/maps.h"
#include "snapshots.h"
#include "spectra_cases.h"

static inline void copy_rows(float *to, const spectra_array *a, int first, int count) {
    for (int i = 0; i < count * a->cols; i++) to[i] = (float)a->data[first * a->cols + i];
}

static inline void whole(snapshot *s, const spectra_case *c, const char *array, const char *name) {
    const spectra_array *a = spectra_find(c, array);
    char global[64];
    snprintf(global, sizeof(global), "layers.0.%s", name);
    if (a) copy_rows(snapshot_room(s, global, a->rows, a->cols), a, 0, a->rows);
}

static inline void gains(snapshot *s, const spectra_case *c, const char *array, const char *name, int count) {
    if (spectra_find(c, array)) {
        whole(s, c, array, name);
        return;
    }
    char global[64];
    snprintf(global, sizeof(global), "layers.0.%s", name);
    float *g = snapshot_room(s, global, 1, count);
    for (int i = 0; i < count; i++) g[i] = 1;
}

/* Heads of [first's block | second's block]; second NULL: rows of noise that no map may read. */
static inline void interleaved(snapshot *s, const spectra_array *first, const spectra_array *second, int heads,
                               int other_rows, const char *name) {
    int a = first->rows / heads, b = second ? second->rows / heads : other_rows;
    float *to = snapshot_room(s, name, (int64_t)heads * (a + b), first->cols);
    for (int h = 0; h < heads; h++) {
        copy_rows(to + (int64_t)h * (a + b) * first->cols, first, h * a, a);
        float *rest = to + ((int64_t)h * (a + b) + a) * first->cols;
        if (second) copy_rows(rest, second, h * b, b);
        for (int i = 0; !second && i < b * first->cols; i++) rest[i] = 1e6f;
    }
}

static inline config case_config(const spectra_case *c, snapshot *s) {
    int heads = (int)spectra_int(c->json, "H", 0);
    if (strcmp(c->kind, "mha") == 0) {
        const spectra_array *q = spectra_find(c, "W_Q");
        int dim = q->rows / heads;
        config k = diagnostics_config(VARIANT_MHA, 1, heads, dim, q->cols);
        k.model.kv_heads = spectra_find(c, "W_K")->rows / dim;
        gains(s, c, "g_in", "attention_norm", q->cols);
        whole(s, c, "W_Q", "attention.W_Q");
        whole(s, c, "W_K", "attention.W_K");
        return k;
    }
    const spectra_array *up = spectra_find(c, "W_UK");
    int dim = up->rows / heads;
    if (strcmp(c->kind, "prerope") == 0) {
        const char *const names[] = {"W_Q", "W_K", "W_V", "W_DK", "W_DV", "W_UK"};
        const spectra_array *q = spectra_find(c, "W_Q");
        config k = diagnostics_config(VARIANT_MLA_PREROPE, 1, heads, dim, q->cols);
        k.attention.kv_lora_rank = up->cols;
        gains(s, c, "g_in", "attention_norm", q->cols);
        gains(s, c, "g_kv", "attention.latent_norm", up->cols);
        for (int i = 0; i < 6; i++) {
            char name[32];
            snprintf(name, sizeof(name), "attention.%s", names[i]);
            whole(s, c, names[i], name);
        }
        return k;
    }
    const spectra_array *key = spectra_find(c, "W_KR"), *down_q = spectra_find(c, "W_DQ");
    config k = diagnostics_config(VARIANT_MLA_DECOUPLED, 1, heads, dim, key->cols);
    k.attention.kv_lora_rank = up->cols;
    k.attention.qk_rope_head_dim = key->rows;
    k.attention.v_head_dim = 5;
    k.attention.q_lora_rank = down_q ? down_q->rows : 0;
    gains(s, c, "g_in", "attention_norm", key->cols);
    gains(s, c, "g_kv", "attention.latent_norm", up->cols);
    if (down_q) {
        gains(s, c, "g_q", "attention.q_latent_norm", down_q->rows);
        whole(s, c, "W_DQ", "attention.W_DQ");
        interleaved(s, spectra_find(c, "W_UQn"), spectra_find(c, "W_UQr"), heads, 0, "layers.0.attention.W_UQ");
    } else {
        interleaved(s, spectra_find(c, "W_Qn"), spectra_find(c, "W_Qr"), heads, 0, "layers.0.attention.W_Q");
    }
    whole(s, c, "W_DKV", "attention.W_DKV");
    whole(s, c, "W_KR", "attention.W_KR");
    interleaved(s, up, NULL, heads, 5, "layers.0.attention.W_UKV");
    return k;
}

typedef struct computed {
    maps *maps;
    spectrum *rows;
    double *values;
} computed;

/* device NULL: LAPACK. */
static inline computed compute(const config *c, const snapshot *s, svd_device *device, int threads) {
    computed q = {0};
    check_status(maps_open(&q.maps, c, threads), STATUS_OK);
    if (device) check_status(maps_use_device(q.maps, device), STATUS_OK);
    q.rows = calloc((size_t)maps_count(q.maps), sizeof(*q.rows));
    q.values = calloc((size_t)maps_value_count(q.maps), sizeof(double));
    check_status(maps_compute(q.maps, s, q.rows, q.values), STATUS_OK);
    return q;
}

static inline void release(computed *q) {
    maps_close(q->maps);
    free(q->rows);
    free(q->values);
}
