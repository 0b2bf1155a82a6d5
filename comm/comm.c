/* The front of the collectives: checks arguments, counts, notes the place, and calls the group's backend.
 *
 * After a group's first error its collectives do nothing, so that the rank reaches its next comm_status() at once and
 * ends the job; peers that wait inside a collective are ended by that. */
#include "comm/backends.h"

#include <stdbool.h>
#include <stdio.h>

void comm_group_fail(comm_group *g, const char *operation, const char *reason) {
    if (g->first_error != STATUS_OK) return;
    int rank = 0, ready = 0;
    if (MPI_Initialized(&ready) == MPI_SUCCESS && ready) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    char layer[32] = "";
    if (g->layer >= 0) snprintf(layer, sizeof layer, ", layer %d", g->layer);
    g->first_error = status_fail(STATUS_INTERNAL, "rank %d: %s in %s%s failed: %s (collective %llu of a group of %d)",
                                 rank, operation, g->place, layer, reason, (unsigned long long)g->sequence, g->size);
}

/* Notes that a collective begins; false when it must not. */
static bool begin(comm_group *g, const char *operation, int64_t count, const char *place, int layer) {
    if (g->first_error != STATUS_OK) return false;
    /* The watchdog reads these from its own thread. */
    __atomic_store_n(&g->operation, operation, __ATOMIC_RELAXED);
    __atomic_store_n(&g->place, place, __ATOMIC_RELAXED);
    __atomic_store_n(&g->layer, layer, __ATOMIC_RELAXED);
    __atomic_add_fetch(&g->sequence, 1, __ATOMIC_RELAXED);
    if (count < 0) comm_group_fail(g, operation, "its element count is negative");
    return g->first_error == STATUS_OK;
}

/* Before and after a call that needs the other ranks. */
static void mark_wait(comm_group *g) {
    __atomic_add_fetch(&g->waits, 1, __ATOMIC_RELEASE);
}

void comm_all_reduce(comm_group *g, void *data, int64_t count, dtype type, comm_op op, const char *place, int layer) {
    static const char operation[] = "all-reduce";
    if (!begin(g, operation, count, place, layer)) return;
    if (type == DTYPE_BF16 && !g->backend->bf16_sums) {
        comm_group_fail(g, operation, "only fp32 and fp64 are reduced, since sums in bf16 lose gradients");
        return;
    }
    if (count == 0) return;
    mark_wait(g);
    g->backend->all_reduce(g, data, count, type, op);
    mark_wait(g);
}

void comm_broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root, const char *place,
                          int layer) {
    static const char operation[] = "broadcast";
    if (!begin(g, operation, count, place, layer)) return;
    if (root < 0 || root >= g->size) {
        comm_group_fail(g, operation, "its root is not a rank of the group");
    } else if (g->pending != MPI_REQUEST_NULL) {
        comm_group_fail(g, operation, "the one before it is not finished");
    } else if (count > 0) {
        g->backend->broadcast_start(g, data, count, type, root);
    }
}

void comm_broadcast_finish(comm_group *g) {
    mark_wait(g);
    g->backend->broadcast_finish(g);
    mark_wait(g);
}

void comm_close(comm_group *g) {
    if (g->backend) g->backend->close(g);
    g->backend = &comm_backend_self;
}

void comm_register(comm_group *g, void *data, size_t bytes) {
    if (g->backend->know && g->first_error == STATUS_OK) g->backend->know(g, data, bytes);
}

status comm_over_device(comm_group *out, MPI_Comm c, ops *o) {
    return o->context ? comm_over_nccl(out, c, o) : comm_over_mpi(out, c);
}
