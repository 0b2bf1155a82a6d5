/* One rule of `diagnostics.alerts` (docs/design.md section 5). Private to diag/alerts*.c.
 *
 *   COLUMN [of WORD ...] OPERATOR NUMBER [for N snapshots] [then ACTION]
 *
 * COLUMN: one of SPECTRUM_COLUMNS. WORD: a form, part, scope or weight's name; what no word names is score, full, head
 * and every weight. OPERATOR: > >= < <=. N counts snapshots that were recorded, one after the other; a dropped one is
 * not among them, a NULL ends the count. ACTION: log (the default) | stop | checkpoint | run: PROGRAM [ARGUMENT ...].
 * A rule fires for a matrix when its count reaches N, and again only after the condition has failed in between. */
#pragma once

#include "core/config.h"
#include "diag/maps.h"

typedef enum alerts_action { ALERTS_LOG, ALERTS_STOP, ALERTS_CHECKPOINT, ALERTS_RUN } alerts_action;

typedef struct alerts_rule {
    char *text;
    int column;
    int form, part, scope;
    char tensor[32]; /* "": any */
    char operator[3];
    double limit;
    int64_t snapshots; /* N >= 1 */
    alerts_action action;
    char **arguments; /* run: argv, NULL at its end; otherwise NULL */
} alerts_rule;

/* Reads one rule. CONFIG with the rule and what is wrong in it. Quotes of either kind hold an argument of `run:`
 * together; nothing else is special in it. */
status alerts_parse(const char *text, alerts_rule *out);
void alerts_rule_free(alerts_rule *r);
