/* The door of the findings, and how they are printed: one JSON value is built, and either printed or walked through for
 * a person. */
#include "diag/findings.h"

#include "core/json.h"
#include "diag/findings_judge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const findings_request findings_defaults = {.theta = 1.5, .alpha = 0.05};

static const char *const verdict_words[] = {
    [FINDINGS_NO] = "not found", [FINDINGS_YES] = "found", [FINDINGS_UNKNOWN] = "undetermined"};

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the findings");
}

/* ---------------------------------------------------------------- as JSON */

static const findings_layer *layers_of(const findings_verdicts *v, const findings_run *r) {
    for (int i = 0; i < v->variant_count; i++)
        for (int k = 0; k < v->variants[i].count; k++)
            if (v->variants[i].runs[k] == r) return v->variants[i].cells[k];
    return NULL;
}

static json_t *run_json(const findings_verdicts *v, const findings_run *r) {
    json_t *j = json_object();
    const findings_layer *layers = layers_of(v, r);
    findings_put(j, "run", json_text(r->name));
    findings_put(j, "database", json_text(r->database));
    findings_put(j, "variant", json_text(r->variant));
    findings_put(j, "seed", r->has_seed ? json_integer(r->seed) : json_null());
    findings_put(j, "status", json_text(r->status));
    findings_put(j, "layers", json_integer(r->layers));
    findings_put(j, "heads", json_integer(r->heads));
    findings_put(j, "planned", json_integer(r->planned));
    findings_put(j, "recorded", json_integer(r->snapshots - r->missed));
    findings_put(j, "missed", json_integer(r->missed));
    findings_put(j, "without_null", json_integer(r->without_null));
    findings_put(j, "judged", json_string(r->rejected ? "rejected" : r->excluded[0] ? "no" : "yes"));
    findings_put(j, "why", r->excluded[0] ? json_text(r->excluded) : json_null());
    if (layers) findings_put_events(j, r, layers, false);
    return j;
}

static json_t *finding_json(const finding *f) {
    json_t *j = json_object(), *tests = json_array();
    findings_put(j, "finding", json_string(f->name));
    findings_put(j, "variant", json_text(f->variant));
    findings_put(j, "verdict", json_string(verdict_words[f->verdict]));
    findings_put(j, "reason", f->reason[0] ? json_text(f->reason) : json_null());
    findings_put(j, "wants_seeds", json_boolean(f->wants_seeds));
    for (int i = 0; i < f->tests; i++) {
        json_t *test = json_object();
        findings_put(test, "against", f->test[i].against ? json_string(f->test[i].against) : json_null());
        findings_put(test, "p", json_finite(f->test[i].p));
        findings_put(test, "p_holm", json_finite(f->test[i].holm));
        json_array_append_new(tests, test);
    }
    findings_put(j, "tests", tests);
    json_object_set(j, "numbers", f->numbers);
    return j;
}

static json_t *study_json(const findings_verdicts *v, const findings_request *request) {
    const findings_study *s = v->study;
    int judged = 0, hypotheses = 0;
    for (int i = 0; i < s->count; i++) judged += s->runs[i].excluded[0] == '\0';
    for (int i = 0; i < v->count; i++) hypotheses += v->findings[i].tests;
    json_t *j = json_object();
    findings_put(j, "runs", json_integer(s->count));
    findings_put(j, "judged", json_integer(judged));
    findings_put(j, "m", json_real(s->tests));
    findings_put(j, "tw_threshold", json_real(s->threshold));
    findings_put(j, "z_threshold", json_real(s->z_threshold));
    findings_put(j, "theta", json_real(v->theta));
    findings_put(j, "theta_fixed_by", json_string(request->theta_given ? "--theta" : "default"));
    findings_put(j, "alpha", json_real(v->alpha));
    findings_put(j, "hypotheses", json_integer(hypotheses));
    return j;
}

static json_t *to_json(const findings_verdicts *v, const findings_request *request) {
    json_t *all = json_object(), *runs = json_array(), *findings = json_array();
    for (int i = 0; i < v->study->count; i++) json_array_append_new(runs, run_json(v, &v->study->runs[i]));
    for (int i = 0; i < v->count; i++) json_array_append_new(findings, finding_json(&v->findings[i]));
    findings_put(all, "study", study_json(v, request));
    findings_put(all, "runs", runs);
    findings_put(all, "findings", findings);
    return all;
}

/* ---------------------------------------------------------------- for a person */

/* A scalar, or a list of them in a row. */
static void print_scalar(FILE *to, const json_t *j) {
    switch (json_typeof(j)) {
    case JSON_STRING:
        fputs(json_string_value(j), to);
        break;
    case JSON_INTEGER:
        fprintf(to, "%lld", (long long)json_integer_value(j));
        break;
    case JSON_REAL:
        fprintf(to, "%.4g", json_real_value(j));
        break;
    case JSON_TRUE:
        fputs("yes", to);
        break;
    case JSON_FALSE:
        fputs("no", to);
        break;
    case JSON_ARRAY:
        for (size_t i = 0; i < json_array_size(j); i++) {
            if (i) fputc(' ', to);
            print_scalar(to, json_array_get(j, i));
        }
        break;
    default:
        fputc('-', to);
    }
}

/* malloc'ed; NULL: out of memory. */
static char *scalar_text(const json_t *j) {
    char *text = NULL;
    size_t size = 0;
    FILE *to = open_memstream(&text, &size);
    if (!to) return NULL;
    print_scalar(to, j);
    return fclose(to) == 0 ? text : NULL;
}

static void print_name(FILE *out, const char *name) {
    for (; *name; name++) fputc(*name == '_' ? ' ' : *name, out);
}

static int cell_width(const json_t *cell) {
    char *text = scalar_text(cell);
    int width = text ? (int)strlen(text) : 0;
    free(text);
    return width;
}

static int column_width(const json_t *rows, const char *key) {
    int width = (int)strlen(key);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        int cell = cell_width(json_object_get(json_array_get(rows, i), key));
        if (cell > width) width = cell;
    }
    return width;
}

/* Objects with the same keys, as a table. */
static void print_rows(FILE *out, const json_t *rows) {
    const char *key;
    json_t *cell, *first = json_array_get(rows, 0);
    fputs("   ", out);
    json_object_foreach(first, key, cell) {
        fprintf(out, " %*s", column_width(rows, key) - (int)strlen(key) + 1, "");
        print_name(out, key);
    }
    fputc('\n', out);
    for (size_t i = 0; i < json_array_size(rows); i++) {
        fputs("   ", out);
        json_object_foreach(json_array_get(rows, i), key, cell) {
            char *text = scalar_text(cell);
            fprintf(out, "  %*s", column_width(rows, key), text ? text : "");
            free(text);
        }
        fputc('\n', out);
    }
}

static bool is_table(const json_t *j) {
    return json_is_array(j) && json_is_object(json_array_get(j, 0));
}

static void print_numbers(FILE *out, json_t *numbers) {
    const char *key;
    json_t *value;
    json_object_foreach(numbers, key, value) {
        if (json_is_array(value) && json_array_size(value) == 0) continue;
        fputs("  ", out);
        print_name(out, key);
        if (is_table(value)) {
            fputc('\n', out);
            print_rows(out, value);
            continue;
        }
        fprintf(out, ": ");
        print_scalar(out, value);
        fputc('\n', out);
    }
}

static const char *text_of(const json_t *j, const char *key) {
    const char *text = json_string_value(json_object_get(j, key));
    return text ? text : "";
}

static void print_finding(FILE *out, const json_t *f) {
    const json_t *tests = json_object_get(f, "tests");
    fprintf(out, "\n%s, %s: %s\n", text_of(f, "finding"), text_of(f, "variant"), text_of(f, "verdict"));
    if (text_of(f, "reason")[0]) fprintf(out, "  %s\n", text_of(f, "reason"));
    print_numbers(out, json_object_get(f, "numbers"));
    if (is_table(tests)) {
        fputs("  tests\n", out);
        print_rows(out, tests);
    }
}

static void print_for_people(FILE *out, const json_t *all) {
    size_t i;
    json_t *one, *study = json_object_get(all, "study");
    fputs("study\n", out);
    print_numbers(out, study);
    fprintf(
        out,
        "  M = sum of layers x heads x planned snapshots; an onset needs tw_score >= %.4g and an excess over the null "
        "of theta.\n",
        json_number_value(json_object_get(study, "tw_threshold")));
    json_array_foreach(json_object_get(all, "runs"), i, one) if (text_of(one, "why")[0])
        fprintf(out, "  %s %s (%s): %s\n",
                strcmp(text_of(one, "judged"), "rejected") == 0 ? "rejected:" : "not judged:", text_of(one, "run"),
                text_of(one, "database"), text_of(one, "why"));
    json_array_foreach(json_object_get(all, "findings"), i, one) print_finding(out, one);
}

/* ---------------------------------------------------------------- the door */

static status print(const json_t *all, const findings_request *request, FILE *out) {
    if (!request->json) {
        print_for_people(out, all);
        return STATUS_OK;
    }
    if (json_dumpf(all, out, JSON_INDENT(1) | JSON_REAL_PRECISION(17)) != 0)
        return status_fail(STATUS_IO, "the findings could not be written");
    fputc('\n', out);
    return STATUS_OK;
}

status findings_json(const char *const *paths, int count, const findings_request *request, json_t **out) {
    findings_study study = {0};
    findings_verdicts verdicts = {0};
    status result = STATUS_OK;
    *out = NULL;
    for (int i = 0; i < count && result == STATUS_OK; i++) result = findings_read(&study, paths[i]);
    if (result == STATUS_OK && study.count == 0) result = status_fail(STATUS_DATA, "%s holds no run", paths[0]);
    if (result == STATUS_OK) {
        findings_prepare(&study);
        result = findings_judge(&study, request->theta, request->alpha, &verdicts);
    }
    if (result == STATUS_OK && !(*out = to_json(&verdicts, request))) result = out_of_memory();
    findings_verdicts_free(&verdicts);
    findings_study_free(&study);
    return result;
}

status findings_report(const char *const *paths, int count, const findings_request *request, FILE *out) {
    json_t *all = NULL;
    TRY(findings_json(paths, count, request, &all));
    status result = print(all, request, out);
    json_decref(all);
    return result;
}
