/* The null with a layer's norm gains as they are: uneven gains alone lift lambda_max (docs/design.md section 6.4). */
#pragma once

#include "comm/snapshot.h"
#include "core/config.h"
#include "diag/nulls_draw.h"

/* How far the spread (standard deviation of ln |g|) of a gain vector may move before a new ensemble is made; under it,
 * gains count as even. */
#define NULLS_GAINS_MOVE 0.02

enum { NULLS_GAIN_IN, NULLS_GAIN_KV, NULLS_GAIN_Q, NULLS_GAIN_COUNT };

typedef struct nulls_gains {
    int length[NULLS_GAIN_COUNT];    /* d, R, R_q; 0: there is no such gain */
    double *gain[NULLS_GAIN_COUNT];  /* of mean square 1 */
    double spread[NULLS_GAIN_COUNT]; /* standard deviation of ln |g| */
    uint64_t hash;                   /* of the vectors */
} nulls_gains;

/* The gain vectors of a layer, malloc'ed. NULL: the snapshot lacks them, they are not finite or zero, or there is no
 * memory. */
nulls_gains *nulls_gains_read(const config *c, const snapshot *s, int layer);
void nulls_gains_free(nulls_gains *g);

/* All spreads are under NULLS_GAINS_MOVE: the plain null holds. */
bool nulls_gains_even(const nulls_gains *g);

/* A spread of b is further than NULLS_GAINS_MOVE from a's. */
bool nulls_gains_moved(const nulls_gains *a, const nulls_gains *b);

/* Puts which gains they are behind the key [NULLS_KEY_BYTES] of the plain ensemble. */
void nulls_gains_key(const nulls_gains *g, char *key);

/* As nulls_ensemble, with the gains kept, for head scope: draws as wide as the weights are, since rotations do not
 * commute with gains. */
status nulls_gains_ensemble(const nulls_shape *s, const nulls_gains *g, const double *log_ratio, int draws,
                            uint64_t seed, int threads, nulls_watch *watch, nulls_moments *out);
