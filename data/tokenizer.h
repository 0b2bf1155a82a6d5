/* The tokenizer: a C door over SentencePiece, and over Hugging Face's tokenizer.json (data/tokenizer_json.h). A model
 * trained here is a unigram model that keeps text exactly: for any valid UTF-8, decode(encode(text)) equals text (tabs,
 * newlines, runs of spaces, NUL and U+2581 included), since what has no piece is spelled in bytes. Models from
 * elsewhere are used as they are; theirs may normalize. */
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct tokenizer tokenizer;

typedef struct tokenizer_text {
    const char *bytes;
    size_t length;
} tokenizer_text;

/* A list of ids that grows; start with {0}, end with free(ids). */
typedef struct tokenizer_ids {
    int32_t *ids;
    int64_t count, room;
} tokenizer_ids;

/* Appends; INTERNAL when out of memory. */
status tokenizer_append(tokenizer_ids *list, const int32_t *ids, int64_t count);

/* The longest sample that training uses, in bytes; longer ones are ignored. */
enum { TOKENIZER_SAMPLE_BYTES = 4096 };

/* Trains a model of `vocab` ids on the samples (lines, with their newlines) and writes it durably to path. The same
 * samples give the same file. DATA when the text is too poor for so many ids, or too rich for so few, with the number
 * that works. */
status tokenizer_train(const char *path, const tokenizer_text *samples, int64_t count, int64_t vocab);

/* NO_INPUT when the file is missing, DATA when it is neither a SentencePiece model nor a tokenizer.json that this knows
 * (with the part that it does not), or has no end-of-document id (</s>). */
status tokenizer_load(tokenizer **out, const char *path);
void tokenizer_free(tokenizer *t);

int64_t tokenizer_vocab(const tokenizer *t);
int32_t tokenizer_eos(const tokenizer *t);
int32_t tokenizer_bos(const tokenizer *t);      /* -1: none */
const char *tokenizer_hash(const tokenizer *t); /* XXH3-128 of the model file, 32 hex digits */

/* What such a file is called beside shards and models: tokenizer.model or tokenizer.json. */
const char *tokenizer_file_name(const tokenizer *t);

/* The token's text as the file has it, valid as long as the tokenizer; NULL where no token has that id. */
const char *tokenizer_piece(const tokenizer *t, int32_t id);

/* Encodes each text, on up to `threads` threads: out[i] is appended to. The ids do not depend on threads. */
status tokenizer_encode(const tokenizer *t, const tokenizer_text *texts, int64_t count, int threads,
                        tokenizer_ids *out);

/* The text of the ids, malloc'ed, with a NUL behind its *length bytes; control ids (</s>) are nothing. DATA for an id
 * that the model lacks. */
status tokenizer_decode(const tokenizer *t, const int32_t *ids, int64_t count, char **out, size_t *length);

#ifdef __cplusplus
}
#endif
