/* Hugging Face's tokenizer.json with a BPE model, of two kinds: bytes behind regular expressions (GPT-2, Llama 3,
 * DeepSeek), and characters with U+2581 for spaces and bytes for what has no token (Llama 2, Gemma). Ids equal those of
 * the tokenizers package without special tokens around the text and with encode_special_tokens: a text that spells a
 * special token is text. */
#pragma once

#include "data/tokenizer.h"

#include <jansson.h>

typedef struct tokenizer_json tokenizer_json;

/* From the parsed file. DATA, naming it, for each part of the format that this does not know: other models,
 * normalizers, pre-tokenizers and decoders, truncation, padding, dropout, added tokens that take spaces along; for
 * tokens and merges that contradict each other; and where no special token is known as a document's end. */
status tokenizer_json_load(tokenizer_json **out, const json_t *root);
void tokenizer_json_free(tokenizer_json *t);

int64_t tokenizer_json_vocab(const tokenizer_json *t); /* the largest id + 1 */
int32_t tokenizer_json_eos(const tokenizer_json *t);
int32_t tokenizer_json_bos(const tokenizer_json *t); /* -1: none */

/* The text of a token as the file has it; NULL where no token has that id. */
const char *tokenizer_json_piece(const tokenizer_json *t, int32_t id);

/* Memory for encoding; one a thread. NULL: out of memory. */
typedef struct tokenizer_json_scratch tokenizer_json_scratch;
tokenizer_json_scratch *tokenizer_json_scratch_make(void);
void tokenizer_json_scratch_free(tokenizer_json_scratch *s);

/* Appends the text's ids. DATA when it has a byte that the vocabulary has no token for. */
status tokenizer_json_encode(const tokenizer_json *t, tokenizer_json_scratch *s, const char *text, size_t length,
                             tokenizer_ids *out);

/* The text of ids that all have a token, as tokenizer_decode gives it. Bytes come back as they are, whether they are
 * UTF-8 or not. */
status tokenizer_json_decode(const tokenizer_json *t, const int32_t *ids, int64_t count, char **out, size_t *length);
