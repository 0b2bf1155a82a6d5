/* Alerts: the rules of `diagnostics.alerts` (alerts_rule.h), over each snapshot's spectra (docs/design.md section 5).
 */
#pragma once

#include "core/config.h"
#include "diag/maps.h"

typedef struct alerts alerts;

/* The rules of a run over the matrices that it records, both the caller's. NULL in *out: there are no rules. Programs
 * of rules print to run_dir/alerts.log. CONFIG where a rule is wrong or is about no recorded matrix. */
status alerts_open(alerts **out, const config *c, const maps_matrix *matrices, int count, const char *run_dir);

/* Takes a recorded snapshot's spectra [count], in the order of the matrices: says, in one line a rule that fires, what
 * was seen, and what became of its program. NULL alerts say nothing. Returns what rules ask for (channel_request). */
int alerts_take(alerts *a, int64_t step, const spectrum *rows,
                void (*say)(void *user, int64_t step, const char *message), void *user);

/* Takes a snapshot of before, the run going on: counts it, and nothing follows. All of the run, by steps. */
void alerts_restore(alerts *a, int64_t step, const spectrum *rows);

/* Programs that still run are left alone. */
void alerts_close(alerts *a);

/* The rules by themselves. CONFIG where one is wrong. */
status alerts_check(const config *c);
