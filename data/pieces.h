/* SentencePiece's model file, sentencepiece_model.proto, as far as BPE models go: its pieces and what is done to a text
 * before it is cut into them. */
#pragma once

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum piece_type {
    PIECE_NORMAL = 1,
    PIECE_UNKNOWN,
    PIECE_CONTROL,
    PIECE_USER_DEFINED,
    PIECE_UNUSED,
    PIECE_BYTE
} piece_type;

typedef struct piece {
    char *text; /* a space is U+2581 */
    float score;
    piece_type type;
} piece;

enum { PIECES_UNIGRAM = 1, PIECES_BPE = 2 };

typedef struct pieces {
    piece *list; /* [count], by id */
    int64_t count;
    int model_type;
    bool byte_fallback, space_behind;                             /* trainer_spec */
    bool dummy_prefix, removes_spaces, escapes_spaces, has_rules; /* normalizer_spec; rules change characters */
    const char *bos, *eos;                                        /* for writing: pieces' texts; NULL: there is none */
} pieces;

/* DATA when the bytes are no such model. */
status pieces_read(pieces *out, const char *bytes, size_t length);

/* The model file, malloc'ed. */
status pieces_write(const pieces *p, char **bytes, size_t *length);
void pieces_free(pieces *p);
