/* The channel from the compute ranks to the diagnostics ranks: whole messages, in order for each sender, sent by a
 * thread of its own so that progress does not depend on the training loop. Also between threads of one process
 * (diagnostics.ranks: 0).
 *
 * Two ways to send. Records (losses, events) are copied, queued and never dropped. Snapshots are large: the sender owns
 * a few buffers of a fixed size, and the receiver grants credits for whole snapshots, so that a slow receiver costs no
 * memory. Over MPI a message is announced by a header and followed by chunks, each sent by MPI_Isend, MPI_Test and
 * sleep: a blocking send spins and takes a core from the training loop. A snapshot has no chunks where the receiver,
 * on the same host, can read the sender's buffer: it copies what is its own and says when it has. */
#pragma once

#include "comm/roles.h"
#include "core/ops/ops.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct channel_sender channel_sender;
typedef struct channel_receiver channel_receiver;

enum {
    CHANNEL_END = -1,
    CHANNEL_SNAPSHOT = -2
}; /* message kinds below 0 are the channel's own; others are the caller's */
/* A buffer is in use from the step of its snapshot, which the host queues about a step ahead of a GPU, until it is
 * copied; a credit until its spectra are there. With one fewer of either, snapshots that take less than a step to copy
 * and less than a step to compute would be dropped. */
enum { CHANNEL_SNAPSHOT_BUFFERS = OFFLOAD_SLOTS, CHANNEL_SNAPSHOT_CREDITS = CHANNEL_SNAPSHOT_BUFFERS + 1 };

typedef struct channel_message {
    int kind;
    int sender; /* compute rank; P Q - 1 + i from diagnostics rank i >= 1 */
    int64_t step;
    size_t bytes;
    void *data;
    int slot;       /* at the sending end, of a snapshot: its buffer's number */
    int64_t number; /* in a worker process: its place among all that came; else 0 */
    int memory;     /* descriptor of the file of memory that data is a mapping of; 0: there is none */
} channel_message;

/* Over MPI: every compute rank opens a sender, every diagnostics rank a receiver. snapshot_bytes: size of each of the
 * buffers, the largest snapshot message that this rank will send. They are memory that other processes of the host
 * may read, locked by o, or else o's host memory, and what snapshots hold is o's device memory; o outlives the sender.
 * CONFIG where there is no memory for them. */
status channel_sender_open(channel_sender **out, const comm_roles *roles, size_t snapshot_bytes, ops *o);
status channel_receiver_open(channel_receiver **out, const comm_roles *roles);

/* What one diagnostics rank gets of a snapshot. */
typedef struct channel_share {
    size_t written_bytes, part_bytes;
} channel_share;

/* From now on every diagnostics rank gets a message of its own of each snapshot: what the caller writes holds their
 * beginnings one after the other, the parts their ends in the same order. shares [roles->diagnostics_ranks] stays the
 * caller's, as long as the sender is open. Without this a snapshot goes to the first diagnostics rank as a whole. */
void channel_snapshot_split(channel_sender *s, const channel_share *shares);

/* From a further diagnostics rank to the first one, for records. */
status channel_relay_open(channel_sender **out, const comm_roles *roles);

/* Both ends in one process, for one sender; snapshots are not sent this way. */
status channel_local_open(channel_sender **sender, channel_receiver **receiver);

/* The ends in a worker process, of which the other is a supervisor's (diag/worker.h): what the diagnostics rank
 * receives, and its records to the first one. */
status channel_worker_open(channel_sender **first, channel_receiver **receiver, int socket);

/* Queues a copy of a record for the first diagnostics rank. */
status channel_post(channel_sender *s, int kind, int64_t step, const void *data, size_t bytes);

/* Compute rank 0: true when the receiver has granted a credit for one more snapshot and there is a buffer for it; takes
 * the credit. */
bool channel_take_credit(channel_sender *s);

/* What a receiver may ask for: bits. */
typedef enum channel_request { CHANNEL_STOP = 1, CHANNEL_CHECKPOINT = 2 } channel_request;

/* Compute rank 0: what the receiver has asked for (channel_ask) since the last call; 0: nothing. */
int channel_take_requests(channel_sender *s);

/* The last step of which the receiver has said that all up to it is recorded (channel_confirm); -1: none. Any thread.
 */
int64_t channel_confirmed(channel_sender *s);

/* A free snapshot buffer; waits for the oldest snapshot to leave when all are in flight. NULL when the thread has
 * failed. */
void *channel_snapshot_buffer(channel_sender *s);

/* Sends the buffer got last, of which the caller has written the first `written` bytes; the parts follow them, as they
 * are at this place of the table's queue. Waits for nothing: the thread waits for the copy. */
status channel_snapshot_send(channel_sender *s, int64_t step, size_t written, const offload_part *parts, int count);

/* Whether every snapshot that has left so far was read by its receivers out of its buffer; false: one, or a share of
 * it, went as messages. Any thread. */
bool channel_snapshots_shared(const channel_sender *s);

/* The sending thread's first failure, OK while there is none. */
status channel_sender_status(channel_sender *s);

/* Sends CHANNEL_END after everything queued, waits until the receivers have taken it, frees. INTERNAL when something
 * was not delivered; a receiver that takes nothing for roles->patience_s counts as gone. */
status channel_sender_close(channel_sender *s);

/* Frees without a word to the other end: for a job that ends because some rank could not open its end of the channel.
 */
void channel_sender_abandon(channel_sender *s);

/* The next whole message; waits. CHANNEL_END comes once, when every sender (at the first diagnostics rank also the
 * further ones) has said it. message->data belongs to the
 * caller until channel_release(). Received by a thread of the receiver's own, so that senders are served while the
 * caller computes. */
status channel_receive(channel_receiver *r, channel_message *message);
void channel_release(channel_receiver *r, channel_message *message);

/* A descriptor that is readable while channel_receive() need not wait, for poll(). -1: there is none to be had. */
int channel_receiver_descriptor(channel_receiver *r);

/* Grants compute rank 0 credit for one more snapshot. Nothing in a worker process, whose supervisor grants. */
void channel_grant(channel_receiver *r);

/* How far a worker process is. */
typedef struct channel_progress {
    int64_t number; /* all messages up to this one are recorded, but shares and parts of snapshots; 0: none */
    int64_t step;   /* so are those, of snapshots up to this one; -1: none */
    int64_t ended;  /* the last snapshot that nothing more is computed of; -1: none */
} channel_progress;

/* In a worker process: tells the supervisor. */
void channel_report(channel_receiver *r, const channel_progress *p);

/* In a worker process: the work on the last message is long, but goes on. Any thread. */
void channel_go_on(channel_receiver *r);

/* Asks compute rank 0 for the end of the run or a checkpoint (bits of channel_request); it decides. Nothing where the
 * channel does not go over MPI. */
void channel_ask(channel_receiver *r, int requests);

/* Tells compute rank 0 that all that it sent up to that step is recorded; INT64_MAX: that nothing will be any more, so
 * that nobody need wait. */
void channel_confirm(channel_receiver *r, int64_t step);

/* Takes, and drops, what still comes until every sender has said CHANNEL_END; frees. */
void channel_receiver_close(channel_receiver *r);

/* As channel_sender_abandon. */
void channel_receiver_abandon(channel_receiver *r);
