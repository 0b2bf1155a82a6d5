/* Which part of a text is validation: a pure function of the text's extent and the seed. The extent (documents, or
 * bytes where there are too few documents) is cut into equal strata, and each gives one run of `length` to validation,
 * at a place that the seed draws. So validation has its size exactly, and comes from everywhere. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

typedef struct split {
    bool by_documents; /* positions are documents; else bytes of text */
    int64_t total, strata, length;
    uint64_t seed;
} split;

/* fraction 0 gives no validation at all; so does a text of fewer than two documents or four bytes. */
split split_plan(int64_t documents, int64_t bytes, double fraction, uint64_t seed);

/* Whether the position 0 <= position < total is validation; *until (may be NULL) is the first position after it where
 * that may change, total at the most. */
bool split_validation(const split *s, int64_t position, int64_t *until);
