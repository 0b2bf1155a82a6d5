/* Token shards made into others: of another width, or into a prepared folder with the dataset.json that shards of
 * other programs lack. */
#pragma once

#include "data/info.h"

/* The shards' tokens in token_bytes, 2 or 4: one shard into the file path_out, several into files of their own names in
 * a new folder of that name. *tokens: of all. DATA, with shard, position and id, where an id does not fit. */
status reshard_width(const char *const *shards, int count, const char *path_out, int token_bytes, int64_t *tokens);

/* Makes of the shards a new folder as `bulkhead prepare` does: those with "val" in their file names are the validation
 * split, the others training. Text is counted by decoding. DATA where an id is none of the tokenizer's. */
status reshard_dataset(const char *const *shards, int count, const char *folder, const char *tokenizer_file,
                       dataset_info *out);
