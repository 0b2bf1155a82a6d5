/* Snapshots built by hand for the diagnostics' tests and benchmark: named tensors without messages, and small
 * configurations. */
#pragma once

#include "comm/snapshot.h"
#include "core/config.h"
#include "core/rng.h"
#include "diag/diag.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Room for a [rows, cols] tensor of that global name. */
static inline float *snapshot_room(snapshot *s, const char *name, int64_t rows, int64_t cols) {
    s->tensors = realloc(s->tensors, (size_t)(s->count + 1) * sizeof(*s->tensors));
    snapshot_tensor *t = &s->tensors[s->count++];
    *t = (snapshot_tensor){.rows = rows, .cols = cols, .seen = rows * cols};
    snprintf(t->name, sizeof(t->name), "%s", name);
    t->data = malloc((size_t)(rows * cols) * sizeof(float));
    return t->data;
}

/* Leaves what the trainer sends a diagnostics rank: its layers, and to the first one the gains of all. */
static inline void snapshot_keep(snapshot *s, const config *c, int rank) {
    int kept = 0, layer;
    for (int i = 0; i < s->count; i++) {
        snapshot_tensor *t = &s->tensors[i];
        bool goes = sscanf(t->name, "layers.%d.", &layer) == 1 &&
                    (diag_rank_of_layer(c, layer) == rank || (rank == 0 && t->rows == 1));
        if (goes)
            s->tensors[kept++] = *t;
        else
            free(t->data);
    }
    s->count = kept;
}

/* The same filled: gains near 1, weights of std 0.02, a function of seed and name. */
static inline float *snapshot_noise(snapshot *s, uint64_t seed, int layer, const char *part, int64_t rows,
                                    int64_t cols) {
    char name[64];
    snprintf(name, sizeof(name), "layers.%d.%s", layer, part);
    float *x = snapshot_room(s, name, rows, cols);
    rng_normal(x, seed, (uint64_t)s->count, 0, rows * cols, rows == 1 ? 0.2 : 0.02);
    for (int64_t i = 0; rows == 1 && i < cols; i++) x[i] += 1;
    return x;
}

/* The Q-K tensors of a layer. */
static inline void snapshot_fill_keys(snapshot *s, const config *c, uint64_t seed, int l) {
    int64_t d = c->model.width, H = c->model.heads, D = c->model.head_dim, R = c->attention.kv_lora_rank;
    snapshot_noise(s, seed, l, "attention_norm", 1, d);
    if (c->attention.variant == VARIANT_MHA) {
        snapshot_noise(s, seed, l, "attention.W_Q", H * D, d);
        snapshot_noise(s, seed, l, "attention.W_K", c->model.kv_heads * D, d);
        return;
    }
    if (c->attention.latent_norm) snapshot_noise(s, seed, l, "attention.latent_norm", 1, R);
    if (c->attention.variant == VARIANT_MLA_PREROPE) {
        snapshot_noise(s, seed, l, "attention.W_Q", H * D, d);
        snapshot_noise(s, seed, l, "attention.W_UK", H * D, R);
        if (c->attention.prerope_source == SOURCE_HIDDEN) {
            snapshot_noise(s, seed, l, "attention.W_D", R, d);
            return;
        }
        snapshot_noise(s, seed, l, "attention.W_K", H * D, d);
        snapshot_noise(s, seed, l, "attention.W_V", H * D, d);
        snapshot_noise(s, seed, l, "attention.W_DK", R, H * D);
        snapshot_noise(s, seed, l, "attention.W_DV", R, H * D);
        return;
    }
    int64_t n = c->attention.qk_nope_head_dim, r = c->attention.qk_rope_head_dim, v = c->attention.v_head_dim;
    int64_t Rq = c->attention.q_lora_rank;
    snapshot_noise(s, seed, l, Rq ? "attention.W_UQ" : "attention.W_Q", H * (n + r), Rq ? Rq : d);
    if (Rq) snapshot_noise(s, seed, l, "attention.W_DQ", Rq, d);
    if (Rq && c->attention.latent_norm) snapshot_noise(s, seed, l, "attention.q_latent_norm", 1, Rq);
    snapshot_noise(s, seed, l, "attention.W_DKV", R, d);
    snapshot_noise(s, seed, l, "attention.W_KR", r, d);
    snapshot_noise(s, seed, l, "attention.W_UKV", H * (n + v), R);
}

/* What the part ov needs beside them. */
static inline void snapshot_fill_values(snapshot *s, const config *c, uint64_t seed, int l) {
    int64_t d = c->model.width, H = c->model.heads, D = c->model.head_dim, R = c->attention.kv_lora_rank;
    int64_t v = c->attention.variant == VARIANT_MLA_DECOUPLED ? c->attention.v_head_dim : D;
    if (c->attention.variant == VARIANT_MHA) snapshot_noise(s, seed, l, "attention.W_V", c->model.kv_heads * D, d);
    if (c->attention.variant == VARIANT_MLA_PREROPE) snapshot_noise(s, seed, l, "attention.W_UV", H * D, R);
    snapshot_noise(s, seed, l, "attention.W_O", d, H * v);
}

/* All tensors of the config's chain, in every layer. */
static inline void snapshot_fill(snapshot *s, const config *c, uint64_t seed) {
    bool ov = false;
    for (int i = 0; i < c->diagnostics.parts.count; i++) ov |= strcmp(c->diagnostics.parts.items[i], "ov") == 0;
    for (int l = 0; l < c->model.layers; l++) {
        snapshot_fill_keys(s, c, seed, l);
        if (ov) snapshot_fill_values(s, c, seed, l);
    }
}

/* A configuration with every form, part and scope on; no file behind it, nothing to free. */
static inline config diagnostics_config(config_variant variant, int layers, int heads, int head_dim, int width) {
    static char *forms[] = {"score", "channel", "weight"}, *parts[] = {"full", "content", "rope"},
                *scopes[] = {"head", "layer"};
    config c = {0};
    c.run.name = "test";
    c.run.group = "";
    c.run.dir = "";
    c.run.seed = 1;
    c.run.threads = 1;
    c.model.layers = layers;
    c.model.width = width;
    c.model.heads = c.model.kv_heads = heads;
    c.model.head_dim = head_dim;
    c.model.context = 64;
    c.train.global_batch = 4;
    c.train.steps = 100;
    c.train.init_from = "";
    c.attention.variant = variant;
    c.attention.kv_lora_rank = 2 * head_dim;
    c.attention.qk_nope_head_dim = c.attention.v_head_dim = head_dim;
    c.attention.qk_rope_head_dim = head_dim / 2;
    c.attention.latent_norm = true;
    c.data.tokenizer = "";
    c.diagnostics.ranks = 1;
    c.diagnostics.every = 10;
    c.diagnostics.forms = (config_list){3, forms};
    c.diagnostics.parts = (config_list){3, parts};
    c.diagnostics.scopes = (config_list){2, scopes};
    return c;
}
