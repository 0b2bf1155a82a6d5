/* The MPI backend: collectives of the CPU path.
 *
 * The library picks its algorithm by size and group alone, never by timing, and adds each element's terms in an order
 * that is the same for all ranks, or hands one rank's result to the others: so the bits agree on every rank and from
 * run to run. Its own MPI_MAX keeps that promise for numbers only, hence maximum() below. */
#include "comm/backends.h"

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>

static const char *error_text(int code, char text[MPI_MAX_ERROR_STRING]) {
    int length = 0;
    text[0] = '\0';
    MPI_Error_string(code, text, &length);
    return text;
}

status comm_check(int code, const char *what) {
    if (code == MPI_SUCCESS) return STATUS_OK;
    char text[MPI_MAX_ERROR_STRING];
    return status_fail(STATUS_INTERNAL, "%s failed: %s", what, error_text(code, text));
}

static bool check(comm_group *g, const char *operation, int code) {
    if (code == MPI_SUCCESS) return true;
    char text[MPI_MAX_ERROR_STRING];
    comm_group_fail(g, operation, error_text(code, text));
    return false;
}

/* The larger of a and b whichever way round they come: NaN wins, and +0 is above -0. */
static double larger(double a, double b) {
    if (isnan(a) || isnan(b)) return NAN;
    if (a == b) return signbit(a) ? b : a;
    return a > b ? a : b;
}

/* MPI_User_function. A comparison with NaN depends on the order of the operands, which differs between ranks: with
 * MPI_MAX they would go on with different values and hide the NaN on some. */
static void maximum(void *in, void *inout, int *count, MPI_Datatype *type) {
    if (*type == MPI_FLOAT) {
        const float *a = in;
        float *b = inout;
        for (int i = 0; i < *count; i++) b[i] = (float)larger(a[i], b[i]);
    } else {
        const double *a = in;
        double *b = inout;
        for (int i = 0; i < *count; i++) b[i] = larger(a[i], b[i]);
    }
}

static MPI_Op maximum_op = MPI_OP_NULL; /* lives as long as MPI */
static pthread_once_t maximum_once = PTHREAD_ONCE_INIT;

static void make_maximum(void) {
    if (MPI_Op_create(maximum, 1, &maximum_op) != MPI_SUCCESS) maximum_op = MPI_OP_NULL;
}

static void all_reduce(comm_group *g, void *data, int64_t count, dtype type, comm_op op) {
    MPI_Datatype element = type == DTYPE_F64 ? MPI_DOUBLE : MPI_FLOAT;
    MPI_Op how = op == COMM_MAX ? maximum_op : MPI_SUM;
    char *at = data;
    while (count > 0) {
        int chunk = count > INT_MAX ? INT_MAX : (int)count;
        if (!check(g, "all-reduce", MPI_Allreduce(MPI_IN_PLACE, at, chunk, element, how, g->mpi))) return;
        at += (size_t)chunk * dtype_bytes(type);
        count -= chunk;
    }
}

/* What does not fit one request is sent before it, waiting. */
static void broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root) {
    MPI_Datatype element = type == DTYPE_F64 ? MPI_DOUBLE : type == DTYPE_F32 ? MPI_FLOAT : MPI_UINT16_T;
    char *at = data;
    for (; count > INT_MAX; count -= INT_MAX, at += (size_t)INT_MAX * dtype_bytes(type))
        if (!check(g, "broadcast", MPI_Bcast(at, INT_MAX, element, root, g->mpi))) return;
    check(g, "broadcast", MPI_Ibcast(at, (int)count, element, root, g->mpi, &g->pending));
}

static void broadcast_finish(comm_group *g) {
    if (g->pending != MPI_REQUEST_NULL) check(g, "broadcast", MPI_Wait(&g->pending, MPI_STATUS_IGNORE));
}

static void close_group(comm_group *g) {
    if (g->mpi != MPI_COMM_NULL) MPI_Comm_free(&g->mpi);
}

const comm_backend comm_backend_mpi = {.name = "mpi",
                                       .all_reduce = all_reduce,
                                       .broadcast_start = broadcast_start,
                                       .broadcast_finish = broadcast_finish,
                                       .close = close_group};

status comm_over_mpi(comm_group *out, MPI_Comm c) {
    static const char what[] = "making a group of ranks";
    comm_self(out);
    int size = 0;
    TRY(comm_check(MPI_Comm_size(c, &size), what));
    if (size == 1) return STATUS_OK;
    pthread_once(&maximum_once, make_maximum);
    if (maximum_op == MPI_OP_NULL) return status_fail(STATUS_INTERNAL, "MPI could not define the maximum");
    TRY(comm_check(MPI_Comm_dup(c, &out->mpi), what));
    MPI_Comm_set_errhandler(out->mpi, MPI_ERRORS_RETURN);
    out->backend = &comm_backend_mpi;
    out->size = size;
    return comm_check(MPI_Comm_rank(out->mpi, &out->rank), what);
}
