/* Milliseconds of an fp32 all-reduce and of a split-phase broadcast, by size, over all ranks of the job:
 * mpirun -n 2 bench_collectives. Each size is checked against sums known exactly before it is timed. Prints JSON lines:
 * the median and the least over the repeats of the slowest rank's time. */
#include "comm/roles.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

enum { LEAST_BYTES = 1 << 12, MOST_BYTES = 1 << 26, MOST_REPEATS = 200, LEAST_REPEATS = 7, BYTES_A_SIZE = 1 << 28 };

typedef void (*collective)(comm_group *g, float *data, int64_t count);

static void all_reduce(comm_group *g, float *data, int64_t count) {
    comm_all_reduce(g, data, count, DTYPE_F32, COMM_SUM, "bench", -1);
}

static void broadcast(comm_group *g, float *data, int64_t count) {
    comm_broadcast_start(g, data, count, DTYPE_F32, 0, "bench", -1);
    comm_broadcast_finish(g);
}

/* Small whole numbers: their sum is exact in fp32. */
static float value(int rank, int64_t i) {
    return (float)(rank + 1 + i % 1000);
}

static status verify(comm_group *g, const char *name, collective run, float *data, int64_t count) {
    for (int64_t i = 0; i < count; i++) data[i] = value(g->rank, i);
    run(g, data, count);
    status result = comm_status(g);
    for (int64_t i = 0; i < count && result == STATUS_OK; i++) {
        float want = value(0, i);
        for (int r = 1; r < g->size && run == all_reduce; r++) want += value(r, i);
        if (data[i] != want)
            result = status_fail(STATUS_INTERNAL, "%s of %lld elements: element %lld is %g, want %g", name,
                                 (long long)count, (long long)i, data[i], want);
    }
    return comm_agree(MPI_COMM_WORLD, result);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static status measure(comm_group *g, const char *name, collective run, float *data, int64_t count) {
    TRY(verify(g, name, run, data, count));
    int64_t repeats = BYTES_A_SIZE / (count * (int64_t)sizeof *data);
    if (repeats > MOST_REPEATS) repeats = MOST_REPEATS;
    if (repeats < LEAST_REPEATS) repeats = LEAST_REPEATS;
    for (int64_t i = 0; i < count; i++) data[i] = 0; /* sums of sums must stay finite */
    double ms[MOST_REPEATS];
    for (int64_t i = 0; i < repeats; i++) {
        MPI_Barrier(MPI_COMM_WORLD);
        double start = MPI_Wtime();
        run(g, data, count);
        ms[i] = 1000 * (MPI_Wtime() - start);
    }
    MPI_Allreduce(MPI_IN_PLACE, ms, (int)repeats, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    qsort(ms, (size_t)repeats, sizeof *ms, ascending);
    if (g->rank == 0)
        printf(
            "{\"bench\": \"collectives\", \"operation\": \"%s\", \"backend\": \"%s\", \"ranks\": %d, \"bytes\": %lld, "
            "\"ms\": %.4f, \"least_ms\": %.4f, \"gb_per_s\": %.3f, \"repeats\": %lld}\n",
            name, g->backend->name, g->size, (long long)count * (long long)sizeof *data, ms[repeats / 2], ms[0],
            (double)count * sizeof *data / ms[repeats / 2] * 1e-6, (long long)repeats);
    fflush(stdout);
    return comm_status(g);
}

static status measure_all(void) {
    comm_group g;
    TRY(comm_over_mpi(&g, MPI_COMM_WORLD));
    float *data = malloc(MOST_BYTES);
    status result = data ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for %d bytes", MOST_BYTES);
    result = comm_agree(MPI_COMM_WORLD, result);
    for (int64_t bytes = LEAST_BYTES; bytes <= MOST_BYTES && result == STATUS_OK; bytes *= 4) {
        result = measure(&g, "all_reduce", all_reduce, data, bytes / (int64_t)sizeof *data);
        if (result == STATUS_OK) result = measure(&g, "broadcast", broadcast, data, bytes / (int64_t)sizeof *data);
    }
    free(data);
    comm_close(&g);
    return result;
}

int main(int argc, char **argv) {
    status result = comm_start(&argc, &argv);
    if (result == STATUS_OK) result = measure_all();
    if (result != STATUS_OK) fprintf(stderr, "%s\n", status_message());
    comm_stop();
    return result;
}
