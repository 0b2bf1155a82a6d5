/* The statistics behind the findings (docs/design.md section 6.5), free of databases.
 *
 * Every draw is a function of the label and its own number (core/rng.h): the same data gives the same p. A random p is
 * (1 + draws at least as extreme) / (1 + FINDINGS_DRAWS), so it is never 0. */
#pragma once

#include "core/status.h"

#include <stdbool.h>

enum { FINDINGS_DRAWS = 10000, FINDINGS_EXACT_SIGNS = 20 };

/* u with exp(-2/3 u^1.5) / (4 sqrt(pi) u^0.75) = tail: the upper tail of Tracy-Widom 1 to leading order (the true tail
 * is smaller from u = 2 on). 0 < tail <= 0.05. */
double findings_tracy_widom_threshold(double tail);

/* z with Phi(z) = tail, 0 < tail <= 0.5. */
double findings_normal_quantile(double tail);

/* t with P(T > t) = tail for Student's t of df >= 1 degrees of freedom, 1e-6 <= tail < 0.5, to 1e-9 of its value
 * (Abramowitz & Stegun 26.7.3, 26.7.4: finite sums, as df is whole). */
double findings_student_quantile(double tail, int df);

/* Ranks 1..n of x [n], smallest first, ties share their mean rank; infinities are the last. */
void findings_ranks(const double *x, int n, double *ranks);

/* p adjusted as by Holm 1979, in the order of p: the smallest level of the whole family at which each is rejected. */
void findings_holm(const double *p, int n, double *adjusted);

/* One-sided test that d [n] leans to the positive: the share of the 2^n sign patterns whose sum is at least sum d. All
 * patterns up to n = FINDINGS_EXACT_SIGNS, random ones beyond. 1 with n = 0. */
double findings_sign_flip(const double *d, int n, const char *label);

typedef struct findings_test {
    double statistic, p; /* NaN where there is nothing to test */
} findings_test;

/* Do neighbouring layers have their onsets early or late in the same seeds? onsets [seeds, layers], INFINITY: censored.
 * Ranked within each seed, less each layer's mean; the statistic is the mean covariance of adjacent layers less that of
 * the others; seeds are permuted within each layer; one-sided. NaN with fewer than 3 layers or 2 seeds, or where every
 * permutation gives the same. INTERNAL: out of memory. */
status findings_propagation(const double *onsets, int seeds, int layers, const char *label, findings_test *out);

/* Is a layer's collapse near its spike, seed for seed? spikes, collapses [seeds, layers], not finite: no such event.
 * Over the pairs with both events the statistic is sum |spike - collapse|; collapses are permuted within each layer
 * among these; one-sided to the small side. *pairs: how many there are; *patterns: the permutations that exist, at most
 * 1e300. NaN where every permutation gives the same. INTERNAL: out of memory. */
status findings_coincidence(const double *spikes, const double *collapses, int seeds, int layers, const char *label,
                            findings_test *out, int *pairs, double *patterns);

typedef struct findings_survival {
    double time, share; /* share that is past this time without the event */
    int at_risk, events;
} findings_survival;

/* Kaplan & Meier 1958. times [n]; happened [n]: false is censored at that time, after the events of the same time. One
 * entry a time with an event into out [n], ascending. Returns their number. INTERNAL: out of memory. */
status findings_kaplan_meier(const double *times, const bool *happened, int n, findings_survival *out, int *count);

/* The first time at which the share is at most one half; NaN: it never is. */
double findings_median_survival(const findings_survival *s, int count);
