/* The findings of a study as tests (docs/design.md section 6.5): onset, persistence, collapse, propagation, coincidence
 * and prevention, over all runs of some databases, with the errors of the whole study controlled. */
#pragma once

#include "core/status.h"

#include <stdbool.h>
#include <stdio.h>

typedef struct findings_request {
    double theta; /* the effect size that verdicts are for: lambda_max / mean lambda over e^m; > 1 */
    bool theta_given;
    double alpha; /* level of the study, 0 < alpha < 1 */
    bool json;
} findings_request;

extern const findings_request findings_defaults; /* theta 1.5, alpha 0.05 */

struct json_t;

/* Reads every database (or run folder) and judges. *out: {study, runs, findings}, a new reference. A run that several
 * databases hold is judged once, from the first; runs are in the order in which they are found, each with the step and
 * head of every layer's onset (null where there is none, or none is known) and `judged`. A finding that cannot be
 * decided is `undetermined` with the reason. NO_INPUT, DATA or IO when a database cannot be read. */
status findings_json(const char *const *paths, int count, const findings_request *request, struct json_t **out);

/* The same, printed. IO when it cannot be written. */
status findings_report(const char *const *paths, int count, const findings_request *request, FILE *out);
