/* The front of the collectives: checks arguments, counts, notes the place, and calls the group's backend.
 *
 * After a group's first error its collectives do nothing, so that the rank reaches its next comm_status() at once and
 * ends the job; peers that wait inside a collective are ended by that. */
#include "comm/backends.h"
#include "core/ops/profile.h"

#include <stdbool.h>
#include <stdio.h>

void comm_group_fail(comm_group *g, const char *operation, const char *reason) {
    if (g->first_error != STATUS_OK) return;
    int rank = 0, ready = 0;
    if (MPI_Initialized(&ready) == MPI_SUCCESS && ready) MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    char layer[32] = "";
    if (g->layer >= 0) snprintf(layer, sizeof layer, ", layer %d", g->layer);
    g->first_error = status_fail(STATUS_INTERNAL, "rank %d: %s in %s%s failed: %s (collective %llu of a group of %d)",
                                 rank, operation, g->place, layer, reason, (unsigned long long)g->number, g->size);
}

/* The watchdog reads these from its own thread. */
void comm_group_name(comm_group *g, const comm_pending *at) {
    __atomic_store_n(&g->operation, at->operation, __ATOMIC_RELAXED);
    __atomic_store_n(&g->place, at->place, __ATOMIC_RELAXED);
    __atomic_store_n(&g->layer, at->layer, __ATOMIC_RELAXED);
    __atomic_store_n(&g->number, at->sequence, __ATOMIC_RELAXED);
}

comm_pending comm_group_begun(const comm_group *g) {
    return (comm_pending){.operation = g->operation, .place = g->place, .layer = g->layer, .sequence = g->number};
}

/* Notes that a collective begins; false when it must not. */
static bool begin(comm_group *g, const char *operation, int64_t count, const char *place, int layer) {
    if (g->first_error != STATUS_OK) return false;
    comm_group_name(g,
                    &(comm_pending){.operation = operation, .place = place, .layer = layer, .sequence = ++g->sequence});
    if (count < 0) comm_group_fail(g, operation, "its element count is negative");
    return g->first_error == STATUS_OK;
}

/* The same for one that adds; false, too, where there is nothing to do. */
static bool begin_sum(comm_group *g, const char *operation, int64_t count, dtype type, const char *place, int layer) {
    if (!begin(g, operation, count, place, layer)) return false;
    if (type == DTYPE_BF16 && !g->backend->bf16_sums)
        comm_group_fail(g, operation, "only fp32 and fp64 are reduced, since sums in bf16 lose gradients");
    return count > 0 && g->first_error == STATUS_OK;
}

void comm_group_wait(comm_group *g) {
    __atomic_add_fetch(&g->waits, 1, __ATOMIC_RELEASE);
}

/* The payload counts once a collective, as a rank's buffer has it. */
static profile_phase enter(comm_group *g, profile_phase next, int64_t count, dtype type) {
    profile_phase before = profile_enter(g->profile, next);
    profile_bytes(g->profile, (double)count * (double)dtype_bytes(type));
    return before;
}

static void leave(comm_group *g, profile_phase before) {
    profile_enter(g->profile, before);
}

void comm_all_reduce(comm_group *g, void *data, int64_t count, dtype type, comm_op op, const char *place, int layer) {
    if (!begin_sum(g, "all-reduce", count, type, place, layer)) return;
    profile_phase before = enter(g, PROFILE_COLLECTIVE, count, type);
    comm_group_wait(g);
    g->backend->all_reduce(g, data, count, type, op);
    comm_group_wait(g);
    leave(g, before);
}

/* The same for one that is started, which gets the next ticket. */
static profile_phase enter_start(comm_group *g, int64_t count, dtype type) {
    g->given++;
    return enter(g, PROFILE_WAIT, count, type);
}

comm_ticket comm_broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root, const char *place,
                                 int layer) {
    static const char operation[] = "broadcast";
    if (!begin(g, operation, count, place, layer)) return g->given;
    if (root < 0 || root >= g->size) {
        comm_group_fail(g, operation, "its root is not a rank of the group");
    } else if (count > 0) {
        profile_phase before = enter_start(g, count, type);
        g->backend->broadcast_start(g, data, count, type, root);
        leave(g, before);
    }
    return g->given;
}

comm_ticket comm_sum_start(comm_group *g, void *data, int64_t count, dtype type, const char *place, int layer) {
    if (!begin_sum(g, "all-reduce", count, type, place, layer)) return g->given;
    profile_phase before = enter_start(g, count, type);
    g->backend->sum_start(g, data, count, type);
    leave(g, before);
    return g->given;
}

comm_ticket comm_sum(comm_group *g, bool beside, void *data, int64_t count, dtype type, const char *place, int layer) {
    if (beside) return comm_sum_start(g, data, count, type, place, layer);
    comm_all_reduce(g, data, count, type, COMM_SUM, place, layer);
    return 0;
}

comm_ticket comm_reduce_scatter_start(comm_group *g, void *data, int64_t piece, dtype type, const char *place,
                                      int layer) {
    if (!begin_sum(g, "reduce-scatter", piece, type, place, layer)) return g->given;
    profile_phase before = enter_start(g, piece * g->size, type);
    g->backend->reduce_scatter_start(g, data, piece, type);
    leave(g, before);
    return g->given;
}

comm_ticket comm_all_gather_start(comm_group *g, void *data, int64_t piece, dtype type, const char *place, int layer) {
    if (!begin(g, "all-gather", piece, place, layer) || piece == 0) return g->given;
    profile_phase before = enter_start(g, piece * g->size, type);
    g->backend->all_gather_start(g, data, piece, type);
    leave(g, before);
    return g->given;
}

void comm_progress(comm_group *g) {
    if (!g->backend->progress || g->first_error != STATUS_OK) return;
    profile_phase before = profile_enter(g->profile, PROFILE_WAIT);
    g->backend->progress(g);
    leave(g, before);
}

void comm_wait(comm_group *g, comm_ticket last) {
    if (g->first_error != STATUS_OK || last <= g->complete) return;
    profile_phase before = profile_enter(g->profile, PROFILE_WAIT);
    g->backend->wait(g, last);
    g->complete = last;
    leave(g, before);
}

double comm_started_s(comm_group *g) {
    return g->backend->started_s ? g->backend->started_s(g) : 0;
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
