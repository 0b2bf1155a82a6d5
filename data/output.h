/* One split of a dataset being written: its shards (train-00000.bin, ...) one after the other, and its counts. */
#pragma once

#include "data/info.h"
#include "data/shard.h"

typedef struct output {
    const char *folder, *name; /* "train" or "val" */
    int64_t vocab, shard_tokens;
    shard_writer *writer;
    int64_t in_shard;  /* tokens in the open shard */
    int64_t *unigrams; /* [vocab] how often each id came */
    dataset_split counts;
} output;

/* folder and name must outlive the output. */
status output_open(output *o, const char *folder, const char *name, int64_t vocab, int64_t shard_tokens);
void output_close(output *o); /* discards an unfinished shard */

/* Shards are cut wherever they are full, inside documents too. */
status output_add(output *o, const int32_t *ids, int64_t count);

/* Finishes the last shard and counts.unigram_entropy_nats. */
status output_finish(output *o);

/* The file name of a shard of "train" or "val", without its folder. */
void output_shard_name(const char *split, int64_t number, char *name, size_t room);
