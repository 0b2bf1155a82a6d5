/* MPI as slow as can be, for one group: what is started does not move before it is waited for, so that whoever reads it
 * too early reads what was there before, every time. */
#pragma once

#include "comm/comm.h"
#include "dist.h"

enum { MOST_LATE = 64 };

typedef enum late_kind { LATE_BROADCAST, LATE_SUM, LATE_GATHER } late_kind;

typedef struct late_start {
    late_kind kind;
    void *data;
    int64_t count; /* of a gathering the piece */
    dtype type;
    int root;
    comm_ticket ticket;
} late_start;

typedef struct late {
    comm_backend backend; /* the first: a group's backend is its late */
    const comm_backend *mpi;
    late_start starts[MOST_LATE];
    int first, count; /* of those that nobody has waited for */
    int alone;        /* waits with nothing under way that was started later */
} late;

static inline late *late_of(const comm_group *g) {
    return (late *)g->backend;
}

static inline void late_add(comm_group *g, late_start s) {
    late *l = late_of(g);
    assert_true(l->count < MOST_LATE);
    s.ticket = g->given;
    l->starts[l->count++] = s;
}

static inline void late_broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root) {
    late_add(g, (late_start){.kind = LATE_BROADCAST, .data = data, .count = count, .type = type, .root = root});
}

static inline void late_sum_start(comm_group *g, void *data, int64_t count, dtype type) {
    late_add(g, (late_start){.kind = LATE_SUM, .data = data, .count = count, .type = type});
}

static inline void late_all_gather_start(comm_group *g, void *data, int64_t piece, dtype type) {
    late_add(g, (late_start){.kind = LATE_GATHER, .data = data, .count = piece, .type = type});
}

/* Nobody waits for more than he needs: one at a time. */
static inline void late_wait(comm_group *g, comm_ticket last) {
    late *l = late_of(g);
    int moved = 0;
    for (; l->first < l->count && l->starts[l->first].ticket <= last; l->first++, moved++) {
        late_start *s = &l->starts[l->first];
        if (s->kind == LATE_BROADCAST) l->mpi->broadcast_start(g, s->data, s->count, s->type, s->root);
        if (s->kind == LATE_SUM) l->mpi->sum_start(g, s->data, s->count, s->type);
        if (s->kind == LATE_GATHER) l->mpi->all_gather_start(g, s->data, s->count, s->type);
    }
    assert_true(moved <= 1);
    l->alone += moved == 1 && last == g->given;
    if (l->first == l->count) l->first = l->count = 0;
    l->mpi->wait(g, g->given);
}

/* A group over MPI and nothing else. */
static inline void late_make(late *l, comm_group *g) {
    *l = (late){.backend = *g->backend, .mpi = g->backend};
    l->backend.broadcast_start = late_broadcast_start;
    l->backend.sum_start = late_sum_start;
    l->backend.all_gather_start = late_all_gather_start;
    l->backend.wait = late_wait;
    g->backend = &l->backend;
}

static inline bool late_can(const comm_group *g) {
    return strcmp(g->backend->name, "mpi") == 0;
}
