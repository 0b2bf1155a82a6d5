/* The NCCL backend: groups of GPUs. All-reduces are queued on the compute stream, which needs their result next; a
 * broadcast runs on a stream of its own, between start and finish, beside what is queued meanwhile.
 *
 * Communicators are nonblocking: every call may answer "in progress" and is polled with a limit, so that a peer that
 * never comes ends in a message and not in a hang. NCCL adds bf16 in a fixed order for a given group and size, so
 * repeats give the same bits. */
#include "comm/backends.h"
#include "comm/backoff.h"
#include "core/ops/cuda/context.h"

#include <nccl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PATIENCE_S = 50, POLL_MOST_US = 200 };

typedef struct comm_nccl {
    ncclComm_t comm;
    cudaStream_t compute, side; /* side is ours, for broadcasts */
    cudaEvent_t ready, done;
} comm_nccl;

/* Waits until the communicator is no longer in progress. */
static ncclResult_t settle(ncclComm_t comm, ncclResult_t result) {
    time_t start = time(NULL);
    backoff pause = {0};
    while (result == ncclInProgress) {
        ncclResult_t asked = ncclCommGetAsyncError(comm, &result);
        if (asked != ncclSuccess) return asked;
        if (result != ncclInProgress) break;
        if (time(NULL) - start > PATIENCE_S) return ncclRemoteError;
        backoff_sleep(&pause, POLL_MOST_US);
    }
    return result;
}

static bool nccl_ok(comm_group *g, const char *operation, ncclResult_t result) {
    result = settle(g->nccl->comm, result);
    if (result == ncclSuccess) return true;
    comm_group_fail(g, operation, result == ncclRemoteError ? "a peer did not come" : ncclGetErrorString(result));
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

static void all_reduce(comm_group *g, void *data, int64_t count, dtype type, comm_op op) {
    comm_nccl *n = g->nccl;
    nccl_ok(g, "all-reduce",
            ncclAllReduce(data, data, (size_t)count, element(type), op == COMM_MAX ? ncclMax : ncclSum, n->comm,
                          n->compute));
}

static void broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root) {
    static const char what[] = "broadcast";
    comm_nccl *n = g->nccl;
    if (!cuda_ok(g, what, cudaEventRecord(n->ready, n->compute))) return;
    if (!cuda_ok(g, what, cudaStreamWaitEvent(n->side, n->ready, 0))) return;
    if (!nccl_ok(g, what, ncclBroadcast(data, data, (size_t)count, element(type), root, n->comm, n->side))) return;
    cuda_ok(g, what, cudaEventRecord(n->done, n->side));
}

static void broadcast_finish(comm_group *g) {
    cuda_ok(g, "broadcast", cudaStreamWaitEvent(g->nccl->compute, g->nccl->done, 0));
}

static void close_group(comm_group *g) {
    comm_nccl *n = g->nccl;
    if (!n) return;
    /* After a failure the peers may be gone: abort waits for nobody. */
    if (n->comm && g->first_error != STATUS_OK) {
        ncclCommAbort(n->comm);
    } else if (n->comm) {
        cudaStreamSynchronize(n->compute);
        if (settle(n->comm, ncclCommFinalize(n->comm)) == ncclSuccess) ncclCommDestroy(n->comm);
    }
    if (n->ready) cudaEventDestroy(n->ready);
    if (n->done) cudaEventDestroy(n->done);
    if (n->side) cudaStreamDestroy(n->side);
    free(n);
    g->nccl = NULL;
}

static const comm_backend backend = {.name = "nccl",
                                     .all_reduce = all_reduce,
                                     .broadcast_start = broadcast_start,
                                     .broadcast_finish = broadcast_finish,
                                     .close = close_group,
                                     .bf16_sums = true};

static bool make_streams(comm_group *g) {
    static const char what[] = "making a stream";
    comm_nccl *n = g->nccl;
    return cuda_ok(g, what, cudaStreamCreateWithFlags(&n->side, cudaStreamNonBlocking)) &&
           cuda_ok(g, what, cudaEventCreateWithFlags(&n->ready, cudaEventDisableTiming)) &&
           cuda_ok(g, what, cudaEventCreateWithFlags(&n->done, cudaEventDisableTiming));
}

/* NCCL would fail in words of its own, or hang: two ranks on one GPU are found by its identity before it starts. */
static status check_own_gpu(MPI_Comm c, int size, int device) {
    static const char what[] = "comparing GPUs";
    struct cudaDeviceProp properties;
    if (cudaGetDeviceProperties(&properties, device) != cudaSuccess)
        return status_fail(STATUS_INTERNAL, "GPU %d cannot be asked for its identity", device);
    cudaUUID_t *all = malloc((size_t)size * sizeof *all);
    if (!all) return status_fail(STATUS_INTERNAL, "out of memory for %d GPUs", size);
    status result =
        comm_check(MPI_Allgather(&properties.uuid, sizeof *all, MPI_BYTE, all, sizeof *all, MPI_BYTE, c), what);
    for (int a = 0; a < size && result == STATUS_OK; a++)
        for (int b = a + 1; b < size && result == STATUS_OK; b++)
            if (memcmp(&all[a], &all[b], sizeof *all) == 0)
                result = status_fail(STATUS_CONFIG,
                                     "ranks %d and %d of a group are on the same GPU; give every compute rank its own "
                                     "(CUDA_VISIBLE_DEVICES, or fewer ranks a host)",
                                     a, b);
    free(all);
    return result;
}

status comm_over_nccl(comm_group *out, MPI_Comm c, const ops *o) {
    static const char what[] = "making a group of GPUs";
    const cuda_context *context = cuda_of(o);
    comm_self(out);
    MPI_Comm_size(c, &out->size);
    MPI_Comm_rank(c, &out->rank);
    if (out->size == 1) return STATUS_OK;
    TRY(check_own_gpu(c, out->size, context->device));
    out->backend = &backend;
    out->place = what;
    out->nccl = calloc(1, sizeof *out->nccl);
    if (!out->nccl) return status_fail(STATUS_INTERNAL, "out of memory for a group of GPUs");
    out->nccl->compute = context->stream;
    /* The device first: NCCL takes the current one. */
    if (!cuda_ok(out, what, cudaSetDevice(context->device)) || !make_streams(out)) return out->first_error;

    ncclUniqueId id = {0};
    ncclResult_t result = out->rank == 0 ? ncclGetUniqueId(&id) : ncclSuccess;
    TRY(comm_check(MPI_Bcast(&id, sizeof id, MPI_BYTE, 0, c), what));
    if (!nccl_ok(out, what, result)) return out->first_error;
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    nccl_ok(out, what, ncclCommInitRankConfig(&out->nccl->comm, out->size, id, out->rank, &config));
    return out->first_error;
}
