/* Private to the report: what the page shows of the singular values that a run has stored. */
#pragma once

#include "diag/report_source.h"

enum { REPORT_ESD_BINS = 64, REPORT_ESD_HEADS = 6 };

/* Adds `esd` to the run: at most as many of the snapshots with singular values of the form and part as fit into
 * from->esd_bytes codes, evenly, the first and the last among them. x is lambda over the head's mean lambda, so that
 * heads can be pooled; below REPORT_ESD_LOW it counts as that.
 *   stored   how many snapshots there are; steps: [steps] those that are here; low, high: of x, high is the rank
 *   shares   [steps, layers, REPORT_ESD_BINS] the share of a layer's values, of all its heads, in bins of equal width
 *            in ln x; coded, no value where the layer has none
 *   edges    of mp_lambda_minus, mp_lambda_plus, null_edge, null_edge95 (over mean lambda) and tw_score: [steps,
 *            layers] medians over the heads; coded
 *   heads    at most REPORT_ESD_HEADS, by their largest tw_score in these steps: layer, head, values [steps, high] ln x
 *            descending, edges [steps]; both coded
 * Coded is report_coded's, exact to a 508th of the range. */
status report_esd(const report_source *from, json_t *run);

extern const double REPORT_ESD_LOW;
