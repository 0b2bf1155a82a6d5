/* What a model's configuration says about its attention, in Bulkhead's terms: the variant and its sizes as a `config`,
 * and where each of Bulkhead's tensors lies in the files.
 *
 * Known are the families of Hugging Face's transformers whose attention is one of ours up to positive factors a token:
 * Llama, Mistral and their likes as mha, DeepSeek-V2 and -V3 as mla-decoupled, and what Bulkhead exports of
 * mla-prerope. How a family orders rotary pairs is of no concern: which rows are rotary is the same, and no spectrum
 * depends on their order. A family that is not in the table is refused: its norms or projections may mean something
 * else. */
#pragma once

#include "core/config.h"

#include <stdbool.h>

typedef enum architecture_rows { ROWS_ALL, ROWS_LATENT, ROWS_ROTARY } architecture_rows;

/* Bulkhead's tensor within its layer is these rows of theirs. */
typedef struct architecture_tensor {
    const char *own, *theirs;
    architecture_rows rows; /* of [R_kv | D_r] stacked rows: the first or the second block */
} architecture_tensor;

enum { ARCHITECTURE_MAX_BYTES = 1 << 24 };

typedef struct architecture {
    config config;
    char family[24];                    /* model_type; "bulkhead" for Bulkhead's own names */
    const char *layer;                  /* printf format of a layer's prefix */
    const architecture_tensor *tensors; /* ends with own NULL; NULL: Bulkhead's own names */
    bool gain_plus_one;                 /* RMSNorm multiplies by 1 + g */
    bool head_norms;                    /* RMSNorm on each head's query and key: q_norm, k_norm */
    bool score_cap;                     /* scores go through a tanh */
} architecture;

/* From a config.json of Hugging Face's. settings: "section.key=value" that are applied on top, as in config_load.
 * NO_INPUT when the file is missing, DATA when it is not well-formed, of an unknown family, quantized, or says
 * something that cannot be; CONFIG when a setting is bad. After a failure there is nothing to free. */
status architecture_read(architecture *out, const char *path, const char *const *settings, int setting_count);

/* From a run's config.yaml: errors as config_load. */
status architecture_read_own(architecture *out, const char *path, const char *const *settings, int setting_count);

void architecture_free(architecture *a);

/* The tensor `own` in a list that ends with own NULL; NULL: it is not in it. */
const architecture_tensor *architecture_in(const architecture_tensor *list, const char *own);

/* The names of a layer's tensors where that variant is one of Hugging Face's: llama, deepseek_v3, and bulkhead_prerope,
 * which is Bulkhead's own. */
const architecture_tensor *architecture_tensors_of(config_variant variant);

/* Those outside of the layers. */
extern const architecture_tensor architecture_outside[];

/* Where Bulkhead's tensor `own` of a layer comes from; NULL: this family has none. */
const architecture_tensor *architecture_find(const architecture *a, const char *own);
