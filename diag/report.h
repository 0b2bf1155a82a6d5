/* One HTML page about the runs of some databases, with all it needs inside: curves, heat maps, spectra, findings,
 * configurations, events (docs/design.md section 8). */
#pragma once

#include "core/status.h"
#include "diag/findings.h"

#include <stdint.h>

enum { REPORT_COLUMNS = 8 };

typedef struct report_request {
    const char *form, *part;             /* NULL: score, full */
    const char *columns[REPORT_COLUMNS]; /* of spectra; the first NULL ends them; none: the default ones */
    findings_request findings;           /* theta and alpha; findings_defaults */
    bool no_findings;                    /* nothing is judged, and no spectra of single heads are read for it */
} report_request;

typedef struct report_counts {
    int runs;
    int64_t bytes;
} report_counts;

/* Adds a column to the request. USAGE where there is no such column, where it is there already, and for the ninth. */
status report_add_column(report_request *request, const char *name);

/* Reads each database (file or run folder, finished or being written) as of one moment, and writes the page whole or
 * not at all; one that is there is replaced. A run that several of them hold is shown once, from the first. USAGE when
 * `to` is a SQLite database or form or part is unknown, NO_INPUT, DATA or IO when a database cannot be read, IO when
 * `to` cannot be written. */
status report_write(const char *const *paths, int count, const report_request *request, const char *to,
                    report_counts *out);
