/* See onset.h. A head's reference is allocated when it first crosses: most never do. */
#include "diag/onset.h"

#include "core/log.h"
#include "core/snapshot_steps.h"
#include "diag/findings_statistics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double FAMILY_LEVEL = 0.01;

typedef struct reference {
    int64_t step;   /* of the pair; -1: none */
    bool confirmed; /* by the snapshot after it */
    float *pair;    /* u, then v */
} reference;

struct onsets {
    config config; /* its numbers only: lists and texts are the caller's */
    const maps_matrix *matrices;
    int count;
    bool *wanted;
    reference *reference; /* [count] */
    double threshold;
};

status onsets_open(onsets **out, const config *c, const maps_matrix *matrices, int count) {
    onsets *o = calloc(1, sizeof(*o));
    *out = o;
    if (o) {
        o->wanted = calloc((size_t)count + 1, sizeof(*o->wanted));
        o->reference = calloc((size_t)count + 1, sizeof(*o->reference));
    }
    if (!o || !o->wanted || !o->reference) {
        onsets_close(o);
        *out = NULL;
        return status_fail(STATUS_INTERNAL, "out of memory for the onsets of %d matrices", count);
    }
    double tests = (double)c->model.layers * (double)c->model.heads * (double)snapshot_steps_count(c);
    o->config = *c;
    o->matrices = matrices;
    o->count = count;
    o->threshold = findings_tracy_widom_threshold(FAMILY_LEVEL / fmax(1, tests));
    for (int i = 0; i < count; i++) {
        o->wanted[i] = matrices[i].form == MAPS_score && matrices[i].scope == MAPS_head;
        o->reference[i].step = -1;
    }
    return STATUS_OK;
}

void onsets_close(onsets *o) {
    if (!o) return;
    for (int i = 0; o->reference && i < o->count; i++) free(o->reference[i].pair);
    free(o->reference);
    free(o->wanted);
    free(o);
}

const bool *onsets_wanted(const onsets *o) {
    return o->wanted;
}

double onsets_threshold(const onsets *o) {
    return o->threshold;
}

static double inner(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

static double overlap(const maps_matrix *m, const float *then, const float *now) {
    double u = inner(then, now, m->left), v = inner(then + m->left, now + m->left, m->right);
    double x = fabs(u * v);
    return x > 1 ? 1 : x; /* by the rounding of fp32 only */
}

/* False without memory: there will be another candidate. */
static bool keep_pair(reference *r, const maps_matrix *m, int64_t step, const float *pair) {
    size_t bytes = (size_t)(m->left + m->right) * sizeof(*pair);
    if (!r->pair) r->pair = malloc(bytes);
    if (!r->pair) {
        log_warn("out of memory for the top pair of layer %d head %d at step %lld", m->layer, m->head, (long long)step);
        return false;
    }
    memcpy(r->pair, pair, bytes);
    r->step = step;
    return true;
}

static bool crosses(const onsets *o, int64_t step, const spectrum *row, const float *pair) {
    return step >= 1 && row->tw_score >= o->threshold && !isnan(pair[0]);
}

void onsets_restore(onsets *o, int64_t step, const spectrum *rows, const float *pairs) {
    for (int i = 0; i < o->count; i++) {
        const maps_matrix *m = &o->matrices[i];
        reference *r = &o->reference[i];
        if (!o->wanted[i] || r->confirmed) continue;
        if (r->step >= 0 && !isnan(rows[i].top_overlap))
            r->confirmed = true;
        else if (!crosses(o, step, &rows[i], pairs + m->first_pair) || !keep_pair(r, m, step, pairs + m->first_pair))
            r->step = -1;
    }
}

void onsets_note(onsets *o, int64_t step, spectrum *rows, const float *pairs, bool *candidate) {
    for (int i = 0; i < o->count; i++) {
        const maps_matrix *m = &o->matrices[i];
        const float *pair = pairs + m->first_pair;
        reference *r = &o->reference[i];
        candidate[i] = false;
        if (!o->wanted[i]) continue;
        bool again = crosses(o, step, &rows[i], pair);
        bool next = r->step >= 0 && snapshot_steps_next(&o->config, r->step) == step;
        if (!r->confirmed && again && next) r->confirmed = true;
        if (r->confirmed)
            rows[i].top_overlap = overlap(m, r->pair, pair);
        else if (again)
            candidate[i] = keep_pair(r, m, step, pair);
        else
            r->step = -1;
    }
}
