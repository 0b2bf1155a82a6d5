/* Ensembles between ensembles: where a null depends on variance ratios, ensembles stand at the nodes of a grid of log
 * ratios and their moments are interpolated.
 *
 * Nodes are at (i + 1/2) step in each ratio, so that equal variances lie in the middle of a cell; cubic through the
 * four nearest. The error of m and s is under 0.05 s (tests/unit/test_nulls_long.c). */
#pragma once

#include "diag/nulls_draw.h"

enum { NULLS_MOST_NODES = 16 };

/* Rounds log ratios [ratio_count] to the places at which a null is told from its neighbours (a 50th of s or less), and
 * into the grid: beyond e^4 one part is noise under the other. */
void nulls_round(const nulls_shape *s, double *log_ratio);

/* The nodes [NULLS_MOST_NODES][ratio_count] that those rounded log ratios need; returns how many, 1 for a chain. */
int nulls_nodes(const nulls_shape *s, const double *log_ratio, double node[NULLS_MOST_NODES][NULLS_MOST_RATIOS]);

/* The moments there, from those at the nodes in the same order. */
void nulls_interpolate(const nulls_shape *s, const double *log_ratio, const nulls_moments *at_node, nulls_moments *out);
