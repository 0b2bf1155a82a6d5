#include "trainer/portable.h"

#include "core/file.h"
#include "core/json.h"
#include "core/new_folder.h"
#include "trainer/foreign.h"

#include <inttypes.h>
#include <modeling_text.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const size_t TOKENIZER_LIMIT_BYTES = (size_t)1 << 30;

/* Where a folder is being made, and what it is of. */
typedef struct folder {
    const trained *trained;
    const char *path;           /* that it will have */
    const char *partial;        /* that it has until then */
    const char *tokenizer_file; /* NULL: none */
    tokenizer *tokenizer;
} folder;

/* A file of it, malloc'ed; NULL: out of memory. */
static char *file_of(const folder *f, const char *name) {
    return file_join(f->partial, name);
}

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the model's folder");
}

/* ---- weights ---- */

/* Tensors on their way into a file; each owns name and values. */
typedef struct tensors {
    int count;
    safetensors_entry *entry;
} tensors;

static void free_tensors(tensors *t) {
    for (int i = 0; i < t->count; i++) {
        free((char *)t->entry[i].name);
        free((void *)t->entry[i].data);
    }
    free(t->entry);
}

/* The tensor of that place, made where it is not there yet; NULL: out of memory. */
static safetensors_entry *tensor_at(tensors *t, const foreign_place *p) {
    for (int i = 0; i < t->count; i++)
        if (strcmp(t->entry[i].name, p->name) == 0) return &t->entry[i];
    safetensors_entry e = {.name = strdup(p->name), .type = SAFETENSORS_F32, .rank = p->vector ? 1 : 2};
    e.shape[0] = p->vector ? p->cols : p->rows;
    e.shape[1] = p->vector ? 0 : p->cols;
    e.bytes = (size_t)(p->rows * p->cols) * sizeof(float);
    e.data = malloc(e.bytes);
    if (e.name && e.data) {
        t->entry[t->count] = e;
        return &t->entry[t->count++];
    }
    free((char *)e.name);
    free((void *)e.data);
    return NULL;
}

/* The place of a parameter in a file. */
typedef status (*place_of)(foreign_place *out, const param *q, const config *c);

static status add_parameter(tensors *t, const model *m, int i, const config *c, place_of place) {
    const param *q = &m->params.list[i];
    tensor weight = params_weight(&m->params, i);
    foreign_place p;
    TRY(place(&p, q, c));
    safetensors_entry *e = tensor_at(t, &p);
    if (!e) return out_of_memory();
    for (int64_t r = 0; r < q->spec.rows; r++)
        memcpy((float *)e->data + foreign_row_of(&p, r) * p.cols, tensor_f32(weight) + r * weight.ld,
               (size_t)p.cols * sizeof(float));
    return STATUS_OK;
}

static status write_weights(const folder *f, place_of place) {
    static const char *const format[][2] = {{"format", "pt"}};
    const model *m = &f->trained->model;
    tensors t = {.entry = calloc((size_t)m->params.count, sizeof *t.entry)};
    char *path = file_of(f, "model.safetensors");
    status s = path && t.entry ? STATUS_OK : out_of_memory();
    for (int i = 0; i < m->params.count && s == STATUS_OK; i++) s = add_parameter(&t, m, i, &f->trained->config, place);
    if (s == STATUS_OK) s = safetensors_write(path, t.entry, t.count, format, 1);
    free(path);
    free_tensors(&t);
    return s;
}

/* ---- other files ---- */

static status write_text(const folder *f, const char *name, const char *text, size_t bytes) {
    char *path = file_of(f, name);
    if (!path) return out_of_memory();
    status s = file_write_atomic(path, text, bytes);
    free(path);
    return s;
}

static status write_json(const folder *f, const char *name, json_t *value) {
    char *path = file_of(f, name);
    status s = path && value ? json_write_file(path, value) : out_of_memory();
    json_decref(value);
    free(path);
    return s;
}

static status copy_tokenizer(const folder *f) {
    char *bytes;
    size_t count;
    TRY(file_read_all(&bytes, &count, f->tokenizer_file, TOKENIZER_LIMIT_BYTES));
    status s = write_text(f, tokenizer_file_name(f->tokenizer), bytes, count);
    free(bytes);
    return s;
}

static status fill(folder *f, status (*write)(const folder *f)) {
    char *partial;
    TRY(new_folder_make(&partial, f->path));
    f->partial = partial;
    status s = write(f);
    if (s == STATUS_OK && f->tokenizer) s = copy_tokenizer(f);
    if (s == STATUS_OK) return new_folder_publish(partial, f->path);
    new_folder_discard(partial);
    return s;
}

static status make(folder *f, status (*write)(const folder *f)) {
    if (f->tokenizer_file) TRY(tokenizer_load(&f->tokenizer, f->tokenizer_file));
    status s = fill(f, write);
    tokenizer_free(f->tokenizer);
    return s;
}

/* ---- export ---- */

const char *portable_class(const config *c) {
    static const char *const classes[] = {[VARIANT_MHA] = "LlamaForCausalLM",
                                          [VARIANT_MLA_PREROPE] = "BulkheadPreropeForCausalLM",
                                          [VARIANT_MLA_DECOUPLED] = "DeepseekV3ForCausalLM"};
    return classes[c->attention.variant];
}

static status check_exportable(const config *c) {
    if (c->attention.variant == VARIANT_MHA && c->attention.v_head_dim != c->model.head_dim)
        return status_fail(STATUS_CONFIG,
                           "attention.v_head_dim %" PRId64 ": LlamaForCausalLM has values as wide as keys, %" PRId64,
                           c->attention.v_head_dim, c->model.head_dim);
    if (c->attention.variant != VARIANT_MLA_DECOUPLED) return STATUS_OK;
    if (!c->attention.latent_norm)
        return status_fail(STATUS_CONFIG, "attention.latent_norm false: DeepseekV3ForCausalLM norms its latents");
    if (c->model.norm_eps != FOREIGN_LATENT_EPS)
        return status_fail(STATUS_CONFIG, "model.norm_eps %g: DeepseekV3ForCausalLM norms its latents with %g always",
                           c->model.norm_eps, FOREIGN_LATENT_EPS);
    return STATUS_OK;
}

/* DeepSeek's order of rotary rows: programs that do not look at rope_interleave expect it too. */
static status exported_place(foreign_place *out, const param *q, const config *c) {
    return foreign_place_of(out, q, c, c->attention.variant == VARIANT_MLA_DECOUPLED);
}

/* An id, or null: a missing one would be Llama's. */
static json_t *json_of_id(int32_t id) {
    return id < 0 ? json_null() : json_integer(id);
}

static json_t *common_config(const config *c, const char *type, const tokenizer *k) {
    return json_pack("{s:[s], s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:s, s:f, s:f, s:{s:s, s:f}, s:b, s:b, s:b, "
                     "s:f, s:b, s:o, s:o}",
                     "architectures", portable_class(c), "model_type", type, "torch_dtype", "float32", "vocab_size",
                     (json_int_t)c->model.vocab, "hidden_size", (json_int_t)c->model.width, "intermediate_size",
                     (json_int_t)c->model.ffn, "num_hidden_layers", (json_int_t)c->model.layers, "num_attention_heads",
                     (json_int_t)c->model.heads, "num_key_value_heads", (json_int_t)c->model.kv_heads,
                     "max_position_embeddings", (json_int_t)c->model.context, "hidden_act", "silu", "rms_norm_eps",
                     c->model.norm_eps, "rope_theta", c->model.rope_theta, "rope_parameters", "rope_type", "default",
                     "rope_theta", c->model.rope_theta, "tie_word_embeddings", (int)c->model.tie_embeddings,
                     "attention_bias", 0, "mlp_bias", 0, "initializer_range", 0.02, "use_cache", 1, "bos_token_id",
                     json_of_id(k ? tokenizer_bos(k) : -1), "eos_token_id", json_of_id(k ? tokenizer_eos(k) : -1));
}

static json_t *latent_config(const config *c) {
    json_t *rank = c->attention.q_lora_rank ? json_integer(c->attention.q_lora_rank) : json_null();
    return json_pack("{s:I, s:o, s:I, s:I, s:I, s:b, s:I, s:n, s:I}", "kv_lora_rank",
                     (json_int_t)c->attention.kv_lora_rank, "q_lora_rank", rank, "qk_nope_head_dim",
                     (json_int_t)c->attention.qk_nope_head_dim, "qk_rope_head_dim",
                     (json_int_t)c->attention.qk_rope_head_dim, "v_head_dim", (json_int_t)c->attention.v_head_dim,
                     "rope_interleave", 1, "first_k_dense_replace", (json_int_t)c->model.layers, "rope_scaling",
                     "num_nextn_predict_layers", (json_int_t)0);
}

static json_t *prerope_config(const config *c) {
    const char *source = c->attention.prerope_source == SOURCE_HIDDEN ? "hidden" : "key";
    return json_pack("{s:I, s:I, s:b, s:s, s:{s:s, s:s}}", "head_dim", (json_int_t)c->model.head_dim, "kv_lora_rank",
                     (json_int_t)c->attention.kv_lora_rank, "latent_norm", (int)c->attention.latent_norm,
                     "prerope_source", source, "auto_map", "AutoConfig", "modeling_bulkhead.BulkheadPreropeConfig",
                     "AutoModelForCausalLM", "modeling_bulkhead.BulkheadPreropeForCausalLM");
}

static status write_config_json(const folder *f) {
    static const char *const types[] = {
        [VARIANT_MHA] = "llama", [VARIANT_MLA_PREROPE] = "bulkhead_prerope", [VARIANT_MLA_DECOUPLED] = "deepseek_v3"};
    const config *c = &f->trained->config;
    json_t *all = common_config(c, types[c->attention.variant], f->tokenizer), *own = NULL;
    switch (c->attention.variant) {
    case VARIANT_MHA:
        own = json_pack("{s:I}", "head_dim", (json_int_t)c->model.head_dim);
        break;
    case VARIANT_MLA_PREROPE:
        own = prerope_config(c);
        break;
    case VARIANT_MLA_DECOUPLED:
        own = latent_config(c);
        break;
    }
    bool merged = all && own && json_object_update(all, own) == 0;
    json_decref(own);
    if (!merged) {
        json_decref(all);
        return out_of_memory();
    }
    return write_json(f, "config.json", all);
}

/* What transformers asks beside tokenizer.model: ours neither adds nor changes a character. */
static json_t *pieces_config(const tokenizer *k) {
    bool begins = tokenizer_bos(k) >= 0;
    return json_pack("{s:s, s:b, s:b, s:b, s:b, s:o, s:s, s:s}", "tokenizer_class", "LlamaTokenizer", "add_bos_token",
                     (int)begins, "add_eos_token", 0, "add_prefix_space", 0, "legacy", 0, "bos_token",
                     begins ? json_string("<s>") : json_null(), "eos_token", "</s>", "unk_token", "<unk>");
}

/* Beside tokenizer.json, which says all else itself. */
static json_t *json_tokenizer_config(const tokenizer *k) {
    const char *begin = tokenizer_piece(k, tokenizer_bos(k));
    return json_pack("{s:s, s:o, s:s}", "tokenizer_class", "PreTrainedTokenizerFast", "bos_token",
                     begin ? json_string(begin) : json_null(), "eos_token", tokenizer_piece(k, tokenizer_eos(k)));
}

static status write_tokenizer_config(const folder *f) {
    bool pieces = strcmp(tokenizer_file_name(f->tokenizer), "tokenizer.model") == 0;
    json_t *all = pieces ? pieces_config(f->tokenizer) : json_tokenizer_config(f->tokenizer);
    json_object_set_new(all, "clean_up_tokenization_spaces", json_false());
    json_object_set_new(all, "model_max_length", json_integer(f->trained->config.model.context));
    return write_json(f, "tokenizer_config.json", all);
}

static status write_export(const folder *f) {
    TRY(write_config_json(f));
    if (f->tokenizer) TRY(write_tokenizer_config(f));
    if (f->trained->config.attention.variant == VARIANT_MLA_PREROPE)
        TRY(write_text(f, "modeling_bulkhead.py", modeling_text, strlen(modeling_text)));
    return write_weights(f, exported_place);
}

status portable_export(const trained *t, const char *tokenizer_file, const char *path) {
    folder f = {.trained = t, .path = path, .tokenizer_file = tokenizer_file};
    TRY(check_exportable(&t->config));
    return make(&f, write_export);
}

/* ---- import ---- */

static status own_place(foreign_place *out, const param *q, const config *c) {
    *out = (foreign_place){.rows = q->spec.rows, .cols = q->spec.cols, .head = q->spec.rows};
    snprintf(out->name, sizeof out->name, "%s", q->name);
    return STATUS_OK;
}

typedef struct yaml {
    FILE *out;
    const char *section; /* that is open */
} yaml;

/* Keys of the sections that say what the model is. */
static void add_key(void *user, const char *key, const char *value) {
    static const char *const sections[] = {"model", "attention"};
    yaml *y = user;
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++) {
        size_t length = strlen(sections[i]);
        if (strncmp(key, sections[i], length) != 0 || key[length] != '.') continue;
        if (y->section != sections[i]) fprintf(y->out, "%s:\n", sections[i]);
        y->section = sections[i];
        fprintf(y->out, "  %s: %s\n", key + length + 1, value);
    }
}

/* The path that a file of the folder will have, from anywhere, in quotes as YAML and JSON have them; malloc'ed. NULL:
 * it cannot be had. */
static char *quoted_path(const folder *f, const char *name) {
    char *real = realpath(f->partial, NULL), *path = NULL, *quoted = NULL;
    size_t length = real ? strlen(real) - strlen(NEW_FOLDER_ENDING) : 0;
    if (real && asprintf(&path, "%.*s/%s", (int)length, real, name) >= 0) {
        json_t *json = json_string(path);
        quoted = json ? json_dumps(json, JSON_ENCODE_ANY) : NULL;
        json_decref(json);
    }
    free(real);
    free(path);
    return quoted;
}

static status write_config_yaml(const folder *f) {
    const char *name = f->tokenizer ? tokenizer_file_name(f->tokenizer) : "";
    char *text = NULL, *weights = quoted_path(f, "model.safetensors"), *tokens = quoted_path(f, name);
    size_t bytes = 0;
    yaml y = {.out = open_memstream(&text, &bytes)};
    status s = y.out ? STATUS_OK : out_of_memory();
    if (!weights || !tokens) s = status_fail(STATUS_IO, "the path of %s cannot be put into config.yaml", f->path);
    if (s == STATUS_OK) {
        fprintf(y.out,
                "# The model as it came. To go on with its training: bulkhead train THIS --set data.train=SHARDS,\n"
                "# made with its own tokenizer, and the keys of section train.\n");
        config_visit(&f->trained->config, add_key, &y);
        fprintf(y.out, "train:\n  init_from: %s\n", weights);
        if (f->tokenizer) fprintf(y.out, "data:\n  tokenizer: %s\n", tokens);
    }
    if (y.out && fclose(y.out) != 0 && s == STATUS_OK) s = out_of_memory();
    if (s == STATUS_OK) s = write_text(f, "config.yaml", text, bytes);
    free(text);
    free(weights);
    free(tokens);
    return s;
}

static status write_import(const folder *f) {
    TRY(write_config_yaml(f));
    return write_weights(f, own_place);
}

status portable_import(const trained *t, const char *tokenizer_file, const char *path) {
    folder f = {.trained = t, .path = path, .tokenizer_file = tokenizer_file};
    return make(&f, write_import);
}
