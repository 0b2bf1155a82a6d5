/* The trainer's pure parts: the learning rate's closed form, the parameter table's cuts, what a snapshot is due after.
 */
#include "check.h"

#include "core/snapshot_steps.h"
#include "trainer/params.h"
#include "trainer/plan.h"
#include "trainer/schedule.h"

static config schedule(int64_t warmup, int64_t steps) {
    config c = {0};
    c.train.lr = 2e-3;
    c.train.min_lr_ratio = 0.25;
    c.train.warmup = warmup;
    c.train.steps = steps;
    return c;
}

static void test_learning_rate_is_the_closed_form(void **state) {
    config c = schedule(10, 110);
    check_near(schedule_lr(&c, 1), 2e-4, 1e-18);
    check_near(schedule_lr(&c, 10), 2e-3, 1e-18);
    check_near(schedule_lr(&c, 60), 2e-3 * 0.625, 1e-15); /* half way down the cosine */
    check_near(schedule_lr(&c, 110), 5e-4, 1e-18);
    assert_true(schedule_lr(&c, 11) < schedule_lr(&c, 10));
    for (int64_t t = 11; t <= 110; t++) assert_true(schedule_lr(&c, t) < schedule_lr(&c, t - 1));
}

/* docs/cases.md 9: no warm-up, warm-up as long as the run, a single step. */
static void test_learning_rate_is_finite_at_the_edges(void **state) {
    const int64_t cases[][2] = {{0, 10}, {10, 10}, {0, 1}, {1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        config c = schedule(cases[i][0], cases[i][1]);
        for (int64_t t = 1; t <= c.train.steps; t++) {
            double lr = schedule_lr(&c, t);
            assert_true(isfinite(lr) && lr > 0 && lr <= c.train.lr);
        }
        double last = cases[i][0] == cases[i][1] ? 2e-3 : 5e-4;
        check_near(schedule_lr(&c, c.train.steps), last, 1e-18);
    }
}

static params table(int rank, int size, int own_piece, int pieces) {
    static const param_spec specs[] = {
        {.name = "rows", .rows = 10, .cols = 6, .shard = PARAM_BY_ROWS, .init = PARAM_NORMAL, .std = 1},
        {.name = "more", .rows = 7, .cols = 6, .shard = PARAM_BY_ROWS, .joined = true, .init = PARAM_NORMAL, .std = 1},
        {.name = "gain", .rows = 1, .cols = 6, .init = PARAM_ONES},
        {.name = "cols", .rows = 3, .cols = 10, .shard = PARAM_BY_COLS, .init = PARAM_NORMAL, .std = 1},
        {.name = "shared", .rows = 4, .cols = 6, .partial = true, .init = PARAM_NORMAL, .std = 1},
    };
    params p = {0};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) check_status(params_add(&p, "", &specs[i]), STATUS_OK);
    check_status(params_layout(&p, rank, size, own_piece, pieces), STATUS_OK);
    return p;
}

static void test_every_element_belongs_to_one_rank(void **state) {
    for (int size = 1; size <= 11; size++) {
        int seen[10][6] = {{0}}, wide[3][10] = {{0}};
        for (int rank = 0; rank < size; rank++) {
            params p = table(rank, size, 0, 1);
            const param *rows = &p.list[0], *cols = &p.list[3], *shared = &p.list[4];
            for (int64_t r = 0; r < rows->n_rows; r++)
                for (int64_t c = 0; c < rows->n_cols; c++) seen[rows->row + r][rows->col + c]++;
            for (int64_t r = 0; r < cols->n_rows; r++)
                for (int64_t c = 0; c < cols->n_cols; c++) wide[cols->row + r][cols->col + c]++;
            assert_true(rows->rows * size >= 10 && rows->n_rows <= rows->rows);
            assert_int_equal(shared->n_rows, 4);
            assert_int_equal(shared->region, REGION_PARTIAL);
            assert_int_equal(p.list[1].offset, rows->offset + rows->rows * rows->cols); /* joined */
            params_free(&p);
        }
        for (int r = 0; r < 10; r++)
            for (int c = 0; c < 6; c++) assert_int_equal(seen[r][c], 1);
        for (int r = 0; r < 3; r++)
            for (int c = 0; c < 10; c++) assert_int_equal(wide[r][c], 1);
    }
}

static void test_regions_hold_their_class_and_nothing_else(void **state) {
    params p = table(1, 3, 0, 1);
    for (int i = 0; i < p.count; i++) {
        const param *q = &p.list[i];
        assert_true(q->offset >= p.region_first[q->region]);
        assert_true(q->offset + q->rows * q->cols <= p.region_first[q->region + 1]);
    }
    assert_int_equal(p.list[2].region, REGION_COMPLETE);
    assert_int_equal(params_global_count(&p), 60 + 42 + 6 + 30 + 24);
    params_free(&p);
}

/* The same element has the same initial value whatever the cut, and padding is zero. */
static void test_initial_weights_do_not_depend_on_the_cut(void **state) {
    ops o;
    check_status(ops_cpu(&o, 1), STATUS_OK);
    params whole = table(0, 1, 0, 1);
    arena memory = {.size_bytes = 1 << 16, .base = o.alloc(&o, 1 << 16)};
    params_reserve(&whole, DTYPE_F32, &memory);
    check_status(params_init(&whole, &o, 7), STATUS_OK);
    for (int rank = 0; rank < 4; rank++) {
        params part = table(rank, 4, 0, 1);
        arena other = {.size_bytes = 1 << 16, .base = o.alloc(&o, 1 << 16)};
        params_reserve(&part, DTYPE_F32, &other);
        check_status(params_init(&part, &o, 7), STATUS_OK);
        for (int i = 0; i < part.count; i++) {
            const param *q = &part.list[i];
            for (int64_t r = 0; r < q->rows; r++) {
                for (int64_t c = 0; c < q->cols; c++) {
                    float got = part.master[q->offset + r * q->cols + c], want = 0;
                    if (r < q->n_rows && c < q->n_cols)
                        want = whole.master[whole.list[i].offset + (q->row + r) * q->spec.cols + q->col + c];
                    assert_memory_equal(&got, &want, sizeof got);
                }
            }
        }
        o.release(&o, other.base);
        params_free(&part);
    }
    o.release(&o, memory.base);
    params_free(&whole);
}

static void test_snapshots_are_due_densely_then_regularly_and_at_the_end(void **state) {
    config c = {0};
    c.train.steps = 23;
    c.diagnostics.every = 10;
    c.diagnostics.dense_until = 3;
    const int due[] = {0, 1, 2, 3, 10, 20, 23};
    size_t next = 0;
    for (int step = 0; step <= 23; step++) {
        bool expected = next < sizeof due / sizeof *due && due[next] == step;
        next += expected;
        assert_int_equal(snapshot_steps_due(&c, step), expected);
        assert_int_equal(snapshot_steps_next(&c, step - 1), due[next - expected]);
    }
    assert_int_equal(snapshot_steps_next(&c, 23), -1);
}

/* The plan counts what the run will send, and does not count step by step: 10^12 steps take no time. */
static void test_the_plan_counts_snapshots(void **state) {
    const char *settings[] = {"model.size=tiny", "train.warmup=0", "diagnostics.every=10"};
    const int64_t steps[] = {0, 1, 9, 10, 11, 23, 40}, dense[] = {0, 1, 3, 10, 12, 100};
    config c;
    plan p;
    check_status(config_load(&c, NULL, settings, 3), STATUS_OK);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        for (size_t j = 0; j < sizeof dense / sizeof *dense; j++) {
            int64_t due = 0;
            c.train.steps = steps[i];
            c.diagnostics.dense_until = dense[j];
            for (int64_t step = 0; step <= steps[i]; step++) due += snapshot_steps_due(&c, step);
            check_status(plan_make(&p, &c), STATUS_OK);
            assert_int_equal(p.snapshots, due);
        }
    c.train.steps = 1000000000000;
    c.diagnostics.dense_until = 0;
    check_status(plan_make(&p, &c), STATUS_OK);
    assert_int_equal(p.snapshots, 100000000001);
    assert_int_equal(p.staging_bytes, 0);
    c.run.device = DEVICE_CUDA;
    c.parallel.tensor = 2;
    check_status(plan_make(&p, &c), STATUS_OK);
    assert_int_equal(p.snapshot_bytes, 4 * 4 * (2 * 256 * 256 + 256)); /* layers, bytes: W_Q, W_K, the norm's gain */
    assert_int_equal(p.staging_bytes, p.snapshot_bytes / 2);
    config_free(&c);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_learning_rate_is_the_closed_form),
    cmocka_unit_test(test_learning_rate_is_finite_at_the_edges),
    cmocka_unit_test(test_every_element_belongs_to_one_rank),
    cmocka_unit_test(test_regions_hold_their_class_and_nothing_else),
    cmocka_unit_test(test_initial_weights_do_not_depend_on_the_cut),
    cmocka_unit_test(test_snapshots_are_due_densely_then_regularly_and_at_the_end),
    cmocka_unit_test(test_the_plan_counts_snapshots),
};
TEST_MAIN(tests)
