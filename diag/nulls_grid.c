/* The grid of log ratios and the interpolation on it. */
#include "diag/nulls_grid.h"

#include <math.h>
#include <string.h>

static const double FARTHEST = 4;
enum { POINTS = 4 };

/* Chosen so that the error of the interpolation stays well under 0.05 s: m turns where the largest eigenvalue passes
 * from one block to the other, most sharply in score form. A mixed chain hardly knows its ratio. */
static double grid_step(const nulls_shape *s) {
    return s->kind == NULLS_MIXED ? 0.5 : s->channel ? 0.2 : 0.0625;
}

void nulls_round(const nulls_shape *s, double *log_ratio) {
    double places = s->kind == NULLS_MIXED ? 0x1p6 : s->channel ? 0x1p8 : 0x1p10;
    for (int k = 0; k < s->ratio_count; k++)
        log_ratio[k] = round(fmin(fmax(log_ratio[k], -FARTHEST), FARTHEST) * places) / places;
}

/* The first of the four nodes around x, as the i of (i + 1/2) step. */
static int first_node(double x, double step) {
    return (int)floor(x / step - 0.5) - 1;
}

/* Equal and opposite log ratios of a mixed chain are the same null: the halves change names. */
static double node_at(const nulls_shape *s, int i) {
    double x = (i + 0.5) * grid_step(s);
    return s->kind == NULLS_MIXED ? fabs(x) : x;
}

int nulls_nodes(const nulls_shape *s, const double *log_ratio, double node[NULLS_MOST_NODES][NULLS_MOST_RATIOS]) {
    memset(node, 0, sizeof(double[NULLS_MOST_NODES][NULLS_MOST_RATIOS]));
    if (s->ratio_count == 0) return 1;
    int first[NULLS_MOST_RATIOS] = {0}, count = s->ratio_count == 1 ? POINTS : POINTS * POINTS;
    for (int k = 0; k < s->ratio_count; k++) first[k] = first_node(log_ratio[k], grid_step(s));
    for (int i = 0; i < count; i++) {
        node[i][0] = node_at(s, first[0] + i % POINTS);
        if (s->ratio_count == 2) node[i][1] = node_at(s, first[1] + i / POINTS);
    }
    return count;
}

/* Lagrange's weights of the four nodes for x. */
static void cubic_weights(double x, double step, double weight[POINTS]) {
    double at = x / step - 0.5 - first_node(x, step);
    for (int i = 0; i < POINTS; i++) {
        weight[i] = 1;
        for (int j = 0; j < POINTS; j++)
            if (j != i) weight[i] *= (at - j) / (i - j);
    }
}

void nulls_interpolate(const nulls_shape *s, const double *log_ratio, const nulls_moments *at_node,
                       nulls_moments *out) {
    double weight[NULLS_MOST_RATIOS][POINTS];
    if (s->ratio_count == 0) {
        *out = at_node[0];
        return;
    }
    memset(out, 0, sizeof(*out));
    for (int k = 0; k < s->ratio_count; k++) cubic_weights(log_ratio[k], grid_step(s), weight[k]);
    int count = s->ratio_count == 1 ? POINTS : POINTS * POINTS;
    for (int i = 0; i < count; i++) {
        double w = weight[0][i % POINTS] * (s->ratio_count == 2 ? weight[1][i / POINTS] : 1);
        for (int k = 0; k < NULLS_STATISTIC_COUNT; k++) {
            out->mean[k] += w * at_node[i].mean[k];
            out->sd[k] += w * at_node[i].sd[k];
        }
    }
}
