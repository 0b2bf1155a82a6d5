/* Collectives against a reference in double, at any number of ranks; the same bits on every rank and every time. */
#include "two_groups.h"

#include "core/ops/profile.h"
#include "core/rng.h"

#include <float.h>
#include <time.h>

enum { REPEATS = 20, LARGE = 3000017 };

static comm_group open_world(void) {
    comm_group g;
    check_status(comm_over_mpi(&g, MPI_COMM_WORLD), STATUS_OK);
    assert_int_equal(g.rank, world_rank());
    assert_int_equal(g.size, world_size());
    return g;
}

/* Element i of rank's input: its magnitude spreads over four decades, so that the order of a sum shows in its bits. */
static double input(int rank, int64_t i) {
    uint64_t bits = rng_u64(11, (uint64_t)rank, (uint64_t)i);
    static const double scale[] = {1e-2, 1, 1e1, 1e2};
    return ((double)(bits >> 11) * 0x1p-53 - 0.5) * scale[bits & 3];
}

static void fill(void *data, int64_t count, dtype type, int rank) {
    for (int64_t i = 0; i < count; i++) {
        if (type == DTYPE_F32) {
            ((float *)data)[i] = (float)input(rank, i);
        } else {
            ((double *)data)[i] = input(rank, i);
        }
    }
}

static double element(const void *data, dtype type, int64_t i) {
    return type == DTYPE_F32 ? (double)((const float *)data)[i] : ((const double *)data)[i];
}

/* Every element against the same sum or maximum in double. A sum of n terms in any order is off by at most (n - 1)
 * roundings of the sum of magnitudes. */
static void check_reduced(const void *data, int64_t count, dtype type, comm_op op, int size) {
    double epsilon = type == DTYPE_F32 ? FLT_EPSILON : DBL_EPSILON;
    for (int64_t i = 0; i < count; i++) {
        double sum = 0, magnitude = 0, most = -INFINITY;
        for (int r = 0; r < size; r++) {
            double x = type == DTYPE_F32 ? (double)(float)input(r, i) : input(r, i);
            sum += x;
            magnitude += fabs(x);
            if (x > most) most = x;
        }
        if (op == COMM_SUM) {
            check_near(element(data, type, i), sum, size * epsilon * magnitude);
        } else {
            check_near(element(data, type, i), most, 0);
        }
    }
}

/* All ranks hold the same bytes as rank 0. */
static void check_same_on_all(const void *data, size_t bytes) {
    unsigned char *first = malloc(bytes + 1);
    assert_non_null(first);
    if (bytes > 0) memcpy(first, data, bytes);
    MPI_Bcast(first, (int)bytes, MPI_BYTE, 0, MPI_COMM_WORLD);
    int same = bytes == 0 || memcmp(first, data, bytes) == 0;
    free(first);
    assert_true(same);
}

static void check_all_reduce(comm_group *g, int64_t count, dtype type, comm_op op, int repeats) {
    size_t bytes = (size_t)count * dtype_bytes(type);
    char *data = malloc(bytes + 1), *before = malloc(bytes + 1);
    assert_non_null(data);
    assert_non_null(before);
    data[bytes] = 42;
    for (int i = 0; i < repeats; i++) {
        fill(data, count, type, g->rank);
        comm_all_reduce(g, data, count, type, op, "test", -1);
        check_status(comm_status(g), STATUS_OK);
        if (i > 0) assert_int_equal(memcmp(data, before, bytes), 0);
        memcpy(before, data, bytes);
    }
    assert_int_equal(data[bytes], 42); /* nothing beyond the end */
    check_reduced(data, count, type, op, g->size);
    check_same_on_all(data, bytes);
    free(data);
    free(before);
}

static void all_reduce_agrees_with_double(void **state) {
    static const int64_t counts[] = {0, 1, 2, 3, 7, 255, 1024, 4097, 65537};
    comm_group g = open_world();
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        for (int op = COMM_SUM; op <= COMM_MAX; op++) {
            check_all_reduce(&g, counts[i], DTYPE_F32, (comm_op)op, REPEATS);
            check_all_reduce(&g, counts[i], DTYPE_F64, (comm_op)op, REPEATS);
        }
    }
    comm_close(&g);
}

static void a_large_all_reduce_agrees_with_double(void **state) {
    comm_group g = open_world();
    check_all_reduce(&g, LARGE, DTYPE_F32, COMM_SUM, 3);
    check_all_reduce(&g, LARGE / 3, DTYPE_F64, COMM_SUM, 2);
    comm_close(&g);
}

/* A NaN on one rank is a NaN on all: hidden on some, the ranks would go on with different values. */
static void a_nan_wins_the_maximum_on_every_rank(void **state) {
    comm_group g = open_world();
    for (int sick = 0; sick < g.size; sick++) {
        float data[3] = {(float)g.rank, g.rank == sick ? NAN : 5.0F, g.rank == sick ? 0.0F : -0.0F};
        comm_all_reduce(&g, data, 3, DTYPE_F32, COMM_MAX, "test", -1);
        check_status(comm_status(&g), STATUS_OK);
        check_near(data[0], g.size - 1, 0);
        assert_true(isnan(data[1]));
        assert_false(signbit(data[2]));
        check_same_on_all(data, sizeof data);
    }
    comm_close(&g);
}

static void broadcast_brings_the_roots_bytes(void **state) {
    static const dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F64};
    static const int64_t counts[] = {0, 1, 33, 100003};
    comm_group g = open_world();
    for (size_t t = 0; t < 3; t++) {
        for (size_t c = 0; c < 4; c++) {
            for (int root = 0; root < g.size; root++) {
                size_t bytes = (size_t)counts[c] * dtype_bytes(types[t]);
                unsigned char *data = malloc(bytes + 1);
                assert_non_null(data);
                for (size_t i = 0; i <= bytes; i++) data[i] = (unsigned char)((size_t)g.rank * 31 + i);
                comm_broadcast_start(&g, data, counts[c], types[t], root, "test", 2);
                comm_finish(&g);
                check_status(comm_status(&g), STATUS_OK);
                for (size_t i = 0; i < bytes; i++)
                    if (data[i] != (unsigned char)((size_t)root * 31 + i)) fail_msg("byte %zu from root %d", i, root);
                assert_int_equal(data[bytes], (unsigned char)((size_t)g.rank * 31 + bytes));
                free(data);
            }
        }
    }
    comm_close(&g);
}

/* Split phase: other collectives of the same group may come between start and finish. */
static void an_all_reduce_fits_into_a_broadcast(void **state) {
    enum { COUNT = 50000 };
    comm_group g = open_world();
    float *key = malloc(COUNT * sizeof *key), *sum = malloc(COUNT * sizeof *sum);
    assert_true(key && sum);
    for (int layer = 0; layer < 8; layer++) {
        int root = layer % g.size;
        for (int i = 0; i < COUNT; i++) {
            key[i] = g.rank == root ? (float)(i + layer) : -1;
            sum[i] = (float)(g.rank + 1);
        }
        comm_broadcast_start(&g, key, COUNT, DTYPE_F32, root, "rotary key", layer);
        comm_all_reduce(&g, sum, COUNT, DTYPE_F32, COMM_SUM, "projection", layer);
        comm_finish(&g);
        check_status(comm_status(&g), STATUS_OK);
        for (int i = 0; i < COUNT; i++) {
            assert_true(key[i] == (float)(i + layer));
            assert_true(sum[i] == (float)(g.size * (g.size + 1)) / 2);
        }
    }
    assert_int_equal(g.sequence, 16);
    /* What a message would name: over MPI the finish of the last broadcast. */
    assert_string_equal(g.place, g.size > 1 ? "rotary key" : "projection");
    assert_int_equal(g.layer, 7);
    assert_int_equal(g.number, g.size > 1 ? 15 : 16);
    free(key);
    free(sum);
    comm_close(&g);
}

enum { BUCKETS = 6 };

/* Elements a rank of bucket i: none, one, what a library sends whole and what it cuts. */
static int64_t piece_of(int i) {
    static const int64_t pieces[BUCKETS] = {1, 33, 0, 1024, 65537, 300007};
    return pieces[i];
}

typedef struct buckets {
    void *data[BUCKETS];
    dtype type;
} buckets;

static void open_buckets(buckets *b, const comm_group *g, dtype type) {
    b->type = type;
    for (int i = 0; i < BUCKETS; i++) {
        b->data[i] = malloc((size_t)(piece_of(i) * g->size) * dtype_bytes(type) + 1);
        assert_non_null(b->data[i]);
    }
}

static void close_buckets(buckets *b) {
    for (int i = 0; i < BUCKETS; i++) free(b->data[i]);
}

/* The sum of all buckets, started one behind the other, each whole or scattered, with other collectives in between. */
static void sum_buckets(buckets *b, comm_group *g, bool scattered) {
    for (int i = 0; i < BUCKETS; i++) {
        double one = 1;
        fill(b->data[i], piece_of(i) * g->size, b->type, g->rank);
        if (scattered)
            comm_reduce_scatter_start(g, b->data[i], piece_of(i), b->type, "bucket", i);
        else
            comm_sum_start(g, b->data[i], piece_of(i) * g->size, b->type, "bucket", i);
        comm_progress(g);
        comm_all_reduce(g, &one, 1, DTYPE_F64, COMM_SUM, "in between", i);
        check_near(one, g->size, 0);
    }
    comm_finish(g);
    check_status(comm_status(g), STATUS_OK);
}

/* Piece `rank` of bucket i. */
static char *piece_at(const buckets *b, int i, int rank) {
    return (char *)b->data[i] + (size_t)(piece_of(i) * rank) * dtype_bytes(b->type);
}

static void check_piece(const buckets *b, int i, int rank, int size) {
    double epsilon = b->type == DTYPE_F32 ? FLT_EPSILON : DBL_EPSILON;
    for (int64_t k = 0; k < piece_of(i); k++) {
        int64_t at = rank * piece_of(i) + k;
        double sum = 0, magnitude = 0;
        for (int r = 0; r < size; r++) {
            double x = b->type == DTYPE_F32 ? (double)(float)input(r, at) : input(r, at);
            sum += x;
            magnitude += fabs(x);
        }
        check_near(element(piece_at(b, i, rank), b->type, k), sum, size * epsilon * magnitude);
    }
}

/* Each rank's piece of a scattered sum is right, and every time the same bits. */
static void pieces_of_sums_agree_with_double(void **state) {
    comm_group g = open_world();
    for (int t = 0; t < 2; t++) {
        buckets b, again;
        open_buckets(&b, &g, t ? DTYPE_F64 : DTYPE_F32);
        open_buckets(&again, &g, b.type);
        sum_buckets(&b, &g, true);
        for (int i = 0; i < BUCKETS; i++) check_piece(&b, i, g.rank, g.size);
        for (int repeat = 0; repeat < 3; repeat++) {
            sum_buckets(&again, &g, true);
            for (int i = 0; i < BUCKETS; i++)
                assert_memory_equal(piece_at(&b, i, g.rank), piece_at(&again, i, g.rank),
                                    (size_t)piece_of(i) * dtype_bytes(b.type));
        }
        close_buckets(&b);
        close_buckets(&again);
    }
    comm_close(&g);
}

static void sums_side_by_side_agree_with_double(void **state) {
    comm_group g = open_world();
    buckets b;
    open_buckets(&b, &g, DTYPE_F32);
    sum_buckets(&b, &g, false);
    for (int i = 0; i < BUCKETS; i++) {
        for (int rank = 0; rank < g.size; rank++) check_piece(&b, i, rank, g.size);
        check_same_on_all(b.data[i], (size_t)(piece_of(i) * g.size) * sizeof(float));
    }
    close_buckets(&b);
    comm_close(&g);
}

static void gathered_pieces_come_from_their_ranks(void **state) {
    static const dtype types[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F64};
    comm_group g = open_world();
    for (int t = 0; t < 3; t++) {
        buckets b;
        open_buckets(&b, &g, types[t]);
        for (int i = 0; i < BUCKETS; i++) {
            size_t bytes = (size_t)piece_of(i) * dtype_bytes(types[t]);
            memset(b.data[i], 255, bytes * (size_t)g.size + 1);
            for (size_t k = 0; k < bytes; k++) piece_at(&b, i, g.rank)[k] = (char)((size_t)g.rank * 31 + k);
            comm_all_gather_start(&g, b.data[i], piece_of(i), types[t], "weights", i);
        }
        comm_finish(&g);
        check_status(comm_status(&g), STATUS_OK);
        for (int i = 0; i < BUCKETS; i++) {
            size_t bytes = (size_t)piece_of(i) * dtype_bytes(types[t]);
            for (int rank = 0; rank < g.size; rank++)
                for (size_t k = 0; k < bytes; k++)
                    if (piece_at(&b, i, rank)[k] != (char)((size_t)rank * 31 + k))
                        fail_msg("bucket %d: byte %zu from rank %d", i, k, rank);
            assert_int_equal((unsigned char)piece_at(&b, i, g.size)[0], 255); /* nothing beyond the end */
        }
        close_buckets(&b);
    }
    comm_close(&g);
}

/* Three under way at any time, of each kind in turn, each used as soon as its own ticket was waited for; the last ones
 * are completed by the end of the group. */
static void each_is_complete_behind_its_ticket(void **state) {
    enum { STARTS = 400, UNDER_WAY = 3, PIECE = 700, MOST = 4 * PIECE };
    static float data[UNDER_WAY][MOST];
    comm_ticket tickets[UNDER_WAY];
    comm_group g = open_world();
    int64_t count = (int64_t)PIECE * g.size;
    for (int i = 0; i < STARTS + UNDER_WAY; i++) {
        float *at = data[i % UNDER_WAY];
        int before = i - UNDER_WAY, theirs = before % 3 == 2 ? before % g.size : 0;
        if (i == STARTS) comm_close(&g);
        if (i < STARTS && before >= 0) comm_wait(&g, tickets[i % UNDER_WAY]);
        for (int r = 0; before >= 0 && r < g.size; r++) {
            float sum = (float)(g.size * before + g.size * (g.size - 1) / 2);
            float want = before % 3 == 0 ? (float)(before + r) : before % 3 == 1 ? sum : (float)(before + theirs);
            assert_true(at[r * PIECE] == want && at[(r + 1) * PIECE - 1] == want);
        }
        if (i >= STARTS) continue;
        for (int64_t k = 0; k < count; k++) at[k] = (float)(i + g.rank);
        if (i % 3 == 0) tickets[i % UNDER_WAY] = comm_all_gather_start(&g, at, PIECE, DTYPE_F32, "weights", i);
        if (i % 3 == 1) tickets[i % UNDER_WAY] = comm_sum_start(&g, at, count, DTYPE_F32, "sum", i);
        if (i % 3 == 2)
            tickets[i % UNDER_WAY] = comm_broadcast_start(&g, at, count, DTYPE_F32, i % g.size, "rotary key", i);
    }
    check_status(comm_status(&g), STATUS_OK);
}

/* Rank 0 starts the second sum when the others are behind the first: whoever waits for both at once waits for ever. */
static void a_wait_is_not_for_later_ones(void **state) {
    comm_group g = open_world();
    float data[2] = {1, 1}, token = 0;
    comm_ticket first = comm_sum_start(&g, &data[0], 1, DTYPE_F32, "first", -1), second = 0;
    if (g.rank > 0) second = comm_sum_start(&g, &data[1], 1, DTYPE_F32, "second", -1);
    comm_wait(&g, first);
    assert_true(data[0] == (float)g.size);
    if (g.rank > 0) MPI_Send(&token, 1, MPI_FLOAT, 0, 0, MPI_COMM_WORLD);
    for (int r = 1; g.rank == 0 && r < g.size; r++)
        MPI_Recv(&token, 1, MPI_FLOAT, r, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    if (g.rank == 0) second = comm_sum_start(&g, &data[1], 1, DTYPE_F32, "second", -1);
    assert_true(second > first);
    comm_wait(&g, second);
    comm_wait(&g, first); /* nothing is left of it */
    comm_wait(&g, 0);
    assert_true(data[1] == (float)g.size);
    check_status(comm_status(&g), STATUS_OK);
    comm_close(&g);
}

/* The first error is kept with its place, and what follows does nothing: no rank is left waiting by another's error. */
static void the_first_error_is_kept(void **state) {
    comm_group g = open_world();
    float data[4] = {1, 2, 3, 4};
    comm_all_reduce(&g, data, -2, DTYPE_F32, COMM_SUM, "gradients", 5);
    assert_int_equal(comm_status(&g), STATUS_INTERNAL);
    char rank[32];
    snprintf(rank, sizeof rank, "rank %d: all-reduce", world_rank());
    assert_non_null(strstr(status_message(), rank));
    assert_non_null(strstr(status_message(), "gradients, layer 5"));
    comm_all_reduce(&g, data, 4, DTYPE_F32, COMM_SUM, "later", 6);
    comm_broadcast_start(&g, data, 4, DTYPE_F32, 99, "later", 6);
    comm_sum_start(&g, data, 4, DTYPE_F32, "later", 6);
    comm_reduce_scatter_start(&g, data, 1, DTYPE_F32, "later", 6);
    comm_all_gather_start(&g, data, 1, DTYPE_F32, "later", 6);
    comm_progress(&g);
    comm_finish(&g);
    assert_true(data[0] == 1 && data[3] == 4);
    assert_non_null(strstr(status_message(), "gradients, layer 5"));
    comm_close(&g);
    comm_close(&g);
    status_clear();
}

static void wrong_arguments_are_errors(void **state) {
    float data[4] = {0};
    comm_group g = open_world();
    comm_broadcast_start(&g, data, 4, DTYPE_F32, g.size, "key", 0);
    assert_int_equal(comm_status(&g), STATUS_INTERNAL);
    comm_close(&g);
    g = open_world();
    comm_all_reduce(&g, data, -1, DTYPE_F32, COMM_SUM, "loss", -1);
    assert_int_equal(comm_status(&g), STATUS_INTERNAL);
    comm_close(&g);
    g = open_world();
    comm_reduce_scatter_start(&g, data, -1, DTYPE_F32, "gradients", -1);
    assert_int_equal(comm_status(&g), STATUS_INTERNAL);
    comm_close(&g);
    /* Sums in bf16 lose gradients over MPI; alone there is nothing to add. */
    g = open_world();
    comm_all_reduce(&g, data, 2, DTYPE_BF16, COMM_SUM, "gradients", -1);
    assert_int_equal(comm_status(&g), g.size > 1 ? STATUS_INTERNAL : STATUS_OK);
    comm_close(&g);
    status_clear();
}

static void sleep_s(double seconds) {
    nanosleep(&(struct timespec){.tv_nsec = (long)(1e9 * seconds)}, NULL);
}

/* Rank 0 comes late to a sum that others wait for, and ranks do something else beside one that was started. */
static void a_profile_sees_what_is_waited_for_and_what_is_hidden(void **state) {
    enum { COUNT = 1000 };
    static float data[COUNT];
    const double late = 0.2, beside = 0.3;
    comm_group g = open_world();
    bool alone = g.size == 1;
    ops cpu;
    profile p;
    check_status(ops_cpu(&cpu, 1), STATUS_OK);
    profile_open(&p, &cpu);
    comm_sum_start(&g, data, COUNT, DTYPE_F32, "nobody looks", -1);
    comm_finish(&g);
    check_near(comm_started_s(&g), 0, 0);
    g.profile = &p;
    MPI_Barrier(MPI_COMM_WORLD);
    profile_begin(&p);
    if (g.rank == 0) sleep_s(late);
    comm_all_reduce(&g, data, COUNT, DTYPE_F32, COMM_SUM, "waited for", -1);
    comm_sum_start(&g, data, COUNT, DTYPE_F32, "hidden", -1);
    comm_sum_start(&g, data, COUNT, DTYPE_F32, "hidden too", -1);
    sleep_s(beside);
    comm_finish(&g);
    profile_pause(&p);
    comm_sum_start(&g, data, COUNT, DTYPE_F32, "apart", -1);
    sleep_s(beside);
    comm_finish(&g);
    profile_resume(&p);
    profile_end(&p);
    profile_finish(&p);
    double started = comm_started_s(&g), waited = p.work[PROFILE_COLLECTIVE].seconds;
    check_near(p.work[PROFILE_COLLECTIVE].bytes, COUNT * sizeof(float), 0);
    check_near(p.work[PROFILE_WAIT].bytes, 2 * COUNT * sizeof(float), 0);
    assert_true(alone ? started == 0 : started >= beside); /* once, though there were two */
    assert_true(started < 2 * beside);
    assert_true(p.work[PROFILE_WAIT].seconds < beside / 2);
    assert_true(waited < late / 2 || g.rank > 0);
    assert_true(waited > late / 2 || g.rank == 0);
    assert_true(p.work[PROFILE_IDLE].seconds >= beside);
    check_near(comm_started_s(&g), 0, 0);
    comm_close(&g);
    profile_close(&p);
}

static void two_groups_never_wait_for_each_other(void **state) {
    ops cpu;
    check_status(ops_cpu(&cpu, 1), STATUS_OK);
    check_two_groups(&cpu);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(all_reduce_agrees_with_double),
    cmocka_unit_test(a_large_all_reduce_agrees_with_double),
    cmocka_unit_test(a_nan_wins_the_maximum_on_every_rank),
    cmocka_unit_test(broadcast_brings_the_roots_bytes),
    cmocka_unit_test(an_all_reduce_fits_into_a_broadcast),
    cmocka_unit_test(the_first_error_is_kept),
    cmocka_unit_test(pieces_of_sums_agree_with_double),
    cmocka_unit_test(sums_side_by_side_agree_with_double),
    cmocka_unit_test(gathered_pieces_come_from_their_ranks),
    cmocka_unit_test(each_is_complete_behind_its_ticket),
    cmocka_unit_test(a_wait_is_not_for_later_ones),
    cmocka_unit_test(wrong_arguments_are_errors),
    cmocka_unit_test(two_groups_never_wait_for_each_other),
    cmocka_unit_test(a_profile_sees_what_is_waited_for_and_what_is_hidden),
};

DIST_MAIN(tests)
