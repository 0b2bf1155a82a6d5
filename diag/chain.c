/* The tensors of each variant; see chain.h. Nothing is allocated; chain_block overwrites. */
#include "diag/chain.h"

#include "diag/maps.h"

#include <stdio.h>
#include <string.h>

static const char *after_dot(const char *name) {
    return strchr(name, '.') + 1;
}

static chain_tensor shared(const char *name, int64_t rows, int64_t cols) {
    return (chain_tensor){
        .name = name, .rows = rows, .cols = cols, .used = (int)rows, .weight = after_dot(name), .part = MAPS_full};
}

static chain_tensor gain(const char *name, int64_t cols) {
    return (chain_tensor){.name = name, .rows = 1, .cols = cols, .used = 1};
}

static chain_tensor by_head(const char *name, int64_t heads, int64_t block, int64_t cols) {
    return (chain_tensor){.name = name,
                          .rows = heads * block,
                          .cols = cols,
                          .heads = (int)heads,
                          .used = (int)block,
                          .weight = after_dot(name),
                          .part = MAPS_full};
}

static bool records_ov(const config *c) {
    for (int i = 0; i < c->diagnostics.parts.count; i++)
        if (strcmp(c->diagnostics.parts.items[i], maps_part_names[MAPS_ov]) == 0) return true;
    return false;
}

/* W_O [d, H D_v], a head a block of columns, and what makes a head's values; mla-prerope's W_V is on the keys' way. */
static void add_ov(chain *k, const config *c) {
    int64_t d = c->model.width, heads = c->model.heads, dim = c->model.head_dim, latent = c->attention.kv_lora_rank;
    chain_tensor *value = &k->slot[CHAIN_OV_VALUE], *out = &k->slot[CHAIN_OV_OUT];
    k->value = (int)(c->attention.variant == VARIANT_MLA_DECOUPLED ? c->attention.v_head_dim : dim);
    switch (c->attention.variant) {
    case VARIANT_MHA:
        *value = by_head("attention.W_V", c->model.kv_heads, dim, d);
        break;
    case VARIANT_MLA_PREROPE:
        *value = by_head("attention.W_UV", heads, dim, latent);
        break;
    case VARIANT_MLA_DECOUPLED: /* a head's rows are [k_n | v] */
        *value = by_head("attention.W_UKV", heads, k->content + k->value, latent);
        value->skip = k->content;
        value->used = k->value;
        value->weight = "W_UV";
        break;
    }
    *out = (chain_tensor){.name = "attention.W_O",
                          .rows = d,
                          .cols = heads * k->value,
                          .heads = (int)heads,
                          .used = (int)d,
                          .across = true,
                          .weight = "W_O"};
    value->part = out->part = MAPS_ov;
}

static void add_prerope(chain *k, const config *c) {
    int64_t d = c->model.width, heads = c->model.heads, dim = c->model.head_dim, latent = c->attention.kv_lora_rank;
    chain_tensor *t = k->slot;
    t[CHAIN_QUERY] = by_head("attention.W_Q", heads, dim, d);
    t[CHAIN_UP] = by_head("attention.W_UK", heads, dim, latent);
    if (c->attention.prerope_source == SOURCE_HIDDEN) {
        t[CHAIN_DOWN] = shared("attention.W_D", latent, d);
        return;
    }
    t[CHAIN_KEY] = by_head("attention.W_K", heads, dim, d);
    t[CHAIN_VALUE] = by_head("attention.W_V", heads, dim, d);
    t[CHAIN_DOWN_K] = shared("attention.W_DK", latent, heads * dim);
    t[CHAIN_DOWN_V] = shared("attention.W_DV", latent, heads * dim);
}

static void add_decoupled(chain *k, const config *c) {
    int64_t d = c->model.width, heads = c->model.heads, latent = c->attention.kv_lora_rank;
    int64_t nope = c->attention.qk_nope_head_dim, rope = c->attention.qk_rope_head_dim,
            q_latent = c->attention.q_lora_rank;
    chain_tensor *t = k->slot;
    k->content = (int)nope;
    k->rope = (int)rope;
    t[CHAIN_QUERY] =
        by_head(q_latent ? "attention.W_UQ" : "attention.W_Q", heads, nope + rope, q_latent ? q_latent : d);
    if (q_latent) t[CHAIN_Q_DOWN] = shared("attention.W_DQ", q_latent, d);
    if (q_latent && c->attention.latent_norm) t[CHAIN_Q_NORM] = gain("attention.q_latent_norm", q_latent);
    t[CHAIN_DOWN] = shared("attention.W_DKV", latent, d);
    t[CHAIN_UP] = by_head("attention.W_UKV", heads, nope + c->attention.v_head_dim, latent);
    t[CHAIN_UP].used = (int)nope; /* a head's rows are [k_n | v] */
    t[CHAIN_UP].weight = "W_UK";
    t[CHAIN_KEY_ROPE] = shared("attention.W_KR", rope, d);
}

chain chain_of(const config *c) {
    int64_t d = c->model.width, dim = c->model.head_dim;
    chain k = {.content = (int)dim};
    k.slot[CHAIN_NORM] = gain("attention_norm", d);
    switch (c->attention.variant) {
    case VARIANT_MHA:
        k.slot[CHAIN_QUERY] = by_head("attention.W_Q", c->model.heads, dim, d);
        k.slot[CHAIN_KEY] = by_head("attention.W_K", c->model.kv_heads, dim, d);
        break;
    case VARIANT_MLA_PREROPE:
        add_prerope(&k, c);
        break;
    case VARIANT_MLA_DECOUPLED:
        add_decoupled(&k, c);
        break;
    }
    if (c->attention.variant != VARIANT_MHA && c->attention.latent_norm)
        k.slot[CHAIN_KV_NORM] = gain("attention.latent_norm", c->attention.kv_lora_rank);
    if (records_ov(c)) add_ov(&k, c);
    return k;
}

int chain_rows(const chain_tensor *t) {
    return t->used;
}

int chain_cols(const chain_tensor *t) {
    return (int)(t->across ? t->cols / t->heads : t->cols);
}

void chain_block(double *to, const chain_tensor *t, const float *from, int h) {
    int rows = chain_rows(t), cols = chain_cols(t);
    if (t->across)
        from += (int64_t)h * cols;
    else if (t->heads)
        from += h * (t->rows / t->heads) * t->cols;
    from += t->skip * t->cols;
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) to[(int64_t)i * cols + j] = from[i * t->cols + j];
}

bool maps_wants(const config *c, const char *name) {
    int layer, used = 0;
    if (sscanf(name, "layers.%d.%n", &layer, &used) != 1 || used == 0) return false;
    chain k = chain_of(c);
    for (int i = 0; i < CHAIN_SLOTS; i++)
        if (k.slot[i].name && strcmp(k.slot[i].name, name + used) == 0) return true;
    return false;
}
