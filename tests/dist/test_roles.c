/* Roles of a real world, and what its ranks agree on. */
#include "dist.h"

static void roles_fit_the_world(void **state) {
    int size = world_size(), rank = world_rank(), watchers = size > 1 ? 1 : 0;
    comm_roles r;
    check_status(comm_roles_split(&r, 1, 0, watchers), STATUS_OK);
    assert_int_equal(r.world_rank, rank);
    assert_int_equal(r.world_size, size);
    assert_int_equal(r.diagnostics_ranks, watchers);
    assert_int_equal(r.tp, 1);
    assert_int_equal(r.dp, size - watchers);
    assert_int_equal(r.local_compute_ranks, size - watchers);
    assert_true(strlen(r.host) > 0);
    for (int c = 0; c < size - watchers; c++) assert_int_equal(r.compute_world_ranks[c], c);
    if (watchers) assert_int_equal(r.diagnostics_world_ranks[0], size - 1);
    assert_int_equal(r.diagnostics, watchers && rank == size - 1);
    if (r.diagnostics) {
        assert_int_equal(r.compute_rank, -1);
        assert_int_equal(r.tp_rank, -1);
        assert_int_equal(r.dp_rank, -1);
        assert_true(r.compute == MPI_COMM_NULL);
    } else {
        int compute_rank = -1, compute_size = 0;
        MPI_Comm_rank(r.compute, &compute_rank);
        MPI_Comm_size(r.compute, &compute_size);
        assert_int_equal(compute_rank, rank);
        assert_int_equal(r.compute_rank, rank);
        assert_int_equal(r.local_compute_rank, rank);
        assert_int_equal(r.turn, rank < 2 ? rank : 2);
        assert_int_equal(compute_size, size - watchers);
    }
    comm_roles_free(&r);
}

static void groups_are_contiguous_and_strided(void **state) {
    int tp_size = world_size() > 1 ? 2 : 1;
    comm_roles r;
    check_status(comm_roles_split(&r, tp_size, world_size() / tp_size, 0), STATUS_OK);
    assert_int_equal(r.tp_rank, r.compute_rank % tp_size);
    assert_int_equal(r.dp_rank, r.compute_rank / tp_size);
    comm_group tp, dp;
    static ops cpu = {.name = "cpu"};
    check_status(comm_roles_groups(&r, &cpu, &tp, &dp), STATUS_OK);
    assert_int_equal(tp.rank, r.tp_rank);
    assert_int_equal(tp.size, r.tp);
    assert_int_equal(dp.rank, r.dp_rank);
    assert_int_equal(dp.size, r.dp);
    float sums[2] = {(float)r.compute_rank, (float)r.compute_rank};
    comm_all_reduce(&tp, &sums[0], 1, DTYPE_F32, COMM_SUM, "test", -1);
    comm_all_reduce(&dp, &sums[1], 1, DTYPE_F32, COMM_SUM, "test", -1);
    float want_tp = 0, want_dp = 0;
    for (int c = 0; c < world_size(); c++) {
        if (c / tp_size == r.dp_rank) want_tp += (float)c;
        if (c % tp_size == r.tp_rank) want_dp += (float)c;
    }
    check_near(sums[0], want_tp, 0);
    check_near(sums[1], want_dp, 0);
    comm_close(&tp);
    comm_close(&dp);
    comm_roles_free(&r);
}

static void a_wrong_world_is_refused_alike_on_every_rank(void **state) {
    comm_roles r;
    char want[64], message[256] = "", first[256] = "";
    int tp = world_size(); /* and one more for the diagnostics rank: one too many */
    check_status(comm_roles_split(&r, tp, 1, 1), STATUS_CONFIG);
    snprintf(want, sizeof want, "mpirun -n %d ", tp + 1);
    if (!strstr(status_message(), want)) fail_msg("\"%s\" does not say \"%s\"", status_message(), want);
    snprintf(message, sizeof message, "%s", status_message());
    memcpy(first, message, sizeof first);
    MPI_Bcast(first, sizeof first, MPI_CHAR, 0, MPI_COMM_WORLD);
    assert_string_equal(message, first);
    status_clear();
}

static void agreement_is_the_worst_status_and_its_message(void **state) {
    int size = world_size(), rank = world_rank();
    check_status(comm_agree(MPI_COMM_WORLD, STATUS_OK), STATUS_OK);
    for (int sick = 0; sick < size; sick++) {
        status mine = STATUS_OK;
        if (rank == sick) mine = status_fail(STATUS_NO_INPUT, "rank %d has no file", rank);
        assert_int_equal(comm_agree(MPI_COMM_WORLD, mine), STATUS_NO_INPUT);
        char want[64];
        snprintf(want, sizeof want, "rank %d has no file", sick);
        assert_string_equal(status_message(), want);
        status_clear();
    }
}

static void the_lowest_of_the_worst_ranks_speaks(void **state) {
    int size = world_size(), rank = world_rank();
    status mine = status_fail(rank == 0 && size > 1 ? STATUS_DATA : STATUS_CONFIG, "from rank %d", rank);
    assert_int_equal(comm_agree(MPI_COMM_WORLD, mine), STATUS_CONFIG);
    assert_string_equal(status_message(), size > 1 ? "from rank 1" : "from rank 0");
    status_clear();
    assert_int_equal(comm_agree(MPI_COMM_WORLD, STATUS_IO), STATUS_IO); /* a code without a message has its text */
    assert_string_equal(status_message(), status_text(STATUS_IO));
    status_clear();
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(roles_fit_the_world),
    cmocka_unit_test(groups_are_contiguous_and_strided),
    cmocka_unit_test(a_wrong_world_is_refused_alike_on_every_rank),
    cmocka_unit_test(agreement_is_the_worst_status_and_its_message),
    cmocka_unit_test(the_lowest_of_the_worst_ranks_speaks),
};

DIST_MAIN(tests)
