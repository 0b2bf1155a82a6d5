/* A message is a header and then its bytes in chunks, in order, on a communicator that nobody else uses. A snapshot's
 * header says where its bytes lie. The receiver reads them there and answers with a receipt, and the buffer is free; or
 * it cannot, says so, and the chunks follow, with this snapshot and all later ones. All waiting is test and sleep: on a
 * machine with few cores a spinning thread costs the training loop a core. */
#define _GNU_SOURCE /* gettid */
#include "comm/wire.h"

#include "comm/backends.h"
#include "comm/backoff.h"
#include "comm/message.h"
#include "comm/thread.h"
#include "comm/window.h"
#include "core/clock.h"
#include "core/log.h"

#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum tag { TAG_HEADER = 1, TAG_CHUNK, TAG_ANSWER, TAG_RECEIPT };

enum {
    CHUNK_BYTES = 4 << 20,
    SEND_SLEEP_US = 200,     /* between two tests, at most */
    RECEIVE_SLEEP_US = 1000, /* between two probes of an idle channel, at most */
    LOW_PRIORITY = 10,       /* nice value where cores are too few */
};

enum { PIECES = 2 };

/* Of a sender's message, bytes [at, at + bytes). */
typedef struct piece {
    uint64_t at, bytes;
} piece;

typedef struct wire_header {
    int64_t kind, step;
    piece pieces[PIECES];
    int64_t offered; /* whether they are to be read at: the receiver sends a receipt */
    window_place at;
} wire_header;

/* What a receiver says of an offered message. */
typedef enum receipt { RECEIPT_TAKEN, RECEIPT_REFUSED } receipt;

/* What the receiver tells compute rank 0. */
typedef enum answer_kind {
    ANSWER_CREDITS,  /* value: how many */
    ANSWER_CONFIRM,  /* value: the step up to which all is recorded */
    ANSWER_REQUESTS, /* value: what is asked for */
    ANSWER_LAST,     /* there will be no more */
} answer_kind;

typedef struct answer {
    int64_t kind, value;
} answer;

/* When a thread gives up waiting. */
typedef struct limits {
    double patience_s; /* for a rank that takes nothing */
    bool abandoned;    /* atomic */
} limits;

/* Of a diagnostics rank, at the sending end. */
typedef struct outlet {
    int rank;
    bool offered; /* it has the header of a snapshot and owes a receipt */
    bool refused; /* it gets messages */
} outlet;

struct wire_out {
    ops *ops;
    MPI_Comm comm;
    limits limits;
    int destinations;
    outlet *destination;         /* [destinations]: all get the end; the first the records, and it grants the credits */
    const channel_share *shares; /* [destinations] of a snapshot; NULL: it is the first one's */
    bool takes_answers, low_priority;
    bool messages;        /* a snapshot went in chunks; atomic */
    pthread_mutex_t lock; /* guards the next three */
    int64_t credits;
    bool last_answer;
    int requests;
    queue *from, *buffers;
    pthread_t thread;
};

/* One sender's unfinished message. */
typedef struct stream {
    channel_message message; /* data NULL: being thrown away */
    uint64_t arrived;
    bool open;
} stream;

struct wire_in {
    MPI_Comm comm;
    limits limits;
    int senders, ended;
    int *rank_of; /* [world]: each sender's number (channel_message.sender) */
    int creditor; /* world rank of compute rank 0, -1: somebody else grants */
    bool low_priority;
    stream *streams; /* [senders] */
    char *scratch;   /* [CHUNK_BYTES]: for headers and unwanted bytes */
    bool refused;    /* some sender's memory could not be read, and that was said */
    bool unfinished; /* a receive was given up: MPI may still write into streams or scratch */
    queue *to;
    int grants;      /* asked for by the caller, not yet sent; atomic */
    int requests;    /* likewise */
    int64_t confirm; /* likewise; -1: none */
    pthread_t thread;
};

static bool abandoned(const limits *l) {
    return __atomic_load_n(&l->abandoned, __ATOMIC_ACQUIRE);
}

/* OK while there is reason to go on waiting for the other end, since `since`. */
static status check_limits(const limits *l, double since) {
    if (abandoned(l)) return status_fail(STATUS_INTERNAL, "the channel was abandoned");
    if (clock_now_s() - since <= l->patience_s) return STATUS_OK;
    return status_fail(STATUS_INTERNAL,
                       "the other end of the channel between compute and diagnostics ranks has done "
                       "nothing for %.0f s: is that process stopped?",
                       l->patience_s);
}

static status wait_for(MPI_Request *request, const limits *l) {
    backoff pause = {0};
    double since = clock_now_s();
    for (;;) {
        int done = 0;
        TRY(comm_check(MPI_Test(request, &done, MPI_STATUS_IGNORE), "the channel to the diagnostics rank"));
        if (done) return STATUS_OK;
        TRY(check_limits(l, since));
        backoff_sleep(&pause, SEND_SLEEP_US);
    }
}

/* On Linux the nice value is a thread's own. */
static void lower_priority(bool really) {
    if (really) setpriority(PRIO_PROCESS, (id_t)gettid(), LOW_PRIORITY);
}

/* Memory of a transfer that was given up: MPI may still read or write it, so that it stays until the process ends. */
static void keep_for_mpi(void *data) {
    typedef struct kept {
        void *data;
        struct kept *next;
    } kept;
    static kept *all; /* the pushes of several threads meet here */
    kept *k = malloc(sizeof *k);
    if (!k) return; /* then it stays all the same, only out of sight */
    *k = (kept){.data = data, .next = __atomic_load_n(&all, __ATOMIC_RELAXED)};
    while (!__atomic_compare_exchange_n(&all, &k->next, k, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) continue;
}

/* ---- the sending end ---- */

static status send_bytes(const wire_out *w, const void *data, size_t bytes, int to, int tag) {
    MPI_Request request;
    TRY(comm_check(MPI_Isend(data, (int)bytes, MPI_BYTE, to, tag, w->comm, &request),
                   "sending to the diagnostics rank"));
    return wait_for(&request, &w->limits);
}

static status send_header(const wire_out *w, const wire_header *header, int to) {
    return send_bytes(w, header, sizeof *header, to, TAG_HEADER);
}

static status send_chunks(const wire_out *w, const channel_message *m, const piece *p, int to) {
    for (uint64_t sent = 0; sent < p->bytes; sent += CHUNK_BYTES) {
        uint64_t left = p->bytes - sent;
        TRY(send_bytes(w, (const char *)m->data + p->at + sent, left < CHUNK_BYTES ? left : CHUNK_BYTES, to,
                       TAG_CHUNK));
    }
    return STATUS_OK;
}

static status send_record(const wire_out *w, const channel_message *m) {
    const wire_header header = {.kind = m->kind, .step = m->step, .pieces = {{0, m->bytes}}};
    TRY(send_header(w, &header, w->destination[0].rank));
    return send_chunks(w, m, header.pieces, w->destination[0].rank);
}

/* What a destination gets of a snapshot: its share of what was written, its share of the parts. */
static void find_pieces(const wire_out *w, const channel_message *m, int mine, piece pieces[PIECES]) {
    pieces[0] = (piece){0, m->bytes};
    pieces[1] = (piece){m->bytes, 0};
    if (!w->shares) return;
    pieces[0] = (piece){0, w->shares[mine].written_bytes};
    pieces[1] = (piece){0, w->shares[mine].part_bytes};
    for (int i = 0; i < w->destinations; i++) {
        if (i < mine) pieces[0].at += w->shares[i].written_bytes;
        pieces[1].at += w->shares[i].written_bytes + (i < mine ? w->shares[i].part_bytes : 0);
    }
}

/* In messages, behind its header. */
static status send_pieces(wire_out *w, const channel_message *m, const piece pieces[PIECES], int to) {
    if (pieces[0].bytes + pieces[1].bytes > 0) __atomic_store_n(&w->messages, true, __ATOMIC_RELAXED);
    for (int i = 0; i < PIECES; i++) TRY(send_chunks(w, m, &pieces[i], to));
    return STATUS_OK;
}

static status receive_receipt(const wire_out *w, int from, receipt *out) {
    backoff pause = {0};
    double since = clock_now_s();
    for (;;) {
        int found = 0;
        MPI_Message message;
        TRY(comm_check(MPI_Improbe(from, TAG_RECEIPT, w->comm, &found, &message, MPI_STATUS_IGNORE),
                       "looking for a receipt"));
        if (found)
            return comm_check(MPI_Mrecv(out, sizeof *out, MPI_BYTE, &message, MPI_STATUS_IGNORE),
                              "receiving a receipt");
        TRY(check_limits(&w->limits, since));
        backoff_sleep(&pause, SEND_SLEEP_US);
    }
}

/* Waits until the destination has read what it was offered, or sends it. */
static status finish_offer(wire_out *w, const channel_message *m, int i) {
    outlet *d = &w->destination[i];
    receipt said;
    piece pieces[PIECES];
    if (!d->offered) return STATUS_OK;
    TRY(receive_receipt(w, d->rank, &said));
    d->refused = said == RECEIPT_REFUSED;
    if (!d->refused) return STATUS_OK;
    find_pieces(w, m, i, pieces);
    return send_pieces(w, m, pieces, d->rank);
}

/* Destinations read at the same time. */
static status send_snapshot(wire_out *w, const channel_message *m) {
    TRY(w->ops->offload_wait(w->ops, m->slot));
    wire_header header = {.kind = m->kind, .step = m->step};
    bool shown = window_locate(m, &header.at);
    int destinations = w->shares ? w->destinations : 1;
    for (int i = 0; i < destinations; i++) {
        outlet *d = &w->destination[i];
        find_pieces(w, m, i, header.pieces);
        d->offered = shown && !d->refused && header.pieces[0].bytes + header.pieces[1].bytes > 0;
        header.offered = d->offered;
        TRY(send_header(w, &header, d->rank));
        if (!d->offered) TRY(send_pieces(w, m, header.pieces, d->rank));
    }
    for (int i = 0; i < destinations; i++) TRY(finish_offer(w, m, i));
    return STATUS_OK;
}

/* A synchronous send is complete when the receiver has taken it, and with it all that came before. */
static status send_end(const wire_out *w) {
    static const wire_header header = {.kind = CHANNEL_END};
    for (int i = 0; i < w->destinations; i++) {
        MPI_Request request;
        TRY(comm_check(
            MPI_Issend(&header, sizeof header, MPI_BYTE, w->destination[i].rank, TAG_HEADER, w->comm, &request),
            "ending the channel"));
        TRY(wait_for(&request, &w->limits));
    }
    return STATUS_OK;
}

static status give_back(wire_out *w, channel_message *m) {
    if (m->kind == CHANNEL_SNAPSHOT) return queue_push(w->buffers, m);
    free(m->data);
    return STATUS_OK;
}

static void *run_out(void *user) {
    wire_out *w = user;
    lower_priority(w->low_priority);
    channel_message m;
    status result = STATUS_OK;
    while (result == STATUS_OK) {
        result = queue_pop(w->from, &m);
        if (result != STATUS_OK || m.kind == CHANNEL_END) break;
        result = m.kind == CHANNEL_SNAPSHOT ? send_snapshot(w, &m) : send_record(w, &m);
        if (result == STATUS_OK) {
            result = give_back(w, &m);
        } else {
            keep_for_mpi(m.data);
        }
    }
    if (result == STATUS_OK) result = send_end(w);
    if (result != STATUS_OK) {
        queue_fail(w->from, result, status_message());
        if (w->buffers) queue_fail(w->buffers, result, status_message());
    }
    return NULL;
}

status wire_out_open(wire_out **out, const comm_roles *roles, ops *o, queue *from, queue *buffers) {
    *out = NULL;
    size_t destinations = roles->diagnostics ? 1 : (size_t)roles->diagnostics_ranks;
    wire_out *w = calloc(1, sizeof *w);
    outlet *destination = calloc(destinations, sizeof *destination);
    status result = STATUS_OK;
    if (!w || !destination) {
        result = status_fail(STATUS_INTERNAL, "out of memory for the channel");
        goto fail;
    }
    for (size_t i = 0; i < destinations; i++) destination[i].rank = roles->diagnostics_world_ranks[i];
    *w = (wire_out){.ops = o,
                    .comm = roles->channel,
                    .limits = {.patience_s = roles->patience_s},
                    .destinations = (int)destinations,
                    .destination = destination,
                    .takes_answers = roles->compute_rank == 0,
                    .low_priority = roles->oversubscribed,
                    .from = from,
                    .buffers = buffers};
    pthread_mutex_init(&w->lock, NULL);
    result = comm_start_thread(&w->thread, run_out, w);
    if (result == STATUS_OK) {
        *out = w;
        return STATUS_OK;
    }
fail:
    free(destination);
    free(w);
    return result;
}

void wire_out_split(wire_out *w, const channel_share *shares) {
    w->shares = shares;
}

bool wire_out_shared(const wire_out *w) {
    return !__atomic_load_n(&w->messages, __ATOMIC_RELAXED);
}

static void take_answer(wire_out *w, const answer *a) {
    switch (a->kind) {
    case ANSWER_CREDITS:
        w->credits += a->value;
        break;
    case ANSWER_CONFIRM:
        queue_confirm(w->from, a->value);
        break;
    case ANSWER_REQUESTS:
        w->requests |= (int)a->value;
        break;
    case ANSWER_LAST:
        w->last_answer = true;
        break;
    }
}

/* Takes in what the receiver has said so far. Call with the lock held. */
static status receive_answers(wire_out *w) {
    for (;;) {
        int found = 0;
        answer a;
        MPI_Message message;
        TRY(comm_check(MPI_Improbe(w->destination[0].rank, TAG_ANSWER, w->comm, &found, &message, MPI_STATUS_IGNORE),
                       "looking for answers"));
        if (!found) return STATUS_OK;
        TRY(comm_check(MPI_Mrecv(&a, sizeof a, MPI_BYTE, &message, MPI_STATUS_IGNORE), "receiving an answer"));
        take_answer(w, &a);
    }
}

/* With the lock held when it returns true. */
static bool lock_and_listen(wire_out *w) {
    if (!w->takes_answers) return false;
    pthread_mutex_lock(&w->lock);
    status result = receive_answers(w);
    if (result != STATUS_OK) queue_fail(w->from, result, status_message());
    return true;
}

bool wire_out_take_credit(wire_out *w) {
    if (!lock_and_listen(w)) return false;
    bool any = w->credits > 0;
    if (any) w->credits--;
    pthread_mutex_unlock(&w->lock);
    return any;
}

int wire_out_take_requests(wire_out *w) {
    if (!lock_and_listen(w)) return 0;
    int asked = w->requests;
    w->requests = 0;
    pthread_mutex_unlock(&w->lock);
    return asked;
}

void wire_out_listen(wire_out *w) {
    if (lock_and_listen(w)) pthread_mutex_unlock(&w->lock);
}

static void free_out(wire_out *w) {
    pthread_mutex_destroy(&w->lock);
    free(w->destination);
    free(w);
}

/* MPI must not end with messages that nobody took: the receiver's thread marks its last answer. */
static status receive_last_answer(wire_out *w) {
    backoff pause = {0};
    double since = clock_now_s();
    for (;;) {
        if (lock_and_listen(w)) pthread_mutex_unlock(&w->lock);
        TRY(queue_status(w->from));
        if (w->last_answer) return STATUS_OK;
        TRY(check_limits(&w->limits, since));
        backoff_sleep(&pause, RECEIVE_SLEEP_US);
    }
}

void wire_out_close(wire_out *w) {
    pthread_join(w->thread, NULL);
    status result = queue_status(w->from);
    if (result == STATUS_OK && w->takes_answers) result = receive_last_answer(w);
    if (result != STATUS_OK) queue_fail(w->from, result, status_message());
    free_out(w);
}

void wire_out_abandon(wire_out *w) {
    __atomic_store_n(&w->limits.abandoned, true, __ATOMIC_RELEASE);
    pthread_join(w->thread, NULL);
    free_out(w);
}

/* ---- the receiving end ---- */

static void fail_in(wire_in *w, status code) {
    queue_fail(w->to, code, status_message());
}

static void protocol_error(wire_in *w, int sender, const char *what) {
    fail_in(w, status_fail(STATUS_INTERNAL, "the channel from sender %d is out of step: %s", sender, what));
}

static status send_answer(wire_in *w, answer_kind kind, int64_t value) {
    const answer a = {kind, value};
    if (w->creditor < 0) return STATUS_OK;
    MPI_Request request;
    TRY(comm_check(MPI_Isend(&a, sizeof a, MPI_BYTE, w->creditor, TAG_ANSWER, w->comm, &request),
                   "answering compute rank 0"));
    return wait_for(&request, &w->limits);
}

/* What the caller has asked for since the last time. */
static status send_answers(wire_in *w) {
    int grants = __atomic_exchange_n(&w->grants, 0, __ATOMIC_ACQ_REL);
    int64_t confirm = __atomic_exchange_n(&w->confirm, -1, __ATOMIC_ACQ_REL);
    if (grants > 0) TRY(send_answer(w, ANSWER_CREDITS, grants));
    if (confirm >= 0) TRY(send_answer(w, ANSWER_CONFIRM, confirm));
    int requests = __atomic_exchange_n(&w->requests, 0, __ATOMIC_ACQ_REL);
    return requests ? send_answer(w, ANSWER_REQUESTS, requests) : STATUS_OK;
}

static void deliver(wire_in *w, int sender) {
    stream *s = &w->streams[sender];
    /* Where the caller has closed or failed, it wants no more. */
    if (queue_push(w->to, &s->message) != STATUS_OK) message_release(&s->message);
    *s = (stream){0};
}

/* Reads an offered message. */
static bool read_pieces(const wire_header *header, channel_message *m) {
    int window = window_open(&header->at);
    if (window < 0) return false;
    const piece *p = header->pieces;
    bool whole =
        window_read(window, p[0].at, p[0].bytes, m, 0) && window_read(window, p[1].at, p[1].bytes, m, p[0].bytes);
    close(window);
    return whole;
}

static status send_receipt(const wire_in *w, int to, receipt said) {
    MPI_Request request;
    TRY(comm_check(MPI_Isend(&said, sizeof said, MPI_BYTE, to, TAG_RECEIPT, w->comm, &request), "sending a receipt"));
    return wait_for(&request, &w->limits);
}

/* What the header announced, unless it comes in chunks; one that there is no memory for is thrown away. */
static status take_offer(wire_in *w, int rank, int sender, const wire_header *header) {
    stream *s = &w->streams[sender];
    bool taken = !s->message.data || read_pieces(header, &s->message);
    TRY(send_receipt(w, rank, taken ? RECEIPT_TAKEN : RECEIPT_REFUSED));
    if (taken) {
        deliver(w, sender);
    } else if (!w->refused) {
        w->refused = true;
        log_info("snapshots of compute rank %d come as messages, perhaps others' too: its memory cannot be read here "
                 "(another host or container)",
                 sender);
    }
    return STATUS_OK;
}

static status take_header(wire_in *w, int rank, int sender, const wire_header *header) {
    stream *s = &w->streams[sender];
    if (s->open) {
        protocol_error(w, sender, "a message began inside another");
        message_release(&s->message);
    }
    *s = (stream){0};
    if (header->kind == CHANNEL_END) {
        w->ended++;
        if (sender != 0) return STATUS_OK;
        status result = send_answer(w, ANSWER_LAST, 0);
        w->creditor = -1;
        return result;
    }
    *s = (stream){.open = true};
    s->message = (channel_message){.kind = (int)header->kind,
                                   .sender = sender,
                                   .step = header->step,
                                   .bytes = header->pieces[0].bytes + header->pieces[1].bytes};
    if (!message_allocate(&s->message))
        fail_in(w, status_fail(STATUS_INTERNAL, "out of memory for a message of %llu bytes from sender %d",
                               (unsigned long long)s->message.bytes, sender));
    if (header->offered) return take_offer(w, rank, sender, header);
    if (s->message.bytes == 0) deliver(w, sender);
    return STATUS_OK;
}

static status receive_bytes(wire_in *w, void *into, int bytes, MPI_Message *message) {
    MPI_Request request;
    TRY(comm_check(MPI_Imrecv(into, bytes, MPI_BYTE, message, &request), "receiving from a compute rank"));
    status result = wait_for(&request, &w->limits);
    w->unfinished = result != STATUS_OK;
    return result;
}

static status take_chunk(wire_in *w, int sender, int bytes, MPI_Message *message) {
    stream *s = &w->streams[sender];
    bool fits = s->open && (uint64_t)bytes <= s->message.bytes - s->arrived;
    if (!fits) protocol_error(w, sender, "more bytes came than its header said");
    TRY(receive_bytes(w, fits && s->message.data ? (char *)s->message.data + s->arrived : w->scratch, bytes, message));
    if (!fits) return STATUS_OK;
    s->arrived += (uint64_t)bytes;
    if (s->arrived == s->message.bytes) deliver(w, sender);
    return STATUS_OK;
}

/* Takes one message in, if there is one. */
static status poll_in(wire_in *w, bool *found) {
    int arrived = 0, bytes = 0;
    MPI_Message message;
    MPI_Status from;
    TRY(comm_check(MPI_Improbe(MPI_ANY_SOURCE, MPI_ANY_TAG, w->comm, &arrived, &message, &from),
                   "looking for messages"));
    *found = arrived;
    if (!arrived) return STATUS_OK;
    TRY(comm_check(MPI_Get_count(&from, MPI_BYTE, &bytes), "sizing a message"));
    int sender = w->rank_of[from.MPI_SOURCE];
    if (from.MPI_TAG == TAG_CHUNK) return take_chunk(w, sender, bytes, &message);
    wire_header header;
    TRY(receive_bytes(w, w->scratch, sizeof header, &message));
    memcpy(&header, w->scratch, sizeof header);
    return take_header(w, from.MPI_SOURCE, sender, &header);
}

static void *run_in(void *user) {
    wire_in *w = user;
    lower_priority(w->low_priority);
    backoff pause = {0};
    status result = STATUS_OK;
    while (w->ended < w->senders && result == STATUS_OK && !abandoned(&w->limits)) {
        bool found = false;
        result = send_answers(w);
        if (result == STATUS_OK) result = poll_in(w, &found);
        if (found) {
            backoff_reset(&pause);
        } else {
            backoff_sleep(&pause, RECEIVE_SLEEP_US);
        }
    }
    if (result != STATUS_OK) fail_in(w, result);
    queue_end(w->to);
    return NULL;
}

static void free_in(wire_in *w) {
    for (int i = 0; w->streams && i < w->senders; i++) {
        if (w->unfinished)
            keep_for_mpi(w->streams[i].message.data);
        else
            message_release(&w->streams[i].message);
    }
    if (w->unfinished)
        keep_for_mpi(w->scratch);
    else
        free(w->scratch);
    free(w->streams);
    free(w->rank_of);
    free(w);
}

status wire_in_open(wire_in **out, const comm_roles *roles, queue *to) {
    *out = NULL;
    wire_in *w = calloc(1, sizeof *w);
    if (!w) return status_fail(STATUS_INTERNAL, "out of memory for the channel");
    w->comm = roles->channel;
    w->limits.patience_s = roles->patience_s;
    bool first = roles->diagnostics_rank == 0;
    int compute_ranks = roles->tp * roles->dp, relays = first ? roles->diagnostics_ranks - 1 : 0;
    w->senders = compute_ranks + relays;
    w->creditor = first ? roles->compute_world_ranks[0] : -1;
    w->low_priority = roles->oversubscribed;
    w->to = to;
    w->confirm = -1;
    w->rank_of = calloc((size_t)roles->world_size, sizeof *w->rank_of);
    w->streams = calloc((size_t)w->senders, sizeof *w->streams);
    w->scratch = malloc(CHUNK_BYTES);
    status result = STATUS_OK;
    if (!w->rank_of || !w->streams || !w->scratch) {
        result = status_fail(STATUS_INTERNAL, "out of memory for the channel");
    } else {
        for (int c = 0; c < compute_ranks; c++) w->rank_of[roles->compute_world_ranks[c]] = c;
        for (int i = 1; i <= relays; i++) w->rank_of[roles->diagnostics_world_ranks[i]] = compute_ranks - 1 + i;
        result = comm_start_thread(&w->thread, run_in, w);
    }
    if (result != STATUS_OK) {
        free_in(w);
        return result;
    }
    *out = w;
    return STATUS_OK;
}

void wire_in_grant(wire_in *w) {
    __atomic_add_fetch(&w->grants, 1, __ATOMIC_ACQ_REL);
}

void wire_in_ask(wire_in *w, int requests) {
    __atomic_or_fetch(&w->requests, requests, __ATOMIC_ACQ_REL);
}

void wire_in_confirm(wire_in *w, int64_t step) {
    __atomic_store_n(&w->confirm, step, __ATOMIC_RELEASE);
}

void wire_in_close(wire_in *w) {
    pthread_join(w->thread, NULL);
    free_in(w);
}

void wire_in_abandon(wire_in *w) {
    __atomic_store_n(&w->limits.abandoned, true, __ATOMIC_RELEASE);
    wire_in_close(w);
}
