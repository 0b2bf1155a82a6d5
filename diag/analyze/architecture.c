#include "diag/analyze/architecture.h"

#include "core/json.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What all layers end with, where the feed-forward part is dense. */
#define MLP_TENSORS                                                                                                    \
    {"mlp_norm", "post_attention_layernorm.weight", ROWS_ALL}, {"mlp.W_gate", "mlp.gate_proj.weight", ROWS_ALL},       \
        {"mlp.W_up", "mlp.up_proj.weight", ROWS_ALL}, {"mlp.W_down", "mlp.down_proj.weight", ROWS_ALL}, {              \
        NULL, NULL, ROWS_ALL                                                                                           \
    }

static const architecture_tensor grouped[] = {
    {"attention_norm", "input_layernorm.weight", ROWS_ALL}, {"attention.W_Q", "self_attn.q_proj.weight", ROWS_ALL},
    {"attention.W_K", "self_attn.k_proj.weight", ROWS_ALL}, {"attention.W_V", "self_attn.v_proj.weight", ROWS_ALL},
    {"attention.W_O", "self_attn.o_proj.weight", ROWS_ALL}, MLP_TENSORS};

static const architecture_tensor prerope[] = {{"attention_norm", "input_layernorm.weight", ROWS_ALL},
                                              {"attention.W_Q", "self_attn.q_proj.weight", ROWS_ALL},
                                              {"attention.W_K", "self_attn.k_proj.weight", ROWS_ALL},
                                              {"attention.W_V", "self_attn.v_proj.weight", ROWS_ALL},
                                              {"attention.W_DK", "self_attn.k_down_proj.weight", ROWS_ALL},
                                              {"attention.W_DV", "self_attn.v_down_proj.weight", ROWS_ALL},
                                              {"attention.W_D", "self_attn.down_proj.weight", ROWS_ALL},
                                              {"attention.latent_norm", "self_attn.latent_layernorm.weight", ROWS_ALL},
                                              {"attention.W_UK", "self_attn.k_up_proj.weight", ROWS_ALL},
                                              {"attention.W_UV", "self_attn.v_up_proj.weight", ROWS_ALL},
                                              {"attention.W_O", "self_attn.o_proj.weight", ROWS_ALL},
                                              MLP_TENSORS};

static const architecture_tensor latent[] = {{"attention_norm", "input_layernorm.weight", ROWS_ALL},
                                             {"attention.W_Q", "self_attn.q_proj.weight", ROWS_ALL},
                                             {"attention.W_DQ", "self_attn.q_a_proj.weight", ROWS_ALL},
                                             {"attention.q_latent_norm", "self_attn.q_a_layernorm.weight", ROWS_ALL},
                                             {"attention.W_UQ", "self_attn.q_b_proj.weight", ROWS_ALL},
                                             {"attention.W_DKV", "self_attn.kv_a_proj_with_mqa.weight", ROWS_LATENT},
                                             {"attention.W_KR", "self_attn.kv_a_proj_with_mqa.weight", ROWS_ROTARY},
                                             {"attention.latent_norm", "self_attn.kv_a_layernorm.weight", ROWS_ALL},
                                             {"attention.W_UKV", "self_attn.kv_b_proj.weight", ROWS_ALL},
                                             {"attention.W_O", "self_attn.o_proj.weight", ROWS_ALL},
                                             MLP_TENSORS};

const architecture_tensor architecture_outside[] = {{"embedding", "model.embed_tokens.weight", ROWS_ALL},
                                                    {"norm", "model.norm.weight", ROWS_ALL},
                                                    {"lm_head", "lm_head.weight", ROWS_ALL},
                                                    {NULL, NULL, ROWS_ALL}};

typedef struct family {
    const char *model_type;
    const architecture_tensor *tensors;
    bool gain_plus_one, head_norms, score_cap;
} family;

static const family families[] = {
    {"llama", grouped, false, false, false},      {"mistral", grouped, false, false, false},
    {"mixtral", grouped, false, false, false},    {"qwen2", grouped, false, false, false},
    {"qwen2_moe", grouped, false, false, false},  {"qwen3", grouped, false, true, false},
    {"qwen3_moe", grouped, false, true, false},   {"gemma", grouped, true, false, false},
    {"gemma2", grouped, true, false, true},       {"deepseek_v2", latent, false, false, false},
    {"deepseek_v3", latent, false, false, false}, {"bulkhead_prerope", prerope, false, false, false},
};

enum { FAMILY_COUNT = sizeof families / sizeof families[0], MOST_SETTINGS = 64, SETTING_BYTES = 96 };

typedef struct reader {
    const char *path;
    const json_t *json;
    int count;
    char text[MOST_SETTINGS][SETTING_BYTES];
} reader;

#define BAD(r, format, ...) status_fail(STATUS_DATA, "%s: " format, (r)->path, ##__VA_ARGS__)

/* ---- values ---- */

__attribute__((format(printf, 2, 3))) static void set(reader *r, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(r->text[r->count++], SETTING_BYTES, format, args);
    va_end(args);
}

static const json_t *value_of(const reader *r, const char *name) {
    const json_t *value = json_object_get(r->json, name);
    return json_is_null(value) ? NULL : value;
}

/* A count from 1 on; absent or null: otherwise, and 0 there means that it must be there. */
static status count_of(const reader *r, const char *name, int64_t otherwise, int64_t *out) {
    const json_t *value = value_of(r, name);
    *out = otherwise;
    if (!value && otherwise > 0) return STATUS_OK;
    if (!value) return BAD(r, "%s is missing", name);
    *out = json_integer_value(value);
    if (!json_is_integer(value) || *out < 1) return BAD(r, "%s is no count from 1 on", name);
    return STATUS_OK;
}

/* Copies the number, where it is one, to a key. */
static void copy_number(reader *r, const json_t *from, const char *name, const char *key) {
    const json_t *value = json_object_get(from, name);
    if (json_is_number(value)) set(r, "%s=%.17g", key, json_number_value(value));
}

/* ---- what is refused ---- */

static status find_family(const reader *r, const family **out) {
    const char *type = json_string_value(value_of(r, "model_type"));
    if (!type) return BAD(r, "there is no model_type, so its attention is not known");
    for (int i = 0; i < FAMILY_COUNT; i++)
        if (strcmp(type, families[i].model_type) == 0) {
            *out = &families[i];
            return STATUS_OK;
        }
    char known[320] = "";
    for (int i = 0; i < FAMILY_COUNT; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", i ? ", " : "", families[i].model_type);
    }
    return BAD(r, "the attention of model_type \"%.40s\" is not known; known are %s", type, known);
}

static status check_quantization(const reader *r) {
    const json_t *how = value_of(r, "quantization_config");
    if (!how) return STATUS_OK;
    const char *method = json_string_value(json_object_get(how, "quant_method"));
    return BAD(r, "its weights are quantized (%.40s); convert them to bf16, fp16 or fp32 first",
               method ? method : "quantization_config");
}

/* YaRN scales what rotates; all of a head in mha, the rotary rows alone in MLA, where only the ratio 1 leaves the map
 * as it is. Other kinds of scaling change frequencies only. */
static status check_rotary_scale(const reader *r) {
    const json_t *scaling = value_of(r, "rope_scaling");
    if (!scaling) scaling = value_of(r, "rope_parameters");
    const char *type = json_string_value(json_object_get(scaling, "rope_type"));
    if (!type) type = json_string_value(json_object_get(scaling, "type"));
    if (!type || strcmp(type, "default") == 0 || strcmp(type, "linear") == 0 || strcmp(type, "dynamic") == 0 ||
        strcmp(type, "llama3") == 0)
        return STATUS_OK;
    if (strcmp(type, "yarn") != 0) return BAD(r, "the rotary scaling \"%.40s\" is not known for MLA", type);
    const json_t *one = json_object_get(scaling, "mscale"), *all = json_object_get(scaling, "mscale_all_dim");
    if (json_is_number(one) && json_is_number(all) && json_number_value(one) == json_number_value(all))
        return STATUS_OK;
    return BAD(r, "YaRN scales its rotary rows against the others (mscale is not mscale_all_dim), which is not known");
}

/* ---- sizes ---- */

static status read_sizes(reader *r, int64_t *heads) {
    int64_t layers, width, ffn, vocab, context;
    TRY(count_of(r, "num_hidden_layers", 0, &layers));
    TRY(count_of(r, "hidden_size", 0, &width));
    TRY(count_of(r, "num_attention_heads", 0, heads));
    TRY(count_of(r, "intermediate_size", 0, &ffn));
    TRY(count_of(r, "vocab_size", 0, &vocab));
    TRY(count_of(r, "max_position_embeddings", 0, &context));
    set(r, "model.layers=%" PRId64, layers);
    set(r, "model.width=%" PRId64, width);
    set(r, "model.heads=%" PRId64, *heads);
    set(r, "model.ffn=%" PRId64, ffn);
    set(r, "model.vocab=%" PRId64, vocab);
    set(r, "model.context=%" PRId64, context);
    set(r, "model.tie_embeddings=%s", json_is_true(value_of(r, "tie_word_embeddings")) ? "true" : "false");
    const json_t *rotary = value_of(r, "rope_theta") ? r->json : value_of(r, "rope_parameters");
    copy_number(r, rotary, "rope_theta", "model.rope_theta");
    copy_number(r, r->json, "rms_norm_eps", "model.norm_eps");
    return STATUS_OK;
}

static status read_grouped(reader *r, int64_t heads) {
    int64_t kv_heads, dim, width = json_integer_value(value_of(r, "hidden_size"));
    if (!value_of(r, "head_dim") && width % heads != 0)
        return BAD(r, "num_attention_heads does not divide hidden_size, and there is no head_dim");
    TRY(count_of(r, "num_key_value_heads", heads, &kv_heads));
    TRY(count_of(r, "head_dim", value_of(r, "head_dim") ? 0 : width / heads, &dim));
    set(r, "attention.variant=mha");
    set(r, "model.kv_heads=%" PRId64, kv_heads);
    set(r, "model.head_dim=%" PRId64, dim);
    return STATUS_OK;
}

static status read_latent(reader *r) {
    int64_t latent_dim, nope, rope, value;
    TRY(check_rotary_scale(r));
    TRY(count_of(r, "kv_lora_rank", 0, &latent_dim));
    TRY(count_of(r, "qk_nope_head_dim", 0, &nope));
    TRY(count_of(r, "qk_rope_head_dim", 0, &rope));
    TRY(count_of(r, "v_head_dim", 0, &value));
    set(r, "attention.variant=mla-decoupled");
    set(r, "model.head_dim=%" PRId64, nope);
    set(r, "attention.kv_lora_rank=%" PRId64, latent_dim);
    set(r, "attention.qk_nope_head_dim=%" PRId64, nope);
    set(r, "attention.qk_rope_head_dim=%" PRId64, rope);
    set(r, "attention.v_head_dim=%" PRId64, value);
    if (!value_of(r, "q_lora_rank")) return STATUS_OK;
    TRY(count_of(r, "q_lora_rank", 0, &value));
    set(r, "attention.q_lora_rank=%" PRId64, value);
    return STATUS_OK;
}

/* A model that Bulkhead has exported. */
static status read_prerope(reader *r) {
    int64_t latent_dim, dim;
    const char *source = json_string_value(value_of(r, "prerope_source"));
    TRY(count_of(r, "kv_lora_rank", 0, &latent_dim));
    TRY(count_of(r, "head_dim", 0, &dim));
    if (!source || (strcmp(source, "key") != 0 && strcmp(source, "hidden") != 0))
        return BAD(r, "prerope_source is neither \"key\" nor \"hidden\"");
    set(r, "attention.variant=mla-prerope");
    set(r, "model.head_dim=%" PRId64, dim);
    set(r, "attention.kv_lora_rank=%" PRId64, latent_dim);
    set(r, "attention.prerope_source=%s", source);
    set(r, "attention.latent_norm=%s", json_is_false(value_of(r, "latent_norm")) ? "false" : "true");
    return STATUS_OK;
}

/* ---- the door ---- */

/* The model's sizes alone: what is wrong with them is the file's; with the settings, it is theirs. */
static status load(architecture *out, const reader *r, const char *const *settings, int count) {
    const char *all[MOST_SETTINGS];
    int n = 0;
    for (int i = 0; i < r->count; i++) all[n++] = r->text[i];
    status s = config_load(&out->config, NULL, all, n);
    if (s == STATUS_OK) {
        config_free(&out->config);
        for (int i = 0; i < count; i++) all[n++] = settings[i];
        return config_load(&out->config, NULL, all, n);
    }
    if (s != STATUS_CONFIG) return s;
    char why[512];
    snprintf(why, sizeof(why), "%s", status_message());
    status_clear();
    return BAD(r, "%s", why);
}

static status read_json(architecture *out, reader *r, const char *const *settings, int count) {
    const family *f = NULL;
    int64_t heads;
    if (!json_is_object(r->json)) return BAD(r, "this is no JSON object");
    TRY(find_family(r, &f));
    TRY(check_quantization(r));
    TRY(read_sizes(r, &heads));
    if (f->tensors == latent) TRY(read_latent(r));
    if (f->tensors == prerope) TRY(read_prerope(r));
    if (f->tensors == grouped) TRY(read_grouped(r, heads));
    *out = (architecture){.layer = "model.layers.%d.",
                          .tensors = f->tensors,
                          .gain_plus_one = f->gain_plus_one,
                          .head_norms = f->head_norms,
                          .score_cap = f->score_cap && value_of(r, "attn_logit_softcapping")};
    snprintf(out->family, sizeof(out->family), "%s", f->model_type);
    return load(out, r, settings, count);
}

status architecture_read(architecture *out, const char *path, const char *const *settings, int setting_count) {
    json_t *json;
    reader r = {.path = path};
    if (setting_count > MOST_SETTINGS / 2) return status_fail(STATUS_USAGE, "more than %d settings", MOST_SETTINGS / 2);
    TRY(json_read_file(&json, path, ARCHITECTURE_MAX_BYTES));
    r.json = json;
    status s = read_json(out, &r, settings, setting_count);
    json_decref(json);
    return s;
}

status architecture_read_own(architecture *out, const char *path, const char *const *settings, int setting_count) {
    *out = (architecture){.family = "bulkhead", .layer = "layers.%d."};
    return config_load(&out->config, path, settings, setting_count);
}

void architecture_free(architecture *a) {
    config_free(&a->config);
}

const architecture_tensor *architecture_in(const architecture_tensor *list, const char *own) {
    for (const architecture_tensor *t = list; t->own; t++)
        if (strcmp(t->own, own) == 0) return t;
    return NULL;
}

const architecture_tensor *architecture_find(const architecture *a, const char *own) {
    return architecture_in(a->tensors, own);
}

const architecture_tensor *architecture_tensors_of(config_variant variant) {
    static const architecture_tensor *const all[] = {
        [VARIANT_MHA] = grouped, [VARIANT_MLA_PREROPE] = prerope, [VARIANT_MLA_DECOUPLED] = latent};
    return all[variant];
}
