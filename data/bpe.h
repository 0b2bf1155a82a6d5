/* Byte-pair encoding of words: a word's symbols are joined pair by pair, always the pair of the lowest rank, of several
 * the leftmost (Sennrich, Haddow & Birch, ACL 2016). */
#pragma once

#include "data/token_table.h"
#include "data/tokenizer.h"

#include <stdbool.h>

typedef struct bpe_pair {
    int32_t left, right; /* left -1: a free place */
    int32_t rank, id;    /* of the merge; what it makes */
} bpe_pair;

typedef struct bpe {
    token_table tokens; /* by their text */
    bpe_pair *pairs;    /* [pair_places], a power of two */
    size_t pair_places;
    int32_t *made;          /* [merges] the token that the merge of a rank makes */
    int32_t bytes[256];     /* the token that stands for a byte; -1: none */
    bool characters;        /* symbols are characters first, bytes where a character has no token; else bytes */
    int32_t unknown;        /* where a character has neither; -1: such text is an error */
    bool fuse_unknown;      /* several of them in a row are one */
    bool whole_words_first; /* a word that is a token is not put together by merges */
} bpe;

/* Room for that many merges; the tokens are there already. */
status bpe_begin_merges(bpe *b, size_t merges);

/* The merge of that rank; a later one of the same pair replaces the earlier. DATA when one of the three tokens is
 * missing. */
status bpe_add_merge(bpe *b, int32_t rank, const tokenizer_text *left, const tokenizer_text *right);

void bpe_free(bpe *b);

/* Memory that words are encoded in; starts with {0}, one a thread. */
typedef struct bpe_scratch {
    struct bpe_symbol *symbols;
    uint64_t *heap;
    size_t room, heap_room, heap_count;
} bpe_scratch;

void bpe_scratch_free(bpe_scratch *s);

/* Appends the word's ids; takes time n log n. DATA when a byte of it has no token. */
status bpe_encode(const bpe *b, bpe_scratch *s, const char *word, size_t length, tokenizer_ids *out);
