/* The onset's top pair of each head, kept while a run goes on, and top_overlap against it (docs/design.md section 6.3).
 * Private to diag/.
 *
 * Heads in score form, each part by itself. A head is a candidate at snapshot t >= 1 when tw_score >= u*, and its top
 * pair u_1(t), v_1(t) is kept; when the next planned snapshot confirms it, that pair is the reference to the end of the
 * run. u* is section 6.5's with M = L H K of this run alone; effect size and gains are left to the findings, so that an
 * onset there is at the reference or behind it. tw_score NULL is no crossing; a dropped snapshot breaks the pair. */
#pragma once

#include "core/config.h"
#include "diag/maps.h"

typedef struct onsets onsets;

/* No references yet. matrices [count] stay the caller's and outlive it. INTERNAL without memory. */
status onsets_open(onsets **out, const config *c, const maps_matrix *matrices, int count);
void onsets_close(onsets *o);

/* The matrices whose pairs onsets_note() needs of every snapshot, [count]. */
const bool *onsets_wanted(const onsets *o);

/* u*: 1 - F1(u*) = 0.01 / M. */
double onsets_threshold(const onsets *o);

/* Takes a snapshot of before as it was recorded, the run going on: rows with their top_overlap, pairs as far as they
 * were kept, NaN at the beginning of others. All of the run, by steps. */
void onsets_restore(onsets *o, int64_t step, const spectrum *rows, const float *pairs);

/* The snapshot of that step: fills rows' top_overlap = |<u_1(t), u_1><v_1(t), v_1>| from the confirming snapshot on,
 * and says in candidate [count] whose pair is to be kept in the database. pairs as maps_compute_pairs leaves them. */
void onsets_note(onsets *o, int64_t step, spectrum *rows, const float *pairs, bool *candidate);
