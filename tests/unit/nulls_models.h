/* The small models whose null ensembles the spectral oracle has drawn (tests/golden/spectra/ensembles.json), as
 * configurations and snapshots. */
#pragma once

#include "snapshots.h"
#include "spectra_cases.h"

#include "diag/nulls_grid.h"
#include "diag/nulls_shape.h"

enum { MODEL_D = 48, MODEL_H = 3, MODEL_DIM = 12, MODEL_ROPE = 6, MODEL_R = 20, MODEL_RQ = 26 };

static inline json_t *nulls_expected(void) {
    size_t bytes;
    char *text = spectra_file("ensembles.json", &bytes);
    json_t *all = json_loadb(text, bytes, 0, NULL);
    free(text);
    assert_non_null(all);
    return all;
}

static inline config nulls_model_config(const char *name) {
    bool mha = strcmp(name, "mha") == 0, prerope = strcmp(name, "prerope") == 0;
    config c = diagnostics_config(mha       ? VARIANT_MHA
                                  : prerope ? VARIANT_MLA_PREROPE
                                            : VARIANT_MLA_DECOUPLED,
                                  1, MODEL_H, MODEL_DIM, MODEL_D);
    c.attention.kv_lora_rank = MODEL_R;
    c.attention.qk_rope_head_dim = MODEL_ROPE;
    c.attention.q_lora_rank = strcmp(name, "decoupled_q") == 0 ? MODEL_RQ : 0;
    c.attention.prerope_source = SOURCE_KEY;
    return c;
}

/* The tensor's value, the same everywhere, in the oracle's description [rows, cols, value]. */
static inline float nulls_model_value(const json_t *model, const char *name) {
    const json_t *w = json_object_get(model, name);
    assert_non_null(w);
    return (float)json_number_value(json_array_get(w, 2));
}

static inline void nulls_model_fill(snapshot *s, const char *name, int64_t rows, int64_t cols, float value) {
    char global[64];
    snprintf(global, sizeof(global), "layers.0.%s", name);
    float *x = snapshot_room(s, global, rows, cols);
    for (int64_t i = 0; i < rows * cols; i++) x[i] = value;
}

/* Heads of [first | second] rows. */
static inline void nulls_model_heads(snapshot *s, const char *name, int64_t first, int64_t second, int64_t cols,
                                     float a, float b) {
    char global[64];
    int64_t block = (first + second) * cols;
    snprintf(global, sizeof(global), "layers.0.%s", name);
    float *x = snapshot_room(s, global, MODEL_H * (first + second), cols);
    for (int64_t i = 0; i < MODEL_H * block; i++) x[i] = i % block < first * cols ? a : b;
}

static inline void nulls_model_gain(snapshot *s, const json_t *model, const char *key, const char *name) {
    const json_t *g = json_object_get(model, key), *one;
    char global[64];
    size_t i;
    snprintf(global, sizeof(global), "layers.0.%s", name);
    float *x = snapshot_room(s, global, 1, (int64_t)json_array_size(g));
    json_array_foreach(g, i, one) x[i] = (float)json_number_value(one);
}

static inline void nulls_model_snapshot(snapshot *s, const json_t *model, const config *c) {
    int64_t wide = MODEL_H * MODEL_DIM, v = c->attention.v_head_dim;
    nulls_model_gain(s, model, "g_in", "attention_norm");
    if (c->attention.variant == VARIANT_MHA) {
        nulls_model_fill(s, "attention.W_Q", wide, MODEL_D, nulls_model_value(model, "W_Q"));
        nulls_model_fill(s, "attention.W_K", wide, MODEL_D, nulls_model_value(model, "W_K"));
        return;
    }
    nulls_model_gain(s, model, "g_kv", "attention.latent_norm");
    if (c->attention.variant == VARIANT_MLA_PREROPE) {
        nulls_model_fill(s, "attention.W_Q", wide, MODEL_D, nulls_model_value(model, "W_Q"));
        nulls_model_fill(s, "attention.W_K", wide, MODEL_D, nulls_model_value(model, "W_K"));
        nulls_model_fill(s, "attention.W_V", wide, MODEL_D, nulls_model_value(model, "W_V"));
        nulls_model_fill(s, "attention.W_DK", MODEL_R, wide, nulls_model_value(model, "W_DK"));
        nulls_model_fill(s, "attention.W_DV", MODEL_R, wide, nulls_model_value(model, "W_DV"));
        nulls_model_fill(s, "attention.W_UK", wide, MODEL_R, nulls_model_value(model, "W_UK"));
        return;
    }
    bool latent = c->attention.q_lora_rank > 0;
    nulls_model_heads(s, latent ? "attention.W_UQ" : "attention.W_Q", MODEL_DIM, MODEL_ROPE,
                      latent ? MODEL_RQ : MODEL_D, nulls_model_value(model, latent ? "W_UQn" : "W_Qn"),
                      nulls_model_value(model, latent ? "W_UQr" : "W_Qr"));
    if (latent) nulls_model_gain(s, model, "g_q", "attention.q_latent_norm");
    if (latent) nulls_model_fill(s, "attention.W_DQ", MODEL_RQ, MODEL_D, nulls_model_value(model, "W_DQ"));
    nulls_model_fill(s, "attention.W_DKV", MODEL_R, MODEL_D, nulls_model_value(model, "W_DKV"));
    nulls_model_fill(s, "attention.W_KR", MODEL_ROPE, MODEL_D, nulls_model_value(model, "W_KR"));
    nulls_model_heads(s, "attention.W_UKV", MODEL_DIM, v, MODEL_R, nulls_model_value(model, "W_UK"), 9);
}

static inline int nulls_name_index(const char *const *names, int count, const char *name) {
    int i = 0;
    while (i < count && strcmp(names[i], name) != 0) i++;
    assert_true(i < count);
    return i;
}

/* The matrix that an expected ensemble is of. */
static inline maps_matrix nulls_expected_matrix(const json_t *e) {
    int scope = nulls_name_index(maps_scope_names, MAPS_SCOPE_COUNT, json_string_value(json_object_get(e, "scope")));
    return (maps_matrix){
        .form = nulls_name_index(maps_form_names, MAPS_FORM_COUNT, json_string_value(json_object_get(e, "form"))),
        .part = nulls_name_index(maps_part_names, MAPS_PART_COUNT, json_string_value(json_object_get(e, "part"))),
        .scope = scope,
        .head = scope == MAPS_layer ? -1 : 1,
        .tensor = "",
        .rank = (int)spectra_int(e, "r", 0)};
}

/* m and s at `at` from the grid against an ensemble there of the same seed: all that differs is the interpolation. */
static inline void nulls_interpolated(const nulls_shape *s, const double *at, int draws, double *m_error,
                                      double *s_error) {
    double node[NULLS_MOST_NODES][NULLS_MOST_RATIOS];
    nulls_moments at_node[NULLS_MOST_NODES], got, want;
    int count = nulls_nodes(s, at, node);
    for (int i = 0; i < count; i++) check_status(nulls_ensemble(s, node[i], draws, 3, 1, NULL, &at_node[i]), STATUS_OK);
    check_status(nulls_ensemble(s, at, draws, 3, 1, NULL, &want), STATUS_OK);
    nulls_interpolate(s, at, at_node, &got);
    *m_error = (got.mean[0] - want.mean[0]) / want.sd[0];
    *s_error = (got.sd[0] - want.sd[0]) / want.sd[0];
}

static inline void nulls_check_interpolation(const nulls_shape *s, double a, double b, int draws) {
    double at[NULLS_MOST_RATIOS] = {a, b}, m, sd;
    nulls_round(s, at);
    nulls_interpolated(s, at, draws, &m, &sd);
    if (!(fabs(m) < 0.05 && fabs(sd) < 0.05))
        fail_msg("at %.3f, %.3f: m is off by %.3f s, s by %.3f s", at[0], at[1], m, sd);
}

/* All gains of the snapshot to 1, as they are initialized. */
static inline void nulls_even_gains(snapshot *s) {
    for (int i = 0; i < s->count; i++)
        for (int64_t k = 0; s->tensors[i].rows == 1 && k < s->tensors[i].cols; k++) s->tensors[i].data[k] = 1;
}
