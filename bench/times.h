/* Times of repeats, for benchmarks. */
#pragma once

#include <stdlib.h>

static inline int times_ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Puts the times in order; the fastest is then the first. */
static inline void times_sort(double *times, int count) {
    qsort(times, (size_t)count, sizeof *times, times_ascending);
}

/* Puts the times in order. */
static inline double times_median(double *times, int count) {
    times_sort(times, count);
    return times[count / 2];
}
