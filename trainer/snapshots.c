#include "trainer/snapshots.h"

#include "diag/diag.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* The layer in "layers.N.…", 0 for what is outside the layers. */
static int layer_of(const char *name) {
    int layer = 0;
    return sscanf(name, "layers.%d.", &layer) == 1 ? layer : 0;
}

static bool sends(const param *q, const comm_roles *roles) {
    int layer = layer_of(q->name);
    if (layer % roles->dp != roles->dp_rank) return false;
    return q->spec.shard != PARAM_REPLICATED || layer % roles->tp == roles->tp_rank;
}

status snapshots_plan(snapshots *out, const model *m, const config *c, const comm_roles *roles) {
    const params *p = &m->params;
    *out = (snapshots){.pieces = calloc((size_t)p->count, sizeof *out->pieces),
                       .parts = calloc((size_t)p->count, sizeof *out->parts)};
    if (!out->pieces || !out->parts) return status_fail(STATUS_INTERNAL, "out of memory for the snapshot's table");
    for (int i = 0; i < p->count; i++) {
        const param *q = &p->list[i];
        if (!diag_wants(c, q->name) || !sends(q, roles)) continue;
        assert(q->n_rows == q->rows && q->n_cols == q->cols); /* heads are never padded */
        snapshot_piece *piece = &out->pieces[out->count];
        *piece = (snapshot_piece){.rows = q->spec.rows,
                                  .cols = q->spec.cols,
                                  .row = q->row,
                                  .col = q->col,
                                  .n_rows = q->n_rows,
                                  .n_cols = q->n_cols};
        snprintf(piece->name, sizeof piece->name, "%s", q->name);
        out->parts[out->count++] =
            (offload_part){.device = p->master + q->offset, .bytes = (size_t)(q->rows * q->cols) * sizeof *p->master};
    }
    out->message_bytes = snapshot_message_bytes(out->pieces, out->count);
    return STATUS_OK;
}

bool snapshots_due(const config *c, int64_t step) {
    return step <= c->diagnostics.dense_until || step % c->diagnostics.every == 0 || step == c->train.steps;
}

bool snapshots_admitted(const config *c, const comm_roles *roles, channel_sender *sender, int64_t step) {
    bool waits = step == 0 || c->diagnostics.when_behind == BEHIND_WAIT;
    int admitted = 0;
    if (roles->compute_rank == 0) {
        admitted = channel_take_credit(sender);
        while (!admitted && waits && channel_sender_status(sender) == STATUS_OK) {
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
            admitted = channel_take_credit(sender);
        }
    }
    int error = MPI_Bcast(&admitted, 1, MPI_INT, 0, roles->compute);
    return error == MPI_SUCCESS && admitted;
}

status snapshots_send(const snapshots *s, channel_sender *sender, int64_t step) {
    char *message = channel_snapshot_buffer(sender);
    if (!message) return channel_sender_status(sender);
    float *values = snapshot_message_begin(message, s->pieces, s->count);
    return channel_snapshot_send(sender, step, (size_t)((char *)values - message), s->parts, s->count);
}

void snapshots_free(snapshots *s) {
    free(s->pieces);
    free(s->parts);
    *s = (snapshots){0};
}
