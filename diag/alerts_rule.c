/* Rules from text. */
#include "diag/alerts_rule.h"

#include "core/nearest.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORD_MAX = 64 };

typedef struct reader {
    const char *text, *at;
    char word[WORD_MAX]; /* the last one */
} reader;

static status fail_rule(const reader *r, const char *what, const char *word) {
    return status_fail(STATUS_CONFIG,
                       "diagnostics.alerts: \"%.120s\": %s%.60s; a rule is COLUMN [of WORD ...] > NUMBER [for N "
                       "snapshots] [then log | stop | checkpoint | run: PROGRAM ...]",
                       r->text, what, word);
}

static void skip_space(reader *r) {
    while (isspace((unsigned char)*r->at)) r->at++;
}

static bool is_operator(char c) {
    return c == '<' || c == '>' || c == '=';
}

/* The next run of characters up to a space or, but for operators, up to an operator. False at the end. */
static bool next_word(reader *r) {
    size_t n = 0;
    skip_space(r);
    bool operators = is_operator(*r->at);
    while (*r->at && !isspace((unsigned char)*r->at) && is_operator(*r->at) == operators) {
        if (n < sizeof r->word - 1) r->word[n++] = *r->at;
        r->at++;
    }
    r->word[n] = '\0';
    return n > 0;
}

static int find_name(const char *const *names, int count, const char *word) {
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], word) == 0) return i;
    return -1;
}

static status read_column(reader *r, alerts_rule *rule) {
    const char *names[SPECTRUM_COLUMN_COUNT + 1] = {NULL};
    char what[2 * WORD_MAX + 64];
    if (!next_word(r)) return fail_rule(r, "there is no column", "");
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++) names[i] = spectrum_columns[i].name;
    rule->column = find_name(names, SPECTRUM_COLUMN_COUNT, r->word);
    if (rule->column >= 0) return STATUS_OK;
    snprintf(what, sizeof(what), "there is no column %.60s in docs/spectra.md; the nearest is ", r->word);
    return fail_rule(r, what, nearest_word(names, r->word));
}

/* "of WORD ...": leaves the reader at the operator. */
static status read_matrices(reader *r, alerts_rule *rule) {
    for (bool first = true;; first = false) {
        skip_space(r);
        if (is_operator(*r->at) || !*r->at) return STATUS_OK;
        next_word(r);
        if (first) {
            if (strcmp(r->word, "of") != 0) return fail_rule(r, "an operator is missing before ", r->word);
            continue;
        }
        int form = find_name(maps_form_names, MAPS_FORM_COUNT, r->word);
        int part = find_name(maps_part_names, MAPS_PART_COUNT, r->word);
        int scope = find_name(maps_scope_names, MAPS_SCOPE_COUNT, r->word);
        if (form >= 0) rule->form = form;
        if (part >= 0) rule->part = part;
        if (scope >= 0) rule->scope = scope;
        if (form >= 0 || part >= 0 || scope >= 0) continue;
        if (strncmp(r->word, "W_", 2) != 0 || strlen(r->word) >= sizeof rule->tensor)
            return fail_rule(r, "there is no form, part, scope or weight ", r->word);
        memcpy(rule->tensor, r->word, strlen(r->word) + 1);
    }
}

static status read_limit(reader *r, alerts_rule *rule) {
    static const char *const operators[] = {">", ">=", "<", "<="};
    if (!next_word(r) || find_name(operators, 4, r->word) < 0)
        return fail_rule(r, "> >= < or <= is missing after the column", "");
    memcpy(rule->operator, r->word, strlen(r->word) + 1);
    if (!next_word(r)) return fail_rule(r, "there is no number to compare with", "");
    char *end;
    rule->limit = strtod(r->word, &end);
    if (*end || !isfinite(rule->limit)) return fail_rule(r, "this is no number: ", r->word);
    return STATUS_OK;
}

static status read_count(reader *r, alerts_rule *rule) {
    char *end;
    if (!next_word(r)) return fail_rule(r, "for how many snapshots?", "");
    long long n = strtoll(r->word, &end, 10);
    if (*end || n < 1 || n > 1000000000)
        return fail_rule(r, "a number of snapshots from 1 on is wanted, not ", r->word);
    rule->snapshots = n;
    if (!next_word(r)) return fail_rule(r, "\"snapshots\" is wanted after the number", "");
    if (strcmp(r->word, "snapshots") != 0 && strcmp(r->word, "snapshot") != 0)
        return fail_rule(r, "\"snapshots\" is wanted after the number, not ", r->word);
    return STATUS_OK;
}

/* One argument, quotes removed, into `to`, which is as long as the rule. False: a quote is not closed. */
static bool read_argument(reader *r, char *to) {
    char quote = '\0';
    for (; *r->at && (quote || !isspace((unsigned char)*r->at)); r->at++) {
        if (quote ? *r->at == quote : *r->at == '"' || *r->at == '\'')
            quote = quote ? '\0' : *r->at;
        else
            *to++ = *r->at;
    }
    *to = '\0';
    return quote == '\0';
}

static status add_argument(alerts_rule *rule, int *count, const char *text) {
    char **larger = realloc(rule->arguments, ((size_t)*count + 2) * sizeof *larger);
    if (!larger) return status_fail(STATUS_INTERNAL, "out of memory");
    rule->arguments = larger;
    larger[*count] = strdup(text);
    larger[*count + 1] = NULL;
    return larger[(*count)++] ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory");
}

static status read_program(reader *r, alerts_rule *rule) {
    char *argument = malloc(strlen(r->at) + 1);
    int count = 0;
    status s = argument ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory");
    for (skip_space(r); s == STATUS_OK && *r->at; skip_space(r))
        s = read_argument(r, argument) ? add_argument(rule, &count, argument)
                                       : fail_rule(r, "a quote is not closed in the command", "");
    free(argument);
    if (s != STATUS_OK) return s;
    return count > 0 && rule->arguments[0][0] ? STATUS_OK : fail_rule(r, "run: names no program", "");
}

static status read_action(reader *r, alerts_rule *rule) {
    if (!next_word(r)) return fail_rule(r, "then what?", "");
    if (strcmp(r->word, "run:") == 0) {
        rule->action = ALERTS_RUN;
        return read_program(r, rule);
    }
    static const char *const words[] = {
        [ALERTS_LOG] = "log", [ALERTS_STOP] = "stop", [ALERTS_CHECKPOINT] = "checkpoint"};
    int action = find_name(words, sizeof words / sizeof *words, r->word);
    if (strcmp(r->word, "run") == 0) return fail_rule(r, "run has a colon and a program behind it", "");
    if (action < 0) return fail_rule(r, "there is no action ", r->word);
    rule->action = (alerts_action)action;
    return STATUS_OK;
}

static status read_rule(reader *r, alerts_rule *rule) {
    TRY(read_column(r, rule));
    TRY(read_matrices(r, rule));
    TRY(read_limit(r, rule));
    bool more = next_word(r);
    if (more && strcmp(r->word, "for") == 0) {
        TRY(read_count(r, rule));
        more = next_word(r);
    }
    if (more && strcmp(r->word, "then") == 0) {
        TRY(read_action(r, rule));
        more = next_word(r);
    }
    return more ? fail_rule(r, "this is not understood: ", r->word) : STATUS_OK;
}

status alerts_parse(const char *text, alerts_rule *out) {
    reader r = {.text = text, .at = text};
    *out =
        (alerts_rule){.form = MAPS_score, .part = MAPS_full, .scope = MAPS_head, .snapshots = 1, .text = strdup(text)};
    status s = out->text ? read_rule(&r, out) : status_fail(STATUS_INTERNAL, "out of memory");
    if (s != STATUS_OK) alerts_rule_free(out);
    return s;
}

void alerts_rule_free(alerts_rule *r) {
    for (char **a = r->arguments; a && *a; a++) free(*a);
    free(r->arguments);
    free(r->text);
    *r = (alerts_rule){0};
}
