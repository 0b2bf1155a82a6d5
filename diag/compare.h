/* Runs in groups, as those of one design over its seeds: what the question `compare` tells of each, as means with
 * confidence intervals. */
#pragma once

#include "diag/table.h"

typedef struct compare_run {
    const char *database; /* of this one run, or its folder */
    int group;            /* 0 ... groups - 1 */
} compare_run;

/* One row a group, in their order, into the empty table *out: the columns `names` [names_count] with the group's
 * `values` [groups, names_count] (NULL: none), `runs`, and each number of `compare` (score form, full part, median over
 * heads, last snapshot) as the mean over the group's runs that have it and, in NAME_ci95, half the width of its 95%
 * confidence interval, t_{0.975, n-1} s / sqrt(n) (Student; NULL with n < 2). joined: both in one cell of text, for
 * people. Failures as of query_run. */
status compare_groups(const compare_run *runs, int count, const char *const *names, int names_count,
                      const char *const *values, int groups, bool joined, table *out);

/* Mean of the n values, NaN with none, and that half width, NaN with fewer than two. */
void compare_mean(const double *x, int n, double *mean, double *half_width);
