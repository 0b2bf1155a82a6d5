/* The findings that compare seeds: propagation from layer to layer, spike and collapse together, prevention by a
 * variant. What is unknown of a layer is counted against the claim, and where that alone decides the verdict is
 * undetermined. */
#include "diag/findings_judge.h"
#include "diag/findings_statistics.h"

#include "core/json.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_SEEDS = 6, LEAST_LAYERS = 4 };
static const double LEVEL = 0.01, LEAST_SENSITIVITY = 0.95, LOSS_SHARE = 0.01;
static const char CANDIDATE[] = "mla-decoupled";
static const char *const BASELINES[FINDINGS_MOST_TESTS] = {"mha", "mla-prerope"};

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the findings");
}

/* What a comparison of seeds needs, or why it cannot be. */
static bool comparable(finding *f, const findings_variant *of, int least_layers) {
    if (of->unfit[0])
        snprintf(f->reason, sizeof f->reason, "%s", of->unfit);
    else if (of->count < LEAST_SEEDS)
        snprintf(f->reason, sizeof f->reason, "%d seeds of at least %d (%d runs are not judged)", of->count,
                 LEAST_SEEDS, of->excluded);
    else if (of->layers < least_layers)
        snprintf(f->reason, sizeof f->reason, "%d layers of at least %d", of->layers, least_layers);
    f->wants_seeds = !of->unfit[0] && of->count < LEAST_SEEDS;
    return f->reason[0] == '\0';
}

/* Steps of the events [seeds, layers], INFINITY where there is none; *censored and *unknown: how many. */
static double *event_steps(const findings_variant *of, bool collapse, int *censored, int *unknown) {
    double *steps = malloc(((size_t)of->count * (size_t)of->layers + 1) * sizeof *steps);
    *censored = *unknown = 0;
    for (int i = 0; steps && i < of->count; i++)
        for (int l = 0; l < of->layers; l++) {
            const findings_layer *cell = &of->cells[i][l];
            findings_event e = collapse ? cell->collapse : cell->onset;
            steps[i * of->layers + l] =
                e.happened == FINDINGS_YES ? (double)of->runs[i]->steps[e.snapshot] : (double)INFINITY;
            *censored += e.happened == FINDINGS_NO;
            *unknown += e.happened == FINDINGS_UNKNOWN;
        }
    return steps;
}

static void add_test(finding *f, const char *against, double p) {
    f->test[f->tests].against = against;
    f->test[f->tests++].p = p;
}

/* ---------------------------------------------------------------- propagation */

/* By seed: of the pairs of adjacent layers, the share that is later above less the share that is earlier; a pair
 * without any onset is neither, and a censored one is later than every onset. */
static void directions(const double *steps, int seeds, int layers, double *out) {
    for (int s = 0; s < seeds; s++) {
        out[s] = 0;
        for (int l = 0; l + 1 < layers; l++) {
            const double *pair = &steps[s * layers + l];
            out[s] += ((pair[1] > pair[0]) - (pair[1] < pair[0])) / (double)(layers - 1);
        }
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median t_{l+1} - t_l over the pairs with both onsets; NaN: there is none. INTERNAL: out of memory. */
static status median_lag(const double *steps, int seeds, int layers, double *out) {
    double *lags = malloc(((size_t)seeds * (size_t)layers + 1) * sizeof *lags);
    int n = 0;
    *out = NAN;
    if (!lags) return out_of_memory();
    for (int i = 0; i < seeds * layers; i++) {
        if (i % layers == layers - 1 || !isfinite(steps[i]) || !isfinite(steps[i + 1])) continue;
        lags[n++] = steps[i + 1] - steps[i];
    }
    qsort(lags, (size_t)n, sizeof *lags, by_value);
    if (n > 0) *out = 0.5 * (lags[(n - 1) / 2] + lags[n / 2]);
    free(lags);
    return STATUS_OK;
}

static status test_propagation(const findings_verdicts *v, finding *f, const findings_variant *of,
                               const double *steps) {
    findings_test q;
    char label[96];
    double lag = NAN, lean = 0, *direction = malloc((size_t)of->count * sizeof *direction);
    if (!direction) return out_of_memory();
    snprintf(label, sizeof label, "propagation %.60s", of->name);
    directions(steps, of->count, of->layers, direction);
    for (int i = 0; i < of->count; i++) lean += direction[i] / of->count;
    double p_lag = findings_sign_flip(direction, of->count, label);
    free(direction);
    TRY(findings_propagation(steps, of->count, of->layers, label, &q));
    TRY(median_lag(steps, of->count, of->layers, &lag));
    findings_put(f->numbers, "covariance_q", json_finite(q.statistic));
    findings_put(f->numbers, "p_covariance", json_finite(q.p));
    findings_put(f->numbers, "upward_less_downward", json_finite(lean));
    findings_put(f->numbers, "p_upward", json_finite(p_lag));
    findings_put(f->numbers, "median_lag_steps", json_finite(lag));
    if (isnan(q.p)) {
        snprintf(f->reason, sizeof f->reason,
                 "the order of the onsets is the same in every seed: nothing varies together");
        return STATUS_OK;
    }
    /* Both must hold, so that the larger p is the claim's. */
    add_test(f, NULL, fmax(q.p, p_lag));
    f->verdict = q.p <= LEVEL && p_lag <= v->alpha ? FINDINGS_YES : FINDINGS_NO;
    return STATUS_OK;
}

status findings_judge_propagation(findings_verdicts *v, const findings_variant *of) {
    finding *f = findings_add(v, "propagation", of->name);
    if (!f) return STATUS_INTERNAL;
    if (!comparable(f, of, LEAST_LAYERS)) return STATUS_OK;
    int censored, unknown;
    double *steps = event_steps(of, false, &censored, &unknown);
    if (!steps) return out_of_memory();
    findings_put(f->numbers, "seeds", json_integer(of->count));
    findings_put(f->numbers, "layers", json_integer(of->layers));
    findings_put(f->numbers, "censored", json_integer(censored));
    status result = STATUS_OK;
    if (unknown)
        snprintf(f->reason, sizeof f->reason, "the onsets of %d layers are unknown", unknown);
    else if (censored == of->count * of->layers)
        snprintf(f->reason, sizeof f->reason, "there is no onset to compare");
    else
        result = test_propagation(v, f, of, steps);
    free(steps);
    return result;
}

/* ---------------------------------------------------------------- coincidence */

/* Seeds that have both events in some layer. */
static int seeds_with_pairs(const findings_variant *of, const double *spikes, const double *collapses) {
    int n = 0;
    for (int i = 0; i < of->count; i++) {
        bool has = false;
        for (int l = 0; l < of->layers; l++)
            has |= isfinite(spikes[i * of->layers + l]) && isfinite(collapses[i * of->layers + l]);
        n += has;
    }
    return n;
}

static status test_coincidence(finding *f, const findings_variant *of, const double *spikes, const double *collapses) {
    findings_test t;
    char label[96];
    int pairs = 0, seeds = seeds_with_pairs(of, spikes, collapses);
    double patterns = 0;
    snprintf(label, sizeof label, "coincidence %.60s", of->name);
    TRY(findings_coincidence(spikes, collapses, of->count, of->layers, label, &t, &pairs, &patterns));
    findings_put(f->numbers, "pairs", json_integer(pairs));
    findings_put(f->numbers, "seeds_with_pairs", json_integer(seeds));
    findings_put(f->numbers, "mean_distance_steps", json_finite(pairs ? t.statistic / pairs : NAN));
    if (seeds < LEAST_SEEDS) {
        snprintf(f->reason, sizeof f->reason, "%d seeds of at least %d have both events in some layer", seeds,
                 LEAST_SEEDS);
    } else if (patterns * LEVEL < 1) {
        snprintf(f->reason, sizeof f->reason, "%.0f permutations of seeds within layers exist: p cannot reach %g",
                 patterns, LEVEL);
    } else if (isnan(t.p)) {
        snprintf(f->reason, sizeof f->reason, "every permutation gives the same distance: the steps do not vary");
    } else {
        findings_put(f->numbers, "p", json_finite(t.p));
        add_test(f, NULL, t.p);
        f->verdict = t.p <= LEVEL ? FINDINGS_YES : FINDINGS_NO;
    }
    return STATUS_OK;
}

status findings_judge_coincidence(findings_verdicts *v, const findings_variant *of) {
    finding *f = findings_add(v, "coincidence", of->name);
    if (!f) return STATUS_INTERNAL;
    if (!comparable(f, of, 1)) return STATUS_OK;
    int no_spike = 0, no_collapse = 0, unknown_spike = 0, unknown_collapse = 0;
    double *spikes = event_steps(of, false, &no_spike, &unknown_spike);
    double *collapses = event_steps(of, true, &no_collapse, &unknown_collapse);
    status result = spikes && collapses ? STATUS_OK : out_of_memory();
    findings_put(f->numbers, "seeds", json_integer(of->count));
    findings_put(f->numbers, "layers", json_integer(of->layers));
    findings_put(f->numbers, "censored_onsets", json_integer(no_spike));
    findings_put(f->numbers, "censored_collapses", json_integer(no_collapse));
    if (unknown_spike + unknown_collapse > 0)
        snprintf(f->reason, sizeof f->reason, "the onsets of %d layers and the collapses of %d are unknown",
                 unknown_spike, unknown_collapse);
    else if (result == STATUS_OK)
        result = test_coincidence(f, of, spikes, collapses);
    free(spikes);
    free(collapses);
    return result;
}

/* ---------------------------------------------------------------- prevention */

static const findings_variant *find_variant(const findings_verdicts *v, const char *name) {
    for (int i = 0; i < v->variant_count; i++)
        if (strcmp(v->variants[i].name, name) == 0) return &v->variants[i];
    return NULL;
}

/* Layers of run i with a persistent onset: at least, or with what is unknown at most. */
static int persistent_layers(const findings_variant *of, int i, bool at_most) {
    int n = 0;
    for (int l = 0; l < of->runs[i]->layers; l++) {
        const findings_layer *cell = &of->cells[i][l];
        bool known = cell->onset.happened == FINDINGS_YES && cell->persistence.persists != FINDINGS_UNKNOWN;
        bool unknown = cell->onset.happened == FINDINGS_UNKNOWN || (cell->onset.happened == FINDINGS_YES && !known);
        n += (known && cell->persistence.persists == FINDINGS_YES) || (at_most && unknown);
    }
    return n;
}

static double least_sensitivity(const findings_study *s, const findings_variant *of) {
    double least = 1;
    for (int i = 0; i < of->count; i++) {
        double share = findings_sensitivity(s, of->runs[i]);
        if (isnan(share)) return NAN;
        least = fmin(least, share);
    }
    return of->count ? least : NAN;
}

/* Seeds that both have, and what they say. */
typedef struct pairing {
    int seeds;
    double *lower, *upper;         /* C_base - C_candidate of each: what is unknown against the claim, and for it */
    double loss, base_loss;        /* means of the last validation losses; NaN: one has none */
    bool other_steps, other_shape; /* losses of other steps; models or plans of another shape */
} pairing;

static void add_pair(pairing *p, const findings_variant *of, int i, const findings_variant *base, int k) {
    const findings_run *r = of->runs[i], *b = base->runs[k];
    double layers = r->layers;
    p->lower[p->seeds] = (persistent_layers(base, k, false) - persistent_layers(of, i, true)) / layers;
    p->upper[p->seeds] = (persistent_layers(base, k, true) - persistent_layers(of, i, false)) / layers;
    p->seeds++;
    p->loss += r->validation_loss;
    p->base_loss += b->validation_loss;
    p->other_steps |= r->validation_step != b->validation_step;
    p->other_shape |= r->layers != b->layers || r->heads != b->heads || r->planned != b->planned;
}

static void pair_seeds(pairing *p, const findings_variant *of, const findings_variant *base) {
    for (int i = 0; i < of->count; i++)
        for (int k = 0; k < base->count; k++)
            if (of->runs[i]->seed == base->runs[k]->seed) add_pair(p, of, i, base, k);
    p->loss /= p->seeds;
    p->base_loss /= p->seeds;
}

static findings_answer answer(bool yes) {
    return yes ? FINDINGS_YES : FINDINGS_NO;
}

/* YES where it holds with all that is unknown against it, NO where it fails with all for it. */
static findings_answer between(bool against, bool favourable) {
    return against ? FINDINGS_YES : favourable ? FINDINGS_UNKNOWN : FINDINGS_NO;
}

static findings_answer worse(findings_answer a, findings_answer b) {
    if (a == FINDINGS_NO || b == FINDINGS_NO) return FINDINGS_NO;
    return a == FINDINGS_UNKNOWN ? a : b;
}

static findings_answer losses_agree(const pairing *p) {
    if (p->other_steps || isnan(p->loss) || isnan(p->base_loss)) return FINDINGS_UNKNOWN;
    return answer(fabs(p->loss / p->base_loss - 1) <= LOSS_SHARE);
}

static findings_answer is_sensitive(double share) {
    return isnan(share) ? FINDINGS_UNKNOWN : answer(share >= LEAST_SENSITIVITY);
}

static json_t *answer_json(findings_answer a) {
    return a == FINDINGS_UNKNOWN ? json_null() : json_boolean(a == FINDINGS_YES);
}

/* One row of the finding's table, and the verdict against that baseline. */
static findings_answer judge_pairing(findings_verdicts *v, finding *f, const pairing *p, const findings_variant *base,
                                     json_t *row) {
    findings_put(row, "seeds_paired", json_integer(p->seeds));
    if (p->seeds < LEAST_SEEDS || p->other_shape) {
        snprintf(f->reason, sizeof f->reason,
                 p->other_shape ? "%s: models or planned snapshots differ (%d seeds of at least %d)"
                                : "%s: %d seeds in common of at least %d",
                 base->name, p->seeds, LEAST_SEEDS);
        f->wants_seeds |= !p->other_shape;
        return FINDINGS_UNKNOWN;
    }
    double p_lower = findings_sign_flip(p->lower, p->seeds, base->name), mean = 0;
    double p_upper = findings_sign_flip(p->upper, p->seeds, base->name);
    double sensitivity = least_sensitivity(v->study, base);
    for (int i = 0; i < p->seeds; i++) mean += p->lower[i] / p->seeds;
    findings_answer loss = losses_agree(p), sensitive = is_sensitive(sensitivity);
    findings_put(row, "mean_difference", json_finite(mean));
    findings_put(row, "p", json_finite(p_lower));
    findings_put(row, "loss_ratio", json_finite(p->other_steps ? NAN : p->loss / p->base_loss));
    findings_put(row, "loss_within_1_percent", answer_json(loss));
    findings_put(row, "baseline_sensitivity", json_finite(sensitivity));
    add_test(f, base->name, p_lower);
    if (loss == FINDINGS_UNKNOWN)
        snprintf(f->reason, sizeof f->reason, "%s: validation losses of the same step are missing", base->name);
    return worse(worse(between(p_lower <= v->alpha, p_upper <= v->alpha), loss), sensitive);
}

static status judge_baseline(findings_verdicts *v, finding *f, const findings_variant *of, const char *name,
                             json_t *rows, findings_answer *verdict) {
    const findings_variant *base = find_variant(v, name);
    *verdict = FINDINGS_UNKNOWN;
    if (!base || base->unfit[0] || base->count == 0) {
        snprintf(f->reason, sizeof f->reason, "%s: %s", name,
                 base && base->unfit[0] ? base->unfit : "no run of it can be judged");
        f->wants_seeds |= !base || !base->unfit[0];
        return STATUS_OK;
    }
    size_t most = (size_t)of->count * (size_t)base->count + 1;
    pairing p = {.lower = malloc(most * sizeof *p.lower), .upper = malloc(most * sizeof *p.upper)};
    json_t *row = json_object();
    status result = p.lower && p.upper && row ? STATUS_OK : out_of_memory();
    if (result == STATUS_OK) {
        pair_seeds(&p, of, base);
        findings_put(row, "baseline", json_string(name));
        *verdict = judge_pairing(v, f, &p, base, row);
        json_array_append(rows, row);
    }
    json_decref(row);
    free(p.lower);
    free(p.upper);
    return result;
}

/* At most one layer with a persistent onset in every run of the candidate. */
static findings_answer put_candidate(const findings_verdicts *v, finding *f, const findings_variant *of) {
    findings_answer few = FINDINGS_YES;
    json_t *counts = json_array();
    int total = 0, most = 0;
    for (int i = 0; i < of->count; i++) {
        int least = persistent_layers(of, i, false), upper = persistent_layers(of, i, true);
        few = worse(few, between(upper <= 1, least <= 1));
        json_array_append_new(counts, json_integer(least));
        total += least;
        most += upper;
    }
    double sensitivity = least_sensitivity(v->study, of);
    findings_put(f->numbers, "seeds", json_integer(of->count));
    findings_put(f->numbers, "persistent_layers_by_seed", counts);
    findings_put(f->numbers, "at_most_one_layer", answer_json(few));
    findings_put(f->numbers, "smallest_p_possible", json_real(pow(0.5, of->count)));
    findings_put(f->numbers, "sensitivity_to_1.5", json_finite(sensitivity));
    if (total == 0 && most == 0) /* 95% bound of the share of seeds that would have one: 39% with 6 */
        findings_put(f->numbers, "none_bounds_the_rate_at", json_real(1 - pow(0.05, 1.0 / of->count)));
    return worse(few, is_sensitive(sensitivity));
}

status findings_judge_prevention(findings_verdicts *v) {
    const findings_variant *of = find_variant(v, CANDIDATE);
    if (!of) return STATUS_OK;
    finding *f = findings_add(v, "prevented", CANDIDATE);
    if (!f) return STATUS_INTERNAL;
    if (!comparable(f, of, 1)) return STATUS_OK;
    json_t *rows = json_array();
    findings_answer all = put_candidate(v, f, of);
    if (all == FINDINGS_UNKNOWN)
        snprintf(f->reason, sizeof f->reason, "persistence or the null is unknown in some of its layers");
    status result = STATUS_OK;
    for (int i = 0; i < FINDINGS_MOST_TESTS && result == STATUS_OK; i++) {
        findings_answer against;
        result = judge_baseline(v, f, of, BASELINES[i], rows, &against);
        all = worse(all, against);
    }
    findings_put(f->numbers, "baselines", rows);
    f->verdict = all;
    if (all != FINDINGS_UNKNOWN) {
        f->reason[0] = '\0';
        f->wants_seeds = false;
    }
    return result;
}
