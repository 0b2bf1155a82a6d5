/* Bins, medians and codes of the report. Outputs overwrite; a grid grows only within a bin. */
#include "diag/report_bins.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- bins */

void report_bins_begin(report_bins *b, int64_t total) {
    *b = (report_bins){.total = total, .count = (int)(total < REPORT_BINS ? total : REPORT_BINS)};
}

void report_bins_add(report_bins *b, int64_t step) {
    if (b->added >= b->total) return;
    int bin = (int)((double)b->added * b->count / (double)b->total);
    if (b->rows[bin]++ == 0) b->first[bin] = step;
    b->last[bin] = step;
    b->added++;
}

int report_bins_find(const report_bins *b, int64_t step) {
    int low = 0, high = b->count;
    while (low < high) {
        int middle = (low + high) / 2;
        if (b->last[middle] < step)
            low = middle + 1;
        else
            high = middle;
    }
    return low < b->count && b->first[low] <= step ? low : -1;
}

/* ---------------------------------------------------------------- the grid */

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the report");
}

status report_grid_open(report_grid *g, int cells, int bins) {
    size_t n = (size_t)cells * (size_t)bins;
    *g = (report_grid){.cells = cells,
                       .bins = bins,
                       .gather = calloc((size_t)cells + 1, sizeof *g->gather),
                       .median = malloc((n + 1) * sizeof(double)),
                       .max = malloc((n + 1) * sizeof(double))};
    if (!g->gather || !g->median || !g->max) {
        report_grid_close(g);
        return out_of_memory();
    }
    for (size_t i = 0; i < n; i++) g->median[i] = g->max[i] = NAN;
    return STATUS_OK;
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double report_median(double *values, size_t n) {
    qsort(values, n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : values[n / 2 - 1] / 2 + values[n / 2] / 2;
}

void report_grid_finish(report_grid *g) {
    for (int cell = 0; cell < g->cells; cell++) {
        report_gather *of = &g->gather[cell];
        if (of->held == 0) continue;
        size_t at = (size_t)cell * (size_t)g->bins + (size_t)g->bin;
        g->median[at] = report_median(of->values, of->held);
        g->max[at] = of->values[of->held - 1];
        of->held = 0;
    }
}

status report_grid_add(report_grid *g, int bin, int cell, double value) {
    if (bin != g->bin) report_grid_finish(g);
    g->bin = bin;
    if (isnan(value)) return STATUS_OK;
    report_gather *to = &g->gather[cell];
    if (to->held == to->room) {
        size_t room = to->room ? 2 * to->room : 8;
        double *larger = realloc(to->values, room * sizeof *larger);
        if (!larger) return out_of_memory();
        to->values = larger;
        to->room = room;
    }
    to->values[to->held++] = value;
    return STATUS_OK;
}

void report_grid_close(report_grid *g) {
    for (int cell = 0; g->gather && cell < g->cells; cell++) free(g->gather[cell].values);
    free(g->gather);
    free(g->median);
    free(g->max);
    *g = (report_grid){0};
}

/* ---------------------------------------------------------------- bytes */

void report_codes(const double *values, size_t n, unsigned char *codes, double *low, double *high) {
    double least = INFINITY, most = -INFINITY;
    for (size_t i = 0; i < n; i++) {
        if (isnan(values[i])) continue;
        least = fmin(least, values[i]);
        most = fmax(most, values[i]);
    }
    double half = most / 2 - least / 2; /* the whole difference may be no double */
    for (size_t i = 0; i < n; i++)
        codes[i] = isnan(values[i]) ? 0
                   : half > 0       ? (unsigned char)(1 + lround((values[i] / 2 - least / 2) / half * 254))
                                    : 1;
    *low = least <= most ? least : 0;
    *high = least <= most ? most : 0;
}

char *report_base64(const void *bytes, size_t n) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const unsigned char *from = bytes;
    char *text = malloc((n + 2) / 3 * 4 + 1), *to = text;
    if (!text) return NULL;
    for (size_t i = 0; i < n; i += 3) {
        size_t left = n - i;
        unsigned three = (unsigned)from[i] << 16 | (left > 1 ? from[i + 1] : 0u) << 8 | (left > 2 ? from[i + 2] : 0u);
        *to++ = digits[three >> 18];
        *to++ = digits[three >> 12 & 63];
        *to++ = left > 1 ? digits[three >> 6 & 63] : '=';
        *to++ = left > 2 ? digits[three & 63] : '=';
    }
    *to = '\0';
    return text;
}
