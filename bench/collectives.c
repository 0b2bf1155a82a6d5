/* Milliseconds of fp32 collectives, by size, over all ranks of the job: an all-reduce, and what is started and finished
 * at once: a broadcast, a sum that is scattered, pieces that are gathered.
 *
 *   mpirun -n 2 bench_collectives         in host memory, over MPI
 *   mpirun -n 2 bench_collectives cuda    on a GPU a rank, over NCCL: in memory of the table, then in memory that the
 *                                         group was told of (comm_register)
 *
 * Each size is checked against sums known exactly before it is timed. Prints JSON lines: the median and the least over
 * the repeats of the slowest rank's time. */
#include "bench/times.h"
#include "comm/roles.h"
#include "core/clock.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEAST_BYTES = 1 << 12, MOST_BYTES = 1 << 26, MOST_REPEATS = 200, LEAST_REPEATS = 7, BYTES_A_SIZE = 1 << 28 };

typedef struct bench {
    ops ops;
    comm_group group;
    bool registered;
    float *data, *host; /* of the device; a copy to fill and check it */
} bench;

typedef void (*collective)(comm_group *g, float *data, int64_t count);

static void all_reduce(comm_group *g, float *data, int64_t count) {
    comm_all_reduce(g, data, count, DTYPE_F32, COMM_SUM, "bench", -1);
}

static void broadcast(comm_group *g, float *data, int64_t count) {
    comm_broadcast_start(g, data, count, DTYPE_F32, 0, "bench", -1);
    comm_finish(g);
}

/* Of count elements, as far as they are whole pieces. */
static void reduce_scatter(comm_group *g, float *data, int64_t count) {
    comm_reduce_scatter_start(g, data, count / g->size, DTYPE_F32, "bench", -1);
    comm_finish(g);
}

static void all_gather(comm_group *g, float *data, int64_t count) {
    comm_all_gather_start(g, data, count / g->size, DTYPE_F32, "bench", -1);
    comm_finish(g);
}

/* Small whole numbers: their sum is exact in fp32. */
static float value(int rank, int64_t i) {
    return (float)(rank + 1 + i % 1000);
}

/* What element i of count must be afterwards; NAN: anything. */
static float expected(const comm_group *g, collective run, int64_t i, int64_t count) {
    int64_t piece = count / g->size;
    if (run == broadcast) return value(0, i);
    if (run == all_gather) return i < piece * g->size ? value((int)(i / piece), i) : NAN;
    if (run == reduce_scatter && i / piece != g->rank) return NAN;
    float sum = 0;
    for (int r = 0; r < g->size; r++) sum += value(r, i);
    return sum;
}

static status bench_status(const bench *b) {
    TRY(ops_status(&b->ops));
    return comm_status(&b->group);
}

static status verify(bench *b, const char *name, collective run, int64_t count) {
    size_t bytes = (size_t)count * sizeof *b->host;
    for (int64_t i = 0; i < count; i++) b->host[i] = value(b->group.rank, i);
    b->ops.upload(&b->ops, b->data, b->host, bytes);
    run(&b->group, b->data, count);
    b->ops.download(&b->ops, b->host, b->data, bytes);
    status result = bench_status(b);
    for (int64_t i = 0; i < count && result == STATUS_OK; i++) {
        float want = expected(&b->group, run, i, count);
        if (!isnan(want) && b->host[i] != want)
            result = status_fail(STATUS_INTERNAL, "%s of %lld elements: element %lld is %g, want %g", name,
                                 (long long)count, (long long)i, b->host[i], want);
    }
    return comm_agree(MPI_COMM_WORLD, result);
}

static status measure(bench *b, const char *name, collective run, int64_t count) {
    TRY(verify(b, name, run, count));
    int64_t bytes = count * (int64_t)sizeof *b->data, repeats = BYTES_A_SIZE / bytes;
    if (repeats > MOST_REPEATS) repeats = MOST_REPEATS;
    if (repeats < LEAST_REPEATS) repeats = LEAST_REPEATS;
    b->ops.zero(&b->ops, b->data, (size_t)bytes); /* sums of sums must stay finite */
    double ms[MOST_REPEATS];
    for (int64_t i = 0; i < repeats; i++) {
        b->ops.sync(&b->ops);
        MPI_Barrier(MPI_COMM_WORLD);
        double start_s = clock_now_s();
        run(&b->group, b->data, count);
        b->ops.sync(&b->ops);
        ms[i] = 1000 * (clock_now_s() - start_s);
    }
    MPI_Allreduce(MPI_IN_PLACE, ms, (int)repeats, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    times_sort(ms, (int)repeats);
    if (b->group.rank == 0)
        printf("{\"bench\": \"collectives\", \"operation\": \"%s\", \"backend\": \"%s\", \"device\": \"%s\", "
               "\"registered\": %s, \"ranks\": %d, \"bytes\": %lld, \"ms\": %.4f, \"least_ms\": %.4f, "
               "\"gb_per_s\": %.3f, \"repeats\": %lld}\n",
               name, b->group.backend->name, b->ops.device, b->registered ? "true" : "false", b->group.size,
               (long long)bytes, ms[repeats / 2], ms[0], (double)bytes / ms[repeats / 2] * 1e-6, (long long)repeats);
    fflush(stdout);
    return bench_status(b);
}

static status measure_sizes(bench *b) {
    for (int64_t bytes = LEAST_BYTES; bytes <= MOST_BYTES; bytes *= 4) {
        TRY(measure(b, "all_reduce", all_reduce, bytes / (int64_t)sizeof *b->data));
        TRY(measure(b, "broadcast", broadcast, bytes / (int64_t)sizeof *b->data));
        TRY(measure(b, "reduce_scatter", reduce_scatter, bytes / (int64_t)sizeof *b->data));
        TRY(measure(b, "all_gather", all_gather, bytes / (int64_t)sizeof *b->data));
    }
    return STATUS_OK;
}

static status measure_memory(bench *b) {
    b->host = malloc(MOST_BYTES);
    b->data = b->registered ? b->ops.alloc_shared(&b->ops, MOST_BYTES) : b->ops.alloc(&b->ops, MOST_BYTES);
    status result =
        b->host && b->data ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for %d bytes", MOST_BYTES);
    result = comm_agree(MPI_COMM_WORLD, result);
    if (result == STATUS_OK && b->registered) comm_register(&b->group, b->data, MOST_BYTES);
    if (result == STATUS_OK) result = measure_sizes(b);
    comm_close(&b->group);
    if (b->data && b->registered) b->ops.release_shared(&b->ops, b->data);
    if (b->data && !b->registered) b->ops.release(&b->ops, b->data);
    free(b->host);
    return result;
}

static status measure_device(bool cuda, bool registered) {
    int rank = 0;
    bench b = {.registered = registered};
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    status result = comm_agree(MPI_COMM_WORLD, cuda ? ops_cuda(&b.ops, rank, false) : ops_cpu(&b.ops, 1));
    if (result == STATUS_OK) result = comm_over_device(&b.group, MPI_COMM_WORLD, &b.ops);
    if (result == STATUS_OK) result = measure_memory(&b);
    if (b.ops.close) b.ops.close(&b.ops);
    return result;
}

int main(int argc, char **argv) {
    bool cuda = argc == 2 && strcmp(argv[1], "cuda") == 0;
    status result = comm_start(&argc, &argv);
    if (result == STATUS_OK) result = measure_device(cuda, false);
    if (result == STATUS_OK && cuda) result = measure_device(cuda, true);
    if (result != STATUS_OK) fprintf(stderr, "%s\n", status_message());
    comm_stop();
    return result;
}
