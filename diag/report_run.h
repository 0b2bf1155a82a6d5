/* Private to the report: what the page knows of one run. */
#pragma once

#include "diag/report_source.h"

/* The run as JSON, a new reference in *out. Keys, in this order: database, run_id, name, variant, status, seed,
 * group, started, ended; params [[key, value]]; events [[step, time, level, kind, message]], those that are not `info`
 * first to stay where there are more than 200, of `events_total`; three series: `train` (loss, grad_norm),
 * `validation` (loss), `spectra` (the columns; heads: [layers], how many heads a layer has); and `esd` (report_esd). A
 * series has of each bin first, last (steps) and rows (steps that are in it), and in `values` of each name `median` and
 * `max` over these: of metrics report_floats, of columns report_coded [layers, bins], the median over a layer's heads
 * in `median`, their maximum in `max`. */
status report_run(const report_source *from, json_t **out);
