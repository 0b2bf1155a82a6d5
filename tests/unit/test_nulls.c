/* The product null against the independent oracle: edges, columns, ensembles with and without gains, interpolation. */
#include "check.h"
#include "diag/nulls_columns.h"
#include "diag/nulls_gains.h"
#include "diag/nulls_grid.h"
#include "nulls_models.h"

/* DESIGN's table of 130m, and closed forms: k equal factors have (k+1)^(k+1)/k^k; two sides that of Marchenko-Pastur.
 */
static void edges_of_chains(void **state) {
    check_near(nulls_chain_edge((int[]){64, 768}, 2), pow(1 + sqrt(1.0 / 12), 2), 1e-9);
    check_near(nulls_chain_edge((int[]){50, 50, 50}, 3), 27.0 / 4, 1e-8);
    check_near(nulls_chain_edge((int[]){50, 50, 50, 50}, 4), 256.0 / 27, 1e-8);
    check_near(nulls_chain_edge((int[]){768, 64, 768}, 3), 2.037, 5e-4);
    check_near(nulls_chain_edge((int[]){768, 64, 256, 1536, 768}, 5), 3.028, 5e-4);
    check_near(nulls_chain_edge((int[]){64, 768, 256, 64}, 4), 5.131, 5e-4);
    const nulls_block one = {64, 2.5, 64.0 / 256};
    check_near(nulls_block_edge((int[]){768, 768}, 2, &one, 1), nulls_chain_edge((int[]){768, 64, 256, 768}, 4), 1e-6);
}

/* The full part of 130m as it is initialized. */
static void edges_of_blocks(void **state) {
    nulls_shape s = {.kind = NULLS_BLOCK, .content = 64, .copies = 1, .rope = 32, .latent = 256, .width = 768};
    double ratio[] = {0.5 * log(3), 0};
    check_near(nulls_edge(&s, ratio), 3.209, 5e-4);
    s.channel = true;
    ratio[0] = 0, ratio[1] = 0.5 * log(3);
    check_near(nulls_edge(&s, ratio), 5.469, 5e-4);
    s = (nulls_shape){.kind = NULLS_BLOCK, .content = 768, .copies = 12, .rope = 32, .latent = 256, .width = 768};
    ratio[0] = 0.5 * log(3.0 * 12);
    check_near(nulls_edge(&s, ratio), 9.479, 5e-4);
}

/* ---------------------------------------------------------------- the columns of the oracle's cases */

static nulls_moments moments_of(const json_t *ensemble) {
    nulls_moments m;
    const char *const names[] = {
#define X(name) #name,
        NULLS_STATISTICS(X)
#undef X
    };
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++) {
        const json_t *one = json_object_get(ensemble, names[i]), *mean, *sd;
        mean = json_is_array(one) ? json_array_get(one, 0) : json_object_get(one, "mean");
        sd = json_is_array(one) ? json_array_get(one, 1) : json_object_get(one, "sd");
        m.mean[i] = json_is_number(mean) ? json_number_value(mean) : NAN;
        m.sd[i] = json_is_number(sd) ? json_number_value(sd) : NAN;
    }
    return m;
}

static double edge_of(const json_t *null) {
    int dims[NULLS_MOST_DIMS], count = (int)json_array_size(json_object_get(null, "dims"));
    for (int i = 0; i < count; i++)
        dims[i] = (int)json_integer_value(json_array_get(json_object_get(null, "dims"), (size_t)i));
    const json_t *blocks = json_object_get(null, "blocks"), *one;
    nulls_block block[2];
    size_t k;
    if (!json_is_array(blocks)) return nulls_chain_edge(dims, count);
    json_array_foreach(blocks, k, one) block[k] =
        (nulls_block){json_number_value(json_array_get(one, 0)), json_number_value(json_array_get(one, 1)),
                      json_number_value(json_array_get(one, 2))};
    return nulls_block_edge(dims, count, block, (int)k);
}

/* Against the oracle's own edge and ensemble: 1e-6 for what comes from the edge, 1e-8 for the rest. */
static void compare_row(const char *name, const json_t *want) {
    const json_t *null = json_object_get(want, "null"), *lam = json_object_get(want, "lam");
    const json_t *against = json_object_get(want, "against");
    int r = (int)json_array_size(lam);
    double *s = malloc((size_t)(r + 1) * sizeof(*s));
    spectrum_work w;
    spectrum row;
    for (int i = 0; i < r; i++) s[i] = sqrt(json_number_value(json_array_get(lam, (size_t)i)));
    check_status(spectrum_work_open(&w, r + 1, r + 1), STATUS_OK);
    spectrum_measure(&w, s, r, (int)spectra_int(want, "rows", 0), (int)spectra_int(want, "cols", 0), SIGMA2_TRACE,
                     &row);
    if (json_is_object(null)) {
        nulls_moments m = moments_of(json_object_get(null, "ensemble"));
        nulls_edge_columns(s, r, edge_of(null), &row);
        nulls_plain_columns(&m, r, &row);
    }
    for (int i = SPECTRUM_null_edge; i <= SPECTRUM_z_participation_ratio; i++) {
        if (i == SPECTRUM_tw_score_gains || i == SPECTRUM_z_effective_rank_rest_gains) continue;
        const json_t *v = json_object_get(against, spectrum_columns[i].name);
        double x = row.column[i], y = json_is_number(v) ? json_number_value(v) : NAN;
        bool edge = i == SPECTRUM_null_edge || i == SPECTRUM_null_gap;
        if (isnan(x) && isnan(y)) continue;
        if (!(fabs(x - y) <= (edge ? 1e-6 : 1e-8) * fmax(fabs(y), 1)))
            fail_msg("%s: %s = %.17g, want %.17g", name, spectrum_columns[i].name, x, y);
    }
    spectrum_work_close(&w);
    free(s);
}

static void columns_of_the_oracles_cases(void **state) {
    int rows = 0;
    spectra_case c;
    for (size_t i = 0; spectra_case_open(&c, i); i++) {
        const json_t *want;
        size_t k;
        json_array_foreach(json_object_get(c.json, "results"), k, want) {
            const char *status_name = json_string_value(json_object_get(want, "status"));
            if (strcmp(status_name, "nonfinite") == 0 || !json_array_size(json_object_get(want, "lam"))) continue;
            compare_row(c.name, want);
            rows++;
        }
        spectra_case_close(&c);
    }
    assert_true(rows > 60);
}

/* ---------------------------------------------------------------- the oracle's ensembles */

enum { DRAWS = 3000 };

/* Two ensembles of the same null: means to 4 standard errors, standard deviations to 4 of theirs and the error of a
 * sample's sd for a tail heavier than normal (10%). */
static void compare_moments(const char *where, const nulls_moments *got, const nulls_moments *want, int got_draws,
                            int want_draws) {
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++) {
        if (isnan(want->mean[i]) || isnan(got->mean[i])) continue;
        double mean_error = hypot(got->sd[i] / sqrt(got_draws), want->sd[i] / sqrt(want_draws));
        double sd_error = mean_error / sqrt(2) + 0.01 * want->sd[i];
        if (!(fabs(got->mean[i] - want->mean[i]) <= 4 * mean_error))
            fail_msg("%s, statistic %d: mean %.5f, want %.5f +- %.5f", where, i, got->mean[i], want->mean[i],
                     mean_error);
        if (!(fabs(got->sd[i] - want->sd[i]) <= 4 * sd_error))
            fail_msg("%s, statistic %d: sd %.5f, want %.5f +- %.5f", where, i, got->sd[i], want->sd[i], sd_error);
    }
}

/* The log ratios of that matrix in the model, unrounded. */
static void model_ratios(const config *c, const snapshot *s, const nulls_shape *shape, int head, double *log_ratio) {
    double query[MODEL_H + 1], key[MODEL_H + 1];
    int h = head < 0 ? MODEL_H : head;
    assert_true(nulls_layer_ratios(c, s, 0, query, key));
    log_ratio[0] = shape->kind == NULLS_MIXED ? key[h] : shape->channel ? query[h] : query[h] + key[h];
    log_ratio[1] = key[h];
}

static void compare_ensemble(const json_t *models, const json_t *e) {
    const char *name = json_string_value(json_object_get(e, "model"));
    bool kept = json_is_true(json_object_get(e, "gains"));
    config c = nulls_model_config(name);
    maps_matrix m = nulls_expected_matrix(e);
    snapshot s = {0};
    nulls_shape shape;
    double ratio[NULLS_MOST_RATIOS];
    nulls_moments got, want = moments_of(json_object_get(e, "moments"));
    char where[128];
    snprintf(where, sizeof(where), "%s %s %s %s%s", name, maps_scope_names[m.scope], maps_part_names[m.part],
             maps_form_names[m.form], kept ? " with gains" : "");
    nulls_model_snapshot(&s, json_object_get(models, name), &c);
    nulls_shape_of(&c, &m, &shape);
    assert_int_equal(shape.rank, m.rank);
    model_ratios(&c, &s, &shape, m.head, ratio);
    double edge = nulls_edge(&shape, ratio);
    check_near(edge, json_number_value(json_object_get(e, "edge")), 1e-5 * edge);
    if (kept) {
        nulls_gains *g = nulls_gains_read(&c, &s, 0);
        assert_non_null(g);
        assert_false(nulls_gains_even(g));
        check_status(nulls_gains_ensemble(&shape, g, ratio, DRAWS, 5, 1, NULL, &got), STATUS_OK);
        nulls_gains_free(g);
    } else {
        check_status(nulls_ensemble(&shape, ratio, DRAWS, 5, 1, NULL, &got), STATUS_OK);
    }
    compare_moments(where, &got, &want, DRAWS, (int)spectra_int(e, "draws", 0));
    snapshot_free(&s);
}

static void compare_ensembles(bool kept, int at_least) {
    json_t *all = nulls_expected(), *e;
    size_t k;
    int done = 0;
    json_array_foreach(json_object_get(all, "ensembles"), k, e) if (json_is_true(json_object_get(e, "gains")) == kept) {
        compare_ensemble(json_object_get(all, "models"), e);
        done++;
    }
    assert_int_equal(done, at_least);
    json_decref(all);
}

static void ensembles_of_the_oracle(void **state) {
    compare_ensembles(false, 24);
}
static void ensembles_with_gains_of_the_oracle(void **state) {
    compare_ensembles(true, 16);
}

/* ---------------------------------------------------------------- draws */

static const nulls_shape small_block = {.kind = NULLS_BLOCK,
                                        .content = 12,
                                        .copies = 1,
                                        .rope = 6,
                                        .latent = 20,
                                        .width = 48,
                                        .rank = 18,
                                        .ratio_count = 1};

static void threads_change_no_draw(void **state) {
    nulls_moments a, b;
    double ratio = 0.3;
    check_status(nulls_ensemble(&small_block, &ratio, 200, 9, 1, NULL, &a), STATUS_OK);
    check_status(nulls_ensemble(&small_block, &ratio, 200, 9, 3, NULL, &b), STATUS_OK);
    assert_memory_equal(&a, &b, sizeof(a));
    check_status(nulls_ensemble(&small_block, &ratio, 200, 10, 1, NULL, &b), STATUS_OK);
    assert_true(a.mean[0] != b.mean[0]);
}

static void a_stopped_ensemble_has_no_moments(void **state) {
    nulls_watch watch = {.stop = true};
    nulls_moments m;
    double ratio = 0;
    check_status(nulls_ensemble(&small_block, &ratio, 200, 9, 2, &watch, &m), STATUS_INTERNAL);
    status_clear();
    assert_int_equal(watch.drawn, 0);
    watch.stop = false;
    check_status(nulls_ensemble(&small_block, &ratio, 200, 9, 2, &watch, &m), STATUS_OK);
    assert_int_equal(watch.drawn, 200);
}

/* Even gains kept are no gains. */
static void even_gains_are_the_plain_null(void **state) {
    double ones[48], latent[20], ratio = 0.3;
    for (int i = 0; i < 48; i++) ones[i] = 1;
    for (int i = 0; i < 20; i++) latent[i] = 1;
    const nulls_gains g = {.length = {48, 20, 0}, .gain = {ones, latent, NULL}};
    nulls_moments kept, plain;
    check_status(nulls_gains_ensemble(&small_block, &g, &ratio, DRAWS, 5, 1, NULL, &kept), STATUS_OK);
    check_status(nulls_ensemble(&small_block, &ratio, DRAWS, 6, 1, NULL, &plain), STATUS_OK);
    compare_moments("even gains", &kept, &plain, DRAWS, DRAWS);
    assert_true(nulls_gains_even(&g));
}

/* ---------------------------------------------------------------- interpolation */

static void interpolation_between_ensembles(void **state) {
    nulls_shape block = small_block, channel = small_block,
                mixed = {.kind = NULLS_MIXED, .half = 36, .dim_count = 5, .dim = {48, 12, 20, 72, 48}};
    channel.channel = true;
    nulls_shape_finish(&channel);
    nulls_shape_finish(&mixed);
    for (double x = -0.9; x < 1; x += 0.36) {
        nulls_check_interpolation(&block, x, 0, 400);
        nulls_check_interpolation(&channel, x / 2, x, 150);
        nulls_check_interpolation(&mixed, x, 0, 400);
    }
}

/* Far from it all, one part is left: rounding stays inside the grid. */
static void ratios_end_with_the_grid(void **state) {
    double far[] = {40, 0}, edge[] = {4, 0};
    nulls_round(&small_block, far);
    assert_true(far[0] == edge[0]);
    far[0] = 0.12345;
    nulls_round(&small_block, far);
    check_near(far[0], 0.12345, 0x1p-11);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(edges_of_chains),
    cmocka_unit_test(edges_of_blocks),
    cmocka_unit_test(columns_of_the_oracles_cases),
    cmocka_unit_test(ensembles_of_the_oracle),
    cmocka_unit_test(ensembles_with_gains_of_the_oracle),
    cmocka_unit_test(threads_change_no_draw),
    cmocka_unit_test(a_stopped_ensemble_has_no_moments),
    cmocka_unit_test(even_gains_are_the_plain_null),
    cmocka_unit_test(interpolation_between_ensembles),
    cmocka_unit_test(ratios_end_with_the_grid),
};

TEST_MAIN(tests)
