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

/* A rank that waits longer than this for its peers in one collective, or in making a group, has lost one of them: they
 * differ by milliseconds. The job must end within a minute. */
enum { COMM_COLLECTIVE_PATIENCE_S = 45 };

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
    void (*broadcast_start)(comm_group *g, void *data, int64_t count, dtype type, int root);
    void (*broadcast_finish)(comm_group *g);
    void (*close)(comm_group *g);
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
    MPI_Request pending;
    status first_error;
    uint64_t sequence; /* collectives begun so far */
    uint64_t waits; /* odd while this rank is inside a collective that needs the others: what the watchdog looks at */
    const char *operation, *place; /* the collective that began last, and its layer (-1: none): what it names */
    int layer;
    struct comm_counter *counter; /* of the counting backend (comm/count.h) */
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

/* Frees what the group holds; it may be closed twice. */
void comm_close(comm_group *g);

static inline status comm_status(const comm_group *g) {
    return g->first_error;
}

/* In place over count elements. place and layer say where, for messages. */
void comm_all_reduce(comm_group *g, void *data, int64_t count, dtype type, comm_op op, const char *place, int layer);

/* From root to all; data may be touched again after the finish. One broadcast at a time. */
void comm_broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root, const char *place, int layer);
void comm_broadcast_finish(comm_group *g);
