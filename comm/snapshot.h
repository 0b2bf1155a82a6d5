/* What a snapshot message holds, and how a diagnostics rank puts the ranks' shares together again.
 *
 * A message is a header, a table of pieces, then each piece's fp32 values, row-major, in the table's order. A piece is
 * a box of a global, unpadded tensor. A snapshot is of one step and whole: every element of every tensor exactly once.
 */
#pragma once

#include "comm/channel.h"

typedef struct snapshot_piece {
    char name[64];                    /* global name: "layers.3.attention.W_Q" */
    int64_t rows, cols;               /* of the global tensor */
    int64_t row, col, n_rows, n_cols; /* this box of it */
} snapshot_piece;

/* Bytes of a message with these pieces. */
size_t snapshot_message_bytes(const snapshot_piece *pieces, int count);

/* Writes header and table into message; returns where the values start. Piece i's values follow those of piece i - 1.
 */
float *snapshot_message_begin(void *message, const snapshot_piece *pieces, int count);

typedef struct snapshot_box {
    int64_t row, col, n_rows, n_cols;
} snapshot_box;

typedef struct snapshot_tensor {
    char name[64];
    int64_t rows, cols;
    float *data;  /* [rows, cols] */
    int64_t seen; /* elements that have arrived */
    int boxes;
    snapshot_box *box; /* [boxes]: which, so that none arrives twice */
} snapshot_tensor;

typedef struct snapshot {
    int64_t step;
    int senders_seen;
    int count;
    snapshot_tensor *tensors;
} snapshot;

/* Adds one rank's message to the snapshot of its step (s->step is set by the first). DATA when the message is
 * malformed, of another step, disagrees with the others about a tensor, or repeats an element: a snapshot that got such
 * a message is to be discarded. */
status snapshot_add(snapshot *s, const channel_message *message);

/* True when each tensor has arrived whole. */
bool snapshot_whole(const snapshot *s);

/* The tensor of that name, or NULL. */
const snapshot_tensor *snapshot_find(const snapshot *s, const char *name);

void snapshot_free(snapshot *s);
