/* The NCCL backend: groups of GPUs. A collective is queued on the compute stream, which needs its result next; one that
 * is started runs on the group's side stream, behind what the compute stream had been told before, beside what is
 * queued there until its result is waited for. NCCL itself keeps those of one group in the order of their calls, on
 * whichever stream; groups do not wait for each other.
 *
 * Communicators are nonblocking: every call may answer "in progress" and is polled with a limit, so that a peer that
 * never comes ends in a message and not in a hang. NCCL adds bf16 in a fixed order for a given group and size, so
 * repeats give the same bits.
 *
 * A collective hangs on the GPU, where its rank sees nothing until it waits for the stream. So behind each collective
 * its stream itself writes how many it has finished into pinned host memory, and a ring holds where those that are not
 * finished were queued: the watchdog reads both, of both streams (comm/watchdog.h). */
#include "comm/backends.h"
#include "comm/backoff.h"
#include "comm/roles.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/ops/cuda/context.h"
#include "core/ops/profile.h"

#include <cudaTypedefs.h>
#include <nccl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { POLL_MOST_US = 200, RING = 4096 /* far more than a stream takes before its host waits */, ENDS = 64 };

/* One that is started, on the side stream. */
typedef struct timed {
    cudaEvent_t begin, end;
} timed;

/* A stream and how far it has come. */
typedef struct lane {
    cudaStream_t stream;
    uint32_t *finished;      /* pinned; the stream counts here */
    uint32_t queued;         /* this thread writes it, the watchdog reads it */
    comm_pending ring[RING]; /* [queued % RING] */
} lane;

typedef struct comm_nccl {
    ncclComm_t comm;
    lane compute, side; /* side's stream is ours, for what is started */
    uint32_t *finished; /* [2], of both */
    cudaEvent_t ready;
    cudaEvent_t end[ENDS]; /* [ticket % ENDS], behind what was started; after ENDS more it stands for the later one */
    timed *timed;          /* what was started while a profile looked, in that order; the capacity has its events */
    int timed_count, timed_capacity;
    void *known; /* NCCL's handle of the registered memory */
    PFN_cuStreamWriteValue32_v11070 write_value;
} comm_nccl;

/* Waits until the communicator is no longer in progress; ncclInProgress where it still is when patience ends. */
static ncclResult_t settle(ncclComm_t comm, ncclResult_t result) {
    double start_s = clock_now_s();
    backoff pause = {0};
    while (result == ncclInProgress) {
        ncclResult_t asked = ncclCommGetAsyncError(comm, &result);
        if (asked != ncclSuccess) return asked;
        if (result != ncclInProgress) break;
        if (clock_now_s() - start_s > COMM_COLLECTIVE_PATIENCE_S) return ncclInProgress;
        backoff_sleep(&pause, POLL_MOST_US);
    }
    return result;
}

static const char *reason_of(ncclComm_t comm, ncclResult_t result) {
    if (result == ncclInProgress)
        return "another rank of the group did not come: it is stopped, hung or cannot be reached (NCCL_DEBUG=INFO says "
               "more)";
    const char *last = comm ? ncclGetLastError(comm) : NULL;
    return last && last[0] ? last : ncclGetErrorString(result);
}

static bool nccl_ok(comm_group *g, const char *operation, ncclResult_t result) {
    result = settle(g->nccl->comm, result);
    if (result == ncclSuccess) return true;
    comm_group_fail(g, operation, reason_of(g->nccl->comm, result));
    return false;
}

static bool cuda_ok(comm_group *g, const char *operation, cudaError_t code) {
    if (code == cudaSuccess) return true;
    comm_group_fail(g, operation, cudaGetErrorString(code));
    return false;
}

static ncclDataType_t element(dtype type) {
    return type == DTYPE_F64 ? ncclFloat64 : type == DTYPE_BF16 ? ncclBfloat16 : ncclFloat32;
}

/* ---------------------------------------------------------------- what the watchdog sees */

/* After the collective that began last has been queued on the lane. */
static void mark(comm_group *g, lane *l) {
    uint32_t number = l->queued + 1;
    l->ring[l->queued % RING] = comm_group_begun(g);
    l->ring[l->queued % RING].queued_s = clock_now_s();
    __atomic_store_n(&l->queued, number, __ATOMIC_RELEASE);
    CUresult code = g->nccl->write_value(l->stream, (CUdeviceptr)(uintptr_t)l->finished, number, 0);
    if (code != CUDA_SUCCESS) comm_group_fail(g, g->operation, "the stream cannot write its progress");
}

/* True, with the oldest, when the lane has one; adds to `finished` how many it has finished. */
static bool lane_unfinished(const lane *l, comm_pending *oldest, uint64_t *finished) {
    uint32_t done = __atomic_load_n(l->finished, __ATOMIC_ACQUIRE);
    uint32_t queued = __atomic_load_n(&l->queued, __ATOMIC_ACQUIRE);
    *finished += done;
    if (queued != done) *oldest = l->ring[done % RING];
    return queued != done;
}

static bool unfinished(const comm_group *g, comm_pending *oldest) {
    comm_pending of_compute, of_side;
    uint64_t finished = 0;
    bool compute = lane_unfinished(&g->nccl->compute, &of_compute, &finished);
    bool side = lane_unfinished(&g->nccl->side, &of_side, &finished);
    if (!compute && !side) return false;
    *oldest = !side || (compute && of_compute.queued_s < of_side.queued_s) ? of_compute : of_side;
    oldest->finished = finished;
    return true;
}

static const char *fault(const comm_group *g) {
    ncclResult_t result = ncclSuccess;
    ncclResult_t asked = ncclCommGetAsyncError(g->nccl->comm, &result);
    if (asked == ncclSuccess) asked = result;
    return asked == ncclSuccess || asked == ncclInProgress ? NULL : reason_of(g->nccl->comm, asked);
}

/* ---------------------------------------------------------------- collectives */

static void all_reduce(comm_group *g, void *data, int64_t count, dtype type, comm_op op) {
    comm_nccl *n = g->nccl;
    if (nccl_ok(g, g->operation,
                ncclAllReduce(data, data, (size_t)count, element(type), op == COMM_MAX ? ncclMax : ncclSum, n->comm,
                              n->compute.stream)))
        mark(g, &n->compute);
}

static bool add_timed(comm_group *g) {
    comm_nccl *n = g->nccl;
    timed *more = realloc(n->timed, (size_t)(n->timed_capacity + 1) * sizeof *more);
    if (!more) {
        comm_group_fail(g, g->operation, "out of memory");
        return false;
    }
    n->timed = more;
    timed *t = &more[n->timed_capacity];
    if (!cuda_ok(g, g->operation, cudaEventCreate(&t->begin))) return false;
    if (!cuda_ok(g, g->operation, cudaEventCreate(&t->end))) {
        cudaEventDestroy(t->begin);
        return false;
    }
    n->timed_capacity++;
    return true;
}

/* On the side stream around what is started, while a profile looks; false, with the error kept. */
static bool note_begin(comm_group *g) {
    comm_nccl *n = g->nccl;
    if (!profile_looks(g->profile)) return true;
    if (n->timed_count == n->timed_capacity && !add_timed(g)) return false;
    return cuda_ok(g, g->operation, cudaEventRecord(n->timed[n->timed_count].begin, n->side.stream));
}

static void note_end(comm_group *g) {
    comm_nccl *n = g->nccl;
    if (!profile_looks(g->profile)) return;
    cuda_ok(g, g->operation, cudaEventRecord(n->timed[n->timed_count++].end, n->side.stream));
}

/* They follow one another on their stream. */
static double started_s(comm_group *g) {
    comm_nccl *n = g->nccl;
    double seconds = 0;
    int finished = 0;
    for (; finished < n->timed_count && cudaEventQuery(n->timed[finished].end) == cudaSuccess; finished++) {
        float ms = 0;
        if (cudaEventElapsedTime(&ms, n->timed[finished].begin, n->timed[finished].end) == cudaSuccess)
            seconds += 1e-3 * (double)ms;
    }
    cudaGetLastError(); /* "not ready" is not an error of a later launch */
    for (int i = finished; i < n->timed_count; i++) {
        timed moved = n->timed[i - finished];
        n->timed[i - finished] = n->timed[i];
        n->timed[i] = moved;
    }
    n->timed_count -= finished;
    return seconds;
}

/* The side stream goes on behind what the compute stream has been told so far; false, with the error kept, where not.
 */
static bool fork_side(comm_group *g) {
    comm_nccl *n = g->nccl;
    return cuda_ok(g, g->operation, cudaEventRecord(n->ready, n->compute.stream)) &&
           cuda_ok(g, g->operation, cudaStreamWaitEvent(n->side.stream, n->ready, 0)) && note_begin(g);
}

static void started(comm_group *g, ncclResult_t result) {
    if (!nccl_ok(g, g->operation, result)) return;
    note_end(g);
    mark(g, &g->nccl->side);
    cuda_ok(g, g->operation, cudaEventRecord(g->nccl->end[g->given % ENDS], g->nccl->side.stream));
}

static void broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root) {
    comm_nccl *n = g->nccl;
    if (fork_side(g))
        started(g, ncclBroadcast(data, data, (size_t)count, element(type), root, n->comm, n->side.stream));
}

static void sum_start(comm_group *g, void *data, int64_t count, dtype type) {
    comm_nccl *n = g->nccl;
    if (fork_side(g))
        started(g, ncclAllReduce(data, data, (size_t)count, element(type), ncclSum, n->comm, n->side.stream));
}

/* This rank's piece. */
static char *own_piece(const comm_group *g, void *data, int64_t piece, dtype type) {
    return (char *)data + (size_t)(g->rank * piece) * dtype_bytes(type);
}

static void reduce_scatter_start(comm_group *g, void *data, int64_t piece, dtype type) {
    comm_nccl *n = g->nccl;
    if (fork_side(g))
        started(g, ncclReduceScatter(data, own_piece(g, data, piece, type), (size_t)piece, element(type), ncclSum,
                                     n->comm, n->side.stream));
}

static void all_gather_start(comm_group *g, void *data, int64_t piece, dtype type) {
    comm_nccl *n = g->nccl;
    if (fork_side(g))
        started(g, ncclAllGather(own_piece(g, data, piece, type), data, (size_t)piece, element(type), n->comm,
                                 n->side.stream));
}

static void wait_for(comm_group *g, comm_ticket last) {
    comm_nccl *n = g->nccl;
    cuda_ok(g, g->operation, cudaStreamWaitEvent(n->compute.stream, n->end[last % ENDS], 0));
}

/* ---------------------------------------------------------------- memory */

static void *alloc_shared(ops *o, size_t bytes) {
    void *data = NULL;
    if (ncclMemAlloc(&data, bytes ? bytes : 1) != ncclSuccess) {
        log_warn("GPU %d: %zu MiB of memory that other GPUs can reach cannot be had", cuda_of(o)->device, bytes >> 20);
        cudaGetLastError(); /* not an error of a later launch */
        return NULL;
    }
    cuda_check(o, cudaMemsetAsync(data, 0, bytes, cuda_of(o)->stream), "zeroing new memory");
    return data;
}

static void release_shared(ops *o, void *data) {
    if (data && ncclMemFree(data) != ncclSuccess) cuda_check(o, cudaErrorInvalidValue, "ncclMemFree");
}

static void know(comm_group *g, void *data, size_t bytes) {
    nccl_ok(g, "registering memory", ncclCommRegister(g->nccl->comm, data, bytes, &g->nccl->known));
}

/* ---------------------------------------------------------------- the group's life */

static void close_group(comm_group *g) {
    comm_nccl *n = g->nccl;
    if (!n) return;
    /* After a failure the peers may be gone: abort waits for nobody. */
    if (n->comm && g->first_error != STATUS_OK) {
        ncclCommAbort(n->comm);
    } else if (n->comm) {
        cudaStreamSynchronize(n->compute.stream);
        cudaStreamSynchronize(n->side.stream);
        if (n->known) settle(n->comm, ncclCommDeregister(n->comm, n->known));
        if (settle(n->comm, ncclCommFinalize(n->comm)) == ncclSuccess) ncclCommDestroy(n->comm);
    }
    if (n->ready) cudaEventDestroy(n->ready);
    for (int i = 0; i < ENDS; i++)
        if (n->end[i]) cudaEventDestroy(n->end[i]);
    for (int i = 0; i < n->timed_capacity; i++) {
        cudaEventDestroy(n->timed[i].begin);
        cudaEventDestroy(n->timed[i].end);
    }
    free(n->timed);
    if (n->side.stream) cudaStreamDestroy(n->side.stream);
    if (n->finished) cudaFreeHost(n->finished);
    free(n);
    g->nccl = NULL;
}

static const comm_backend backend = {.name = "nccl",
                                     .all_reduce = all_reduce,
                                     .broadcast_start = broadcast_start,
                                     .sum_start = sum_start,
                                     .reduce_scatter_start = reduce_scatter_start,
                                     .all_gather_start = all_gather_start,
                                     .wait = wait_for,
                                     .close = close_group,
                                     .started_s = started_s,
                                     .know = know,
                                     .unfinished = unfinished,
                                     .fault = fault,
                                     .bf16_sums = true};

/* ---------------------------------------------------------------- making a group */

static const char making[] = "joining a group of GPUs";

static bool make_streams(comm_group *g) {
    comm_nccl *n = g->nccl;
    enum cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSuccess;
    void *write_value = NULL;
    if (!cuda_ok(g, making, cudaStreamCreateWithFlags(&n->side.stream, cudaStreamNonBlocking)) ||
        !cuda_ok(g, making, cudaEventCreateWithFlags(&n->ready, cudaEventDisableTiming)) ||
        !cuda_ok(g, making, cudaHostAlloc((void **)&n->finished, 2 * sizeof *n->finished, cudaHostAllocDefault)) ||
        !cuda_ok(
            g, making,
            cudaGetDriverEntryPointByVersion("cuStreamWriteValue32", &write_value, 11070, cudaEnableDefault, &found)))
        return false;
    for (int i = 0; i < ENDS; i++)
        if (!cuda_ok(g, making, cudaEventCreateWithFlags(&n->end[i], cudaEventDisableTiming))) return false;
    n->compute.finished = &n->finished[0];
    n->side.finished = &n->finished[1];
    n->finished[0] = n->finished[1] = 0;
    memcpy(&n->write_value, &write_value, sizeof write_value);
    if (found != cudaDriverEntryPointSuccess)
        comm_group_fail(g, making, "the driver is older than CUDA 11.7: streams cannot write to memory");
    return g->first_error == STATUS_OK;
}

/* What this rank can find wrong by itself. The device first: NCCL takes the current one. */
static status open_alone(comm_group *g, const cuda_context *context, ncclUniqueId *id) {
    g->nccl = calloc(1, sizeof *g->nccl);
    if (!g->nccl) return status_fail(STATUS_INTERNAL, "out of memory for a group of GPUs");
    g->nccl->compute.stream = context->stream;
    if (cuda_ok(g, making, cudaSetDevice(context->device)) && make_streams(g) && g->rank == 0)
        nccl_ok(g, making, ncclGetUniqueId(id));
    return g->first_error;
}

status comm_over_nccl(comm_group *out, MPI_Comm c, ops *o) {
    comm_self(out);
    MPI_Comm_size(c, &out->size);
    MPI_Comm_rank(c, &out->rank);
    if (out->size == 1) return STATUS_OK;
    out->backend = &backend;
    ncclUniqueId id = {0};
    out->first_error = comm_agree(c, open_alone(out, cuda_of(o), &id));
    TRY(out->first_error);
    TRY(comm_check(MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, c), making));
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    if (nccl_ok(out, making, ncclCommInitRankConfig(&out->nccl->comm, out->size, id, out->rank, &config))) {
        o->alloc_shared = alloc_shared;
        o->release_shared = release_shared;
        return STATUS_OK;
    }
    /* A peer that did not come will not agree on this either. */
    log_error("%s", status_message());
    comm_abort(STATUS_INTERNAL);
}

/* ---------------------------------------------------------------- one GPU a rank */

static status identity_of(cudaUUID_t *out, int device) {
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess)
        return status_fail(STATUS_INTERNAL, "GPU %d cannot be asked for its identity", device);
    *out = properties.uuid;
    return STATUS_OK;
}

status comm_own_devices(MPI_Comm c, const ops *o) {
    int size = 0;
    cudaUUID_t own;
    MPI_Comm_size(c, &size);
    cudaUUID_t *all = malloc((size_t)size * sizeof *all);
    status mine = all ? identity_of(&own, cuda_of(o)->device)
                      : status_fail(STATUS_INTERNAL, "out of memory for the names of %d GPUs", size);
    status result = comm_agree(c, mine);
    if (result == STATUS_OK)
        result = comm_check(MPI_Allgather(&own, sizeof own, MPI_BYTE, all, sizeof own, MPI_BYTE, c), "comparing GPUs");
    for (int a = 0; a < size && result == STATUS_OK; a++)
        for (int b = a + 1; b < size && result == STATUS_OK; b++)
            if (memcmp(&all[a], &all[b], sizeof own) == 0)
                result = status_fail(STATUS_CONFIG,
                                     "compute ranks %d and %d are on the same GPU; start as many compute ranks a host "
                                     "as it shows GPUs, or give every rank one of its own (CUDA_VISIBLE_DEVICES, "
                                     "srun --gpus-per-task=1)",
                                     a, b);
    free(all);
    return result;
}

void comm_nccl_versions(int *built, int *found) {
    *built = NCCL_VERSION_CODE;
    if (ncclGetVersion(found) != ncclSuccess) *found = 0;
}
