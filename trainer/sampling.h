/* Which token comes next: from logits to a distribution over the tokens that may, and a draw from it by the
 * counter-based generator, so that the same seed gives the same text. */
#pragma once

#include "core/status.h"

#include <stdint.h>

typedef struct sampling {
    double temperature; /* logits are divided by it; 0: the likeliest token, of several the first */
    int64_t top_k;      /* so many likeliest tokens; 0: all */
    double top_p;       /* of those the fewest likeliest that have this share of their probability together; 1: all */
    uint64_t seed;
} sampling;

typedef struct sampling_choice {
    int32_t token;
    double probability;
} sampling_choice;

/* The tokens that may come next, likeliest first (of equals the smaller id), into choices [vocab], and how many they
 * are into *count; their probabilities add up to 1. DATA when a logit is not finite. */
status sampling_choices(const sampling *s, const float *logits, int64_t vocab, sampling_choice *choices,
                        int64_t *count);

/* The one at u, 0 <= u < 1, of the distribution. */
int32_t sampling_pick(const sampling_choice *choices, int64_t count, double u);

/* The draw for the token at that position, a function of the seed and the position. */
double sampling_draw(const sampling *s, int64_t position);
