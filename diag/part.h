/* Private to diag/: what a further diagnostics rank sends the first one of each snapshot, the spectra of its layers.
 *
 * A message is a part_head, then one spectrum for each matrix of those layers in the order of maps_matrices(), then,
 * with `values`, their singular values, and the top pairs that are wanted, in the same order. Diagnostics rank i of n
 * has layers i, i + n, ... */
#pragma once

#include "diag/maps.h"

enum { DIAG_PART = 64 }; /* the message's kind, beside diag_record_kind */

typedef struct part_head {
    double compute_ms;
    int32_t done, values; /* not done: there is no row, and why says the reason */
    char why[240];
} part_head;

/* What a snapshot comes to: of all matrices, all layers. */
typedef struct part_results {
    spectrum *rows; /* [maps_count] */
    double *values; /* [maps_value_count] */
    maps_pairs top; /* both ends want the same pairs of a step */
} part_results;

/* A new message of rank i of n, malloc'ed; NULL without memory. Where head->done, the rows and pairs of its matrices
 * and, where head->values, the values are read. */
void *part_pack(const maps *m, int i, int n, const part_head *head, const part_results *results, size_t *bytes);

/* The opposite: into the places of that rank's matrices; others are left as they are. DATA when the message is not of
 * the bytes that it should have. */
status part_unpack(const maps *m, int i, int n, const void *message, size_t bytes, part_head *head,
                   const part_results *results);
