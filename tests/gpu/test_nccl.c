/* Collectives between GPUs over NCCL, behind the same header as those over MPI: sums against double, maxima, what is
 * started beside queued work, the same bits on every rank and again, and a failure that is kept. One GPU
 * a rank. */
#include "core/rng.h"
#include "device.h"
#include "dist/two_groups.h"

enum { COUNT = 100003, REPEATS = 5 };

typedef struct gpu {
    ops ops;
    comm_group group;
    void *data;
    int rank, size;
} gpu;

static void open_gpu(gpu *g) {
    MPI_Comm_rank(MPI_COMM_WORLD, &g->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &g->size);
    check_status(ops_cuda(&g->ops, test_gpu(g->rank, g->size), false), STATUS_OK);
    check_status(comm_over_device(&g->group, MPI_COMM_WORLD, &g->ops), STATUS_OK);
    assert_int_equal(g->group.rank, g->rank);
    g->data = g->ops.alloc(&g->ops, COUNT * sizeof(double));
    assert_non_null(g->data);
}

static void close_gpu(gpu *g) {
    check_status(comm_status(&g->group), STATUS_OK);
    check_status(ops_status(&g->ops), STATUS_OK);
    comm_close(&g->group);
    g->ops.release(&g->ops, g->data);
    g->ops.close(&g->ops);
}

static void numbers_of(float *out, int rank) {
    rng_normal(out, 11, (uint64_t)rank, 0, COUNT, 1);
}

/* Every rank's bytes are those of rank 0. */
static void check_same_everywhere(const void *mine, size_t bytes) {
    char *first = malloc(bytes);
    assert_non_null(first);
    memcpy(first, mine, bytes);
    MPI_Bcast(first, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
    assert_memory_equal(first, mine, bytes);
    free(first);
}

/* Sums of g->data, filled anew each time, are those of double and every time the same bits. */
static void check_sums(gpu *g) {
    static float mine[COUNT], other[COUNT], got[COUNT], again[COUNT];
    static double want[COUNT];
    numbers_of(mine, g->rank);
    memset(want, 0, sizeof want);
    for (int r = 0; r < g->size; r++) {
        numbers_of(other, r);
        for (int i = 0; i < COUNT; i++) want[i] += other[i];
    }
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        g->ops.upload(&g->ops, g->data, mine, sizeof mine);
        comm_all_reduce(&g->group, g->data, COUNT, DTYPE_F32, COMM_SUM, "sum", 3);
        g->ops.download(&g->ops, repeat ? again : got, g->data, sizeof got);
        if (repeat) assert_memory_equal(again, got, sizeof got);
    }
    for (int i = 0; i < COUNT; i++) check_near(got[i], want[i], 1e-6 * (g->size + fabs(want[i])));
    check_same_everywhere(got, sizeof got);
}

static void sums_agree_with_double(void **state) {
    gpu g;
    open_gpu(&g);
    check_sums(&g);
    close_gpu(&g);
}

static void sums_in_registered_memory(void **state) {
    gpu g;
    open_gpu(&g);
    void *own = g.data;
    g.data = g.ops.alloc_shared(&g.ops, COUNT * sizeof(double));
    assert_non_null(g.data);
    comm_register(&g.group, g.data, COUNT * sizeof(double));
    check_sums(&g);
    check_status(comm_status(&g.group), STATUS_OK);
    comm_close(&g.group);
    g.ops.release_shared(&g.ops, g.data);
    g.data = own;
    close_gpu(&g);
}

static void bf16_and_doubles_are_summed(void **state) {
    gpu g;
    open_gpu(&g);
    const uint16_t one_and_a_half = 0x3fc0; /* bf16 */
    uint16_t got = 0;
    g.ops.upload(&g.ops, g.data, &one_and_a_half, sizeof got);
    comm_all_reduce(&g.group, g.data, 1, DTYPE_BF16, COMM_SUM, "sum", 0);
    g.ops.download(&g.ops, &got, g.data, sizeof got);
    uint32_t bits = (uint32_t)got << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    check_near(value, 1.5 * g.size, 0);

    double third = 1.0 / 3 + g.rank, sum = 0;
    g.ops.upload(&g.ops, g.data, &third, sizeof third);
    comm_all_reduce(&g.group, g.data, 1, DTYPE_F64, COMM_SUM, "norm", -1);
    g.ops.download(&g.ops, &sum, g.data, sizeof sum);
    check_near(sum, g.size / 3.0 + g.size * (g.size - 1) / 2.0, 1e-14);
    close_gpu(&g);
}

static void maxima_are_exact(void **state) {
    gpu g;
    open_gpu(&g);
    float values[3] = {(float)g.rank, (float)-g.rank, -INFINITY};
    g.ops.upload(&g.ops, g.data, values, sizeof values);
    comm_all_reduce(&g.group, g.data, 3, DTYPE_F32, COMM_MAX, "maximum", -1);
    g.ops.download(&g.ops, values, g.data, sizeof values);
    assert_true(values[0] == (float)(g.size - 1) && values[1] == 0 && values[2] == -INFINITY);
    close_gpu(&g);
}

/* From every root in turn, with a sum queued between start and finish. */
static void a_broadcast_overlaps_other_work(void **state) {
    gpu g;
    open_gpu(&g);
    float *key = g.ops.alloc(&g.ops, COUNT * sizeof *key);
    static float mine[COUNT], got[COUNT];
    for (int layer = 0; layer < 6; layer++) {
        int root = layer % g.size;
        for (int i = 0; i < COUNT; i++) mine[i] = g.rank == root ? (float)(i % 1000 + layer) : NAN;
        g.ops.upload(&g.ops, key, mine, sizeof mine);
        comm_broadcast_start(&g.group, key, COUNT, DTYPE_F32, root, "rotary key", layer);
        float rank = (float)g.rank;
        g.ops.upload(&g.ops, g.data, &rank, sizeof rank);
        comm_finish(&g.group);
        comm_all_reduce(&g.group, g.data, 1, DTYPE_F32, COMM_SUM, "sum", layer);
        g.ops.download(&g.ops, got, key, sizeof got);
        for (int i = 0; i < COUNT; i++) assert_true(got[i] == (float)(i % 1000 + layer));
        g.ops.download(&g.ops, &rank, g.data, sizeof rank);
        assert_true(rank == (float)(g.size * (g.size - 1) / 2));
    }
    g.ops.release(&g.ops, key);
    close_gpu(&g);
}

enum { BUCKETS = 4 };

/* Buckets lie one behind the other: scattered sums of all, several under way beside blocking sums, each of which reads
 * what was queued before it; then gathered again, they are the plain sums, which are checked against double. */
static void buckets_are_summed_in_pieces(void **state) {
    gpu g;
    open_gpu(&g);
    int64_t piece = COUNT / BUCKETS / g.size, bucket = piece * g.size, count = BUCKETS * bucket;
    float *data = g.data;
    static float mine[COUNT], other[COUNT], got[COUNT], again[COUNT];
    static double want[COUNT];
    numbers_of(mine, g.rank);
    memset(want, 0, sizeof want);
    for (int r = 0; r < g.size; r++) {
        numbers_of(other, r);
        for (int64_t i = 0; i < count; i++) want[i] += other[i];
    }
    double *scalar = g.ops.alloc(&g.ops, sizeof *scalar), one = 1;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        for (int i = 0; i < BUCKETS; i++) {
            g.ops.upload(&g.ops, data + i * bucket, mine + i * bucket, (size_t)bucket * sizeof *mine);
            comm_reduce_scatter_start(&g.group, data + i * bucket, piece, DTYPE_F32, "gradients", i);
            g.ops.upload(&g.ops, scalar, &one, sizeof one);
            comm_all_reduce(&g.group, scalar, 1, DTYPE_F64, COMM_SUM, "sum", i);
        }
        comm_finish(&g.group);
        for (int i = 0; i < BUCKETS; i++)
            comm_all_gather_start(&g.group, data + i * bucket, piece, DTYPE_F32, "weights", i);
        comm_finish(&g.group);
        g.ops.download(&g.ops, repeat ? again : got, data, (size_t)count * sizeof *got);
        if (repeat) assert_memory_equal(again, got, (size_t)count * sizeof *got);
    }
    double sum = 0;
    g.ops.download(&g.ops, &sum, scalar, sizeof sum);
    check_near(sum, g.size, 0);
    for (int64_t i = 0; i < count; i++) check_near(got[i], want[i], 1e-6 * (g.size + fabs(want[i])));
    check_same_everywhere(got, (size_t)count * sizeof *got);
    for (int i = 0; i < BUCKETS; i++) {
        g.ops.upload(&g.ops, data + i * bucket, mine + i * bucket, (size_t)bucket * sizeof *mine);
        comm_sum_start(&g.group, data + i * bucket, bucket, DTYPE_F32, "gradients", i);
    }
    comm_finish(&g.group);
    g.ops.download(&g.ops, again, data, (size_t)count * sizeof *again);
    for (int64_t i = 0; i < count; i++) check_near(again[i], want[i], 1e-6 * (g.size + fabs(want[i])));
    g.ops.release(&g.ops, scalar);
    close_gpu(&g);
}

/* More than the group has events for, three under way at any time, each read as soon as its own ticket was waited for.
 */
static void each_is_complete_behind_its_ticket(void **state) {
    enum { STARTS = 400, UNDER_WAY = 3, SHARE = COUNT / UNDER_WAY };
    gpu g;
    open_gpu(&g);
    static float host[SHARE];
    comm_ticket tickets[UNDER_WAY] = {0};
    for (int i = 0; i < STARTS + UNDER_WAY; i++) {
        float *at = (float *)g.data + (i % UNDER_WAY) * SHARE;
        float want = (float)(g.size * (i - UNDER_WAY) + g.size * (g.size - 1) / 2);
        comm_wait(&g.group, tickets[i % UNDER_WAY]);
        if (i >= UNDER_WAY) g.ops.download(&g.ops, host, at, sizeof host);
        if (i >= UNDER_WAY) assert_true(host[0] == want && host[SHARE - 1] == want);
        if (i >= STARTS) continue;
        for (int k = 0; k < SHARE; k++) host[k] = (float)(i + g.rank);
        g.ops.upload(&g.ops, at, host, sizeof host);
        tickets[i % UNDER_WAY] = comm_sum_start(&g.group, at, SHARE, DTYPE_F32, "sum", i);
    }
    close_gpu(&g);
}

/* Again and again: an order that depends on time shows only now and then. */
static void two_groups_never_wait_for_each_other(void **state) {
    gpu g;
    open_gpu(&g);
    for (int repeat = 0; repeat < 20; repeat++) check_two_groups(&g.ops);
    close_gpu(&g);
}

static void two_ranks_on_one_gpu_are_refused(void **state) {
    ops o;
    comm_roles roles;
    comm_group tp, dp;
    if (ops_cuda_devices() < 1 || world_size() < 2) {
        print_message("skipped: needs 2 ranks and an NVIDIA GPU\n");
        skip();
    }
    check_status(ops_cuda(&o, 0, false), STATUS_OK);
    for (int across = 1; across <= world_size(); across += world_size() - 1) {
        check_status(comm_roles_split(&roles, across, 0, 0), STATUS_OK);
        check_status(comm_roles_groups(&roles, &o, &tp, &dp), STATUS_CONFIG);
        assert_non_null(strstr(status_message(), "compute ranks 0 and 1 are on the same GPU"));
        status_clear();
        comm_close(&tp);
        comm_close(&dp);
        comm_roles_free(&roles);
    }
    o.close(&o);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(sums_agree_with_double),
    cmocka_unit_test(sums_in_registered_memory),
    cmocka_unit_test(bf16_and_doubles_are_summed),
    cmocka_unit_test(maxima_are_exact),
    cmocka_unit_test(a_broadcast_overlaps_other_work),
    cmocka_unit_test(buckets_are_summed_in_pieces),
    cmocka_unit_test(each_is_complete_behind_its_ticket),
    cmocka_unit_test(two_groups_never_wait_for_each_other),
    cmocka_unit_test(two_ranks_on_one_gpu_are_refused),
};

DIST_MAIN(tests)
