/* The configuration of a run: the keys of config_keys.h, read from YAML and --set (docs/design.md section 8).
 *
 * A value's type comes from the schema, not from YAML's guess. Every error is STATUS_CONFIG with one message naming
 * file, line, key and, for an unknown key, the nearest valid one. */
#pragma once

#include "core/config_keys.h"
#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef enum config_size { SIZE_CUSTOM, SIZE_TINY, SIZE_60M, SIZE_130M, SIZE_350M, SIZE_1B } config_size;
typedef enum config_variant { VARIANT_MHA, VARIANT_MLA_PREROPE, VARIANT_MLA_DECOUPLED } config_variant;
typedef enum config_source { SOURCE_KEY, SOURCE_HIDDEN } config_source;
typedef enum config_device { DEVICE_AUTO, DEVICE_CPU, DEVICE_CUDA } config_device;
typedef enum config_token { TOKEN_LEADS, TOKEN_ENDS } config_token;
typedef enum config_decay { DECAY_MATRICES, DECAY_ALL } config_decay;
typedef enum config_precision { PRECISION_AUTO, PRECISION_FP32, PRECISION_BF16 } config_precision;
typedef enum config_recompute { RECOMPUTE_NONE, RECOMPUTE_ATTENTION, RECOMPUTE_FULL } config_recompute;
typedef enum config_halves { HALVES_AUTO, HALVES_ON, HALVES_OFF } config_halves;
typedef enum config_on_nan { ON_NAN_STOP, ON_NAN_SKIP } config_on_nan;
typedef enum config_sigma2 { SIGMA2_TRACE, SIGMA2_MEDIAN, SIGMA2_FIT } config_sigma2;
typedef enum config_behind { BEHIND_DROP, BEHIND_WAIT } config_behind;

typedef struct config_list { /* a list of strings */
    int count;
    char **items;
} config_list;

/* One struct a section: config.run.name, config.train.lr, ... Types: S char *, I int64_t, F double, B bool, L
 * config_list, E the enum named in the key's line. Strings and lists belong to the config. */
#define CONFIG_TYPE_S               char *
#define CONFIG_TYPE_I               int64_t
#define CONFIG_TYPE_F               double
#define CONFIG_TYPE_B               bool
#define CONFIG_TYPE_L               config_list
#define CONFIG_FIELD_S(name, extra) char *name;
#define CONFIG_FIELD_I(name, extra) int64_t name;
#define CONFIG_FIELD_F(name, extra) double name;
#define CONFIG_FIELD_B(name, extra) bool name;
#define CONFIG_FIELD_L(name, extra) config_list name;
#define CONFIG_FIELD_E(name, extra) extra name;

typedef struct config {
#define KEY(name, type, extra, value, least, most, help) CONFIG_FIELD_##type(name, extra)
    struct {
        CONFIG_RUN(KEY)
    } run;
    struct {
        CONFIG_MODEL(KEY)
    } model;
    struct {
        CONFIG_ATTENTION(KEY)
    } attention;
    struct {
        CONFIG_DATA(KEY)
    } data;
    struct {
        CONFIG_TRAIN(KEY)
    } train;
    struct {
        CONFIG_PARALLEL(KEY)
    } parallel;
    struct {
        CONFIG_DIAGNOSTICS(KEY)
    } diagnostics;
    struct {
        CONFIG_CHECKPOINT(KEY)
    } checkpoint;
#undef KEY
} config;

/* Reads the file (NULL: defaults alone), applies the "section.key=value" settings (they win over the file; a key set
 * twice in either is an error), fills what `model.size` and the variant imply (explicit keys win), and checks every
 * rule that one rank can check. Left at 0 for others to derive: parallel.data, run.threads, train.micro_batch, and
 * model.vocab where no size gives it. NO_INPUT when the file is missing. After a failure there is nothing to free. */
status config_load(config *out, const char *path, const char *const *settings, int setting_count);

void config_free(config *c);

/* The resolved configuration as YAML text that config_load reads back to the same values. malloc'ed; NULL: out of
 * memory. */
char *config_to_yaml(const config *c);

/* Calls visit("section.key", "value") for each key in the order of config_keys.h (the params table). */
void config_visit(const config *c, void (*visit)(void *user, const char *key, const char *value), void *user);

/* Every key as an object, in the order of config_keys.h: key ("section.name"), type (text, whole number, number, flag,
 * list, choice), default ("" where it is derived or empty), least and most (null but for numbers), choices (null but
 * for a choice) and meaning. A new reference; NULL: out of memory. */
json_t *config_describe_keys(void);

const char *config_variant_name(config_variant v);     /* "mha", "mla-prerope", "mla-decoupled" */
const char *config_recompute_name(config_recompute r); /* "none", "attention", "full" */
