/* The counting backend: moves nothing, adds up what a rank would have sent. */
#include "comm/count.h"

static void count(comm_group *g, void *data, int64_t elements, dtype type) {
    comm_counter *counter = g->counter;
    counter->collectives++;
    counter->bytes += elements * (int64_t)dtype_bytes(type);
}

static void count_all_reduce(comm_group *g, void *data, int64_t elements, dtype type, comm_op op) {
    count(g, data, elements, type);
}

static void count_broadcast_start(comm_group *g, void *data, int64_t elements, dtype type, int root) {
    count(g, data, elements, type);
}

/* Of the whole buffer, as for the others. */
static void count_pieces_start(comm_group *g, void *data, int64_t piece, dtype type) {
    count(g, data, piece * g->size, type);
}

static void count_wait(comm_group *g, comm_ticket last) {}

static void count_close(comm_group *g) {}

static const comm_backend backend = {.name = "count",
                                     .bf16_sums = true,
                                     .all_reduce = count_all_reduce,
                                     .broadcast_start = count_broadcast_start,
                                     .sum_start = count,
                                     .reduce_scatter_start = count_pieces_start,
                                     .all_gather_start = count_pieces_start,
                                     .wait = count_wait,
                                     .close = count_close};

void comm_count(comm_group *out, comm_counter *counter, int rank, int size) {
    comm_self(out);
    out->backend = &backend;
    out->rank = rank;
    out->size = size;
    out->counter = counter;
}
