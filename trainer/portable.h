/* Trained models as folders for others, and others' for us: all weights in one model.safetensors in fp32, its
 * configuration, and the tokenizer where there is one.
 *
 * Export: Hugging Face's names and config.json: mha as LlamaForCausalLM, mla-decoupled as DeepseekV3ForCausalLM with
 * dense layers, mla-prerope by a modelling file of its own. Import: Bulkhead's names and config.yaml, whose
 * train.init_from names the weights. A folder appears when it is whole. */
#pragma once

#include "trainer/trained.h"

/* The model t has been found and loaded on the CPU. tokenizer_file: NULL for none. CONFIG, with the reason, when the
 * variant's settings are none that the exported format has; IO when the folder cannot be written. */
status portable_export(const trained *t, const char *tokenizer_file, const char *folder);
status portable_import(const trained *t, const char *tokenizer_file, const char *folder);

/* The class that the model is in Hugging Face's transformers. */
const char *portable_class(const config *c);
