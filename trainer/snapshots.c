#include "trainer/snapshots.h"

#include "diag/diag.h"
#include "trainer/owned.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* Adds the piece that this rank sends of a parameter. */
static void add_piece(snapshots *s, const params *p, const owned_box *box) {
    const param *q = &p->list[box->param];
    assert(box->n_rows == 1 || box->stride == box->n_cols); /* heads are never padded */
    snapshot_piece *piece = &s->pieces[s->count];
    *piece = (snapshot_piece){.rows = q->spec.rows,
                              .cols = q->spec.cols,
                              .row = box->row,
                              .col = box->col,
                              .n_rows = box->n_rows,
                              .n_cols = box->n_cols};
    snprintf(piece->name, sizeof piece->name, "%s", q->name);
    s->parts[s->count++] =
        (offload_part){.device = p->master + box->at, .bytes = (size_t)(box->n_rows * box->n_cols) * sizeof *p->master};
}

/* The first diagnostics rank gets the gains of all layers: it holds all spectra against their nulls. */
static bool goes_to(const config *c, const param *q, int rank) {
    return diag_rank_of_layer(c, owned_layer_of(q->name)) == rank || (rank == 0 && q->spec.rows == 1);
}

static status plan_pieces(snapshots *out, const params *p, const owned *boxes, const config *c) {
    size_t most = 2 * (size_t)boxes->count + 1; /* gains may go to two ranks; a rank may own nothing */
    *out = (snapshots){.pieces = calloc(most, sizeof *out->pieces),
                       .parts = calloc(most, sizeof *out->parts),
                       .ranks = (int)c->diagnostics.ranks,
                       .pieces_of = calloc((size_t)c->diagnostics.ranks, sizeof *out->pieces_of),
                       .shares = calloc((size_t)c->diagnostics.ranks, sizeof *out->shares)};
    if (!out->pieces || !out->parts || !out->pieces_of || !out->shares)
        return status_fail(STATUS_INTERNAL, "out of memory for the snapshot's table");
    for (int rank = 0; rank < out->ranks; rank++) {
        int first = out->count;
        for (int i = 0; i < boxes->count; i++) {
            const owned_box *box = &boxes->boxes[i];
            const param *q = &p->list[box->param];
            if (!goes_to(c, q, rank) || !diag_wants(c, q->name)) continue;
            out->shares[rank].part_bytes += (size_t)(box->n_rows * box->n_cols) * sizeof *p->master;
            add_piece(out, p, box);
        }
        size_t bytes = snapshot_message_bytes(out->pieces + first, out->count - first);
        out->pieces_of[rank] = out->count - first;
        out->shares[rank].written_bytes = bytes - out->shares[rank].part_bytes;
        out->message_bytes += bytes;
    }
    return STATUS_OK;
}

status snapshots_plan(snapshots *out, const model *m, const config *c, const comm_roles *roles) {
    owned boxes;
    *out = (snapshots){0};
    status s = owned_list(&boxes, &m->params, roles);
    if (s == STATUS_OK) s = plan_pieces(out, &m->params, &boxes, c);
    owned_free(&boxes);
    return s;
}

/* What compute rank 0 says, on every compute rank. */
static bool first_decides(const comm_roles *roles, int yes) {
    int error = MPI_Bcast(&yes, 1, MPI_INT, 0, roles->compute);
    return error == MPI_SUCCESS && yes;
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
    return first_decides(roles, admitted);
}

status snapshots_send(const snapshots *s, channel_sender *sender, int64_t step) {
    char *message = channel_snapshot_buffer(sender);
    if (!message) return channel_sender_status(sender);
    char *at = message;
    const snapshot_piece *pieces = s->pieces;
    for (int rank = 0; rank < s->ranks; rank++) {
        at = (char *)snapshot_message_begin(at, pieces, s->pieces_of[rank]);
        pieces += s->pieces_of[rank];
    }
    return channel_snapshot_send(sender, step, (size_t)(at - message), s->parts, s->count);
}

void snapshots_free(snapshots *s) {
    free(s->pieces);
    free(s->parts);
    free(s->pieces_of);
    free(s->shares);
    *s = (snapshots){0};
}
