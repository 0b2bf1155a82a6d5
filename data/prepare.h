/* bulkhead prepare: text in, a folder with a tokenizer, shards and dataset.json out. The text is read twice: once to
 * count, check and sample it, once to encode it; what cannot be read twice (standard input, pipes) is kept in the
 * folder meanwhile. The folder is made under another name and renamed when whole. */
#pragma once

#include "data/info.h"
#include "data/reader.h"

typedef struct prepare_options {
    const char *const *inputs; /* paths; "-" is standard input */
    int input_count;
    const char *out_dir;
    const char *tokenizer; /* an existing model; NULL: train one */
    int64_t vocab;         /* of the one that is trained */
    reader_options reading;
    double val_fraction; /* 0 <= val_fraction < 1 */
    uint64_t seed;
    int64_t shard_tokens; /* at most that many a shard */
    int threads;
} prepare_options;

/* USAGE when out_dir is there and not empty; NO_INPUT, DATA and IO as their names say. Nothing is left behind on
 * failure. */
status prepare(const prepare_options *options, dataset_info *out);
