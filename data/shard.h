/* Token shards in llm.c's layout (docs/design.md section 9): a 256 x int32 header, then the tokens.
 * magic 20240520, version 1: uint16 tokens; magic 20240801, version 7: uint32 tokens. header[2] holds the count; where
 * it does not fit, the file's size decides. Little-endian. */
#pragma once

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct shard {
    char *path;
    int64_t tokens;
    int token_bytes;  /* 2 or 4 */
    const void *data; /* the mapped tokens */
    void *map;
    size_t map_bytes;
} shard;

/* Bytes of a token in a file that begins so, by magic and version; 0: it is no shard. */
int shard_token_bytes(const void *start, size_t bytes);

/* Maps a shard read-only. NO_INPUT when it is missing, DATA (with the reason) when it is foreign, truncated or
 * odd-sized. */
status shard_open(shard *out, const char *path);
void shard_close(shard *s);

/* count tokens from position first on, widened to int32. The range must lie inside. */
void shard_read(const shard *s, int64_t first, int64_t count, int32_t *out);

/* Writes a shard durably (temporary file, fsync, rename); uint16 when every id fits (largest_id < 65536), else uint32.
 * add: DATA for an id outside 0 to largest_id; discard the writer after a failed add. */
typedef struct shard_writer shard_writer;
status shard_writer_open(shard_writer **out, const char *path, int64_t largest_id);
status shard_writer_add(shard_writer *w, const int32_t *tokens, int64_t count);
status shard_writer_finish(shard_writer *w); /* frees w in any case; nothing is left when it fails */
void shard_writer_discard(shard_writer *w);  /* removes the temporary file */
