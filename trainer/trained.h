/* A trained model in the memory of one rank: what eval, generate, export and import work on. It is named by a run's
 * folder (its latest checkpoint), by a checkpoint, by a folder with model.safetensors of Bulkhead's names and
 * config.yaml, or by one in the layout of Hugging Face's (trainer/foreign.h). */
#pragma once

#include "data/tokenizer.h"
#include "trainer/checkpoint.h"
#include "trainer/model.h"

enum { TRAINED_PATH_BYTES = CHECKPOINT_PATH_BYTES + 64 };

typedef struct trained {
    config config;                      /* of the model; it runs alone, whatever the run's shape was */
    char folder[CHECKPOINT_PATH_BYTES]; /* with config.yaml */
    ops ops;
    comm_group alone;
    model model;
} trained;

/* How to run it. */
typedef struct trained_options {
    const char *device; /* auto, cpu or cuda; NULL: as the run's configuration says */
    int64_t threads;    /* 0: as many as there are cores */
} trained_options;

/* What the path names: configuration and place of the weights (config.train.init_from). NO_INPUT when there is no such
 * model, DATA when it is in no format that this reads; CONFIG as config_load. After a failure there is nothing to
 * close.
 */
status trained_find(trained *out, const char *path, const trained_options *options);

/* After trained_find: device, memory for batches of `batch` samples of `context` tokens (0: the model's; 1 is enough
 * for its weights alone), weights. Failures of device_open, model_create and weights_load_path. */
status trained_load(trained *t, int64_t batch, int64_t context);

/* In any case after trained_find. */
void trained_close(trained *t);

/* The file of the tokenizer that trained_tokenizer would read without a path; NO_INPUT when there is none. */
status trained_tokenizer_file(const trained *t, char out[TRAINED_PATH_BYTES]);

/* The tokenizer: that at `path`, or where it is NULL that of data.tokenizer, the dataset's, or the one in the folder.
 * NO_INPUT when there is none, DATA when it has more pieces than the model or is not the one of the dataset. */
status trained_tokenizer(const trained *t, const char *path, tokenizer **out);

/* What stands in front of a text in training: the tokenizer's beginning, or where it has none the end of the document
 * before. */
int32_t trained_document_start(const tokenizer *t);
