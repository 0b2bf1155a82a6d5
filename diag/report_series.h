/* Private to diag/: tables with a row a step, read into bins. */
#pragma once

#include "diag/report_bins.h"
#include "diag/report_source.h"

/* Bins of the steps that the statement has in its first column; counted first, then read. */
status report_read_bins(const report_source *from, const char *steps, report_bins *bins);

/* The statement's rows (step, layer, one value a column) into a grid of [columns, layers]; close it in any case. */
status report_read_grid(const report_source *from, const char *sql, const report_bins *bins, int columns, int layers,
                        report_grid *g);

/* A heat map's rows: step, layer and the request's columns; malloc'ed by SQLite. stat: median, max. NULL: out of
 * memory.
 */
char *report_layers_sql(const report_source *from, const char *stat);
