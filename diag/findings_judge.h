/* Verdicts (docs/design.md section 6.5): one a finding and variant, with the numbers behind it. Private to
 * diag/findings*.c. */
#pragma once

#include "diag/findings_study.h"

#include <jansson.h>

enum { FINDINGS_THETAS = 5, FINDINGS_MOST_TESTS = 2 };

/* Effect sizes of the onset's curve. */
extern const double findings_thetas[FINDINGS_THETAS];

typedef struct finding {
    const char *name, *variant;
    findings_answer verdict; /* UNKNOWN: undetermined */
    char reason[240];        /* why it is undetermined, or what it stands on; "" where there is nothing to say */
    bool wants_seeds;        /* undetermined since there are too few runs that differ by seed */
    int tests;               /* hypotheses that it adds to the study's family; all must be rejected */
    struct {
        const char *against; /* the baseline; NULL: none */
        double p, holm;
    } test[FINDINGS_MOST_TESTS];
    json_t *numbers; /* an object, in the order in which it is to be read */
} finding;

typedef struct findings_layer {
    findings_event onset, collapse;
    findings_persistence persistence; /* of an onset that happened */
} findings_layer;

typedef struct findings_variant { /* its judged runs, by seed */
    const char *name;
    const findings_run **runs; /* [count] */
    int count, excluded;
    int layers;             /* of every run, where unfit is "" */
    char unfit[160];        /* why its runs are no replicates of one another; "": they are */
    findings_layer **cells; /* [count], each [layers of the run] */
} findings_variant;

typedef struct findings_verdicts {
    const findings_study *study;
    double theta, alpha;
    findings_variant *variants;
    int variant_count;
    finding *findings;
    int count;
} findings_verdicts;

/* Every finding of the study at the effect size theta; Holm over all that have a p, at level alpha. INTERNAL: out of
 * memory. */
status findings_judge(const findings_study *study, double theta, double alpha, findings_verdicts *out);
void findings_verdicts_free(findings_verdicts *v);

/* A new finding at the end of the list; NULL: out of memory. Valid until the next. */
finding *findings_add(findings_verdicts *v, const char *name, const char *variant);

/* Adds steps_by_layer and heads_by_layer, null where the layer has no such event or none is known: of the run's onsets,
 * or collapses. */
void findings_put_events(json_t *to, const findings_run *r, const findings_layer *layers, bool collapse);

/* Those that compare seeds (findings_compare.c). */
status findings_judge_propagation(findings_verdicts *v, const findings_variant *of);
status findings_judge_coincidence(findings_verdicts *v, const findings_variant *of);
status findings_judge_prevention(findings_verdicts *v);

/* Sets a member; out of memory shows when the object is printed. */
static inline void findings_put(json_t *object, const char *key, json_t *value) {
    json_object_set_new(object, key, value);
}
