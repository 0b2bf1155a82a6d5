#include "trainer/owned.h"

#include <stdio.h>
#include <stdlib.h>

int owned_layer_of(const char *name) {
    int layer = 0;
    return sscanf(name, "layers.%d.", &layer) == 1 ? layer : 0;
}

/* Whether the rank is the one among those that hold the same. With pieces no other data-parallel rank holds the same.
 */
static bool keeps(const params *p, const param *q, const comm_roles *roles) {
    int layer = owned_layer_of(q->name);
    if (p->pieces == 1 && layer % roles->dp != roles->dp_rank) return false;
    return q->spec.shard != PARAM_REPLICATED || layer % roles->tp == roles->tp_rank;
}

/* Adds rows [row, row + n_rows) of local storage, columns [col, end): what of that is no padding. */
static void add_box(owned *out, const params *p, int i, int64_t row, int64_t n_rows, int64_t col, int64_t end) {
    const param *q = &p->list[i];
    param_range own = params_owned(p, i);
    if (n_rows > q->n_rows - row) n_rows = q->n_rows - row;
    if (end > q->n_cols) end = q->n_cols;
    if (n_rows <= 0 || end <= col) return;
    out->boxes[out->count++] = (owned_box){.param = i,
                                           .row = q->row + row,
                                           .col = q->col + col,
                                           .n_rows = n_rows,
                                           .n_cols = end - col,
                                           .at = own.at + row * q->cols + col - own.first,
                                           .stride = q->cols};
}

/* A range of elements is the rest of a row, whole rows, and the beginning of one. */
static void add_range(owned *out, const params *p, int i) {
    int64_t cols = p->list[i].cols;
    param_range own = params_owned(p, i);
    int64_t end = own.first + own.count, row = own.first / cols, col = own.first % cols;
    if (own.count == 0) return;
    if (col > 0) {
        add_box(out, p, i, row, 1, col, end - row * cols < cols ? end - row * cols : cols);
        row++;
    }
    if (end / cols > row) add_box(out, p, i, row, end / cols - row, 0, cols);
    if (end / cols >= row) add_box(out, p, i, end / cols, 1, 0, end % cols);
}

enum { MOST_BOXES = 3 }; /* of a parameter */

status owned_list(owned *out, const params *p, const comm_roles *roles) {
    *out = (owned){.boxes = calloc(MOST_BOXES * (size_t)p->count, sizeof *out->boxes)};
    if (!out->boxes) return status_fail(STATUS_INTERNAL, "out of memory for the table of this rank's weights");
    for (int i = 0; i < p->count; i++)
        if (keeps(p, &p->list[i], roles)) add_range(out, p, i);
    return STATUS_OK;
}

void owned_free(owned *o) {
    free(o->boxes);
    *o = (owned){0};
}
