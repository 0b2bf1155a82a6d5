/* Shards as a set of samples, and the sampler. A sample (window) is context + 1 consecutive tokens: inputs are its
 * first `context` tokens, targets its last. Windows are disjoint in their inputs and never cross from one shard into
 * the next: shard s holds floor((tokens - 1) / context) of them. */
#pragma once

#include "core/status.h"
#include "data/shard.h"

#include <stdbool.h>

typedef struct dataset {
    shard *shards;
    int count;
    int64_t context, windows, tokens;
    int64_t *first_window; /* [count + 1]: windows before each shard */
    int64_t vocab;
} dataset;

/* Opens the shards that the patterns (paths or globs, matched in sorted order) name. NO_INPUT when a pattern matches
 * nothing; DATA when there is not one whole window or (checked over all tokens) an id >= vocab, with file and position.
 */
status dataset_open(dataset *out, const char *const *patterns, int pattern_count, int64_t context, int64_t vocab);
void dataset_close(dataset *d);

/* Window w's context + 1 tokens: input[context] and target[context]. */
void dataset_window(const dataset *d, int64_t w, int32_t *input, int32_t *target);

typedef struct sampler {
    const dataset *data;
    uint64_t seed;
    int64_t global_batch;
    bool repeat; /* false: end of data after one epoch of whole global batches */
} sampler;

/* The window of sample 0 <= sample < global_batch of step >= 1: position (step - 1) global_batch + sample in a sequence
 * of epochs, each a permutation of all windows seeded by (seed, epoch). A pure function. */
int64_t sampler_window(const sampler *s, int64_t step, int64_t sample);

/* The last step that has data: INT64_MAX with repetition. */
int64_t sampler_last_step(const sampler *s);
