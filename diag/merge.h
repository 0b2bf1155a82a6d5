/* Uniting run databases (docs/design.md section 7). */
#pragma once

#include "core/status.h"

typedef struct merge_counts {
    int added, updated; /* runs */
    int same;           /* runs that the output had just so */
    int older;          /* runs of which the output knew more: left as they were */
} merge_counts;

/* Copies every run of the sources (files or run folders, finished or being written) into the database `to`, which is
 * made where there is none. A run is known by its uuid: what was copied of it before is replaced, so that a source
 * merged twice changes nothing, and keeps its ids. One transaction a source. USAGE when `to` is among the sources,
 * NO_INPUT when one is missing, DATA when one is not a run's database or damaged or `to` is something else, IO when
 * `to` cannot be written: then it is as it was before that source, and a new one is gone. */
status merge_databases(const char *const *sources, int count, const char *to, merge_counts *out);
