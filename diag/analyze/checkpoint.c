#include "diag/analyze/checkpoint.h"

#include "core/file.h"
#include "diag/chain.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BAD(c, format, ...) status_fail(STATUS_DATA, "%s: " format, (c)->files.path, ##__VA_ARGS__)

enum { NAME_BYTES = 128 };

/* A tensor of ours in the files: these rows of theirs. */
typedef struct place {
    char name[NAME_BYTES];
    const safetensors_entry *entry;
    int64_t first, rows, cols; /* rows first to first + rows - 1 */
} place;

static void put_name(char *to, const checkpoint *c, int layer, const char *theirs) {
    int used = snprintf(to, NAME_BYTES, c->architecture.layer, layer);
    snprintf(to + used, (size_t)(NAME_BYTES - used), "%s", theirs);
}

/* ---- finding and checking ---- */

static bool is_float(safetensors_type type) {
    return type == SAFETENSORS_F32 || type == SAFETENSORS_BF16 || type == SAFETENSORS_F16 || type == SAFETENSORS_F64;
}

/* rows x cols, or a vector of cols where there is one row. */
static status check_shape(const checkpoint *c, const place *p, int64_t rows) {
    const safetensors_entry *e = p->entry;
    bool fits = e->rank == 2 && e->shape[0] == rows && e->shape[1] == p->cols;
    if (e->rank == 1 && rows == 1) fits = e->shape[0] == p->cols;
    if (fits) return STATUS_OK;
    char has[128] = "a scalar";
    for (int i = 0, used = 0; i < e->rank && used < (int)sizeof(has); i++)
        used += snprintf(has + used, sizeof(has) - (size_t)used, "%s%" PRId64, i ? " x " : "", e->shape[i]);
    return BAD(c, "tensor %s is %s; from the configuration it is %" PRId64 " x %" PRId64, p->name, has, rows, p->cols);
}

static status find_entry(const checkpoint *c, place *p, int64_t rows) {
    p->entry = files_find(&c->files, p->name);
    if (!p->entry) return BAD(c, "there is no tensor %s", p->name);
    if (!is_float(p->entry->type))
        return BAD(c, "tensor %s is %s; convert the model to bf16, fp16 or fp32 first", p->name,
                   safetensors_type_name(p->entry->type));
    return check_shape(c, p, rows);
}

/* Where a tensor of the chain lies, checked. */
static status find_place(const checkpoint *c, int layer, const chain_tensor *t, place *p) {
    const architecture *a = &c->architecture;
    *p = (place){.rows = t->rows, .cols = t->cols};
    if (!a->tensors) {
        put_name(p->name, c, layer, t->name);
        return find_entry(c, p, t->rows);
    }
    const architecture_tensor *theirs = architecture_find(a, t->name);
    if (!theirs) return status_fail(STATUS_INTERNAL, "no tensor of %s is %s", a->family, t->name);
    put_name(p->name, c, layer, theirs->theirs);
    int64_t stacked = a->config.attention.kv_lora_rank + a->config.attention.qk_rope_head_dim;
    if (theirs->rows == ROWS_ROTARY) p->first = a->config.attention.kv_lora_rank;
    return find_entry(c, p, theirs->rows == ROWS_ALL ? t->rows : stacked);
}

/* The gain of q_norm or k_norm, [D]. */
static status find_head_norm(const checkpoint *c, int layer, const char *theirs, place *p) {
    *p = (place){.rows = 1, .cols = c->architecture.config.model.head_dim};
    put_name(p->name, c, layer, theirs);
    return find_entry(c, p, 1);
}

static status check_layer(const checkpoint *c, const chain *k, int layer) {
    place p;
    for (int i = 0; i < CHAIN_SLOTS; i++)
        if (k->slot[i].name) TRY(find_place(c, layer, &k->slot[i], &p));
    if (!c->architecture.head_norms) return STATUS_OK;
    TRY(find_head_norm(c, layer, "self_attn.q_norm.weight", &p));
    return find_head_norm(c, layer, "self_attn.k_norm.weight", &p);
}

/* A base model is saved without the prefix of the one with a head. */
static void choose_prefix(checkpoint *c) {
    char name[NAME_BYTES];
    put_name(name, c, 0, "input_layernorm.weight");
    if (c->architecture.tensors && !files_find(&c->files, name)) c->architecture.layer = "layers.%d.";
    put_name(name, c, 0, "input_layernorm.weight");
    if (c->architecture.tensors && !files_find(&c->files, name)) c->architecture.layer = "model.layers.%d.";
}

static status check_tensors(checkpoint *c) {
    choose_prefix(c);
    chain k = chain_of(&c->architecture.config);
    for (int layer = 0; layer < c->architecture.config.model.layers; layer++) TRY(check_layer(c, &k, layer));
    return STATUS_OK;
}

/* ---- opening ---- */

/* The folder that a configuration may be in; malloc'ed. */
static char *folder_of(const files *f) {
    const char *slash = strrchr(f->path, '/');
    if (f->folder) return strdup(f->path);
    return slash ? strndup(f->path, (size_t)(slash - f->path) + 1) : strdup(".");
}

/* No configuration was found in the folder. */
static status no_configuration(const checkpoint *c, const char *folder) {
    char *path = NULL;
    bool foreign = !c->files.folder && files_inside(&path, folder, "config.json") == STATUS_OK;
    free(path);
    status_clear();
    return status_fail(STATUS_NO_INPUT,
                       "%s: there is no %sconfig.yaml beside its tensors; --config names one for Bulkhead's own%s",
                       c->files.path, c->files.folder ? "config.json or " : "",
                       foreign ? ", and a model with config.json is named by its folder" : "");
}

static status read_architecture(checkpoint *c, const char *folder, const char *config_path, const char *const *settings,
                                int setting_count) {
    char *path;
    if (config_path) return architecture_read_own(&c->architecture, config_path, settings, setting_count);
    status s = c->files.folder ? files_inside(&path, folder, "config.json") : STATUS_NO_INPUT;
    if (s == STATUS_OK) {
        s = architecture_read(&c->architecture, path, settings, setting_count);
        free(path);
        return s;
    }
    if (s != STATUS_NO_INPUT) return s;
    status_clear();
    s = files_inside(&path, folder, "config.yaml");
    if (s == STATUS_NO_INPUT) return no_configuration(c, folder);
    if (s != STATUS_OK) return s;
    s = architecture_read_own(&c->architecture, path, settings, setting_count);
    free(path);
    return s;
}

status checkpoint_open(checkpoint *out, const char *path, const char *config_path, const char *const *settings,
                       int setting_count) {
    *out = (checkpoint){0};
    TRY(files_open(&out->files, path));
    char *folder = folder_of(&out->files);
    status s = folder ? read_architecture(out, folder, config_path, settings, setting_count)
                      : status_fail(STATUS_INTERNAL, "out of memory for a path");
    free(folder);
    if (s == STATUS_OK && (s = check_tensors(out)) != STATUS_OK) architecture_free(&out->architecture);
    if (s != STATUS_OK) files_close(&out->files);
    return s;
}

void checkpoint_close(checkpoint *c) {
    architecture_free(&c->architecture);
    files_close(&c->files);
}

/* ---- reading ---- */

static status read_values(const checkpoint *c, const place *p, float *to) {
    return files_read(&c->files, p->entry, p->first, p->rows, to);
}

/* A new tensor of the snapshot; NULL: out of memory. */
static float *add_tensor(snapshot *to, int layer, const chain_tensor *t) {
    snapshot_tensor *more = realloc(to->tensors, (size_t)(to->count + 1) * sizeof(*more));
    if (!more) return NULL;
    to->tensors = more;
    snapshot_tensor *added = &to->tensors[to->count];
    *added = (snapshot_tensor){.rows = t->rows, .cols = t->cols, .seen = t->rows * t->cols};
    snprintf(added->name, sizeof(added->name), "layers.%d.%s", layer, t->name);
    added->data = malloc((size_t)(t->rows * t->cols) * sizeof(float));
    if (added->data) to->count++;
    return added->data;
}

/* Rows of each head times the gain of its norm. */
static status fold_head_norm(const checkpoint *c, int layer, const chain_tensor *t, const char *theirs, float *data) {
    place p;
    TRY(find_head_norm(c, layer, theirs, &p));
    float *gain = malloc((size_t)p.cols * sizeof(*gain));
    if (!gain) return status_fail(STATUS_INTERNAL, "out of memory for %s", p.name);
    status s = read_values(c, &p, gain);
    for (int64_t row = 0; s == STATUS_OK && row < t->rows; row++)
        for (int64_t col = 0; col < t->cols; col++) data[row * t->cols + col] *= gain[row % p.cols];
    free(gain);
    return s;
}

static status read_tensor(const checkpoint *c, int layer, int slot, const chain_tensor *t, snapshot *to) {
    const architecture *a = &c->architecture;
    place p;
    TRY(find_place(c, layer, t, &p));
    float *data = add_tensor(to, layer, t);
    if (!data) return status_fail(STATUS_INTERNAL, "out of memory for %s", p.name);
    TRY(read_values(c, &p, data));
    if (slot == CHAIN_NORM && a->gain_plus_one)
        for (int64_t i = 0; i < t->cols; i++) data[i] += 1;
    if (slot == CHAIN_QUERY && a->head_norms) return fold_head_norm(c, layer, t, "self_attn.q_norm.weight", data);
    if (slot == CHAIN_KEY && a->head_norms) return fold_head_norm(c, layer, t, "self_attn.k_norm.weight", data);
    return STATUS_OK;
}

status checkpoint_read_layer(const checkpoint *c, int layer, snapshot *to) {
    chain k = chain_of(&c->architecture.config);
    for (int i = 0; i < CHAIN_SLOTS; i++)
        if (k.slot[i].name) TRY(read_tensor(c, layer, i, &k.slot[i], to));
    return STATUS_OK;
}

/* ---- what is left out ---- */

static bool has_bias(const checkpoint *c) {
    static const char *const names[] = {"self_attn.q_proj.bias",   "self_attn.k_proj.bias",
                                        "self_attn.q_a_proj.bias", "self_attn.kv_a_proj_with_mqa.bias",
                                        "self_attn.q_b_proj.bias", "self_attn.kv_b_proj.bias"};
    char name[NAME_BYTES];
    for (int layer = 0; layer < c->architecture.config.model.layers; layer++)
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            put_name(name, c, layer, names[i]);
            if (files_find(&c->files, name)) return true;
        }
    return false;
}

bool checkpoint_folds_weights(const checkpoint *c) {
    return c->architecture.head_norms;
}

void checkpoint_notes(const checkpoint *c, void (*say)(void *user, const char *text), void *user) {
    const architecture *a = &c->architecture;
    if (a->tensors && has_bias(c))
        say(user, "queries or keys have biases: the maps are the bilinear part of the scores, what a bias adds is left "
                  "out");
    if (a->head_norms)
        say(user, "each head's query and key is normalized: the gains of q_norm and k_norm are folded into W_Q and "
                  "W_K, the division by a token's own rms, a positive factor, is left out; columns against nulls with "
                  "gains kept do not know these gains and "
                  "stay NULL");
    if (a->score_cap) say(user, "scores are capped by a tanh, which keeps their order and is left out");
}
