/* Groups of ranks and their collectives, behind one header: alone (self), over MPI (mpi) and, on GPUs, over NCCL.
 *
 * Like operations, collectives return nothing: the group keeps its first error, read once a step with comm_status().
 * Buffers are memory of the device that the group's backend serves. Results are the same bits on every rank. */
#pragma once

#include "core/ops/ops.h"
#include "core/status.h"
#include "core/tensor.h"

#include <mpi.h>
#include <stdint.h>

typedef enum comm_op { COMM_SUM, COMM_MAX } comm_op;

typedef struct comm_group comm_group;

/* A place in the order in which a group has started collectives: behind the one that returned it. */
typedef uint64_t comm_ticket;

/* A rank that waits longer than this for its peers in one collective, or in making a group, has lost one of them: they
 * differ by milliseconds. The job must end within a minute. Those whose turn is later (comm_roles) wait a little
 * longer: the end of the job, which takes a second, comes before their words. */
enum { COMM_COLLECTIVE_PATIENCE_S = 45, COMM_TURN_S = 3 };

/* A collective that a device has been told to do and has not finished. */
typedef struct comm_pending {
    const char *operation, *place;
    int layer;
    uint64_t sequence;
    uint64_t finished; /* how many were finished before it: where this number stands still, nothing moves */
    double queued_s;
} comm_pending;

typedef struct comm_backend {
    const char *name;
    void (*all_reduce)(comm_group *g, void *data, int64_t count, dtype type, comm_op op);
    /* Those that are started, each with the ticket that the group gave last; wait completes all up to that one. */
    void (*broadcast_start)(comm_group *g, void *data, int64_t count, dtype type, int root);
    void (*sum_start)(comm_group *g, void *data, int64_t count, dtype type);
    void (*reduce_scatter_start)(comm_group *g, void *data, int64_t piece, dtype type);
    void (*all_gather_start)(comm_group *g, void *data, int64_t piece, dtype type);
    void (*wait)(comm_group *g, comm_ticket last);
    void (*progress)(comm_group *g); /* NULL where what is started moves by itself */
    void (*close)(comm_group *g);
    double (*started_s)(comm_group *g);                    /* comm_started_s; NULL: 0 */
    void (*know)(comm_group *g, void *data, size_t bytes); /* comm_register; NULL where it changes nothing */
    /* For the watchdog's thread; NULL where calls return only when they are done. The oldest collective that is not
     * finished, false when there is none; and what the library found wrong by itself, NULL for nothing. */
    bool (*unfinished)(const comm_group *g, comm_pending *oldest);
    const char *(*fault)(const comm_group *g);
    bool bf16_sums; /* adds bf16 with fp32 in between, as NCCL does within one host */
} comm_backend;

struct comm_group {
    const comm_backend *backend;
    int rank, size;
    MPI_Comm mpi; /* MPI_COMM_NULL for self */
    status first_error;
    uint64_t sequence;           /* collectives begun so far */
    comm_ticket given, complete; /* of what was started; all up to there is known to be complete */
    uint64_t waits; /* odd while this rank is inside a collective that needs the others: what the watchdog looks at */
    /* The collective that began last or, while started ones are finished, the one that is waited for: its number, and
     * its layer (-1: none). What messages name. */
    const char *operation, *place;
    int layer;
    uint64_t number;
    struct profile *profile;      /* core/ops/profile.h; NULL: nobody looks */
    struct comm_counter *counter; /* of the counting backend (comm/count.h) */
    struct comm_started *started; /* of the MPI backend */
    struct comm_nccl *nccl;       /* of the NCCL backend */
};

/* A group of one. */
void comm_self(comm_group *out);

/* A group over a copy of communicator c (collective over c); one of size 1 becomes self. */
status comm_over_mpi(comm_group *out, MPI_Comm c);

/* The same for buffers of the device of o: over NCCL where that is a GPU, else over MPI. Collectives are queued behind
 * what the table has queued. Sets o->alloc_shared. */
status comm_over_device(comm_group *out, MPI_Comm c, ops *o);

/* Tells the group's library of the memory in which it will work, from o->alloc_shared after the group was made, so that
 * peers can read and write it in place. Once a group; collective. Close the group before the memory is released. */
void comm_register(comm_group *g, void *data, size_t bytes);

/* NCCL versions as 10000 major + 100 minor + patch: what the program was built with and what it runs with; 0 without
 * NCCL. */
void comm_nccl_versions(int *built, int *found);

/* Completes what is started, unless the group has failed, and frees what it holds; it may be closed twice. */
void comm_close(comm_group *g);

static inline status comm_status(const comm_group *g) {
    return g->first_error;
}

/* In place over count elements. place and layer say where, for messages. */
void comm_all_reduce(comm_group *g, void *data, int64_t count, dtype type, comm_op op, const char *place, int layer);

/* Collectives that are started work on while their rank goes on with what does not need them, several at a time. Every
 * rank of the group starts them in the same order. Their data may not be touched, and is not complete, before comm_wait
 * with their ticket or a later one; blocking collectives of the group may come in between. */

/* From root to all. */
comm_ticket comm_broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root, const char *place,
                                 int layer);

/* The sum, on all ranks, in place over count elements. */
comm_ticket comm_sum_start(comm_group *g, void *data, int64_t count, dtype type, const char *place, int layer);

/* comm_sum_start where something else goes on beside it; else comm_all_reduce, and 0. */
comm_ticket comm_sum(comm_group *g, bool beside, void *data, int64_t count, dtype type, const char *place, int layer);

/* data [size, piece] in place: rank r ends with the sum in piece r; what it has in the others is undefined. */
comm_ticket comm_reduce_scatter_start(comm_group *g, void *data, int64_t piece, dtype type, const char *place,
                                      int layer);

/* data [size, piece] in place: piece r comes from rank r. */
comm_ticket comm_all_gather_start(comm_group *g, void *data, int64_t piece, dtype type, const char *place, int layer);

/* Lets what is started move, where a library moves only inside its own calls: from time to time during other work. */
void comm_progress(comm_group *g);

/* Completes what was started up to that ticket, which may be one that was waited for before (0 always is). */
void comm_wait(comm_group *g, comm_ticket last);

/* Completes all that is started. */
static inline void comm_finish(comm_group *g) {
    comm_wait(g, g->given);
}

/* Seconds in which something was under way that was started while the group's profile looked and has ended since the
 * last call: on GPUs by the device's clock. */
double comm_started_s(comm_group *g);
