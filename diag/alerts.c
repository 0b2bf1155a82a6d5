/* Rules over the snapshots of a run, and what they lead to. */
#include "diag/alerts.h"

#include "comm/channel.h"
#include "core/log.h"
#include "diag/alerts_run.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct alerts {
    alerts_rule *rules;
    int rule_count;
    const maps_matrix *matrices;
    int matrix_count;
    int64_t *streaks; /* [rules, matrices]: snapshots in a row that satisfy the rule */
    alerts_programs *programs;
};

static bool is_about(const alerts_rule *r, const maps_matrix *m) {
    return m->form == r->form && m->part == r->part && m->scope == r->scope &&
           (!r->tensor[0] || strcmp(m->tensor, r->tensor) == 0);
}

static status check_matrices(const alerts *a, const alerts_rule *r) {
    for (int i = 0; i < a->matrix_count; i++)
        if (is_about(r, &a->matrices[i])) return STATUS_OK;
    return status_fail(
        STATUS_CONFIG,
        "diagnostics.alerts: \"%.120s\": this run records nothing of form %s, part %s, scope %s%s%s; see "
        "diagnostics.forms, parts and scopes",
        r->text, maps_form_names[r->form], maps_part_names[r->part], maps_scope_names[r->scope],
        r->tensor[0] ? ", weight " : "", r->tensor);
}

static status read_rules(alerts *a, const config *c) {
    for (int i = 0; i < c->diagnostics.alerts.count; i++) {
        TRY(alerts_parse(c->diagnostics.alerts.items[i], &a->rules[i]));
        a->rule_count++;
        TRY(check_matrices(a, &a->rules[i]));
    }
    return STATUS_OK;
}

status alerts_open(alerts **out, const config *c, const maps_matrix *matrices, int count, const char *run_dir) {
    size_t rules = (size_t)c->diagnostics.alerts.count;
    *out = NULL;
    if (rules == 0) return STATUS_OK;
    alerts *a = calloc(1, sizeof *a);
    if (!a) return status_fail(STATUS_INTERNAL, "out of memory for the alerts");
    *a = (alerts){.rules = calloc(rules, sizeof *a->rules),
                  .streaks = calloc(rules * ((size_t)count + 1), sizeof *a->streaks),
                  .matrices = matrices,
                  .matrix_count = count};
    status s = a->rules && a->streaks ? read_rules(a, c) : status_fail(STATUS_INTERNAL, "out of memory for the alerts");
    if (s == STATUS_OK) s = alerts_programs_open(&a->programs, c->run.name, run_dir);
    if (s == STATUS_OK)
        *out = a;
    else
        alerts_close(a);
    return s;
}

static bool satisfies(const alerts_rule *r, double x) {
    bool above = r->operator[0] == '>';
    if (r->operator[1] && x == r->limit) return true;
    return above ? x > r->limit : x < r->limit; /* NULL is NaN, and neither */
}

/* Counts one more snapshot; the matrices for which the rule fires now. */
static alerts_firing count_snapshot(alerts *a, int rule, int64_t step, const spectrum *rows) {
    const alerts_rule *r = &a->rules[rule];
    alerts_firing f = {.rule = r, .step = step};
    int64_t *streak = a->streaks + (size_t)rule * (size_t)a->matrix_count;
    for (int i = 0; i < a->matrix_count; i++) {
        double x = rows[i].column[r->column];
        if (!is_about(r, &a->matrices[i])) continue;
        streak[i] = satisfies(r, x) ? streak[i] + 1 : 0;
        if (streak[i] != r->snapshots) continue;
        f.matrices++;
        if (!f.worst || fabs(x - r->limit) > fabs(f.value - r->limit)) {
            f.worst = &a->matrices[i];
            f.value = x;
        }
    }
    return f;
}

/* "RULE: layer 3, head 1: 7.4 (and 2 more)". */
static void describe(const alerts_firing *f, char *text, size_t size) {
    char where[64] = "", more[32] = "";
    if (f->worst->head >= 0) snprintf(where, sizeof where, ", head %d", f->worst->head);
    if (f->worst->tensor[0]) snprintf(where + strlen(where), sizeof where - strlen(where), ", %.24s", f->worst->tensor);
    if (f->matrices > 1) snprintf(more, sizeof more, " (and %d more)", f->matrices - 1);
    snprintf(text, size, "%.300s: layer %d%s: %.6g%s", f->rule->text, f->worst->layer, where, f->value, more);
}

typedef struct listener {
    void (*say)(void *user, int64_t step, const char *message);
    void *user;
} listener;

/* What an action has to do with the run itself. */
static const struct {
    int requests;
    const char *text;
} effects[] = {[ALERTS_LOG] = {0, ""},
               [ALERTS_STOP] = {CHANNEL_STOP, "; the run is to stop"},
               [ALERTS_CHECKPOINT] = {CHANNEL_CHECKPOINT, "; a checkpoint is asked for"},
               [ALERTS_RUN] = {0, ""}};

static void act(alerts *a, const alerts_firing *f, const listener *l) {
    char text[512];
    describe(f, text, sizeof text);
    snprintf(text + strlen(text), sizeof text - strlen(text), "%s", effects[f->rule->action].text);
    log_warn("alert, step %lld: %s", (long long)f->step, text);
    l->say(l->user, f->step, text);
    if (f->rule->action != ALERTS_RUN || alerts_programs_start(a->programs, f) == STATUS_OK) return;
    l->say(l->user, f->step, status_message());
    status_clear();
}

int alerts_take(alerts *a, int64_t step, const spectrum *rows,
                void (*say)(void *user, int64_t step, const char *message), void *user) {
    const listener l = {say, user};
    char text[512];
    int requests = 0;
    if (!a) return 0;
    while (alerts_programs_failed(a->programs, text, sizeof text)) say(user, step, text);
    for (int i = 0; i < a->rule_count; i++) {
        alerts_firing f = count_snapshot(a, i, step, rows);
        if (f.matrices == 0) continue;
        act(a, &f, &l);
        requests |= effects[f.rule->action].requests;
    }
    return requests;
}

void alerts_restore(alerts *a, int64_t step, const spectrum *rows) {
    for (int i = 0; a && i < a->rule_count; i++) count_snapshot(a, i, step, rows);
}

void alerts_close(alerts *a) {
    if (!a) return;
    for (int i = 0; i < a->rule_count; i++) alerts_rule_free(&a->rules[i]);
    alerts_programs_close(a->programs);
    free(a->rules);
    free(a->streaks);
    free(a);
}

status alerts_check(const config *c) {
    for (int i = 0; i < c->diagnostics.alerts.count; i++) {
        alerts_rule rule;
        TRY(alerts_parse(c->diagnostics.alerts.items[i], &rule));
        alerts_rule_free(&rule);
    }
    return STATUS_OK;
}
