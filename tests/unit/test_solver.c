/* Cores that a device solves: here LAPACK plays the device, behind the CPU's table, in small pieces, and with faults.
 */
#include "spectra_device.h"

#include <lapacke.h>

typedef struct fake {
    int solved, skips; /* each skips-th matrix does not converge; 0: all do */
    bool fails;
} fake;

static status fake_reserve(svd_device *d, int side, int count) {
    return STATUS_OK;
}

static void fake_solve(svd_device *d, float *values, float *matrices, int side, int count) {
    fake *f = d->context;
    if (f->fails) {
        if (d->ops.first_error == STATUS_OK)
            d->ops.first_error = status_fail(STATUS_INTERNAL, "GPU 3: it fell off the bus");
        return;
    }
    double *x = malloc((size_t)side * (size_t)side * sizeof *x), *s = malloc((size_t)side * sizeof *s);
    assert_true(x && s &&
                (count == 1 || (size_t)count * (size_t)side * (size_t)side * sizeof(float) <= d->piece_bytes));
    for (int m = 0; m < count; m++) {
        double most = 0;
        for (int i = 0; i < side * side; i++) {
            x[i] = matrices[(size_t)m * (size_t)side * (size_t)side + (size_t)i];
            most = fmax(most, fabs(x[i]));
        }
        assert_true(most == 0 || (most >= 1 && most < 2.0000001));
        assert_int_equal(LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'N', side, side, x, side, s, NULL, 1, NULL, 1), 0);
        bool skip = f->skips && ++f->solved % f->skips == 0;
        for (int i = 0; i < side; i++) values[m * side + i] = skip ? NAN : (float)s[i];
    }
    free(x);
    free(s);
}

static svd_device fake_device(fake *f) {
    svd_device d = {
        .context = f, .piece_bytes = 3 * 8 * 8 * sizeof(float), .reserve = fake_reserve, .solve = fake_solve};
    check_status(ops_cpu(&d.ops, 1), STATUS_OK);
    return d;
}

static void the_oracles_models(void **state) {
    fake f = {0};
    svd_device d = fake_device(&f);
    assert_true(compare_models(&d) >= 5);
}

static void every_wiring(void **state) {
    fake f = {0};
    svd_device d = fake_device(&f);
    compare_wirings(&d, 3, 8, 40);
    compare_wirings(&d, 5, 8, 12); /* factors taller than wide */
}

static void what_does_not_converge_is_solved_here(void **state) {
    fake f = {.skips = 3};
    svd_device d = fake_device(&f);
    compare_wirings(&d, 3, 8, 40);
    assert_true(f.solved > 50);
}

static void weights_far_from_one(void **state) {
    const float by[] = {1e-30f, 1e-18f, 1e18f};
    fake f = {0};
    svd_device d = fake_device(&f);
    for (size_t k = 0; k < sizeof by / sizeof *by; k++) {
        config c = diagnostics_config(VARIANT_MHA, 1, 2, 8, 24);
        snapshot s = {0};
        snapshot_fill(&s, &c, 3);
        for (int t = 0; t < s.count; t++)
            for (int64_t i = 0; i < s.tensors[t].rows * s.tensors[t].cols && s.tensors[t].rows > 1; i++)
                s.tensors[t].data[i] *= by[k];
        compare_device(&c, &s, &d, "scaled");
        snapshot_free(&s);
    }
}

static void a_nan_and_a_zero_head(void **state) {
    fake f = {0};
    svd_device d = fake_device(&f);
    config c = diagnostics_config(VARIANT_MHA, 1, 3, 8, 24);
    snapshot s = {0};
    snapshot_fill(&s, &c, 4);
    snapshot_tensor *q = (snapshot_tensor *)snapshot_find(&s, "layers.0.attention.W_Q");
    q->data[5] = NAN;
    memset(q->data + 8 * 24, 0, 8 * 24 * sizeof(float));
    computed got = compute(&c, &s, &d, 1);
    int nonfinite = 0, zero = 0, ok = 0;
    for (int i = 0; i < maps_count(got.maps); i++) {
        nonfinite += got.rows[i].status == SPECTRUM_STATUS_nonfinite;
        zero += got.rows[i].status == SPECTRUM_STATUS_zero;
        ok += got.rows[i].status == SPECTRUM_STATUS_ok;
    }
    assert_int_equal(nonfinite, 4); /* score and channel of head 0, the layer, the weight */
    assert_int_equal(zero, 3);
    assert_int_equal(ok, 2 + 1 + 3); /* head 2, its query, all keys */
    release(&got);
    snapshot_free(&s);
}

/* The cores of one snapshot must not be taken for those of the next. */
static void a_nan_does_not_find_the_snapshot_before(void **state) {
    fake f = {0};
    svd_device d = fake_device(&f);
    config c = diagnostics_config(VARIANT_MHA, 1, 2, 8, 24);
    snapshot s = {0};
    snapshot_fill(&s, &c, 5);
    computed q = compute(&c, &s, &d, 1);
    assert_int_equal(q.rows[0].status, SPECTRUM_STATUS_ok);
    ((snapshot_tensor *)snapshot_find(&s, "layers.0.attention.W_Q"))->data[0] = INFINITY;
    check_status(maps_compute(q.maps, &s, q.rows, q.values), STATUS_OK);
    assert_int_equal(q.rows[0].status, SPECTRUM_STATUS_nonfinite);
    release(&q);
    snapshot_free(&s);
}

/* The snapshot in hand and all that follow are LAPACK's. */
static void a_device_that_fails_is_replaced(void **state) {
    fake f = {0};
    svd_device d = fake_device(&f);
    config c = diagnostics_config(VARIANT_MLA_DECOUPLED, 2, 3, 8, 40);
    snapshot s = {0};
    snapshot_fill(&s, &c, 6);
    computed want = compute(&c, &s, NULL, 1), got = compute(&c, &s, &d, 1);
    assert_null(maps_device_fault(got.maps));
    f.fails = true;
    for (int i = 0; i < 2; i++) {
        memset(got.values, 0, (size_t)maps_value_count(got.maps) * sizeof(double));
        check_status(maps_compute(got.maps, &s, got.rows, got.values), STATUS_OK);
        assert_string_equal(maps_device_fault(got.maps), "GPU 3: it fell off the bus");
        compare_spectra(&want, &got, "after the fault");
    }
    assert_memory_equal(want.values, got.values, (size_t)maps_value_count(got.maps) * sizeof(double));
    release(&want);
    release(&got);
    snapshot_free(&s);
}

static void *no_memory(ops *o, size_t bytes) {
    return NULL;
}

static void missing_memory_is_refused(void **state) {
    fake f = {0};
    config c = diagnostics_config(VARIANT_MHA, 1, 2, 8, 24);
    for (int i = 0; i < 2; i++) {
        svd_device d = fake_device(&f);
        if (i == 0) d.ops.host_alloc = no_memory;
        if (i == 1) d.ops.alloc = no_memory;
        maps *m;
        check_status(maps_open(&m, &c, 1), STATUS_OK);
        check_status(maps_use_device(m, &d), STATUS_CONFIG);
        assert_non_null(strstr(status_message(), "set diagnostics.device: cpu"));
        status_clear();
        maps_close(m);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_oracles_models),
    cmocka_unit_test(every_wiring),
    cmocka_unit_test(what_does_not_converge_is_solved_here),
    cmocka_unit_test(weights_far_from_one),
    cmocka_unit_test(a_nan_and_a_zero_head),
    cmocka_unit_test(a_nan_does_not_find_the_snapshot_before),
    cmocka_unit_test(a_device_that_fails_is_replaced),
    cmocka_unit_test(missing_memory_is_refused),
};

TEST_MAIN(tests)
