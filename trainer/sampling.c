#include "trainer/sampling.h"

#include "core/rng.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static int likeliest_first(const void *a, const void *b) {
    const sampling_choice *x = a, *y = b;
    if (x->probability != y->probability) return x->probability < y->probability ? 1 : -1;
    return (x->token > y->token) - (x->token < y->token);
}

static void normalize(sampling_choice *choices, int64_t count) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) sum += choices[i].probability;
    for (int64_t i = 0; i < count; i++) choices[i].probability /= sum;
}

/* The fewest of them that have the share p together. */
static int64_t nucleus(const sampling_choice *choices, int64_t count, double p) {
    double sum = 0;
    for (int64_t i = 0; i < count; i++) {
        sum += choices[i].probability;
        if (sum >= p) return i + 1;
    }
    return count;
}

status sampling_choices(const sampling *s, const float *logits, int64_t vocab, sampling_choice *choices,
                        int64_t *count) {
    int64_t top = 0;
    for (int64_t i = 0; i < vocab; i++) {
        if (!isfinite(logits[i]))
            return status_fail(STATUS_DATA, "the logit of token %" PRId64 " is %g; the weights are no use", i,
                               (double)logits[i]);
        if (logits[i] > logits[top]) top = i;
    }
    if (s->temperature == 0) {
        choices[0] = (sampling_choice){(int32_t)top, 1};
        *count = 1;
        return STATUS_OK;
    }
    for (int64_t i = 0; i < vocab; i++)
        choices[i] = (sampling_choice){(int32_t)i, exp(((double)logits[i] - (double)logits[top]) / s->temperature)};
    qsort(choices, (size_t)vocab, sizeof *choices, likeliest_first);
    *count = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab;
    normalize(choices, *count);
    if (s->top_p >= 1) return STATUS_OK;
    *count = nucleus(choices, *count, s->top_p);
    normalize(choices, *count);
    return STATUS_OK;
}

int32_t sampling_pick(const sampling_choice *choices, int64_t count, double u) {
    double sum = 0;
    for (int64_t i = 0; i < count - 1; i++) {
        sum += choices[i].probability;
        if (u < sum) return choices[i].token;
    }
    return choices[count - 1].token;
}

double sampling_draw(const sampling *s, int64_t position) {
    return (double)(rng_u64(s->seed, rng_stream("generated tokens"), (uint64_t)position) >> 11) * 0x1p-53;
}
