/* From a sweep's file to its runs and their names; GPUs dealt to runs. */
#include "check.h"

#include "folder.h"
#include "trainer/sweep.h"
#include "trainer/sweep_gpus.h"

static folder f;

static int setup(void **state) {
    f = folder_make();
    status_clear();
    return 0;
}

static int teardown(void **state) {
    folder_remove(&f);
    return 0;
}

static status read_sweep(sweep *s, const char *text) {
    const char *path = folder_path(&f, "study.yaml");
    FILE *out = fopen(path, "w");
    assert_non_null(out);
    fputs(text, out);
    assert_int_equal(fclose(out), 0);
    return sweep_read(s, path);
}

static void check_names(const sweep *s, const char *const *names, int count) {
    assert_int_equal(s->count, count);
    for (int i = 0; i < count; i++) assert_string_equal(s->runs[i].name, names[i]);
}

static void runs_are_the_product_in_the_file_order(void **state) {
    static const char *const names[] = {"mha-lr1e-3-seed1", "mha-lr1e-3-seed2", "130m-seed1",
                                        "130m-seed2",       "tiny-kv_heads2",   "mla-decoupled-lr3e-3-seed2"};
    sweep s;
    check_status(read_sweep(&s, "config: base.yaml\n"
                                "grid:\n"
                                "  attention.variant: [mha, mla-decoupled]\n"
                                "  train.lr: [1e-3, \"3e-3\"]\n"
                                "  run.seed: [1, 2]\n"
                                "exclude:\n"
                                "  - {attention.variant: mha, train.lr: 3e-3}\n"
                                "  - {attention.variant: mla-decoupled, run.seed: [1, 2]}\n"
                                "include:\n"
                                "  - {model.size: 130m, run.seed: [1, 2]}\n"
                                "  - {model.size: tiny, model.kv_heads: 2}\n"
                                "  - {attention.variant: mla-decoupled, train.lr: 3e-3, run.seed: 2}\n"),
                 STATUS_OK);
    check_names(&s, names, 6);
    assert_string_equal(s.name, "study");
    assert_string_equal(s.folder, "sweeps/study");
    assert_string_equal(s.config, folder_path(&f, "base.yaml"));
    static const char *const keys[] = {"attention.variant", "train.lr", "run.seed", "model.size", "model.kv_heads"};
    assert_int_equal(s.key_count, 5);
    for (int i = 0; i < 5; i++) assert_string_equal(s.keys[i], keys[i]);
    assert_string_equal(s.runs[1].settings[2].key, "run.seed");
    assert_string_equal(s.runs[1].settings[2].value, "2");
    sweep_free(&s);
}

/* What a folder's name cannot hold, or should not, is told apart by a hash. */
static void odd_values_have_names_of_their_own(void **state) {
    sweep s;
    check_status(read_sweep(&s, "config: /b.yaml\nname: n\nfolder: /x/y\ngrid:\n"
                                "  data.train: [a/b, a b, ../.., \"a,b\", aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa1,\n"
                                "    aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa2, a_b]\n"),
                 STATUS_OK);
    assert_int_equal(s.count, 7);
    for (int i = 0; i < 7; i++) {
        assert_null(strchr(s.runs[i].name, '/'));
        assert_memory_equal(s.runs[i].name, "train", 5);
        assert_true(strlen(s.runs[i].name) < 60);
    }
    assert_string_equal(s.runs[6].name, "traina_b");
    assert_string_equal(s.config, "/b.yaml");
    assert_string_equal(s.folder, "/x/y");
    sweep_free(&s);
}

static void too_many_runs_are_refused(void **state) {
    sweep s;
    check_status(read_sweep(&s,
                            "config: b\ngrid:\n"
                            "  run.seed: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n  train.lr: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n"
                            "  train.steps: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n"
                            "  train.beta1: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]\n  train.warmup: [1, 2]\n"),
                 STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "more than 10000 runs"));
    sweep_free(&s);
}

static void the_shipped_example_is_nine_runs(void **state) {
    sweep s;
    check_status(sweep_read(&s, SHIPPED_CONFIGS "/sweep.yaml"), STATUS_OK);
    assert_int_equal(s.count, 9);
    static const char *const vocab[] = {"model.vocab=4096", "data.validation=x"};
    check_status(sweep_plan(&s, vocab, 2, "bulkhead"), STATUS_OK);
    for (int i = 0; i < 9; i++) {
        assert_int_equal(s.runs[i].ranks, 2);
        assert_string_equal(s.runs[i].status, "new");
    }
    sweep_free(&s);
}

static void gpus_are_one_run_s_at_a_time(void **state) {
    sweep_gpus g;
    char a[64], b[64], c[64];
    sweep_gpus_open(&g, 4, NULL);
    assert_true(sweep_gpus_take(&g, 1, a, sizeof a));
    assert_true(sweep_gpus_take(&g, 2, b, sizeof b));
    assert_string_equal(a, "0");
    assert_string_equal(b, "1,2");
    assert_false(sweep_gpus_take(&g, 2, c, sizeof c));
    sweep_gpus_give(&g, a);
    assert_true(sweep_gpus_take(&g, 2, c, sizeof c));
    assert_string_equal(c, "0,3");
    assert_true(sweep_gpus_take(&g, 0, a, sizeof a));
    assert_string_equal(a, "");
    sweep_gpus_give(&g, b);
    assert_false(sweep_gpus_take(&g, 2, b, 3)); /* no room for the list */
    assert_true(sweep_gpus_take(&g, 2, b, 4));
    sweep_gpus_close(&g);
}

/* A scheduler's names for them, of which one is another's beginning. */
static void gpus_keep_the_names_that_they_have(void **state) {
    sweep_gpus g;
    char a[64], b[64];
    sweep_gpus_open(&g, 3, "1,10,GPU-ab");
    assert_true(sweep_gpus_take(&g, 1, a, sizeof a));
    assert_true(sweep_gpus_take(&g, 2, b, sizeof b));
    assert_string_equal(a, "1");
    assert_string_equal(b, "10,GPU-ab");
    sweep_gpus_give(&g, b);
    assert_false(sweep_gpus_take(&g, 3, b, sizeof b));
    sweep_gpus_close(&g);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(runs_are_the_product_in_the_file_order, setup, teardown),
    cmocka_unit_test_setup_teardown(odd_values_have_names_of_their_own, setup, teardown),
    cmocka_unit_test_setup_teardown(too_many_runs_are_refused, setup, teardown),
    cmocka_unit_test_setup_teardown(the_shipped_example_is_nine_runs, setup, teardown),
    cmocka_unit_test_setup_teardown(gpus_are_one_run_s_at_a_time, setup, teardown),
    cmocka_unit_test_setup_teardown(gpus_keep_the_names_that_they_have, setup, teardown),
};

TEST_MAIN(tests)
