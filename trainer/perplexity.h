/* The loss over text that the model has not chosen: token shards, or text files. Every token weighs the same. */
#pragma once

#include "data/tokenizer.h"
#include "trainer/scoring.h"

typedef struct perplexity {
    double nats;    /* sum over the tokens */
    int64_t tokens; /* that were predicted */
    int64_t bytes;  /* of text; 0: not known */
} perplexity;

/* Of the shards that the path or glob names: all their tokens but the first of each. Failures of dataset_open. */
status perplexity_shards(perplexity *out, scorer *s, const char *pattern, int64_t stride);

/* Of a text file's documents (data/reader.h; .txt, .jsonl, also .gz and .zst): all their tokens, predicted from `start`
 * in front of each document. Failures of reader_open; DATA when there is no text. */
status perplexity_text(perplexity *out, scorer *s, const tokenizer *t, int32_t start, const char *path, int64_t stride);
