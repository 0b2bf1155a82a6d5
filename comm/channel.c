/* The channel's two ends are queues, or in a worker process a socket. In one process both ends share one; over MPI a
 * thread at each end carries messages from the sender's to the receiver's (wire.c). The snapshot buffers stand in a
 * queue of their own while they are free: taking one waits for the thread to put it back. */
#define _GNU_SOURCE /* posix_fallocate */
#include "comm/channel.h"

#include "comm/message.h"
#include "comm/queue.h"
#include "comm/wire.h"
#include "core/log.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

struct channel_sender {
    ops *ops; /* NULL: records only, in one process or from a diagnostics rank */
    queue *out;
    queue *buffers;       /* free snapshot buffers; likewise */
    channel_message held; /* the buffer got last; data NULL: none */
    size_t snapshot_bytes;
    bool shares; /* the buffers are memory that receivers on this host can read: while they are made */
    int rank;
    wire_out *wire; /* NULL in one process */
    int socket;     /* in a worker process, which has no queue; else 0 */
};

struct channel_receiver {
    queue *in;
    wire_in *wire; /* NULL in one process */
    int socket;    /* in a worker process, which has no queue; else 0 */
    int64_t taken; /* the last message's number */
};

static status no_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the channel to the diagnostics rank");
}

/* A buffer that receivers on this host can read. Its pages are there already, as in memory from host_alloc: the first
 * snapshot must not cost more than the next. */
static bool share_buffer(channel_sender *s, channel_message *buffer) {
    buffer->bytes = s->snapshot_bytes;
    if (!message_allocate(buffer)) return false;
    if (buffer->memory > 0 && posix_fallocate(buffer->memory, 0, (off_t)buffer->bytes) == 0) {
        memset(buffer->data, 0, buffer->bytes);
        if (s->ops->host_lock(s->ops, buffer->data, buffer->bytes)) return true;
    }
    message_release(buffer);
    log_info("no memory for snapshots that other ranks can read (%.1f MiB each): they travel as messages",
             (double)buffer->bytes / 0x1p20);
    return false;
}

static void release_buffer(channel_sender *s, channel_message *buffer) {
    if (buffer->memory == 0) {
        s->ops->host_release(s->ops, buffer->data);
        return;
    }
    s->ops->host_unlock(s->ops, buffer->data);
    buffer->bytes = s->snapshot_bytes; /* not those of the last snapshot in it */
    message_release(buffer);
}

static status add_buffer(channel_sender *s, int slot) {
    channel_message buffer = {.kind = CHANNEL_SNAPSHOT, .sender = s->rank, .slot = slot};
    if (s->shares) s->shares = share_buffer(s, &buffer);
    if (!s->shares) buffer.data = s->ops->host_alloc(s->ops, s->snapshot_bytes);
    if (!buffer.data)
        return status_fail(STATUS_CONFIG,
                           "%d snapshot buffers of %.1f MiB of host memory cannot be had (page-locked for a GPU: see "
                           "ulimit -l and the container's memory limit); give the host more, or set "
                           "diagnostics.ranks: 0",
                           CHANNEL_SNAPSHOT_BUFFERS, (double)s->snapshot_bytes / 0x1p20);
    status result = queue_push(s->buffers, &buffer);
    if (result != STATUS_OK) release_buffer(s, &buffer);
    return result;
}

static status add_buffers(channel_sender *s) {
    if (!s->ops->offload_open(s->ops, s->snapshot_bytes))
        return status_fail(STATUS_CONFIG,
                           "%.1f MiB for snapshots cannot be had on the %s; lower train.micro_batch or set "
                           "diagnostics.ranks: 0",
                           (double)s->snapshot_bytes / 0x1p20, s->ops->name);
    for (int i = 0; i < CHANNEL_SNAPSHOT_BUFFERS; i++) TRY(add_buffer(s, i));
    return STATUS_OK;
}

/* A snapshot buffer that the thread gave up on is in no queue, and stays. */
static void release_buffers(channel_sender *s, queue *q) {
    channel_message m;
    if (!q) return;
    queue_end(q);
    while (queue_pop(q, &m) == STATUS_OK && m.kind != CHANNEL_END) {
        if (m.kind == CHANNEL_SNAPSHOT) {
            release_buffer(s, &m);
        } else {
            free(m.data);
        }
    }
}

static void free_sender(channel_sender *s) {
    if (s->ops) {
        if (s->held.data) release_buffer(s, &s->held);
        release_buffers(s, s->buffers);
        release_buffers(s, s->out);
    }
    queue_free(s->buffers);
    queue_free(s->out);
    free(s);
}

static void free_receiver(channel_receiver *r) {
    queue_free(r->in);
    free(r);
}

status channel_sender_open(channel_sender **out, const comm_roles *roles, size_t snapshot_bytes, ops *o) {
    *out = NULL;
    if (roles->diagnostics || roles->diagnostics_ranks < 1)
        return status_fail(STATUS_INTERNAL, "a channel over MPI leads from a compute rank to a diagnostics rank");
    channel_sender *s = calloc(1, sizeof *s);
    if (!s) return no_memory();
    s->ops = o;
    s->rank = roles->compute_rank;
    s->snapshot_bytes = snapshot_bytes;
    s->shares = snapshot_bytes >= MESSAGE_MEMORY_BYTES;
    s->out = queue_open(1);
    s->buffers = queue_open(1);
    status result = s->out && s->buffers ? STATUS_OK : no_memory();
    if (result == STATUS_OK) result = add_buffers(s);
    if (result == STATUS_OK) result = wire_out_open(&s->wire, roles, o, s->out, s->buffers);
    if (result != STATUS_OK) {
        free_sender(s);
        return result;
    }
    *out = s;
    return STATUS_OK;
}

void channel_snapshot_split(channel_sender *s, const channel_share *shares) {
    wire_out_split(s->wire, shares);
}

status channel_relay_open(channel_sender **out, const comm_roles *roles) {
    *out = NULL;
    if (roles->diagnostics_rank < 1)
        return status_fail(STATUS_INTERNAL, "only a further diagnostics rank sends to the first one");
    channel_sender *s = calloc(1, sizeof *s);
    if (!s) return no_memory();
    s->rank = roles->tp * roles->dp - 1 + roles->diagnostics_rank;
    s->out = queue_open(1);
    status result = s->out ? wire_out_open(&s->wire, roles, NULL, s->out, NULL) : no_memory();
    if (result != STATUS_OK) {
        free_sender(s);
        return result;
    }
    *out = s;
    return STATUS_OK;
}

status channel_receiver_open(channel_receiver **out, const comm_roles *roles) {
    *out = NULL;
    if (!roles->diagnostics) return status_fail(STATUS_INTERNAL, "only a diagnostics rank receives over MPI");
    channel_receiver *r = calloc(1, sizeof *r);
    if (!r) return no_memory();
    r->in = queue_open(1);
    status result = r->in ? wire_in_open(&r->wire, roles, r->in) : no_memory();
    if (result != STATUS_OK) {
        free_receiver(r);
        return result;
    }
    *out = r;
    return STATUS_OK;
}

status channel_local_open(channel_sender **sender, channel_receiver **receiver) {
    *sender = NULL;
    *receiver = NULL;
    channel_sender *s = calloc(1, sizeof *s);
    channel_receiver *r = calloc(1, sizeof *r);
    queue *shared = s && r ? queue_open(2) : NULL;
    if (!shared) {
        free(s);
        free(r);
        return no_memory();
    }
    s->out = r->in = shared;
    *sender = s;
    *receiver = r;
    return STATUS_OK;
}

status channel_worker_open(channel_sender **first, channel_receiver **receiver, int socket) {
    channel_sender *s = calloc(1, sizeof *s);
    channel_receiver *r = calloc(1, sizeof *r);
    *first = NULL;
    *receiver = NULL;
    if (!s || !r) {
        free(s);
        free(r);
        return no_memory();
    }
    s->socket = r->socket = socket;
    *first = s;
    *receiver = r;
    return STATUS_OK;
}

/* A worker process to its supervisor: without an answer from the other end there is nobody to tell of a failure, and
 * the next receive will see it. */
static void say(const channel_receiver *r, int kind, int64_t step, const void *data, size_t bytes) {
    const channel_message m = {.kind = kind, .step = step, .number = r->taken, .data = (void *)data, .bytes = bytes};
    if (message_send(r->socket, &m, NULL) != STATUS_OK) status_clear();
}

status channel_post(channel_sender *s, int kind, int64_t step, const void *data, size_t bytes) {
    if (kind < 0) return status_fail(STATUS_INTERNAL, "message kind %d is the channel's own", kind);
    channel_message m = {.kind = kind, .sender = s->rank, .step = step, .bytes = bytes};
    if (s->socket) {
        m.data = (void *)data;
        return message_send(s->socket, &m, NULL);
    }
    m.data = malloc(bytes > 0 ? bytes : 1);
    if (!m.data) return no_memory();
    if (bytes > 0) memcpy(m.data, data, bytes);
    status result = queue_push(s->out, &m);
    if (result != STATUS_OK) free(m.data);
    return result;
}

bool channel_take_credit(channel_sender *s) {
    return s->wire && (s->held.data || queue_is_ready(s->buffers)) && wire_out_take_credit(s->wire);
}

int channel_take_requests(channel_sender *s) {
    return s->wire ? wire_out_take_requests(s->wire) : 0;
}

int64_t channel_confirmed(channel_sender *s) {
    if (s->wire) wire_out_listen(s->wire);
    return queue_confirmed(s->out);
}

void *channel_snapshot_buffer(channel_sender *s) {
    if (!s->buffers) {
        status_fail(STATUS_INTERNAL, "snapshots travel from compute ranks over MPI only");
        return NULL;
    }
    if (!s->held.data && queue_pop(s->buffers, &s->held) != STATUS_OK) s->held.data = NULL;
    return s->held.data;
}

status channel_snapshot_send(channel_sender *s, int64_t step, size_t written, const offload_part *parts, int count) {
    size_t bytes = written;
    if (!s->held.data) return status_fail(STATUS_INTERNAL, "a snapshot was sent without a buffer");
    for (int i = 0; i < count; i++) bytes += parts[i].bytes;
    if (bytes > s->snapshot_bytes)
        return status_fail(STATUS_INTERNAL, "a snapshot of %zu bytes does not fit its buffer of %zu", bytes,
                           s->snapshot_bytes);
    s->held.step = step;
    s->held.bytes = bytes;
    s->ops->offload(s->ops, s->held.slot, (char *)s->held.data + written, parts, count);
    TRY(ops_status(s->ops));
    TRY(queue_push(s->out, &s->held));
    s->held.data = NULL;
    return STATUS_OK;
}

bool channel_snapshots_shared(const channel_sender *s) {
    return s->wire && wire_out_shared(s->wire);
}

status channel_sender_status(channel_sender *s) {
    return s->socket ? STATUS_OK : queue_status(s->out);
}

status channel_sender_close(channel_sender *s) {
    if (s->socket) {
        free(s);
        return STATUS_OK;
    }
    queue_end(s->out);
    if (s->wire) wire_out_close(s->wire);
    status result = queue_status(s->out);
    free_sender(s);
    return result;
}

void channel_sender_abandon(channel_sender *s) {
    queue_fail(s->out, STATUS_INTERNAL, "the sending end of the channel was abandoned");
    if (s->wire) wire_out_abandon(s->wire);
    free_sender(s);
}

static status receive_from_supervisor(channel_receiver *r, channel_message *message) {
    bool gone = false;
    status result = message_receive(r->socket, message, &gone);
    if (gone) return status_fail(STATUS_INTERNAL, "the diagnostics rank is gone");
    r->taken = message->number;
    say(r, MESSAGE_TAKES, message->step, NULL, 0); /* also of one that there is no memory for */
    return result;
}

status channel_receive(channel_receiver *r, channel_message *message) {
    return r->socket ? receive_from_supervisor(r, message) : queue_pop(r->in, message);
}

void channel_release(channel_receiver *r, channel_message *message) {
    message_release(message);
}

int channel_receiver_descriptor(channel_receiver *r) {
    return r->socket ? r->socket : queue_descriptor(r->in);
}

void channel_report(channel_receiver *r, const channel_progress *p) {
    if (r->socket) say(r, MESSAGE_PROGRESS, p->step, p, sizeof *p);
}

void channel_go_on(channel_receiver *r) {
    if (r->socket) say(r, MESSAGE_TAKES, 0, NULL, 0);
}

void channel_grant(channel_receiver *r) {
    if (r->wire) wire_in_grant(r->wire);
}

void channel_ask(channel_receiver *r, int requests) {
    if (r->socket) say(r, MESSAGE_ASK, requests, NULL, 0);
    if (r->wire) wire_in_ask(r->wire, requests);
}

void channel_confirm(channel_receiver *r, int64_t step) {
    if (r->socket)
        say(r, MESSAGE_CONFIRM, step, NULL, 0);
    else if (r->wire)
        wire_in_confirm(r->wire, step);
    else
        queue_confirm(r->in, step);
}

void channel_receiver_close(channel_receiver *r) {
    if (r->socket) {
        free(r);
        return;
    }
    queue_fail(r->in, STATUS_INTERNAL, "the receiving end of the channel has closed");
    if (r->wire) wire_in_close(r->wire);
    free_receiver(r);
}

void channel_receiver_abandon(channel_receiver *r) {
    queue_fail(r->in, STATUS_INTERNAL, "the receiving end of the channel was abandoned");
    if (r->wire) wire_in_abandon(r->wire);
    free_receiver(r);
}
