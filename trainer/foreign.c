#include "trainer/foreign.h"

#include "core/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BAD(f, format, ...) status_fail(STATUS_DATA, "%s: " format, (f)->files.path, ##__VA_ARGS__)

static const char CONFIG[] = "config.json";

/* ---- places ---- */

/* "layers.3.attention.W_Q": 3, and *rest is "attention.W_Q"; -1 outside of the layers. */
static int layer_of(const char *name, const char **rest) {
    int layer = -1, used = 0;
    *rest = name;
    if (sscanf(name, "layers.%d.%n", &layer, &used) != 1 || used == 0) return -1;
    *rest = name + used;
    return layer;
}

static void set_rotary(foreign_place *p, const param *q, const config *c, const char *own) {
    int64_t rope = c->attention.qk_rope_head_dim;
    p->head = q->spec.rows;
    if (strcmp(own, "attention.W_Q") == 0 || strcmp(own, "attention.W_UQ") == 0) {
        p->head = c->attention.qk_nope_head_dim + rope;
        p->rotary = rope;
    } else if (strcmp(own, "attention.W_KR") == 0) {
        p->rotary = rope;
    }
}

status foreign_place_of(foreign_place *out, const param *q, const config *c, bool interleaved) {
    const char *own;
    int layer = layer_of(q->name, &own);
    const architecture_tensor *list = layer < 0 ? architecture_outside : architecture_tensors_of(c->attention.variant);
    const architecture_tensor *t = architecture_in(list, own);
    if (!t) return status_fail(STATUS_INTERNAL, "%s has no name outside", q->name);
    *out = (foreign_place){
        .vector = q->spec.init == PARAM_ONES, .rows = q->spec.rows, .cols = q->spec.cols, .head = q->spec.rows};
    if (t->rows != ROWS_ALL) out->rows = c->attention.kv_lora_rank + c->attention.qk_rope_head_dim;
    if (t->rows == ROWS_ROTARY) out->first = c->attention.kv_lora_rank;
    if (interleaved) set_rotary(out, q, c, own);
    if (layer < 0)
        snprintf(out->name, sizeof out->name, "%s", t->theirs);
    else
        snprintf(out->name, sizeof out->name, "model.layers.%d.%s", layer, t->theirs);
    return STATUS_OK;
}

int64_t foreign_row_of(const foreign_place *p, int64_t r) {
    int64_t block = r / p->head, at = r % p->head, pair = at - (p->head - p->rotary), half = p->rotary / 2;
    if (pair >= 0) at = p->head - p->rotary + (pair < half ? 2 * pair : 2 * (pair - half) + 1);
    return p->first + block * p->head + at;
}

/* ---- what is refused ---- */

static bool is_true(const json_t *json, const char *key) {
    return json_is_true(json_object_get(json, key));
}

static const char *text_of(const json_t *json, const char *key) {
    return json_string_value(json_object_get(json, key));
}

static status check_rotary(const foreign *f, const json_t *json) {
    const json_t *scaling = json_object_get(json, "rope_scaling");
    if (!json_is_object(scaling)) scaling = json_object_get(json, "rope_parameters");
    const char *type = text_of(scaling, "rope_type");
    if (!type) type = text_of(scaling, "type");
    if (!type || strcmp(type, "default") == 0) return STATUS_OK;
    return BAD(f, "its rotary frequencies are scaled (%.40s), which Bulkhead's are not", type);
}

static status check_latent(const foreign *f, const json_t *json) {
    const config *c = &f->architecture.config;
    const json_t *dense = json_object_get(json, "first_k_dense_replace"),
                 *experts = json_object_get(json, "n_routed_experts");
    if (json_is_integer(experts) && json_integer_value(dense) < c->model.layers)
        return BAD(f, "it has layers of experts; Bulkhead's are dense");
    if (fabs(c->model.norm_eps - FOREIGN_LATENT_EPS) > 1e-3 * FOREIGN_LATENT_EPS)
        return BAD(f, "rms_norm_eps is %g, but its latents are normed with %g; Bulkhead has one epsilon",
                   c->model.norm_eps, FOREIGN_LATENT_EPS);
    return STATUS_OK;
}

static status check(foreign *f, const json_t *json) {
    static const char *const known[] = {"llama", "mistral", "deepseek_v2", "deepseek_v3", "bulkhead_prerope", NULL};
    const config *c = &f->architecture.config;
    const char *act = text_of(json, "hidden_act");
    const json_t *window = json_object_get(json, "sliding_window");
    int i = 0;
    while (known[i] && strcmp(known[i], f->architecture.family) != 0) i++;
    if (!known[i])
        return BAD(f,
                   "a model of type %s cannot be continued, only analyzed; Llama, Mistral and DeepSeek-V2 and -V3 can",
                   f->architecture.family);
    if (act && strcmp(act, "silu") != 0) return BAD(f, "hidden_act is %.40s, Bulkhead's is silu", act);
    if (is_true(json, "attention_bias") || is_true(json, "mlp_bias")) return BAD(f, "it has biases, Bulkhead has none");
    if (json_is_integer(window) && json_integer_value(window) < c->model.context)
        return BAD(f, "its attention has a sliding window; Bulkhead's sees the whole context");
    TRY(check_rotary(f, json));
    bool latent = c->attention.variant == VARIANT_MLA_DECOUPLED;
    f->interleaved = latent && (strcmp(f->architecture.family, "deepseek_v2") == 0 ||
                                !json_is_false(json_object_get(json, "rope_interleave")));
    return latent ? check_latent(f, json) : STATUS_OK;
}

/* ---- opening ---- */

static status read_config(foreign *f, const char *path, const char *const *settings, int setting_count) {
    json_t *json;
    TRY(architecture_read(&f->architecture, path, settings, setting_count));
    status s = json_read_file(&json, path, ARCHITECTURE_MAX_BYTES);
    if (s == STATUS_OK) {
        s = check(f, json);
        json_decref(json);
    }
    if (s != STATUS_OK) architecture_free(&f->architecture);
    return s;
}

status foreign_open(foreign *out, const char *folder, const char *const *settings, int setting_count) {
    char *path;
    *out = (foreign){0};
    TRY(files_open(&out->files, folder));
    status s = files_inside(&path, folder, CONFIG);
    if (s == STATUS_OK) {
        s = read_config(out, path, settings, setting_count);
        free(path);
    }
    if (s != STATUS_OK) files_close(&out->files);
    return s;
}

void foreign_close(foreign *f) {
    architecture_free(&f->architecture);
    files_close(&f->files);
}

/* ---- loading ---- */

/* What the file has under the place's name, in the place's shape. */
static status find(const foreign *f, const foreign_place *p, const safetensors_entry **out) {
    const safetensors_entry *e = *out = files_find(&f->files, p->name);
    if (!e) return BAD(f, "there is no tensor %s", p->name);
    bool fits = e->rank == 2 && e->shape[0] == p->rows && e->shape[1] == p->cols;
    if (p->vector) fits = e->rank == 1 && e->shape[0] == p->cols;
    if (fits) return STATUS_OK;
    return BAD(f, "tensor %s has another shape than the %" PRId64 " x %" PRId64 " of the configuration", p->name,
               p->rows, p->cols);
}

static status read_row(void *user, const param *q, int64_t r, float *row) {
    const foreign *f = user;
    const safetensors_entry *e;
    foreign_place p;
    TRY(foreign_place_of(&p, q, &f->architecture.config, f->interleaved));
    TRY(find(f, &p, &e));
    TRY(files_read(&f->files, e, foreign_row_of(&p, q->row + r), 1, row));
    for (int64_t c = 0; c < p.cols; c++)
        if (!isfinite(row[c]))
            return BAD(f, "tensor %s: element [%" PRId64 ", %" PRId64 "] is %g; training cannot start from it", p.name,
                       foreign_row_of(&p, q->row + r), c, (double)row[c]);
    return STATUS_OK;
}

/* Tensors that models carry without having parameters for them. */
static bool means_nothing(const foreign *f, const char *name) {
    static const char frequencies[] = "rotary_emb.inv_freq";
    size_t length = strlen(name), end = sizeof frequencies - 1;
    if (length >= end && strcmp(name + length - end, frequencies) == 0) return true;
    return f->architecture.config.model.tie_embeddings && strcmp(name, "lm_head.weight") == 0;
}

static status check_name(const foreign *f, const params *p, const char *name) {
    foreign_place place;
    for (int i = 0; i < p->count; i++) {
        TRY(foreign_place_of(&place, &p->list[i], &f->architecture.config, f->interleaved));
        if (strcmp(place.name, name) == 0) return STATUS_OK;
    }
    if (means_nothing(f, name)) return STATUS_OK;
    return BAD(f, "Bulkhead's model has nothing for the tensor %.200s", name);
}

status foreign_load(foreign *f, params *p, ops *o) {
    for (int i = 0; i < f->files.count; i++)
        for (int k = 0; k < f->files.file[i].count; k++) TRY(check_name(f, p, f->files.file[i].entries[k].name));
    return params_fill(p, o, read_row, f);
}
