/* The trainer's end of the snapshot channel: which pieces of the Q-K chain this rank sends, and when. */
#pragma once

#include "comm/snapshot.h"
#include "trainer/model.h"

typedef struct snapshots {
    snapshot_piece *pieces;
    offload_part *parts; /* the master weights of each piece */
    int count;
    int ranks;             /* diagnostics ranks: each gets the pieces of its layers, which stand together */
    int *pieces_of;        /* [ranks] how many */
    channel_share *shares; /* [ranks] */
    size_t message_bytes;  /* of all ranks' messages */
} snapshots;

/* Lists the pieces: the boxes that this rank owns (trainer/owned.h) of the parameters that diagnostics want. */
status snapshots_plan(snapshots *out, const model *m, const config *c, const comm_roles *roles);

/* Compute ranks decide together (collective over roles->compute) whether the due snapshot is sent: compute rank 0 needs
 * a credit, waiting for one or not as diagnostics.when_behind says; false when it is dropped. Step 0, which all else is
 * compared with, is waited for in any case. */
bool snapshots_admitted(const config *c, const comm_roles *roles, channel_sender *sender, int64_t step);

/* Hands this rank's pieces, as they are at this place of the queue, to the sending thread. */
status snapshots_send(const snapshots *s, channel_sender *sender, int64_t step);

void snapshots_free(snapshots *s);
