/* What becomes of a job when one of its ranks is lost inside a step. The program starts itself under mpirun: called as
 * `test_lost_rank rank FATE` it is one rank of two, whose second meets its fate at step 17. With
 * BULKHEAD_TEST_DEVICE=cuda the ranks compute on two GPUs. */
#include "device.h"
#include "dist/dist.h"

#include "comm/watchdog.h"

#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 40, LAYERS = 4, FATAL_STEP = 17, COUNT = 64, SOON_S = 20 };

/* The watchdog's patience: the first collective of GPUs takes a moment. */
static int patience_ms(void) {
    return test_on_cuda() ? 2500 : 500;
}

/* ---- one rank ---- */

static bool meets(const char *fate, const char *which, const comm_group *g, int step) {
    return step == FATAL_STEP && g->rank == 1 && strcmp(fate, which) == 0;
}

static void run_layer(comm_group *g, float *data, int step, int layer, const char *fate) {
    comm_broadcast_start(g, data, COUNT, DTYPE_F32, (layer + 1) % 2, "rotary key", layer);
    comm_finish(g);
    if (layer == LAYERS - 1 && meets(fate, "elsewhere", g, step))
        for (;;) pause();
    comm_all_reduce(g, data, COUNT, DTYPE_F32, COMM_SUM, "attention output", layer);
}

/* Two sums under way at once, of which rank 1 starts the first alone. */
static void run_buckets(comm_group *g, float *data, int step, const char *fate) {
    int64_t piece = COUNT / 4;
    comm_reduce_scatter_start(g, data, piece, DTYPE_F32, "gradients", 1);
    if (meets(fate, "between buckets", g, step)) {
        comm_finish(g);
        for (;;) pause();
    }
    comm_reduce_scatter_start(g, data + COUNT / 2, piece, DTYPE_F32, "gradients", 0);
    comm_finish(g);
}

static status run_steps(comm_group *g, ops *o, comm_watchdog *watchdog, const char *fate) {
    const float zeros[COUNT] = {0};
    float *data = test_to_device(o, zeros, 1, COUNT).data;
    for (int step = 1; step <= STEPS; step++) {
        comm_watch_step(watchdog, step);
        if (meets(fate, "stopped", g, step)) raise(SIGSTOP);
        if (meets(fate, "killed", g, step)) raise(SIGKILL);
        /* Arithmetic longer than the watchdog's patience is no wait, on both ranks at once. */
        if (step == FATAL_STEP && strcmp(fate, "slow") == 0) usleep(2000 * (useconds_t)patience_ms());
        for (int layer = 0; layer < LAYERS; layer++) run_layer(g, data, step, layer, fate);
        run_buckets(g, data, step, fate);
        o->sync(o);
        TRY(comm_status(g));
        TRY(ops_status(o));
    }
    o->release(o, data);
    return STATUS_OK;
}

/* A device that works all the time: at its second collective for ever, or going on. */
static uint64_t pretended; /* atomic */

static bool pretend_unfinished(const comm_group *g, comm_pending *oldest) {
    *oldest = (comm_pending){.operation = "all-reduce",
                             .place = g->rank ? "queued behind it" : "the first to hang",
                             .layer = 2,
                             .finished = __atomic_load_n(&pretended, __ATOMIC_RELAXED),
                             .queued_s = 1 + g->rank};
    return true;
}

static void pretend_device(const char *fate) {
    static const comm_backend backend = {.name = "pretended", .unfinished = pretend_unfinished};
    comm_group groups[2];
    comm_watchdog *watchdog;
    for (int i = 0; i < 2; i++) {
        comm_self(&groups[i]);
        groups[i].backend = &backend;
        groups[i].rank = i;
    }
    const comm_group *watched[] = {&groups[1], &groups[0]};
    check_status(comm_watch(&watchdog, watched, 2, patience_ms() / 1000.0), STATUS_OK);
    for (int passed_ms = 0; passed_ms < 4 * patience_ms(); passed_ms += 10) {
        usleep(10000);
        /* Its first collective takes a while, too. */
        if (strcmp(fate, "busy device") == 0 && passed_ms > patience_ms() / 2)
            __atomic_add_fetch(&pretended, 1, __ATOMIC_RELAXED);
    }
    comm_unwatch(watchdog);
}

static int rank_main(int argc, char **argv) {
    comm_group g;
    ops o;
    comm_watchdog *watchdog = NULL;
    const char *fate = argv[2];
    status result = comm_start(&argc, &argv);
    if (result == STATUS_OK && strstr(fate, " device")) {
        pretend_device(fate);
        comm_stop();
        return 0;
    }
    if (result == STATUS_OK) test_device(&o, 1, world_rank(), world_size());
    if (result == STATUS_OK) result = comm_over_device(&g, MPI_COMM_WORLD, &o);
    const comm_group *watched[] = {&g};
    if (result == STATUS_OK) result = comm_watch(&watchdog, watched, 1, patience_ms() / 1000.0);
    if (result == STATUS_OK) result = run_steps(&g, &o, watchdog, fate);
    if (result != STATUS_OK) comm_abort(result);
    comm_unwatch(watchdog);
    comm_close(&g);
    if (o.close) o.close(&o);
    comm_stop();
    return 0;
}

/* ---- the tests ---- */

/* Runs two ranks; returns mpirun's exit code (128 + signal when it was killed) and what they said. */
static int run_job(const char *fate, char *output, size_t bytes) {
    char self[4096] = "", command[8192];
    if (test_on_cuda() && ops_cuda_devices() < 2) {
        print_message("skipped: %d of 2 NVIDIA GPUs on this machine\n", ops_cuda_devices());
        skip();
    }
    assert_true(readlink("/proc/self/exe", self, sizeof self - 1) > 0);
    snprintf(command, sizeof command,
             MPIRUN " --allow-run-as-root --oversubscribe --bind-to none -n 2 '%s' rank '%s' 2>&1", self, fate);
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

static void check_named(const char *fate, const char *who, const char *place) {
    static char output[1 << 16];
    time_t start = time(NULL);
    assert_int_equal(run_job(fate, output, sizeof output), STATUS_INTERNAL);
    check_said(output, who);
    check_said(output, place);
    assert_true(time(NULL) - start < SOON_S);
}

/* The first key comes from the stopped rank. */
static void a_stopped_rank_ends_the_job_with_its_place(void **state) {
    check_named("stopped", "rank 0 has waited", "in rotary key, layer 0, step 17 (broadcast, ");
}

static void a_rank_elsewhere_ends_the_job_with_its_place(void **state) {
    check_named("elsewhere", "rank 0 has waited", "in attention output, layer 3, step 17 (all-reduce, ");
}

/* Of several that are under way the one that does not end is named. */
static void a_missing_bucket_ends_the_job_with_its_layer(void **state) {
    check_named("between buckets", "rank 0 has waited", "in gradients, layer 0, step 17 (reduce-scatter, ");
}

static void a_killed_rank_ends_the_job(void **state) {
    static char output[1 << 16];
    time_t start = time(NULL);
    assert_int_not_equal(run_job("killed", output, sizeof output), 0);
    check_said(output, "rank 1");
    assert_true(time(NULL) - start < SOON_S);
}

static void check_no_fault(const char *fate) {
    static char output[1 << 16];
    int code = run_job(fate, output, sizeof output);
    if (code != 0) fail_msg("exit code %d:\n%s", code, output);
}

static void a_slow_step_is_no_fault(void **state) {
    check_no_fault("slow");
}

/* Of all that stands behind one another on a device the first is named. */
static void a_hung_device_ends_the_job_with_its_place(void **state) {
    check_named("hung device", "has waited", "in the first to hang, layer 2");
}

static void a_busy_device_is_no_fault(void **state) {
    check_no_fault("busy device");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_stopped_rank_ends_the_job_with_its_place),
    cmocka_unit_test(a_rank_elsewhere_ends_the_job_with_its_place),
    cmocka_unit_test(a_missing_bucket_ends_the_job_with_its_layer),
    cmocka_unit_test(a_killed_rank_ends_the_job),
    cmocka_unit_test(a_slow_step_is_no_fault),
    cmocka_unit_test(a_hung_device_ends_the_job_with_its_place),
    cmocka_unit_test(a_busy_device_is_no_fault),
};

int main(int argc, char **argv) {
    if (argc == 3 && strcmp(argv[1], "rank") == 0) return rank_main(argc, argv);
    return test_run(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
