/* bench_svd_cuda: singular values of many matrices on the GPU, by Jacobi and by the symmetric embedding: one JSON line
 * a size and method, median ms of REPEATS, on the device and with the way there and back.
 *
 * usage: bench_svd_cuda [SIDE COUNT]     default: the budgets' sizes
 * Both methods must agree to side 2^-23 of the largest value; small values are checked by test_spectra_cuda. */
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
    int side, count, jacobi_side;
    float *host, *values, *first_values; /* host: page-locked; first_values: of the first method */
    float *matrices, *found;             /* on the device */
    size_t bytes, value_bytes;
    bool compared;
} job;

static status allocate(job *j) {
    ops *o = &j->device.ops;
    j->bytes = (size_t)j->count * (size_t)j->side * (size_t)j->side * sizeof(float);
    j->value_bytes = (size_t)j->count * (size_t)j->side * sizeof(float);
    j->host = o->host_alloc(o, j->bytes);
    j->values = o->host_alloc(o, j->value_bytes);
    j->first_values = o->host_alloc(o, j->value_bytes);
    j->matrices = o->alloc(o, j->bytes);
    j->found = o->alloc(o, j->value_bytes);
    if (!j->host || !j->values || !j->first_values || !j->matrices || !j->found)
        return status_fail(STATUS_CONFIG, "out of memory");
    rng_normal(j->host, 1, 0, 0, (int64_t)(j->bytes / sizeof(float)), 1);
    return STATUS_OK;
}

static void release(job *j) {
    ops *o = &j->device.ops;
    float *const host[] = {j->host, j->values, j->first_values}, *const device[] = {j->matrices, j->found};
    for (int i = 0; i < 3; i++)
        if (host[i]) o->host_release(o, host[i]);
    for (int i = 0; i < 2; i++)
        if (device[i]) o->release(o, device[i]);
}

static status compare(job *j) {
    if (!j->compared) {
        for (size_t i = 0; i < j->value_bytes / sizeof(float); i++) j->first_values[i] = j->values[i];
        j->compared = true;
    }
    for (int m = 0; m < j->count; m++) {
        const float *a = j->first_values + (size_t)m * (size_t)j->side, *b = j->values + (size_t)m * (size_t)j->side;
        for (int i = 0; i < j->side; i++)
            if (!(fabsf(a[i] - b[i]) <= (float)j->side * 0x1p-23f * a[0]))
                return status_fail(STATUS_INTERNAL, "matrix %d, value %d: %.9g and %.9g", m, i, a[i], b[i]);
    }
    return STATUS_OK;
}

static status time_method(job *j, const char *method, int small_side) {
    ops *o = &j->device.ops;
    double whole_ms[REPEATS], solve_ms[REPEATS];
    j->device.small_side = small_side;
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
    TRY(compare(j));
    times_sort(whole_ms, REPEATS);
    times_sort(solve_ms, REPEATS);
    printf("{\"bench\":\"svd_cuda\",\"side\":%d,\"count\":%d,\"method\":\"%s\",\"solve_ms\":%.3f,\"ms\":%.3f}\n",
           j->side, j->count, method, solve_ms[REPEATS / 2], whole_ms[REPEATS / 2]);
    fflush(stdout);
    return STATUS_OK;
}

static status time_size(job *j, int side, int count) {
    j->side = side;
    j->count = count;
    j->compared = false;
    status s = allocate(j);
    if (s == STATUS_OK && side <= j->jacobi_side) s = time_method(j, "jacobi", j->jacobi_side);
    if (s == STATUS_OK) s = time_method(j, "embedding", 0);
    release(j);
    return s;
}

static status run(job *j, int argc, char **argv) {
    static const int sizes[][2] = {{64, 1536}, {96, 768}, {128, 768}, {192, 384}, {224, 192}, {768, 12}, {1024, 24}};
    if (argc != 1 && argc != 3) return status_fail(STATUS_USAGE, "bench_svd_cuda [SIDE COUNT]");
    TRY(svd_cuda(&j->device));
    j->jacobi_side = j->device.small_side;
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
