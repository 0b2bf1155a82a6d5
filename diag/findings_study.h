/* What the findings are judged from: the runs of all databases, read once (findings_read.c), and each layer's events
 * (findings_events.c). Family: scope head, part full, form score. Private to diag/findings*.c.
 *
 * L layers, H heads, K planned snapshots of a run, M = sum of L H K over all runs. A head's state is what one snapshot
 * says of it; "next" is the next planned snapshot. */
#pragma once

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>

/* A comparison with a value that may be missing. */
typedef enum findings_answer { FINDINGS_NO, FINDINGS_YES, FINDINGS_UNKNOWN } findings_answer;

typedef struct findings_state { /* NaN: the database has no such value */
    bool measured;              /* a spectrum with numbers of r >= 2; false: none was recorded, or it has no numbers */
    double tw_score, tw_score_gains;
    double excess; /* lambda_max / mean lambda, over e^m of its null */
    double rest;   /* effective_rank_rest over its null mean */
    double z_rest, z_rest_gains;
    double top_overlap;
    double null_sd; /* s of ln(lambda_max / mean lambda) */
} findings_state;

typedef struct findings_run {
    char *database, *uuid, *name, *variant, *status;
    int64_t seed;
    bool has_seed;
    int layers, heads;
    int64_t planned;         /* K: of the whole plan, also what was not reached */
    int snapshots;           /* planned steps up to the last that was recorded */
    int64_t *steps;          /* [snapshots] ascending */
    bool *recorded;          /* [snapshots]; false: dropped or failed */
    int missed;              /* how many were not */
    findings_state *states;  /* [layers, heads, snapshots] */
    int64_t without_null;    /* spectra with numbers and no tw_score */
    double validation_loss;  /* the last; NaN: none */
    int64_t validation_step; /* its step */
    char excluded[200];      /* why the run is not judged; "": it is */
    bool rejected;           /* excluded since its start is no noise */
} findings_run;

typedef struct findings_study {
    findings_run *runs;
    int count;
    double tests, threshold, z_threshold; /* M, u*, Phi^-1(0.01 / M) */
} findings_study;

/* Adds the runs of a database. A run that cannot be judged is kept with the reason in `excluded`. NO_INPUT, DATA, IO as
 * reading_open; DATA for a plan of snapshots that no file can hold. */
status findings_read(findings_study *study, const char *path);

/* M and the thresholds, from the runs that are there; then excludes what must not be judged: runs whose step 0 is not
 * noise (tw_score >= u*) or is not known, runs without two snapshots after it. */
void findings_prepare(findings_study *study);

void findings_study_free(findings_study *study);

static inline const findings_state *findings_state_at(const findings_run *r, int layer, int head, int k) {
    return &r->states[((int64_t)layer * r->heads + head) * r->snapshots + k];
}

typedef struct findings_event { /* of a layer: its onset, or its collapse */
    findings_answer happened;
    int snapshot, head; /* the first, where it happened; otherwise -1 */
} findings_event;

typedef struct findings_persistence {
    findings_answer persists;
    int snapshots, satisfied; /* recorded after the onset; where the head is still over both limits */
    double median_overlap;    /* NaN with fewer than 10 values */
    double lasted_steps; /* from the onset to the first recorded snapshot that is not over them, or to the last one */
    bool ended;          /* false: it lasts to the end of the record */
} findings_persistence;

/* First t >= 1 at which one head has, at t and the next planned snapshot, tw_score >= u* and excess >= theta, and
 * tw_score_gains >= u* at t. UNKNOWN where a missing value decides. The head of largest excess at t stands for it. */
findings_event findings_onset(const findings_study *s, const findings_run *r, int layer, double theta);

/* Whether that head is over both limits in >= 90% of the snapshots recorded after the onset (>= 10, else UNKNOWN) with
 * a median top_overlap >= 0.5. onset: one that happened. */
findings_persistence findings_persist(const findings_study *s, const findings_run *r, int layer, double theta,
                                      findings_event onset);

/* First t >= 1 at which one head has, at t and the next planned snapshot, rest <= 0.8 and z (gains kept) <= Phi^-1(0.01
 * / M). The head of smallest rest at t stands for it. */
findings_event findings_collapse(const findings_study *s, const findings_run *r, int layer);

/* Share of heads whose null lets a spike of 1.5 e^m reach u*; NaN where no head's null is known. */
double findings_sensitivity(const findings_study *s, const findings_run *r);
