/* Roles in layouts of many hosts, without the hosts. */
#include "check.h"

#include "comm/layout.h"

enum { CORES = 64 };

static void check_ranks(const int *got, const int *want, int count) {
    for (int i = 0; i < count; i++)
        if (got[i] != want[i]) fail_msg("entry %d is rank %d, want %d", i, got[i], want[i]);
}

static void one_host_watches_with_its_last_rank(void **state) {
    layout l;
    check_status(layout_make(&l, (int[]){0, 0, 0}, 3, 2, 1, 1, CORES), STATUS_OK);
    check_ranks(l.compute, (int[]){0, 1}, 2);
    check_ranks(l.diagnostics, (int[]){2}, 1);
    check_ranks(l.local_compute, (int[]){0, 1, -1}, 3);
    check_ranks(l.compute_on_host, (int[]){2, 2, 2}, 3);
    layout_free(&l);
}

/* 17 tasks on two hosts of eight GPUs: the ninth task of the first host watches, and each host computes with eight. */
static void slurm_gives_nine_and_eight(void **state) {
    int host[17];
    for (int i = 0; i < 17; i++) host[i] = i < 9 ? 40 : 7;
    layout l;
    check_status(layout_make(&l, host, 17, 8, 0, 1, CORES), STATUS_OK);
    assert_int_equal(l.dp, 2);
    check_ranks(l.diagnostics, (int[]){8}, 1);
    check_ranks(l.compute, (int[]){0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16}, 16);
    for (int i = 0; i < 17; i++) assert_int_equal(l.compute_on_host[i], 8);
    assert_int_equal(l.local_compute[9], 0);
    assert_int_equal(l.local_compute[16], 7);
    layout_free(&l);
}

/* The same tasks dealt in turn (--distribution=cyclic): numbers follow hosts, not world ranks. */
static void ranks_dealt_in_turn_are_numbered_host_by_host(void **state) {
    layout l;
    check_status(layout_make(&l, (int[]){3, 1, 3, 1, 3}, 5, 2, 2, 1, CORES), STATUS_OK);
    check_ranks(l.diagnostics, (int[]){4}, 1);
    check_ranks(l.compute, (int[]){0, 2, 1, 3}, 4);
    check_ranks(l.local_compute, (int[]){0, 0, 1, 1, -1}, 5);
    layout_free(&l);
}

static void check_turns(const int *host, int world, int tp, int diagnostics, const int *want) {
    layout l;
    check_status(layout_make(&l, host, world, tp, 0, diagnostics, CORES), STATUS_OK);
    for (int i = 0; i < world; i++)
        if (layout_turn(&l, i) != want[i]) fail_msg("rank %d has turn %d, want %d", i, layout_turn(&l, i), want[i]);
    layout_free(&l);
}

/* Whichever rank or host goes, the lowest turn of those that are left is one rank's, as long as two hosts are. */
static void one_rank_tells_of_a_lost_one(void **state) {
    check_turns((int[]){0, 0, 0, 0, 0}, 5, 2, 1, (int[]){0, 1, 2, 2, 2});
    check_turns((int[]){0, 0, 0, 1, 1}, 5, 2, 1, (int[]){0, 2, 2, 1, 2});
    check_turns((int[]){5, 3, 5, 3, 5, 3}, 6, 1, 1, (int[]){0, 1, 2, 2, 2, 2});
    check_turns((int[]){0, 1, 2, 3}, 4, 1, 1, (int[]){0, 1, 2, 2});
    check_turns((int[]){0, 0}, 2, 1, 1, (int[]){0, 2});
}

static void two_watchers_are_shared_out_over_full_hosts(void **state) {
    layout l;
    check_status(layout_make(&l, (int[]){0, 0, 0, 1, 1, 1}, 6, 2, 2, 2, CORES), STATUS_OK);
    check_ranks(l.diagnostics, (int[]){2, 5}, 2);
    check_ranks(l.compute_on_host, (int[]){2, 2, 2, 2, 2, 2}, 6);
    layout_free(&l);
    check_status(layout_make(&l, (int[]){0, 0, 0, 0, 1, 1}, 6, 2, 2, 2, CORES), STATUS_OK);
    check_ranks(l.diagnostics, (int[]){2, 3}, 2);
    layout_free(&l);
}

static void check_refused(int world, int tp, int dp, int diagnostics, const char *line) {
    int host[8] = {0};
    layout l;
    status_clear();
    check_status(layout_make(&l, host, world, tp, dp, diagnostics, 4), STATUS_CONFIG);
    if (!strstr(status_message(), line)) fail_msg("\"%s\" does not say \"%s\"", status_message(), line);
    assert_null(l.compute);
}

static void check_crossing(const int *host, int world, int tp, int dp, int diagnostics, const char *line) {
    layout l;
    status_clear();
    check_status(layout_make(&l, host, world, tp, dp, diagnostics, CORES), STATUS_CONFIG);
    if (!strstr(status_message(), line)) fail_msg("\"%s\" does not say \"%s\"", status_message(), line);
    assert_null(l.compute);
}

static void a_group_across_hosts_is_refused_with_the_right_launch_line(void **state) {
    check_crossing((int[]){0, 0, 0, 1, 1, 1}, 6, 2, 3, 0, "group 1 would cross hosts: 6 compute ranks on 2 hosts");
    check_crossing((int[]){0, 0, 0, 1, 1, 1}, 6, 2, 3, 0, "mpirun -n 4 --map-by node --bind-to none bulkhead train");
    check_crossing((int[]){0, 0, 0, 1, 1, 1}, 6, 2, 0, 0, "--set parallel.data=2,");
    check_crossing((int[]){0, 0, 0, 1, 1}, 5, 4, 1, 1, "mpirun -n 9 --map-by node");
}

/* The line of the last case, obeyed: ranks dealt in turn over both hosts. */
static void the_launch_line_for_hosts_is_right(void **state) {
    layout l;
    check_status(layout_make(&l, (int[]){0, 1, 0, 1, 0, 1, 0, 1, 0}, 9, 4, 2, 1, CORES), STATUS_OK);
    check_ranks(l.compute, (int[]){0, 2, 4, 6, 1, 3, 5, 7}, 8);
    layout_free(&l);
}

static void a_wrong_world_is_told_the_right_launch_line(void **state) {
    check_refused(2, 2, 1, 1,
                  "needs 3 ranks, but the job has 2; start it with: mpirun -n 3 --bind-to none bulkhead train");
    check_refused(4, 2, 1, 1, "mpirun -n 3 --bind-to none bulkhead train");
    check_refused(4, 2, 2, 1, "mpirun -n 5 --bind-to none --oversubscribe bulkhead train");
    check_refused(1, 2, 0, 1, "needs at least 3 ranks, but the job has 1; start it with: mpirun -n 3 ");
    check_refused(4, 2, 0, 1, "mpirun -n 3 --bind-to none bulkhead train CONFIG, or: mpirun -n 5 ");
    check_refused(1, 1 << 20, 1 << 20, 1, "mpirun -n 1099511627777 ");
}

static void impossible_numbers_are_refused(void **state) {
    check_refused(2, 0, 1, 1, "parallel.tensor = 0");
    check_refused(2, -1, -1, 0, "parallel.data = -1");
    check_refused(2, 1, 0, -3, "diagnostics.ranks = -3");
    check_refused(1, 1, 0, 1, "needs at least 2 ranks");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(one_host_watches_with_its_last_rank),
    cmocka_unit_test(slurm_gives_nine_and_eight),
    cmocka_unit_test(ranks_dealt_in_turn_are_numbered_host_by_host),
    cmocka_unit_test(one_rank_tells_of_a_lost_one),
    cmocka_unit_test(two_watchers_are_shared_out_over_full_hosts),
    cmocka_unit_test(a_group_across_hosts_is_refused_with_the_right_launch_line),
    cmocka_unit_test(the_launch_line_for_hosts_is_right),
    cmocka_unit_test(a_wrong_world_is_told_the_right_launch_line),
    cmocka_unit_test(impossible_numbers_are_refused),
};

TEST_MAIN(tests)
