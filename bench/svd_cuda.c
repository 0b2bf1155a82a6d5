/* bench_svd_cuda: singular values of many matrices on the GPU: one JSON line a size, median ms of REPEATS, on the
 * device and with the way there and back.
 *
 * usage: bench_svd_cuda [SIDE COUNT]     default: the budgets' sizes
 * The squares of a matrix's values must add up to those of its entries, to 2^-22; test_spectra_cuda checks each value.
 */
#include "bench/times.h"
#include "core/clock.h"
#include "core/rng.h"
#include "diag/svd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { REPEATS = 7 };

typedef struct job {
    svd_device device;
    int side, count;
    float *host, *values;    /* page-locked */
    float *matrices, *found; /* on the device */
    size_t bytes, value_bytes;
} job;

static status allocate(job *j) {
    ops *o = &j->device.ops;
    j->bytes = (size_t)j->count * (size_t)j->side * (size_t)j->side * sizeof(float);
    j->value_bytes = (size_t)j->count * (size_t)j->side * sizeof(float);
    j->host = o->host_alloc(o, j->bytes);
    j->values = o->host_alloc(o, j->value_bytes);
    j->matrices = o->alloc(o, j->bytes);
    j->found = o->alloc(o, j->value_bytes);
    if (!j->host || !j->values || !j->matrices || !j->found) return status_fail(STATUS_CONFIG, "out of memory");
    rng_normal(j->host, 1, 0, 0, (int64_t)(j->bytes / sizeof(float)), 1);
    return STATUS_OK;
}

static void release(job *j) {
    ops *o = &j->device.ops;
    if (j->host) o->host_release(o, j->host);
    if (j->values) o->host_release(o, j->values);
    if (j->matrices) o->release(o, j->matrices);
    if (j->found) o->release(o, j->found);
}

static double sum_of_squares(const float *x, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += (double)x[i] * x[i];
    return sum;
}

static status check(const job *j) {
    size_t side = (size_t)j->side;
    for (int m = 0; m < j->count; m++) {
        double of_values = sum_of_squares(j->values + (size_t)m * side, side);
        double of_entries = sum_of_squares(j->host + (size_t)m * side * side, side * side);
        if (!(fabs(of_values - of_entries) <= 0x1p-22 * of_entries))
            return status_fail(STATUS_INTERNAL, "matrix %d of side %d: squares add up to %.9g in place of %.9g", m,
                               j->side, of_values, of_entries);
    }
    return STATUS_OK;
}

static status time_solver(job *j) {
    ops *o = &j->device.ops;
    double whole_ms[REPEATS], solve_ms[REPEATS];
    TRY(j->device.reserve(&j->device, j->side, j->count));
    for (int i = -1; i < REPEATS; i++) { /* the first warms up */
        o->sync(o);
        double start = clock_now_s();
        o->upload(o, j->matrices, j->host, j->bytes);
        o->sync(o);
        double there = clock_now_s();
        j->device.solve(&j->device, j->found, j->matrices, j->side, j->count);
        o->sync(o);
        double solved = clock_now_s();
        o->download(o, j->values, j->found, j->value_bytes);
        if (i < 0) continue;
        whole_ms[i] = 1e3 * (clock_now_s() - start);
        solve_ms[i] = 1e3 * (solved - there);
    }
    TRY(ops_status(o));
    TRY(check(j));
    times_sort(whole_ms, REPEATS);
    times_sort(solve_ms, REPEATS);
    printf("{\"bench\":\"svd_cuda\",\"side\":%d,\"count\":%d,\"solve_ms\":%.3f,\"ms\":%.3f}\n", j->side, j->count,
           solve_ms[REPEATS / 2], whole_ms[REPEATS / 2]);
    fflush(stdout);
    return STATUS_OK;
}

static status time_size(job *j, int side, int count) {
    j->side = side;
    j->count = count;
    status s = allocate(j);
    if (s == STATUS_OK) s = time_solver(j);
    release(j);
    return s;
}

static status run(job *j, int argc, char **argv) {
    static const int sizes[][2] = {{64, 1536}, {96, 768}, {128, 768}, {192, 384}, {224, 192},
                                   {512, 24},  {768, 12}, {1024, 24}, {2048, 24}};
    if (argc != 1 && argc != 3) return status_fail(STATUS_USAGE, "bench_svd_cuda [SIDE COUNT]");
    TRY(svd_cuda(&j->device));
    status s = STATUS_OK;
    if (argc == 3) {
        int side = atoi(argv[1]), count = atoi(argv[2]);
        if (side < 1 || count < 1) return status_fail(STATUS_USAGE, "SIDE and COUNT are at least 1");
        return time_size(j, side, count);
    }
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && s == STATUS_OK; i++)
        s = time_size(j, sizes[i][0], sizes[i][1]);
    return s;
}

int main(int argc, char **argv) {
    static job j;
    status s = run(&j, argc, argv);
    if (s != STATUS_OK) fprintf(stderr, "bench_svd_cuda: %s\n", status_message());
    if (j.device.close) j.device.close(&j.device);
    return s;
}
