/* What happens to a layer: its onset, how long that lasts, its collapse (docs/design.md section 6.5). A value that is
 * missing answers UNKNOWN, and so does what depends on it: never NO. A snapshot that was dropped, or a spectrum without
 * numbers, answers NO: nothing was seen there, and it breaks a pair. */
#include "diag/findings_statistics.h"
#include "diag/findings_study.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

static const double FAMILY_LEVEL = 0.01, REST_SHARE = 0.8, PLANTED = 1.5, LEAST_OVERLAP = 0.5;
static const double TW_SD = 1.26799, TW_MEAN = -1.20653; /* of tw_score, docs/design.md section 6.4 */
enum { LEAST_SNAPSHOTS = 10 };

static findings_answer both(findings_answer a, findings_answer b) {
    if (a == FINDINGS_NO || b == FINDINGS_NO) return FINDINGS_NO;
    return a == FINDINGS_YES && b == FINDINGS_YES ? FINDINGS_YES : FINDINGS_UNKNOWN;
}

static findings_answer at_least(double value, double limit) {
    if (isnan(value)) return FINDINGS_UNKNOWN;
    return value >= limit ? FINDINGS_YES : FINDINGS_NO;
}

static findings_answer at_most(double value, double limit) {
    return at_least(-value, -limit);
}

/* ---------------------------------------------------------------- what one snapshot says of a head */

/* Over both limits of an onset; the gains are asked apart. */
static findings_answer spikes(const findings_study *s, const findings_state *x, double theta) {
    if (!x->measured) return FINDINGS_NO;
    return both(at_least(x->tw_score, s->threshold), at_least(x->excess, theta));
}

/* z with gains kept exists where the plain z is conspicuous too; where that is not, the gains need not be asked. */
static findings_answer collapses(const findings_study *s, const findings_state *x) {
    if (!x->measured) return FINDINGS_NO;
    findings_answer z = isnan(x->z_rest_gains) && at_most(x->z_rest, s->z_threshold) == FINDINGS_NO
                            ? FINDINGS_NO
                            : at_most(x->z_rest_gains, s->z_threshold);
    return both(at_most(x->rest, REST_SHARE), z);
}

/* ---------------------------------------------------------------- events */

/* One kind of event: whether a head has it at a snapshot and the next, and how much of it. */
typedef struct event_kind {
    findings_answer (*at)(const findings_study *s, const findings_state *x, const findings_state *next, double theta);
    double (*size)(const findings_state *x);
} event_kind;

static findings_answer onset_at(const findings_study *s, const findings_state *x, const findings_state *next,
                                double theta) {
    findings_answer pair = both(spikes(s, x, theta), spikes(s, next, theta));
    return pair == FINDINGS_NO ? pair : both(pair, at_least(x->tw_score_gains, s->threshold));
}

static double onset_size(const findings_state *x) {
    return x->excess;
}

static findings_answer collapse_at(const findings_study *s, const findings_state *x, const findings_state *next,
                                   double theta) {
    (void)theta;
    return both(collapses(s, x), collapses(s, next));
}

static double collapse_size(const findings_state *x) {
    return -x->rest;
}

/* The first snapshot at which a head has it. A head of which that is unknown makes the layer's unknown, unless another
 * one has it at the same snapshot. */
static findings_event first_event(const findings_study *s, const findings_run *r, int layer, double theta,
                                  const event_kind *kind) {
    for (int k = 0; k + 1 < r->snapshots; k++) {
        findings_event e = {.happened = FINDINGS_NO, .snapshot = -1, .head = -1};
        if (r->steps[k] < 1 || !r->recorded[k] || !r->recorded[k + 1]) continue;
        for (int h = 0; h < r->heads; h++) {
            const findings_state *x = findings_state_at(r, layer, h, k);
            findings_answer has = kind->at(s, x, x + 1, theta);
            if (has == FINDINGS_UNKNOWN && e.happened == FINDINGS_NO) e.happened = has;
            if (has != FINDINGS_YES) continue;
            bool larger = e.head < 0 || kind->size(x) > kind->size(findings_state_at(r, layer, e.head, k));
            if (larger) e = (findings_event){.happened = has, .snapshot = k, .head = h};
        }
        if (e.happened != FINDINGS_NO) return e;
    }
    return (findings_event){.happened = FINDINGS_NO, .snapshot = -1, .head = -1};
}

findings_event findings_onset(const findings_study *s, const findings_run *r, int layer, double theta) {
    return first_event(s, r, layer, theta, &(event_kind){onset_at, onset_size});
}

findings_event findings_collapse(const findings_study *s, const findings_run *r, int layer) {
    return first_event(s, r, layer, 0, &(event_kind){collapse_at, collapse_size});
}

/* ---------------------------------------------------------------- persistence */

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of the numbers among x [n], which is sorted; NaN where they are fewer than 10. */
static double median_of(double *x, int n) {
    if (n < LEAST_SNAPSHOTS) return NAN;
    qsort(x, (size_t)n, sizeof *x, by_value);
    return 0.5 * (x[(n - 1) / 2] + x[n / 2]);
}

static double median_overlap(const findings_run *r, int layer, findings_event onset) {
    double *overlaps = malloc((size_t)r->snapshots * sizeof *overlaps), median = NAN;
    int n = 0;
    for (int k = onset.snapshot + 1; overlaps && k < r->snapshots; k++) {
        double x = findings_state_at(r, layer, onset.head, k)->top_overlap;
        if (r->recorded[k] && !isnan(x)) overlaps[n++] = x;
    }
    if (overlaps) median = median_of(overlaps, n);
    free(overlaps);
    return median;
}

/* At least 90%, in whole numbers: 9 of 10 is enough. */
static findings_answer is_often(int satisfied, int snapshots) {
    return 10 * (int64_t)satisfied >= 9 * (int64_t)snapshots ? FINDINGS_YES : FINDINGS_NO;
}

findings_persistence findings_persist(const findings_study *s, const findings_run *r, int layer, double theta,
                                      findings_event onset) {
    findings_persistence p = {.median_overlap = median_overlap(r, layer, onset)};
    int unknown = 0;
    bool lasts = true;
    for (int k = onset.snapshot + 1; k < r->snapshots; k++) {
        if (!r->recorded[k]) continue;
        findings_answer still = spikes(s, findings_state_at(r, layer, onset.head, k), theta);
        p.snapshots++;
        p.satisfied += still == FINDINGS_YES;
        unknown += still == FINDINGS_UNKNOWN;
        if (lasts) p.lasted_steps = (double)(r->steps[k] - r->steps[onset.snapshot]);
        if (lasts && still == FINDINGS_NO) p.ended = true;
        lasts = lasts && still == FINDINGS_YES; /* an unknown one censors here */
    }
    p.persists = FINDINGS_UNKNOWN;
    if (p.snapshots < LEAST_SNAPSHOTS) return p;
    findings_answer often = is_often(p.satisfied, p.snapshots);
    if (often == FINDINGS_NO && is_often(p.satisfied + unknown, p.snapshots) == FINDINGS_YES) often = FINDINGS_UNKNOWN;
    p.persists = both(often, at_least(p.median_overlap, LEAST_OVERLAP));
    return p;
}

/* ---------------------------------------------------------------- the study */

/* Largest tw_score of step 0. */
static double start_score(const findings_run *r) {
    double most = -INFINITY;
    for (int i = 0; i < r->layers * r->heads; i++) {
        const findings_state *x = findings_state_at(r, i / r->heads, i % r->heads, 0);
        if (x->measured && isnan(x->tw_score)) return NAN;
        if (x->measured) most = fmax(most, x->tw_score);
    }
    return most;
}

static void check_run(const findings_study *s, findings_run *r) {
    char *why = r->excluded;
    size_t size = sizeof r->excluded;
    if (why[0]) return;
    if (r->snapshots == 0 || r->steps[0] != 0 || !r->recorded[0]) {
        snprintf(why, size, "no snapshot of step 0 is recorded: nothing says that its start is noise");
        return;
    }
    double score = start_score(r);
    if (isnan(score)) {
        snprintf(why, size, "tw_score is NULL at step 0: its null is not there (yet)");
    } else if (isinf(score)) {
        snprintf(why, size, "no head has a spectrum with numbers at step 0");
    } else if (score >= s->threshold) {
        snprintf(why, size,
                 "tw_score is %.4g at step 0, at least u* = %.4g: its start is no noise, or the null is wrong", score,
                 s->threshold);
        r->rejected = true;
    } else if (r->snapshots - r->missed < 3) {
        snprintf(why, size, "%d snapshots are recorded after step 0; an onset needs two", r->snapshots - r->missed - 1);
    }
}

void findings_prepare(findings_study *s) {
    s->tests = 0;
    for (int i = 0; i < s->count; i++) {
        const findings_run *r = &s->runs[i];
        s->tests += (double)r->layers * r->heads * (double)r->planned;
    }
    s->threshold = findings_tracy_widom_threshold(FAMILY_LEVEL / fmax(1, s->tests));
    s->z_threshold = findings_normal_quantile(FAMILY_LEVEL / fmax(1, s->tests));
    for (int i = 0; i < s->count; i++) check_run(s, &s->runs[i]);
}

double findings_sensitivity(const findings_study *s, const findings_run *r) {
    int known = 0, found = 0;
    for (int i = 0; i < r->layers * r->heads; i++) {
        const findings_state *x = findings_state_at(r, i / r->heads, i % r->heads, 0);
        if (isnan(x->null_sd)) continue;
        known++;
        found += TW_SD * log(PLANTED) / x->null_sd + TW_MEAN >= s->threshold;
    }
    return known ? found / (double)known : NAN;
}
