/* The MPI backend: collectives of the CPU path.
 *
 * The library picks its algorithm by size and group alone, never by timing, and adds each element's terms in an order
 * that is the same for all ranks, or hands one rank's result to the others: so the bits agree on every rank and from
 * run to run. Its own MPI_MAX keeps that promise for numbers only, hence maximum() below. */
#include "comm/backends.h"
#include "core/clock.h"
#include "core/ops/profile.h"

#include <limits.h>
#include <math.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

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

static MPI_Datatype element(dtype type) {
    return type == DTYPE_F64 ? MPI_DOUBLE : type == DTYPE_F32 ? MPI_FLOAT : MPI_UINT16_T;
}

/* What fits one call of MPI. */
static int chunk_of(int64_t count) {
    return count > INT_MAX ? INT_MAX : (int)count;
}

static void all_reduce(comm_group *g, void *data, int64_t count, dtype type, comm_op op) {
    MPI_Op how = op == COMM_MAX ? maximum_op : MPI_SUM;
    char *at = data;
    while (count > 0) {
        int chunk = chunk_of(count);
        if (!check(g, "all-reduce", MPI_Allreduce(MPI_IN_PLACE, at, chunk, element(type), how, g->mpi))) return;
        at += (size_t)chunk * dtype_bytes(type);
        count -= chunk;
    }
}

/* ---------------------------------------------------------------- what is started */

/* Memory for what other ranks send. */
typedef struct room {
    char *data;
    size_t bytes;
    bool used;
} room;

/* A part of a collective that is under way: a request, or an addition to be made when all before it is complete. */
typedef struct part {
    MPI_Request request;
    comm_pending of;
    comm_ticket ticket; /* of the collective */
    void *sum;          /* [piece], to which the pieces in the scratch memory are added; NULL: nothing is */
    int64_t piece;
    dtype type;
    int room; /* the scratch memory */
} part;

typedef struct comm_started {
    int count, capacity, done; /* parts in the order of their starts; the first `done` are known to be complete */
    bool timed;                /* a profile looked when the first part that is under way was started, */
    double since_s, seconds;   /* which was then; seconds before */
    part *parts;
    int room_count;
    room *rooms;
} comm_started;

/* Forgets the parts that are complete. */
static void drop_done(comm_started *s) {
    memmove(s->parts, s->parts + s->done, (size_t)(s->count - s->done) * sizeof *s->parts);
    s->count -= s->done;
    s->done = 0;
}

/* One more part of the collective that began last; NULL, with the error kept, where there is no room. */
static part *new_part(comm_group *g) {
    comm_started *s = g->started;
    if (s->count == s->capacity && s->done > 0) drop_done(s);
    if (s->count == s->capacity) {
        int capacity = s->capacity ? 2 * s->capacity : 64;
        part *more = realloc(s->parts, (size_t)capacity * sizeof *more);
        if (!more) {
            comm_group_fail(g, g->operation, "out of memory");
            return NULL;
        }
        s->parts = more;
        s->capacity = capacity;
    }
    if (s->done == s->count) {
        s->timed = profile_looks(g->profile);
        s->since_s = s->timed ? clock_now_s() : 0;
    }
    s->parts[s->count] = (part){.request = MPI_REQUEST_NULL, .of = comm_group_begun(g), .ticket = g->given};
    return &s->parts[s->count++];
}

/* The index of scratch memory that nobody uses, of at least so many bytes; -1, with the error kept, where there is
 * none. What a collective has given back serves the next: a step's first ones allocate, later steps do not. */
static int take_room(comm_group *g, size_t bytes) {
    comm_started *s = g->started;
    for (int i = 0; i < s->room_count; i++) {
        if (s->rooms[i].used || s->rooms[i].bytes < bytes) continue;
        s->rooms[i].used = true;
        return i;
    }
    room *more = realloc(s->rooms, (size_t)(s->room_count + 1) * sizeof *more);
    if (more) s->rooms = more;
    char *data = more ? malloc(bytes) : NULL;
    if (!data) {
        comm_group_fail(g, g->operation, "out of memory");
        return -1;
    }
    s->rooms[s->room_count] = (room){.data = data, .bytes = bytes, .used = true};
    return s->room_count++;
}

typedef enum start_kind { START_BROADCAST, START_SUM, START_SEND, START_RECEIVE } start_kind;

/* other: the root of a broadcast, or whom to send to or receive from. */
static int start(comm_group *g, start_kind kind, void *data, int count, MPI_Datatype type, int other,
                 MPI_Request *request) {
    if (kind == START_BROADCAST) return MPI_Ibcast(data, count, type, other, g->mpi, request);
    if (kind == START_SEND) return MPI_Isend(data, count, type, other, 0, g->mpi, request);
    if (kind == START_RECEIVE) return MPI_Irecv(data, count, type, other, 0, g->mpi, request);
    return MPI_Iallreduce(MPI_IN_PLACE, data, count, type, MPI_SUM, g->mpi, request);
}

/* In as many parts as MPI's counts need. */
static void start_parts(comm_group *g, start_kind kind, void *data, int64_t count, dtype type, int other) {
    char *at = data;
    while (count > 0) {
        int chunk = chunk_of(count);
        part *p = new_part(g);
        if (!p || !check(g, g->operation, start(g, kind, at, chunk, element(type), other, &p->request))) return;
        at += (size_t)chunk * dtype_bytes(type);
        count -= chunk;
    }
}

static void broadcast_start(comm_group *g, void *data, int64_t count, dtype type, int root) {
    start_parts(g, START_BROADCAST, data, count, type, root);
}

static void sum_start(comm_group *g, void *data, int64_t count, dtype type) {
    start_parts(g, START_SUM, data, count, type, 0);
}

/* Rank r and this one exchange pieces, for all r but this one: messages of two ranks meet in the order of their starts.
 */
static void all_gather_start(comm_group *g, void *data, int64_t piece, dtype type) {
    size_t bytes = (size_t)piece * dtype_bytes(type);
    char *own = (char *)data + (size_t)g->rank * bytes;
    for (int step = 1; step < g->size && g->first_error == STATUS_OK; step++) {
        int to = (g->rank + step) % g->size, from = (g->rank + g->size - step) % g->size;
        start_parts(g, START_RECEIVE, (char *)data + (size_t)from * bytes, piece, type, from);
        start_parts(g, START_SEND, own, piece, type, to);
    }
}

/* Piece r goes to rank r, and what the others have of this rank's comes into scratch memory. MPI's own nonblocking
 * reductions take three times as long, and leave the result at the start of the buffer (bench/notes.md). */
static void reduce_scatter_start(comm_group *g, void *data, int64_t piece, dtype type) {
    size_t bytes = (size_t)piece * dtype_bytes(type);
    int taken = take_room(g, bytes * (size_t)(g->size - 1));
    if (taken < 0) return;
    char *theirs = g->started->rooms[taken].data;
    for (int step = 1; step < g->size && g->first_error == STATUS_OK; step++) {
        int to = (g->rank + step) % g->size, from = (g->rank + g->size - step) % g->size;
        start_parts(g, START_RECEIVE, theirs + (size_t)(step - 1) * bytes, piece, type, from);
        start_parts(g, START_SEND, (char *)data + (size_t)to * bytes, piece, type, to);
    }
    part *addition = g->first_error == STATUS_OK ? new_part(g) : NULL;
    if (!addition) return;
    addition->sum = (char *)data + (size_t)g->rank * bytes;
    addition->piece = piece;
    addition->type = type;
    addition->room = taken;
}

/* The part's messages are complete. The order of additions depends on ranks alone. */
static void complete(comm_group *g, const part *p) {
    if (!p->sum) return;
    room *theirs = &g->started->rooms[p->room];
    for (int r = 0; r < g->size - 1; r++) {
        if (p->type == DTYPE_F64) {
            const double *more = (const double *)theirs->data + r * p->piece;
            for (int64_t i = 0; i < p->piece; i++) ((double *)p->sum)[i] += more[i];
        } else {
            const float *more = (const float *)theirs->data + r * p->piece;
            for (int64_t i = 0; i < p->piece; i++) ((float *)p->sum)[i] += more[i];
        }
    }
    theirs->used = false;
}

/* The last part under way is complete. */
static void note_end(comm_started *s) {
    if (s->timed) s->seconds += clock_now_s() - s->since_s;
}

static void progress(comm_group *g) {
    comm_started *s = g->started;
    if (s->done == s->count) return;
    while (s->done < s->count) {
        part *p = &s->parts[s->done];
        int arrived = 0;
        if (!check(g, p->of.operation, MPI_Test(&p->request, &arrived, MPI_STATUS_IGNORE)) || !arrived) return;
        complete(g, p);
        s->done++;
    }
    note_end(s);
}

static void wait_for(comm_group *g, comm_ticket last) {
    comm_started *s = g->started;
    bool under_way = s->done < s->count;
    for (; s->done < s->count && s->parts[s->done].ticket <= last; s->done++) {
        part *p = &s->parts[s->done];
        comm_group_name(g, &p->of);
        comm_group_wait(g);
        bool arrived = check(g, p->of.operation, MPI_Wait(&p->request, MPI_STATUS_IGNORE));
        comm_group_wait(g);
        if (!arrived) return;
        complete(g, p);
    }
    if (under_way && s->done == s->count) note_end(s);
}

static double started_s(comm_group *g) {
    double seconds = g->started->seconds;
    g->started->seconds = 0;
    return seconds;
}

static void close_group(comm_group *g) {
    if (g->started && g->first_error == STATUS_OK) wait_for(g, g->given);
    if (g->mpi != MPI_COMM_NULL) MPI_Comm_free(&g->mpi);
    comm_started *s = g->started;
    for (int i = 0; s && i < s->room_count; i++) free(s->rooms[i].data);
    if (s) {
        free(s->parts);
        free(s->rooms);
    }
    free(s);
    g->started = NULL;
}

const comm_backend comm_backend_mpi = {.name = "mpi",
                                       .all_reduce = all_reduce,
                                       .broadcast_start = broadcast_start,
                                       .sum_start = sum_start,
                                       .reduce_scatter_start = reduce_scatter_start,
                                       .all_gather_start = all_gather_start,
                                       .wait = wait_for,
                                       .progress = progress,
                                       .close = close_group,
                                       .started_s = started_s};

status comm_over_mpi(comm_group *out, MPI_Comm c) {
    static const char what[] = "making a group of ranks";
    comm_self(out);
    int size = 0;
    TRY(comm_check(MPI_Comm_size(c, &size), what));
    if (size == 1) return STATUS_OK;
    pthread_once(&maximum_once, make_maximum);
    if (maximum_op == MPI_OP_NULL) return status_fail(STATUS_INTERNAL, "MPI could not define the maximum");
    out->started = calloc(1, sizeof *out->started);
    if (!out->started) return status_fail(STATUS_INTERNAL, "out of memory for a group of ranks");
    out->backend = &comm_backend_mpi;
    TRY(comm_check(MPI_Comm_dup(c, &out->mpi), what));
    MPI_Comm_set_errhandler(out->mpi, MPI_ERRORS_RETURN);
    out->size = size;
    return comm_check(MPI_Comm_rank(out->mpi, &out->rank), what);
}
