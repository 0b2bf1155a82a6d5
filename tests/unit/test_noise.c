/* The onset rules on noise and on planted spikes, from weights on: a few runs; test_nulls_long has 500 a variant. */
#include "noise_runs.h"

enum { RUNS = 9, LAYERS = 2, SNAPSHOTS = 8, PLANTED_RUNS = 6, PLANTED_LAYERS = 1 };

static void noise_has_no_onset(const char *variant) {
    noise_model n = noise_open(variant, LAYERS, SNAPSHOTS);
    int early = 0, references = 0;
    double score = 0;
    for (int i = 0; i < RUNS; i++) {
        noise_run r = {.drift = i % NOISE_DRIFTS, .moves_gains = true, .seed = inputs_seed + (uint64_t)i};
        noise_outcome o = noise_go(&n, &r, 1);
        early += o.onsets + o.hidden > 0;
        references += o.references > 0;
        score += o.score / RUNS;
    }
    /* Tracy-Widom 1 has mean -1.207 and standard deviation 1.268; five errors of the mean. */
    check_near(score, -1.207, 5 * 1.268 / sqrt(RUNS * n.heads));
    noise_close(&n);
    /* Each run's chance is 0.01 / SNAPSHOTS at most: three of nine are 2e-7. */
    if (early > 2 || references > 2)
        fail_msg("%s: of %d noise runs %d have an onset, %d a reference of top_overlap", variant, RUNS, early,
                 references);
}

static void spikes_are_found(const char *variant) {
    noise_check_spikes(variant, PLANTED_LAYERS, SNAPSHOTS, PLANTED_RUNS);
}

static void noise_of_mha(void **state) {
    noise_has_no_onset("mha");
}
static void noise_of_prerope(void **state) {
    noise_has_no_onset("mla-prerope");
}
static void noise_of_decoupled(void **state) {
    noise_has_no_onset("mla-decoupled");
}
static void spikes_of_mha(void **state) {
    spikes_are_found("mha");
}
static void spikes_of_prerope(void **state) {
    spikes_are_found("mla-prerope");
}
static void spikes_of_decoupled(void **state) {
    spikes_are_found("mla-decoupled");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(noise_of_mha, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(noise_of_prerope, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(noise_of_decoupled, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(spikes_of_mha, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(spikes_of_prerope, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(spikes_of_decoupled, noise_start, noise_end),
};

TEST_MAIN(tests)
