/* Programs that alerts start. Private to diag/alerts*.c. */
#pragma once

#include "diag/alerts_rule.h"

typedef struct alerts_firing { /* of one rule, at one snapshot: over all matrices for which it fires */
    const alerts_rule *rule;
    int64_t step;
    const maps_matrix *worst; /* farthest beyond the limit */
    double value;             /* its value */
    int matrices;
} alerts_firing;

typedef struct alerts_programs alerts_programs;

/* run_name and run_dir become BULKHEAD_RUN and BULKHEAD_RUN_DIR; what the programs print goes to run_dir/alerts.log. */
status alerts_programs_open(alerts_programs **out, const char *run_name, const char *run_dir);

/* Starts the rule's program, not a shell, and does not wait for it: environment BULKHEAD_RULE, _STEP, _FORM, _PART,
 * _TENSOR, _LAYER, _HEAD, _COLUMN, _VALUE, _MATRICES beside the run's; without the variables that would make it a rank
 * of this job. INTERNAL with the reason when it does not start. */
status alerts_programs_start(alerts_programs *p, const alerts_firing *f);

/* The next program that has ended since the last call and was not successful: how, as text. False: none. */
bool alerts_programs_failed(alerts_programs *p, char *text, size_t size);

/* Programs that still run are left alone. */
void alerts_programs_close(alerts_programs *p);
