/* A sample of a text's lines to train a tokenizer on: drawn evenly from all of it, in bounded memory, the same for the
 * same text and seed. A line takes the blank lines behind it along, so that pieces over newlines are learned; a long
 * line is split. */
#pragma once

#include "data/tokenizer.h"

typedef struct lines lines;

/* At most `count` lines and `bytes` bytes are kept. */
status lines_open(lines **out, int64_t count, int64_t bytes, uint64_t seed);
void lines_close(lines *l);

/* Offers every line of the text. */
status lines_add(lines *l, const char *text, size_t length);

/* The lines kept, in the text's order; they belong to l. */
const tokenizer_text *lines_kept(lines *l, int64_t *count, int64_t *bytes);
