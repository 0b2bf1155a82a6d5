#include "trainer/owned.h"

#include <stdio.h>
#include <stdlib.h>

int owned_layer_of(const char *name) {
    int layer = 0;
    return sscanf(name, "layers.%d.", &layer) == 1 ? layer : 0;
}

static bool keeps(const param *q, const comm_roles *roles) {
    int layer = owned_layer_of(q->name);
    if (layer % roles->dp != roles->dp_rank) return false;
    return q->spec.shard != PARAM_REPLICATED || layer % roles->tp == roles->tp_rank;
}

status owned_list(owned *out, const params *p, const comm_roles *roles) {
    *out = (owned){.boxes = calloc((size_t)p->count, sizeof *out->boxes)};
    if (!out->boxes) return status_fail(STATUS_INTERNAL, "out of memory for the table of this rank's weights");
    for (int i = 0; i < p->count; i++) {
        const param *q = &p->list[i];
        if (q->n_rows == 0 || q->n_cols == 0 || !keeps(q, roles)) continue;
        out->boxes[out->count++] = (owned_box){.param = i,
                                               .row = q->row,
                                               .col = q->col,
                                               .n_rows = q->n_rows,
                                               .n_cols = q->n_cols,
                                               .at = q->offset,
                                               .stride = q->cols};
    }
    return STATUS_OK;
}

void owned_free(owned *o) {
    free(o->boxes);
    *o = (owned){0};
}
