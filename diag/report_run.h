/* Private to the report: what the page knows of one run. */
#pragma once

#include "core/json.h"
#include "diag/report.h"

struct sqlite3;

/* The run as JSON, a new reference in *out, read from db in the caller's transaction; path: the database, for messages
 * and the page. request: form, part and columns are set. Keys, in this order: database, name, variant, status, seed,
 * group, started, ended; params [[key, value]]; events [[step, time, level, kind, message]], those that are not `info`
 * first to stay where there are more than 200, of `events_total`; and three series: `train` (loss, grad_norm),
 * `validation` (loss), `spectra` (the columns; heads: [layers], how many heads a layer has). A series has of each bin
 * first, last (steps) and rows (steps that are in it), and in `values` of each name `median` and `max` over these:
 * of metrics float32, little-endian, NaN for none, in base64; of columns {low, high, codes: report_codes of
 * [layers, bins] in base64}, the median over a layer's heads in `median`, their maximum in `max`. */
status report_run(struct sqlite3 *db, const char *path, int64_t run_id, const report_request *request, json_t **out);
