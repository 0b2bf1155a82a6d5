/* What reading a tokenizer.json leaves for encoding: private to tokenizer_json*.c. */
#pragma once

#include "data/bpe.h"
#include "data/splitter.h"
#include "data/tokenizer_json.h"

#define SPACE_MARK "\xE2\x96\x81"
enum { SPACE_MARK_BYTES = 3 };

typedef enum prefix { PREFIX_NEVER, PREFIX_ALWAYS, PREFIX_UNLESS_THERE, PREFIX_FIRST_UNLESS_THERE } prefix;

typedef struct token {
    char *text;  /* as the file has it; NULL: no token has this id */
    char *bytes; /* that it stands for in a text */
    size_t length;
    bool special;
} token;

struct tokenizer_json {
    bpe bpe;
    token *tokens; /* [count] */
    int64_t count;
    splitter added[2];   /* of tokens that are found in any text; before and after normalizing */
    token_table by_text; /* those tokens */
    splitter words;
    bool byte_level; /* else: characters, with marks for spaces */
    bool marks_spaces;
    prefix prefix;          /* of a mark, or with byte_level of a space */
    bool strips_space;      /* decoding drops one space at the start */
    bool strips_marks;      /* and all marks at the start of the first token */
    int32_t byte_of[0x144]; /* by the character that stands for it in the file; -1: none does */
    int32_t eos, bos;
};

/* The parts of the file, each read into t; DATA as tokenizer_json_load. The steps come first: they say whether tokens
 * are of bytes. */
status tokenizer_json_read_steps(tokenizer_json *t, const json_t *root);
status tokenizer_json_read_tokens(tokenizer_json *t, const json_t *root);
