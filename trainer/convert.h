/* Files of one kind made into another's: run databases for other programs to read, token shards of another width or
 * with the dataset.json that they lack, tokenizers. Models are export's and import's (trainer/portable.h). */
#pragma once

#include "core/status.h"

#include <stdio.h>

typedef struct convert_request {
    const char *const *inputs; /* paths, all of one kind */
    int count;
    const char *output;
    const char *to;        /* what they are to be, as `bulkhead convert --help` names it */
    const char *tokenizer; /* file, of shards that become a dataset; NULL: none */
} convert_request;

/* Writes the output and says on `out` in a line what it is. USAGE when the inputs are of several kinds, cannot become
 * that, or are models; NO_INPUT when one is missing; DATA when one is of no known kind, damaged, or would lose
 * something; IO. */
status convert_run(const convert_request *request, FILE *out);
