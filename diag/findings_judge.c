/* Variants and their events; the findings of single layers: onset, persistence, collapse; Holm over the study. */
#include "diag/findings_judge.h"

#include "core/json.h"
#include "diag/findings_statistics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const double findings_thetas[FINDINGS_THETAS] = {1.25, 1.5, 2, 3, 5};

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the findings");
}

finding *findings_add(findings_verdicts *v, const char *name, const char *variant) {
    finding *larger = realloc(v->findings, ((size_t)v->count + 1) * sizeof *larger);
    json_t *numbers = larger ? json_object() : NULL;
    if (larger) v->findings = larger;
    if (!numbers) {
        out_of_memory();
        return NULL;
    }
    v->findings[v->count] =
        (finding){.name = name, .variant = variant, .verdict = FINDINGS_UNKNOWN, .numbers = numbers};
    return &v->findings[v->count++];
}

/* ---------------------------------------------------------------- variants */

static findings_variant *variant_named(findings_verdicts *v, const char *name) {
    for (int i = 0; i < v->variant_count; i++)
        if (strcmp(v->variants[i].name, name) == 0) return &v->variants[i];
    findings_variant *larger = realloc(v->variants, ((size_t)v->variant_count + 1) * sizeof *larger);
    if (!larger) return NULL;
    v->variants = larger;
    v->variants[v->variant_count] = (findings_variant){.name = name};
    return &v->variants[v->variant_count++];
}

static status add_to_variant(findings_verdicts *v, const findings_run *r) {
    findings_variant *to = variant_named(v, r->variant);
    if (!to) return out_of_memory();
    if (r->excluded[0]) {
        to->excluded++;
        return STATUS_OK;
    }
    const findings_run **larger = realloc(to->runs, ((size_t)to->count + 1) * sizeof *larger);
    if (!larger) return out_of_memory();
    to->runs = larger;
    int at = to->count++;
    for (; at > 0 && larger[at - 1]->seed > r->seed; at--) larger[at] = larger[at - 1];
    larger[at] = r;
    return STATUS_OK;
}

/* Seeds can be compared where nothing else differs that the database tells. */
static void check_replicates(findings_variant *of) {
    for (int i = 0; i < of->count; i++) {
        const findings_run *r = of->runs[i], *first = of->runs[0];
        if (!r->has_seed)
            snprintf(of->unfit, sizeof of->unfit, "run %.60s has no seed", r->name);
        else if (i > 0 && r->seed == of->runs[i - 1]->seed)
            snprintf(of->unfit, sizeof of->unfit, "two runs have seed %lld: name one of them", (long long)r->seed);
        else if (r->layers != first->layers || r->heads != first->heads || r->planned != first->planned)
            snprintf(of->unfit, sizeof of->unfit, "runs differ in layers, heads or planned snapshots");
    }
    of->layers = of->count ? of->runs[0]->layers : 0;
}

static status find_events(const findings_verdicts *v, findings_variant *of) {
    of->cells = calloc((size_t)of->count + 1, sizeof *of->cells);
    if (!of->cells) return out_of_memory();
    for (int i = 0; i < of->count; i++) {
        const findings_run *r = of->runs[i];
        findings_layer *cell = of->cells[i] = calloc((size_t)r->layers + 1, sizeof *cell);
        if (!cell) return out_of_memory();
        for (int l = 0; l < r->layers; l++, cell++) {
            cell->onset = findings_onset(v->study, r, l, v->theta);
            cell->collapse = findings_collapse(v->study, r, l);
            if (cell->onset.happened == FINDINGS_YES)
                cell->persistence = findings_persist(v->study, r, l, v->theta, cell->onset);
        }
    }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- findings of single layers */

typedef struct tally {
    int yes, no, unknown;
} tally;

static void count_answer(tally *t, findings_answer a) {
    t->yes += a == FINDINGS_YES;
    t->no += a == FINDINGS_NO;
    t->unknown += a == FINDINGS_UNKNOWN;
}

/* One layer that has it is enough: the threshold keeps false ones to 1% in the whole study. */
static findings_answer any(tally t) {
    return t.yes ? FINDINGS_YES : t.unknown ? FINDINGS_UNKNOWN : FINDINGS_NO;
}

static findings_event event_of(const findings_layer *cell, bool collapse) {
    return collapse ? cell->collapse : cell->onset;
}

static bool no_runs(finding *f, const findings_variant *of) {
    if (of->count > 0) return false;
    snprintf(f->reason, sizeof f->reason, "none of its %d runs can be judged", of->excluded);
    return true;
}

void findings_put_events(json_t *to, const findings_run *r, const findings_layer *layers, bool collapse) {
    json_t *steps = json_array(), *heads = json_array();
    for (int l = 0; l < r->layers; l++) {
        findings_event e = event_of(&layers[l], collapse);
        bool there = e.happened == FINDINGS_YES;
        json_array_append_new(steps, there ? json_integer(r->steps[e.snapshot]) : json_null());
        json_array_append_new(heads, there ? json_integer(e.head) : json_null());
    }
    findings_put(to, "steps_by_layer", steps);
    findings_put(to, "heads_by_layer", heads);
}

/* A row a run. */
static json_t *event_rows(const findings_variant *of, bool collapse) {
    json_t *rows = json_array();
    for (int i = 0; i < of->count; i++) {
        const findings_run *r = of->runs[i];
        json_t *row = json_object();
        findings_put(row, "run", json_text(r->name));
        findings_put(row, "seed", r->has_seed ? json_integer(r->seed) : json_null());
        findings_put_events(row, r, of->cells[i], collapse);
        json_array_append_new(rows, row);
    }
    return rows;
}

/* C(theta): the share of a run's layers with an onset, over the runs. */
static json_t *curve_point(const findings_verdicts *v, const findings_variant *of, double theta) {
    double sum = 0, least = 1, most = 0;
    tally all = {0};
    for (int i = 0; i < of->count; i++) {
        tally t = {0};
        const findings_run *r = of->runs[i];
        for (int l = 0; l < r->layers; l++) count_answer(&t, findings_onset(v->study, r, l, theta).happened);
        double share = t.yes / (double)r->layers;
        sum += share;
        least = fmin(least, share);
        most = fmax(most, share);
        all.yes += t.yes;
        all.unknown += t.unknown;
    }
    json_t *point = json_object();
    findings_put(point, "theta", json_real(theta));
    findings_put(point, "share_of_layers", json_finite(sum / of->count));
    findings_put(point, "least", json_real(least));
    findings_put(point, "most", json_real(most));
    findings_put(point, "layers", json_integer(all.yes));
    findings_put(point, "unknown", json_integer(all.unknown));
    return point;
}

static json_t *curve(const findings_verdicts *v, const findings_variant *of) {
    json_t *points = json_array();
    bool placed = false;
    for (int i = 0; i < FINDINGS_THETAS; i++) {
        if (!placed && v->theta <= findings_thetas[i]) {
            placed = true;
            if (v->theta < findings_thetas[i]) json_array_append_new(points, curve_point(v, of, v->theta));
        }
        json_array_append_new(points, curve_point(v, of, findings_thetas[i]));
    }
    if (!placed) json_array_append_new(points, curve_point(v, of, v->theta));
    return points;
}

static int cell_count(const findings_variant *of) {
    int n = 0;
    for (int i = 0; i < of->count; i++) n += of->runs[i]->layers;
    return n;
}

/* Kaplan-Meier over the times of a variant's layers: the curve as rows, and its median. */
static status put_survival(finding *f, const char *median, const double *times, const bool *happened, int n) {
    findings_survival *s = malloc(((size_t)n + 1) * sizeof *s);
    int count = 0;
    if (!s) return out_of_memory();
    status result = findings_kaplan_meier(times, happened, n, s, &count);
    if (result == STATUS_OK) {
        json_t *rows = json_array();
        for (int i = 0; i < count; i++) {
            json_t *row = json_object();
            findings_put(row, "steps", json_real(s[i].time));
            findings_put(row, "at_risk", json_integer(s[i].at_risk));
            findings_put(row, "events", json_integer(s[i].events));
            findings_put(row, "share_without", json_real(s[i].share));
            json_array_append_new(rows, row);
        }
        findings_put(f->numbers, median, json_finite(findings_median_survival(s, count)));
        findings_put(f->numbers, "kaplan_meier", rows);
    }
    free(s);
    return result;
}

/* Steps to the onset; a layer without one is censored at the last snapshot of its run. */
static status put_onset_times(finding *f, const findings_variant *of) {
    int n = 0, most = cell_count(of);
    double *times = malloc(((size_t)most + 1) * sizeof *times);
    bool *happened = malloc((size_t)most + 1);
    status result = times && happened ? STATUS_OK : out_of_memory();
    for (int i = 0; i < of->count && result == STATUS_OK; i++)
        for (int l = 0; l < of->runs[i]->layers; l++) {
            const findings_run *r = of->runs[i];
            findings_event e = of->cells[i][l].onset;
            happened[n] = e.happened == FINDINGS_YES;
            times[n++] = (double)r->steps[e.happened == FINDINGS_YES ? e.snapshot : r->snapshots - 1];
        }
    if (result == STATUS_OK) result = put_survival(f, "median_onset_step", times, happened, n);
    free(times);
    free(happened);
    return result;
}

/* Onset and collapse: what they have in common. */
static tally put_events(finding *f, const findings_variant *of, bool collapse) {
    tally t = {0};
    int missed = 0;
    for (int i = 0; i < of->count; i++) {
        for (int l = 0; l < of->runs[i]->layers; l++) count_answer(&t, event_of(&of->cells[i][l], collapse).happened);
        missed += of->runs[i]->missed;
    }
    findings_put(f->numbers, "runs", json_integer(of->count));
    findings_put(f->numbers, "layers", json_integer(cell_count(of)));
    findings_put(f->numbers, collapse ? "layers_with_collapse" : "layers_with_onset", json_integer(t.yes));
    findings_put(f->numbers, "censored", json_integer(t.no));
    findings_put(f->numbers, "unknown", json_integer(t.unknown));
    findings_put(f->numbers, "snapshots_missed", json_integer(missed));
    return t;
}

static status judge_onset(findings_verdicts *v, const findings_variant *of) {
    finding *f = findings_add(v, "onset", of->name);
    if (!f) return STATUS_INTERNAL;
    if (no_runs(f, of)) return STATUS_OK;
    tally t = put_events(f, of, false);
    f->verdict = any(t);
    if (t.unknown)
        snprintf(f->reason, sizeof f->reason,
                 "in %d layers tw_score, tw_score_gains or the null is NULL where it decides", t.unknown);
    findings_put(f->numbers, "curve", curve(v, of));
    findings_put(f->numbers, "onsets", event_rows(of, false));
    return put_onset_times(f, of);
}

static status judge_collapse(findings_verdicts *v, const findings_variant *of) {
    finding *f = findings_add(v, "collapse", of->name);
    if (!f) return STATUS_INTERNAL;
    if (no_runs(f, of)) return STATUS_OK;
    tally t = put_events(f, of, true);
    f->verdict = any(t);
    if (t.unknown)
        snprintf(f->reason, sizeof f->reason,
                 "in %d layers effective_rank_rest, its z (gains kept) or its null is NULL where it decides",
                 t.unknown);
    findings_put(f->numbers, "collapses", event_rows(of, true));
    return STATUS_OK;
}

static const char *word(findings_answer a) {
    return a == FINDINGS_YES ? "yes" : a == FINDINGS_NO ? "no" : "unknown";
}

static json_t *persistence_row(const findings_run *r, int layer, const findings_layer *cell) {
    const findings_persistence *p = &cell->persistence;
    json_t *row = json_object();
    findings_put(row, "run", json_text(r->name));
    findings_put(row, "layer", json_integer(layer));
    findings_put(row, "head", json_integer(cell->onset.head));
    findings_put(row, "onset_step", json_integer(r->steps[cell->onset.snapshot]));
    findings_put(row, "snapshots_after", json_integer(p->snapshots));
    findings_put(row, "over_limits", json_integer(p->satisfied));
    findings_put(row, "median_overlap", json_finite(p->median_overlap));
    findings_put(row, "persists", json_string(word(p->persists)));
    return row;
}

static status judge_persistence(findings_verdicts *v, const findings_variant *of) {
    finding *f = findings_add(v, "persistence", of->name);
    if (!f) return STATUS_INTERNAL;
    if (no_runs(f, of)) return STATUS_OK;
    tally t = {0}, onsets = {0};
    int n = 0, most = cell_count(of);
    json_t *rows = json_array();
    double *times = malloc(((size_t)most + 1) * sizeof *times);
    bool *ended = malloc((size_t)most + 1);
    status result = times && ended ? STATUS_OK : out_of_memory();
    for (int i = 0; i < of->count && result == STATUS_OK; i++)
        for (int l = 0; l < of->runs[i]->layers; l++) {
            const findings_layer *cell = &of->cells[i][l];
            count_answer(&onsets, cell->onset.happened);
            if (cell->onset.happened != FINDINGS_YES) continue;
            count_answer(&t, cell->persistence.persists);
            json_array_append_new(rows, persistence_row(of->runs[i], l, cell));
            times[n] = cell->persistence.lasted_steps;
            ended[n++] = cell->persistence.ended;
        }
    findings_put(f->numbers, "onsets", json_integer(onsets.yes));
    findings_put(f->numbers, "persistent", json_integer(t.yes));
    findings_put(f->numbers, "not_persistent", json_integer(t.no));
    findings_put(f->numbers, "undetermined", json_integer(t.unknown));
    findings_put(f->numbers, "by_layer", rows);
    if (result == STATUS_OK) result = put_survival(f, "median_steps_to_the_end", times, ended, n);
    free(times);
    free(ended);
    f->verdict = any((tally){.yes = t.yes, .no = t.no, .unknown = t.unknown + onsets.unknown});
    if (f->verdict == FINDINGS_UNKNOWN)
        snprintf(f->reason, sizeof f->reason,
                 "of %d onsets, %d have fewer than 10 snapshots after them or values that are NULL; %d layers' onsets "
                 "are unknown",
                 onsets.yes, t.unknown, onsets.unknown);
    else if (onsets.yes == 0)
        snprintf(f->reason, sizeof f->reason, "there is no onset that could persist");
    return result;
}

/* ---------------------------------------------------------------- the study */

/* A finding that rests on tests holds only where all of them are rejected in the whole family. */
static status correct_for_family(findings_verdicts *v) {
    int n = 0;
    double *p = malloc((2 * FINDINGS_MOST_TESTS * (size_t)v->count + 1) * sizeof *p), *holm = p;
    if (!p) return out_of_memory();
    for (int i = 0; i < v->count; i++)
        for (int k = 0; k < v->findings[i].tests; k++) p[n++] = v->findings[i].test[k].p;
    holm = p + n;
    findings_holm(p, n, holm);
    n = 0;
    for (int i = 0; i < v->count; i++) {
        finding *f = &v->findings[i];
        for (int k = 0; k < f->tests; k++) {
            f->test[k].holm = holm[n++];
            if (f->verdict != FINDINGS_YES || f->test[k].holm <= v->alpha) continue;
            f->verdict = FINDINGS_NO;
            snprintf(f->reason, sizeof f->reason,
                     "its own p = %.3g would do, but not among the study's tests (Holm: %.3g)", f->test[k].p,
                     f->test[k].holm);
        }
    }
    free(p);
    return STATUS_OK;
}

static status judge_variant(findings_verdicts *v, const findings_variant *of) {
    TRY(judge_onset(v, of));
    TRY(judge_persistence(v, of));
    TRY(judge_collapse(v, of));
    TRY(findings_judge_propagation(v, of));
    return findings_judge_coincidence(v, of);
}

status findings_judge(const findings_study *study, double theta, double alpha, findings_verdicts *out) {
    *out = (findings_verdicts){.study = study, .theta = theta, .alpha = alpha};
    status result = STATUS_OK;
    for (int i = 0; i < study->count && result == STATUS_OK; i++) result = add_to_variant(out, &study->runs[i]);
    for (int i = 0; i < out->variant_count && result == STATUS_OK; i++) {
        check_replicates(&out->variants[i]);
        result = find_events(out, &out->variants[i]);
    }
    for (int i = 0; i < out->variant_count && result == STATUS_OK; i++) result = judge_variant(out, &out->variants[i]);
    if (result == STATUS_OK) result = findings_judge_prevention(out);
    return result == STATUS_OK ? correct_for_family(out) : result;
}

void findings_verdicts_free(findings_verdicts *v) {
    for (int i = 0; i < v->variant_count; i++) {
        for (int k = 0; v->variants[i].cells && k < v->variants[i].count; k++) free(v->variants[i].cells[k]);
        free(v->variants[i].cells);
        free(v->variants[i].runs);
    }
    for (int i = 0; i < v->count; i++) json_decref(v->findings[i].numbers);
    free(v->variants);
    free(v->findings);
    *v = (findings_verdicts){0};
}
