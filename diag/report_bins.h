/* Private to the report: many steps in few bins, values in few bytes. Nothing here knows a database. */
#pragma once

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

enum { REPORT_BINS = 200 };

/* Rows in the order of their steps, divided by their number into at most REPORT_BINS bins as equal as possible: up to
 * REPORT_BINS rows are a bin each. */
typedef struct report_bins {
    int64_t total, added;
    int count;
    int64_t first[REPORT_BINS], last[REPORT_BINS]; /* steps */
    int64_t rows[REPORT_BINS];
} report_bins;

void report_bins_begin(report_bins *b, int64_t total);

/* The step of the next row; total of them, ascending. Rows beyond the total are left out. */
void report_bins_add(report_bins *b, int64_t step);

/* The bin whose steps go from first to last around this one; -1: none. */
int report_bins_find(const report_bins *b, int64_t step);

/* What is gathered of one cell in the bin under way. */
typedef struct report_gather {
    double *values; /* [held] */
    size_t held, room;
} report_gather;

/* Cells (a metric; a column of a layer) over bins. Only the values of one bin are in memory. */
typedef struct report_grid {
    int cells, bins, bin;
    report_gather *gather; /* [cells] */
    double *median, *max;  /* [cells, bins]; NaN: no value */
} report_grid;

status report_grid_open(report_grid *g, int cells, int bins);

/* One more value of a cell; bins never go back. NaN adds nothing. */
status report_grid_add(report_grid *g, int bin, int cell, double value);

/* Completes the last bin. */
void report_grid_finish(report_grid *g);
void report_grid_close(report_grid *g);

/* The median of n > 0 finite values, which are reordered; of an even number the mean of the two in the middle. */
double report_median(double *values, size_t n);

/* codes[i] = 0 where there is no value, else 1 ... 255 for low ... high, the least and largest of the n values:
 * value = low + (code - 1) (high - low)/254 to within (high - low)/508. Without any value low = high = 0. */
void report_codes(const double *values, size_t n, unsigned char *codes, double *low, double *high);

/* Base64 (RFC 4648) of the bytes, malloc'ed; NULL when out of memory. */
char *report_base64(const void *bytes, size_t n);
