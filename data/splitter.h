/* Text in pieces by regular expressions, as tokenizers are described by: each splits the pieces of the one before. */
#pragma once

#include "core/status.h"

#include <stdbool.h>
#include <stddef.h>

typedef enum splitter_behavior {
    SPLIT_ISOLATED,      /* matches and what is between them are pieces */
    SPLIT_WITH_PREVIOUS, /* a piece ends with a match */
    SPLIT_WITH_NEXT      /* a piece begins with a match */
} splitter_behavior;

enum { SPLITTER_STEPS = 8 };

typedef struct splitter {
    struct splitter_step {
        struct pcre2_real_code_8 *code;
        splitter_behavior behavior;
    } steps[SPLITTER_STEPS];
    int count;
} splitter;

/* Adds a step: a regular expression as Oniguruma has them, or (literal) a text. DATA, with the pattern and the reason:
 * it cannot be compiled, could match nothing, has what Oniguruma and PCRE2 understand differently (sets within sets,
 * \w, \h, anchors, flags other than i, properties other than general categories), or there are too many steps. */
status splitter_add(splitter *s, const char *pattern, bool literal, splitter_behavior behavior);
void splitter_free(splitter *s);

/* Memory for matching; one a thread. NULL: out of memory. */
typedef struct pcre2_real_match_data_8 splitter_scratch;
splitter_scratch *splitter_scratch_make(void);
void splitter_scratch_free(splitter_scratch *m);

typedef status (*splitter_take)(void *user, const char *piece, size_t length);

/* Hands the pieces of the text, none empty, to take in their order. What is no UTF-8 is a piece a byte. DATA when a
 * match needs too much memory. */
status splitter_run(const splitter *s, splitter_scratch *m, const char *text, size_t length, splitter_take take,
                    void *user);
