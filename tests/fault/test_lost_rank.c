/* What becomes of a job when one of its ranks is lost inside a step. The program starts itself under mpirun: called as
 * `test_lost_rank rank FATE` it is one rank of two, whose second meets its fate at step 17. */
#include "dist/dist.h"

#include "comm/watchdog.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 40, FATAL_STEP = 17, PATIENCE_MS = 500, SOON_S = 20 };

/* ---- one rank ---- */

static status run_steps(comm_group *g, comm_watchdog *watchdog, const char *fate) {
    float gradient[64] = {0};
    for (int step = 1; step <= STEPS; step++) {
        comm_watch_step(watchdog, step);
        if (step == FATAL_STEP && g->rank == 1) {
            if (strcmp(fate, "stopped") == 0) raise(SIGSTOP);
            if (strcmp(fate, "killed") == 0) raise(SIGKILL);
        }
        /* Arithmetic longer than the watchdog's patience is no wait, on both ranks at once. */
        if (step == FATAL_STEP && strcmp(fate, "slow") == 0) usleep(2 * PATIENCE_MS * 1000);
        for (int layer = 0; layer < 4; layer++)
            comm_all_reduce(g, gradient, 64, DTYPE_F32, COMM_SUM, "attention output", layer);
        TRY(comm_status(g));
    }
    return STATUS_OK;
}

static int rank_main(int argc, char **argv) {
    comm_group g;
    comm_watchdog *watchdog = NULL;
    const char *fate = argv[2];
    status result = comm_start(&argc, &argv);
    if (result == STATUS_OK) result = comm_over_mpi(&g, MPI_COMM_WORLD);
    const comm_group *watched[] = {&g};
    if (result == STATUS_OK) result = comm_watch(&watchdog, watched, 1, PATIENCE_MS / 1000.0);
    if (result == STATUS_OK) result = run_steps(&g, watchdog, fate);
    if (result != STATUS_OK) comm_abort(result);
    comm_unwatch(watchdog);
    comm_close(&g);
    comm_stop();
    return 0;
}

/* ---- the tests ---- */

/* Runs two ranks; returns mpirun's exit code (128 + signal when it was killed) and what they said. */
static int run_job(const char *fate, char *output, size_t bytes) {
    char self[4096] = "", command[8192];
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(command, sizeof command,
             MPIRUN " --allow-run-as-root --oversubscribe --bind-to none -n 2 '%s' rank %s 2>&1", self, fate);
    FILE *pipe = popen(command, "r");
    assert_non_null(pipe);
    size_t length = fread(output, 1, bytes - 1, pipe);
    output[length] = '\0';
    int result = pclose(pipe);
    return WIFEXITED(result) ? WEXITSTATUS(result) : 128 + WTERMSIG(result);
}

static void check_said(const char *output, const char *want) {
    if (!strstr(output, want)) fail_msg("the job did not say \"%s\" but:\n%s", want, output);
}

static void a_stopped_rank_ends_the_job_with_its_place(void **state) {
    static char output[1 << 16];
    time_t start = time(NULL);
    assert_int_equal(run_job("stopped", output, sizeof output), STATUS_INTERNAL);
    check_said(output, "rank 0 has waited");
    check_said(output, "attention output, layer 0, step 17");
    assert_true(time(NULL) - start < SOON_S);
}

static void a_killed_rank_ends_the_job(void **state) {
    static char output[1 << 16];
    time_t start = time(NULL);
    assert_int_not_equal(run_job("killed", output, sizeof output), 0);
    check_said(output, "rank 1");
    assert_true(time(NULL) - start < SOON_S);
}

static void a_slow_step_is_no_fault(void **state) {
    static char output[1 << 16];
    int code = run_job("slow", output, sizeof output);
    if (code != 0) fail_msg("exit code %d:\n%s", code, output);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_stopped_rank_ends_the_job_with_its_place),
    cmocka_unit_test(a_killed_rank_ends_the_job),
    cmocka_unit_test(a_slow_step_is_no_fault),
};

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "rank") == 0) return rank_main(argc, argv);
    return test_run(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
