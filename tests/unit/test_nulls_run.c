/* The nulls of a run: what is missing is made in the background and filled in, a warm cache waits for nothing, a broken
 * cache file is replaced; untrained heads have the scores that they should. */
#include "check.h"
#include "core/clock.h"
#include "diag/nulls.h"
#include "diag/nulls_cache.h"
#include "diag/nulls_columns.h"
#include "diag/onset.h"
#include "folder.h"
#include "nulls_models.h"
#include "spectra_models.h"

enum { DRAWS = 256 };

/* A model whose weights, and gains if wanted, are noise. */
static config noise_model(config_variant variant, snapshot *s, uint64_t seed, bool even) {
    config c = diagnostics_config(variant, 2, 2, 8, 32);
    snapshot_fill(s, &c, seed);
    if (even) nulls_even_gains(s);
    return c;
}

typedef struct run {
    computed rows;
    nulls *nulls;
    char note[512];
} run;

static run start(const config *c, const snapshot *s, int draws) {
    run r = {.rows = compute(c, s, NULL, 1)};
    check_status(nulls_open(&r.nulls, c, maps_matrices(r.rows.maps), maps_count(r.rows.maps), ".", draws, 1, r.note,
                            sizeof(r.note)),
                 STATUS_OK);
    nulls_place(r.nulls, s, r.rows.rows, r.rows.values);
    nulls_fill(r.nulls, &(store_snapshot){.step = 7, .status = "done", .rows = r.rows.rows});
    return r;
}

static void end(run *r) {
    nulls_close(r->nulls);
    release(&r->rows);
}

/* Rows with a spectrum that lack the column. */
static int lacking(const maps *m, const spectrum *rows, int column) {
    int count = 0;
    for (int i = 0; i < maps_count(m); i++)
        count += rows[i].status == SPECTRUM_STATUS_ok && isnan(rows[i].column[column]);
    return count;
}

static void use_cache(void **state) {
    setenv("BULKHEAD_CACHE", ((folder *)*state)->path, 1);
}

static void what_is_missing_is_filled_in_later(void **state) {
    use_cache(state);
    for (int v = VARIANT_MHA; v <= VARIANT_MLA_DECOUPLED; v++) {
        snapshot s = {0};
        config c = noise_model((config_variant)v, &s, 3, true);
        run r = start(&c, &s, DRAWS);
        store_snapshot filled = {0};
        assert_int_equal(lacking(r.rows.maps, r.rows.rows, SPECTRUM_null_gap), 0);
        assert_int_equal(nulls_finish(r.nulls, 60), 0);
        assert_true(nulls_next_snapshot(r.nulls, &filled));
        assert_int_equal(filled.step, 7);
        assert_int_equal(lacking(r.rows.maps, filled.rows, SPECTRUM_tw_score), 0);
        assert_int_equal(lacking(r.rows.maps, filled.rows, SPECTRUM_z_effective_rank_rest), 0);
        free(filled.rows);
        assert_false(nulls_next_snapshot(r.nulls, &filled));
        store_null row;
        int rows = 0;
        while (nulls_next_row(r.nulls, &row)) rows += row.null_id != 0 && row.moments.sd[NULLS_ln_lambda_max] > 0;
        assert_true(rows > 3);
        end(&r);

        r = start(&c, &s, DRAWS); /* warm: nothing is missing, and another file made it so */
        assert_string_equal(r.note, "");
        assert_int_equal(lacking(r.rows.maps, r.rows.rows, SPECTRUM_tw_score), 0);
        assert_false(nulls_next_snapshot(r.nulls, &filled));
        end(&r);
        snapshot_free(&s);
    }
}

static bool count_call(void *user) {
    return ++*(int *)user > 0;
}

/* Gains: even ones are the plain null; of uneven ones only heads that a finding could rest on get an ensemble. */
static void gains_are_kept_where_it_matters(void **state) {
    use_cache(state);
    snapshot s = {0};
    config c = noise_model(VARIANT_MHA, &s, 3, false);
    float *q = NULL, *k = NULL;
    for (int i = 0; i < s.count; i++) {
        if (strcmp(s.tensors[i].name, "layers.1.attention.W_Q") == 0) q = s.tensors[i].data;
        if (strcmp(s.tensors[i].name, "layers.1.attention.W_K") == 0) k = s.tensors[i].data;
    }
    for (int64_t i = 0; i < 32; i++) q[i] = k[i] = 1; /* head 0's first row: a spike */
    run r = start(&c, &s, DRAWS);
    store_snapshot filled = {0};
    int calls = 0;
    assert_int_equal(nulls_finish_aloud(r.nulls, 60, count_call, &calls), 0);
    assert_true(calls >= 1);
    assert_true(nulls_next_snapshot(r.nulls, &filled));
    int with = 0;
    for (int i = 0; i < maps_count(r.rows.maps); i++) {
        const maps_matrix *m = &maps_matrices(r.rows.maps)[i];
        if (m->form == MAPS_weight || m->scope == MAPS_layer || isnan(filled.rows[i].tw_score_gains)) continue;
        assert_true(m->layer == 1 && m->head == 0);
        assert_true(filled.rows[i].tw_score_gains > 5 && filled.rows[i].tw_score_gains != filled.rows[i].tw_score);
        with++;
    }
    assert_int_equal(with, 2); /* score and channel */
    free(filled.rows);
    end(&r);
    snapshot_free(&s);
}

/* The limit for it is u* of this run: of a head that an onset counts the gains are known, and of none under it. */
static void gains_are_kept_from_the_onsets_threshold_on(void **state) {
    use_cache(state);
    for (int above = 0; above < 2; above++) {
        snapshot s = {0};
        config c = noise_model(VARIANT_MHA, &s, 3, false);
        run r = start(&c, &s, DRAWS);
        onsets *o;
        check_status(onsets_open(&o, &c, maps_matrices(r.rows.maps), maps_count(r.rows.maps)), STATUS_OK);
        assert_int_equal(nulls_finish(r.nulls, 60), 0);
        nulls_fill(r.nulls, &(store_snapshot){.rows = r.rows.rows});
        spectrum *row = &r.rows.rows[0];
        assert_true(onsets_wanted(o)[0]);
        double wanted = onsets_threshold(o) + (above ? 0.001 : -0.001), point = NULLS_TW1_Q95 - row->tw_score;
        /* Both tw_score and the 95% point are linear in ln lambda_max: their distance gives the slope. */
        double slope = point / log(row->null_edge95 / row->lambda_max);
        row->stable_rank /= exp((wanted - row->tw_score) / slope);
        nulls_fill(r.nulls, &(store_snapshot){.step = 9, .status = "done", .rows = r.rows.rows});
        check_near(row->tw_score, wanted, 1e-6);
        assert_int_equal(nulls_finish(r.nulls, 60), 0);
        nulls_fill(r.nulls, &(store_snapshot){.step = 9, .status = "done", .rows = r.rows.rows});
        assert_int_equal(!isnan(row->tw_score_gains), above);
        onsets_close(o);
        end(&r);
        snapshot_free(&s);
    }
}

static void a_broken_cache_is_ignored_and_replaced(void **state) {
    const char *const broken[] = {"nonsense\n", "bulkhead nulls 1\nchain 4 4\t9\nend 0\n", "bulkhead nulls 1\n"};
    const char *path = folder_path(*state, "nulls.txt");
    char note[512];
    use_cache(state);
    nulls_entry e = {.key = "chain 2 3", .draws = 9};
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++) e.moments.mean[i] = i, e.moments.sd[i] = 1;
    e.moments.mean[NULLS_alpha] = NAN;
    for (int i = 0; i < 3; i++) {
        nulls_cache *c;
        nulls_moments m;
        FILE *f = fopen(path, "w");
        fputs(broken[i], f);
        fclose(f);
        check_status(nulls_cache_open(&c, ".", note, sizeof(note)), STATUS_OK);
        assert_true(strstr(note, "ignored") != NULL);
        assert_false(nulls_cache_find(c, "chain 4 4", &m));
        check_status(nulls_cache_add(c, &e, true), STATUS_OK);
        nulls_cache_close(c);
        check_status(nulls_cache_open(&c, ".", note, sizeof(note)), STATUS_OK);
        assert_string_equal(note, "");
        assert_true(nulls_cache_find(c, "chain 2 3", &m));
        assert_true(m.mean[2] == 2 && isnan(m.mean[NULLS_alpha]));
        nulls_cache_close(c);
    }
}

/* A digit that has changed makes no line malformed: the checksum sees it. */
static void a_changed_number_is_seen(void **state) {
    const char *path = folder_path(*state, "nulls.txt");
    char note[512], text[4096], *digit;
    use_cache(state);
    nulls_cache *c;
    nulls_entry e = {.key = "chain 2 5", .draws = 9};
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++) e.moments.sd[i] = 1;
    check_status(nulls_cache_open(&c, ".", note, sizeof(note)), STATUS_OK);
    check_status(nulls_cache_add(c, &e, true), STATUS_OK);
    nulls_cache_close(c);
    FILE *f = fopen(path, "r+");
    text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
    digit = strstr(text, "\t0\t1");
    assert_non_null(digit);
    digit[1] = '7';
    rewind(f);
    fputs(text, f);
    fclose(f);
    check_status(nulls_cache_open(&c, ".", note, sizeof(note)), STATUS_OK);
    assert_non_null(strstr(note, "checksum"));
    nulls_cache_close(c);
}

/* Two processes that make different ensembles keep both. */
static void writers_keep_each_others_ensembles(void **state) {
    char note[512];
    use_cache(state);
    nulls_cache *a, *b;
    nulls_moments m;
    nulls_entry e = {.key = "chain 2 5", .draws = 9};
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++) e.moments.sd[i] = 1;
    check_status(nulls_cache_open(&a, ".", note, sizeof(note)), STATUS_OK);
    check_status(nulls_cache_open(&b, ".", note, sizeof(note)), STATUS_OK);
    check_status(nulls_cache_add(a, &e, true), STATUS_OK);
    strcpy(e.key, "chain 2 6");
    check_status(nulls_cache_add(b, &e, true), STATUS_OK);
    nulls_cache_close(a);
    nulls_cache_close(b);
    check_status(nulls_cache_open(&a, ".", note, sizeof(note)), STATUS_OK);
    assert_true(nulls_cache_find(a, "chain 2 5", &m) && nulls_cache_find(a, "chain 2 6", &m));
    nulls_cache_close(a);
}

/* Without draws there are edges and no ensembles. */
static void no_draws_no_ensembles(void **state) {
    snapshot s = {0};
    config c = noise_model(VARIANT_MLA_DECOUPLED, &s, 4, true);
    run r = start(&c, &s, 0);
    assert_int_equal(lacking(r.rows.maps, r.rows.rows, SPECTRUM_null_edge), 0);
    assert_true(isnan(r.rows.rows[0].tw_score));
    assert_int_equal(nulls_finish(r.nulls, 1), 0);
    end(&r);
    snapshot_free(&s);
}

/* A layer as it is initialized, with spectra that are made up: all its ensembles come with the program. */
static void the_first_snapshot_of_tiny_waits_for_nothing(void **state) {
    static const char *const variants[] = {"mha", "mla-prerope", "mla-decoupled"};
    use_cache(state);
    for (int i = 0; i < 3; i++) {
        char variant[64], note[512];
        snprintf(variant, sizeof(variant), "attention.variant=%s", variants[i]);
        snapshot s = {0};
        config c;
        maps *m;
        nulls *n;
        check_status(config_load(&c, NULL, (const char *const[]){"model.size=tiny", variant, "model.layers=1"}, 3),
                     STATUS_OK);
        check_status(maps_open(&m, &c, 1), STATUS_OK);
        snapshot_fill(&s, &c, (uint64_t)i);
        nulls_even_gains(&s);
        double *values = malloc((size_t)maps_value_count(m) * sizeof(*values));
        for (int64_t k = 0; k < maps_value_count(m); k++) values[k] = 1;
        spectrum *rows = malloc((size_t)maps_count(m) * sizeof(*rows));
        for (int k = 0; k < maps_count(m); k++) {
            spectrum_clear(&rows[k], SPECTRUM_STATUS_ok);
            rows[k].stable_rank = rows[k].lambda_sum = maps_matrices(m)[k].rank;
        }
        check_status(nulls_open(&n, &c, maps_matrices(m), maps_count(m), ".", 16384, 1, note, sizeof(note)), STATUS_OK);
        nulls_place(n, &s, rows, values);
        nulls_fill(n, &(store_snapshot){.step = 0, .status = "done", .rows = rows});
        for (int k = 0; k < maps_count(m); k++)
            if (isnan(rows[k].tw_score))
                fail_msg("%s: no ensemble of %s, %s, %s", variants[i], maps_form_names[maps_matrices(m)[k].form],
                         maps_part_names[maps_matrices(m)[k].part], maps_scope_names[maps_matrices(m)[k].scope]);
        assert_int_equal(nulls_finish(n, 0), 0);
        nulls_close(n);
        maps_close(m);
        snapshot_free(&s);
        config_free(&c);
        free(values);
        free(rows);
    }
}

/* Of a layer of very high rank there is the edge alone, and nothing waits for more. */
static void a_layer_of_high_rank_waits_for_nothing(void **state) {
    static char *forms[] = {"score"}, *scopes[] = {"layer"};
    use_cache(state);
    config c = diagnostics_config(VARIANT_MHA, 1, 33, 64, 33 * 64);
    c.diagnostics.forms = (config_list){1, forms};
    c.diagnostics.scopes = (config_list){1, scopes};
    maps *m;
    nulls *n;
    char note[512];
    check_status(maps_open(&m, &c, 1), STATUS_OK);
    assert_int_equal(maps_count(m), 1);
    check_status(nulls_open(&n, &c, maps_matrices(m), 1, ".", DRAWS, 1, note, sizeof(note)), STATUS_OK);
    spectrum row;
    spectrum_clear(&row, SPECTRUM_STATUS_ok);
    row.null_gap = 1;
    row.stable_rank = 300;
    row.null_log[0] = row.null_log[1] = 0;
    nulls_fill(n, &(store_snapshot){.step = 7, .status = "done", .rows = &row});
    assert_int_equal(nulls_finish(n, 0), 0);
    assert_true(isnan(row.tw_score));
    assert_true(nulls_next_note(n, note, sizeof(note)));
    assert_non_null(strstr(note, "layers of rank 2112 have no null ensemble"));
    assert_false(nulls_next_note(n, note, sizeof(note)));
    nulls_close(n);
    maps_close(m);
}

/* Who waits is told for what, and how far it is. */
static void what_is_being_made_is_described(void **state) {
    use_cache(state);
    snapshot s = {0};
    config c = noise_model(VARIANT_MHA, &s, 3, true);
    enum { MANY = 10000000, MOST_S = 30 };
    run r = start(&c, &s, MANY);
    char text[256] = "";
    int waiting, drawn = 0, draws, rank;
    double end_s = clock_now_s() + MOST_S;
    while (drawn == 0 && clock_now_s() < end_s) {
        nulls_describe(r.nulls, text, sizeof(text));
        if (sscanf(text, "%d null ensembles to make, %d of %d draws of one of rank %d made", &waiting, &drawn, &draws,
                   &rank) != 4)
            drawn = 0;
    }
    if (drawn == 0) fail_msg("\"%s\"", text);
    assert_in_range(drawn, 1, MANY);
    assert_int_equal(draws, MANY);
    assert_int_equal(rank, 8);
    assert_in_range(waiting, 2, 10);
    end(&r);
    r = start(&c, &s, 0);
    nulls_describe(r.nulls, text, sizeof(text));
    assert_string_equal(text, "0 null ensembles to make");
    end(&r);
    snapshot_free(&s);
}

static int open_folder(void **state) {
    folder *f = malloc(sizeof(*f));
    *f = folder_make();
    *state = f;
    return 0;
}
static int close_folder(void **state) {
    folder_remove(*state);
    free(*state);
    return 0;
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(what_is_missing_is_filled_in_later, open_folder, close_folder),
    cmocka_unit_test_setup_teardown(gains_are_kept_where_it_matters, open_folder, close_folder),
    cmocka_unit_test_setup_teardown(gains_are_kept_from_the_onsets_threshold_on, open_folder, close_folder),
    cmocka_unit_test_setup_teardown(a_broken_cache_is_ignored_and_replaced, open_folder, close_folder),
    cmocka_unit_test_setup_teardown(a_changed_number_is_seen, open_folder, close_folder),
    cmocka_unit_test_setup_teardown(writers_keep_each_others_ensembles, open_folder, close_folder),
    cmocka_unit_test(no_draws_no_ensembles),
    cmocka_unit_test_setup_teardown(the_first_snapshot_of_tiny_waits_for_nothing, open_folder, close_folder),
    cmocka_unit_test_setup_teardown(a_layer_of_high_rank_waits_for_nothing, open_folder, close_folder),
    cmocka_unit_test_setup_teardown(what_is_being_made_is_described, open_folder, close_folder),
};

TEST_MAIN(tests)
