/* Private to comm/: the channel's way over MPI. A thread at the sending end empties a queue into messages, a thread at
 * the receiving end fills a queue from them. A snapshot's bytes need not go over MPI where the receiver can read its
 * buffer (window.h). */
#pragma once

#include "comm/queue.h"

typedef struct wire_out wire_out;
typedef struct wire_in wire_in;

/* Sends what comes out of `from` until it ends or fails, a snapshot when o's offload to its buffer has arrived. Then
 * the buffer goes back to `buffers`, a record's copy is freed. A failure here fails both queues. Where roles are a
 * diagnostics rank's, it leads to the first one; o and buffers are NULL then. */
status wire_out_open(wire_out **out, const comm_roles *roles, ops *o, queue *from, queue *buffers);

/* As channel_snapshot_split. Call before the first snapshot is queued. */
void wire_out_split(wire_out *w, const channel_share *shares);

/* As channel_snapshots_shared. */
bool wire_out_shared(const wire_out *w);

/* Compute rank 0's caller: as channel_take_credit. */
bool wire_out_take_credit(wire_out *w);

/* Compute rank 0's caller: as channel_take_requests. */
int wire_out_take_requests(wire_out *w);

/* Compute rank 0, any thread: takes in what the receiver has said, for queue_confirmed(from). */
void wire_out_listen(wire_out *w);

/* Call after queue_end(from): waits until the receivers have taken everything. */
void wire_out_close(wire_out *w);

/* Call after queue_fail(from): ends the thread, whatever the receivers do. */
void wire_out_abandon(wire_out *w);

/* Receives into `to` until every sender has said its end, and then ends it. A failure here fails `to`, but the senders
 * are still served, so that none waits for ever. */
status wire_in_open(wire_in **out, const comm_roles *roles, queue *to);

void wire_in_grant(wire_in *w);
void wire_in_ask(wire_in *w, int requests);
void wire_in_confirm(wire_in *w, int64_t step);

/* Waits until every sender has said its end. */
void wire_in_close(wire_in *w);

/* Ends the thread, whatever the senders do. */
void wire_in_abandon(wire_in *w);
