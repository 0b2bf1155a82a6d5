/* What the snapshot channel costs the training loop: mpirun -n 3 bench_channel [MIB [WORK_MS]], the last rank receives.
 *
 * Each compute rank repeats a step of WORK_MS of arithmetic and one all-reduce of 4 MiB; every other step begins with a
 * snapshot of MIB, so that what else the machine does falls on both kinds alike. The receiver checks every byte of the
 * first snapshots. Prints one JSON line: whether the receiver read snapshots out of their buffers (else they were
 * messages), median and least ms of a step of either kind, ms a snapshot took when nothing else ran, and the processor
 * time of compute rank 0 a snapshot. */
#include "comm/channel.h"
#include "bench/times.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { STEPS = 60, GRADIENT_COUNT = 1 << 20, MIB = 1 << 20, VERIFIED = 2 };

typedef struct worker {
    ops ops;
    comm_group group;
    channel_sender *sender;
    float *gradient;
    size_t snapshot_bytes;
    int64_t rounds; /* of work() in a step */
    int64_t step;
} worker;

static double now_ms(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* Arithmetic in registers: what slows it down is only a lost core. Volatile, so that it happens where it stands. */
static void work(int64_t rounds) {
    volatile double start = 1, sink;
    double x = start;
    for (int64_t i = 0; i < rounds; i++) x = x * 0.999999 + 1e-6;
    sink = x;
    (void)sink;
}

static unsigned char pattern(int64_t step, size_t i) {
    return (unsigned char)(i * 31 + i / 997 + (size_t)step);
}

static status send_snapshot(worker *w, int64_t step) {
    unsigned char *buffer = channel_snapshot_buffer(w->sender);
    if (!buffer) return channel_sender_status(w->sender);
    for (size_t i = 0; i < w->snapshot_bytes && step < VERIFIED; i++) buffer[i] = pattern(step, i);
    return channel_snapshot_send(w->sender, step, w->snapshot_bytes, NULL, 0);
}

static status time_steps(worker *w, double quiet[STEPS], double sending[STEPS]) {
    for (int i = 0; i < 2 * STEPS; i++) {
        double start = now_ms(CLOCK_MONOTONIC);
        if (i % 2 == 1) TRY(send_snapshot(w, w->step++));
        work(w->rounds);
        comm_all_reduce(&w->group, w->gradient, GRADIENT_COUNT, DTYPE_F32, COMM_SUM, "bench", -1);
        (i % 2 == 1 ? sending : quiet)[i / 2] = now_ms(CLOCK_MONOTONIC) - start;
    }
    times_sort(quiet, STEPS);
    times_sort(sending, STEPS);
    return comm_status(&w->group);
}

/* A buffer is free again when its snapshot has left: the third waits for the first. */
static status time_snapshot(worker *w, double *ms, double *cpu_ms) {
    enum { SENT = 8 };
    double start = 0, cpu_start = 0;
    for (int i = 0; i < SENT + CHANNEL_SNAPSHOT_BUFFERS; i++) {
        TRY(send_snapshot(w, w->step++));
        if (i != CHANNEL_SNAPSHOT_BUFFERS - 1) continue;
        start = now_ms(CLOCK_MONOTONIC);
        cpu_start = now_ms(CLOCK_PROCESS_CPUTIME_ID);
    }
    *ms = (now_ms(CLOCK_MONOTONIC) - start) / SENT;
    *cpu_ms = (now_ms(CLOCK_PROCESS_CPUTIME_ID) - cpu_start) / SENT;
    return STATUS_OK;
}

static status compute(const comm_roles *r, size_t snapshot_bytes, double work_ms) {
    worker w = {.snapshot_bytes = snapshot_bytes};
    TRY(comm_over_mpi(&w.group, r->compute));
    w.gradient = calloc(GRADIENT_COUNT, sizeof *w.gradient);
    if (!w.gradient) return status_fail(STATUS_INTERNAL, "out of memory");
    TRY(ops_cpu(&w.ops, 1));
    TRY(channel_sender_open(&w.sender, r, snapshot_bytes, &w.ops));
    double start = now_ms(CLOCK_PROCESS_CPUTIME_ID);
    work(4000000);
    w.rounds = (int64_t)(4000000 * work_ms / (now_ms(CLOCK_PROCESS_CPUTIME_ID) - start));
    MPI_Bcast(&w.rounds, 1, MPI_INT64_T, 0, r->compute);

    double snapshot_ms = 0, cpu_ms = 0, quiet[STEPS], sending[STEPS];
    status result = time_snapshot(&w, &snapshot_ms, &cpu_ms);
    if (result == STATUS_OK) result = time_steps(&w, quiet, sending);
    bool shared = channel_snapshots_shared(w.sender);
    status closed = channel_sender_close(w.sender);
    if (r->compute_rank == 0 && result == STATUS_OK)
        printf("{\"bench\": \"channel\", \"compute_ranks\": %d, \"shared\": %s, \"snapshot_mib\": %zu, "
               "\"snapshot_ms\": %.2f, "
               "\"snapshot_cpu_ms\": %.3f, \"step_ms\": %.3f, \"step_ms_sending\": %.3f, \"least_step_ms\": %.3f, "
               "\"least_step_ms_sending\": %.3f}\n",
               r->tp * r->dp, shared ? "true" : "false", snapshot_bytes / MIB, snapshot_ms, cpu_ms, quiet[STEPS / 2],
               sending[STEPS / 2], quiet[0], sending[0]);
    free(w.gradient);
    comm_close(&w.group);
    return result != STATUS_OK ? result : closed;
}

static status receive(const comm_roles *r) {
    channel_receiver *channel = NULL;
    TRY(channel_receiver_open(&channel, r));
    status result = STATUS_OK;
    channel_message m;
    do {
        result = channel_receive(channel, &m);
        const unsigned char *data = m.data;
        for (size_t i = 0; m.kind == CHANNEL_SNAPSHOT && m.step < VERIFIED && i < m.bytes; i++)
            if (data[i] != pattern(m.step, i)) result = status_fail(STATUS_INTERNAL, "a snapshot arrived damaged");
        channel_release(channel, &m);
    } while (result == STATUS_OK && m.kind != CHANNEL_END);
    channel_receiver_close(channel);
    return result;
}

static status run(size_t snapshot_bytes, double work_ms) {
    comm_roles r;
    TRY(comm_roles_split(&r, 1, 0, 1));
    status result = comm_agree(r.world, r.diagnostics ? receive(&r) : compute(&r, snapshot_bytes, work_ms));
    comm_roles_free(&r);
    return result;
}

int main(int argc, char **argv) {
    long mib = argc > 1 ? strtol(argv[1], NULL, 10) : 8;
    double work_ms = argc > 2 ? strtod(argv[2], NULL) : 10;
    if (mib < 1 || mib > 4096 || !(work_ms > 0)) {
        fprintf(stderr, "usage: mpirun -n 3 bench_channel [MIB [WORK_MS]]\n");
        return STATUS_USAGE;
    }
    status result = comm_start(&argc, &argv);
    if (result == STATUS_OK) result = run((size_t)mib * MIB, work_ms);
    if (result != STATUS_OK) fprintf(stderr, "%s\n", status_message());
    comm_stop();
    return result;
}
