/* dataset.json, which stands beside the shards that bulkhead prepare writes: what the tokens are and how many there
 * are. */
#pragma once

#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

typedef struct dataset_split {
    int64_t shards, documents, tokens, bytes; /* tokens with the documents' end tokens; bytes of text */
    double unigram_entropy_nats;              /* of the distribution of its tokens; 0 for an empty split */
} dataset_split;

typedef struct dataset_info {
    char tokenizer[256];     /* file name in the same folder */
    char tokenizer_hash[33]; /* XXH3-128, hex */
    int64_t vocab, eos_id;
    bool document_token_ends; /* else it leads */
    dataset_split train, validation;
} dataset_info;

/* Reads the dataset.json beside a shard (or in a folder, given with a slash at its end). NO_INPUT when there is none,
 * DATA when it is not one of ours. */
status dataset_info_load(dataset_info *out, const char *shard_path);

/* Writes a folder's dataset.json: info, and the members of `more` (owned; NULL: out of memory) behind it. */
status dataset_info_write(const dataset_info *info, json_t *more, const char *folder);
