/* Log-probabilities of given tokens: windows of them are collected into batches for the training forward pass, and the
 * losses of those positions that count are added up where their owner wants them. What a window's sum is does not
 * depend on what else is in its batch. */
#pragma once

#include "trainer/model.h"

typedef struct scoring_window {
    int64_t skip, count; /* positions, of which the first `skip` do not count */
    double *nats;
} scoring_window;

typedef struct scorer {
    model *model;
    int32_t *input, *target; /* [B, T] */
    float *losses;           /* [B, T] */
    scoring_window *window;  /* [B] */
    int64_t filled;
} scorer;

/* For a model of one rank, which outlives it. INTERNAL when memory runs out. Close in any case. */
status scorer_open(scorer *out, model *m);
void scorer_close(scorer *s);

/* A window of n positions, 1 <= n <= T: ids [n + 1], of which each but the last predicts the next. The losses in nats
 * of positions [skip, n) are added to *nats, at the latest by scorer_flush; until then it has to stay. DATA when one is
 * not finite. */
status scorer_add(scorer *s, const int32_t *ids, int64_t n, int64_t skip, double *nats);
status scorer_flush(scorer *s);

/* The sum over a sequence of any length: all of ids [count] but the first, each once. Windows of T move on by `stride`
 * (1 to T) positions: the first counts whole, each further one in its last `stride` positions, the last one ends with
 * the sequence, so that what it adds is predicted from as much context as there is. read gives count ids from `first`
 * on. */
typedef void (*scoring_read)(void *user, int64_t first, int64_t count, int32_t *ids);
status scorer_add_sequence(scorer *s, scoring_read read, void *user, int64_t count, int64_t stride, double *nats);
