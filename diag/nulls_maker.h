/* Makes ensembles in a background thread, niced, one after the other, so that no snapshot waits for one. */
#pragma once

#include "diag/nulls_cache.h"
#include "diag/nulls_gains.h"

typedef struct nulls_maker nulls_maker;

typedef struct nulls_job {
    nulls_shape shape;
    double log_ratio[NULLS_MOST_RATIOS];
    int draws;
    const nulls_gains *gains; /* the caller's, to the end; NULL: even gains, and the ensemble goes into the file */
} nulls_job;

/* Ensembles go into the cache. threads: for the draws of one ensemble. INTERNAL when there is no thread or memory. */
status nulls_maker_open(nulls_maker **out, nulls_cache *cache, int threads);

/* Stops within one draw. */
void nulls_maker_close(nulls_maker *m);

/* Asks for an ensemble unless it has been asked for before. Those of heads come before those of layers, of which a draw
 * costs most. */
void nulls_maker_ask(nulls_maker *m, const nulls_job *job);

/* Ensembles asked for that are neither made nor given up. */
int nulls_maker_waiting(nulls_maker *m);

/* Counts what was made or given up. */
int nulls_maker_done(nulls_maker *m);

/* Of the ensemble that is being made its rank, its draws and how many of them are there. false: none is being made. */
bool nulls_maker_progress(nulls_maker *m, int *rank, int *draws, int *drawn);

/* Until nothing is waiting or the time is over. */
void nulls_maker_wait(nulls_maker *m, double seconds);

/* Copies the first failure since the last call (of an ensemble or of the file) and returns true; false: none. */
bool nulls_maker_fault(nulls_maker *m, char *to, size_t bytes);
