/* One checkpoint of a model, from anyone: its files and its architecture, read a layer at a time into what the maps
 * take (diag/maps.h): a snapshot under Bulkhead's names. */
#pragma once

#include "comm/snapshot.h"
#include "diag/analyze/architecture.h"
#include "diag/analyze/files.h"

typedef struct checkpoint {
    files files;
    architecture architecture;
} checkpoint;

/* path: a folder with config.json and safetensors of Hugging Face's, or with config.yaml and safetensors of Bulkhead's
 * names, or a checkpoint's of a run; or one .safetensors file of Bulkhead's names with config.yaml beside it.
 * config_path (may be NULL): another config.yaml for Bulkhead's names. settings: see architecture.h. Every tensor that
 * the spectra need is there, of a float type and of the right shape, else DATA; NO_INPUT when something is missing
 * altogether. After a failure there is nothing to close. */
status checkpoint_open(checkpoint *out, const char *path, const char *config_path, const char *const *settings,
                       int setting_count);
void checkpoint_close(checkpoint *c);

/* Adds the layer's tensors to a snapshot, in fp32. What the map of a head takes in besides its projections is folded
 * into them: the gains of q_norm and k_norm into W_Q and W_K, 1 + g where the family's norms multiply by that. */
status checkpoint_read_layer(const checkpoint *c, int layer, snapshot *to);

/* Says what of the model's attention the maps leave out or take in: biases, norms of heads, capped scores. */
void checkpoint_notes(const checkpoint *c, void (*say)(void *user, const char *text), void *user);

/* Whether W_Q and W_K in the snapshot are not the weights as they are. */
bool checkpoint_folds_weights(const checkpoint *c);
