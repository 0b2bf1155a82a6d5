/* The reference of top_overlap: which snapshot of a head it is, and what the overlap with it is. */
#include "check.h"
#include "diag/onset.h"
#include "snapshots.h"

enum { HEAD = 1 }; /* layer 0, head 1 of the score form */

typedef struct watch {
    config config;
    maps *maps;
    onsets *onsets;
    spectrum *rows;
    float *pairs;
    bool *candidate;
} watch;

static watch start(void) {
    watch w = {.config = diagnostics_config(VARIANT_MHA, 2, 2, 4, 8)};
    w.config.diagnostics.dense_until = 2; /* snapshots at 0, 1, 2, 10, 20, ... 100 */
    check_status(maps_open(&w.maps, &w.config, 1), STATUS_OK);
    check_status(onsets_open(&w.onsets, &w.config, maps_matrices(w.maps), maps_count(w.maps)), STATUS_OK);
    w.rows = calloc((size_t)maps_count(w.maps), sizeof(*w.rows));
    w.pairs = calloc((size_t)maps_pair_count(w.maps), sizeof(*w.pairs));
    w.candidate = calloc((size_t)maps_count(w.maps), sizeof(*w.candidate));
    return w;
}

static void end(watch *w) {
    onsets_close(w->onsets);
    maps_close(w->maps);
    free(w->rows);
    free(w->pairs);
    free(w->candidate);
}

/* A snapshot in which HEAD has that score and u, v turned by these angles in their first two coordinates. Returns its
 * top_overlap. */
static double note(watch *w, int64_t step, double score, double turn_u, double turn_v) {
    for (int i = 0; i < maps_count(w->maps); i++) {
        const maps_matrix *m = &maps_matrices(w->maps)[i];
        spectrum_clear(&w->rows[i], SPECTRUM_STATUS_ok);
        w->rows[i].tw_score = -1;
        w->candidate[i] = true;
        float *u = w->pairs + m->first_pair, *v = u + m->left;
        u[0] = (float)cos(turn_u);
        u[1] = (float)sin(turn_u);
        v[0] = (float)cos(turn_v);
        v[1] = (float)sin(turn_v);
    }
    w->rows[HEAD].tw_score = score;
    onsets_note(w->onsets, step, w->rows, w->pairs, w->candidate);
    for (int i = 0; i < maps_count(w->maps); i++) {
        if (i == HEAD) continue;
        assert_false(w->candidate[i]);
        assert_true(isnan(w->rows[i].top_overlap));
    }
    return w->rows[HEAD].top_overlap;
}

#define assert_none(x) assert_true(isnan(x))

static void the_threshold_is_of_all_heads_and_snapshots(void **state) {
    watch w = start();
    double u = onsets_threshold(w.onsets), tests = 2 * 2 * 13;
    check_near(exp(-2.0 / 3 * pow(u, 1.5)) / (4 * sqrt(M_PI) * pow(u, 0.75)), 0.01 / tests, 1e-9);
    for (int i = 0; i < maps_count(w.maps); i++) {
        const maps_matrix *m = &maps_matrices(w.maps)[i];
        assert_int_equal(onsets_wanted(w.onsets)[i], m->form == MAPS_score && m->scope == MAPS_head);
    }
    end(&w);
}

/* Confirmed by the next planned snapshot; the reference is the first of the two, and stays. */
static void a_confirmed_crossing_is_the_reference(void **state) {
    watch w = start();
    double high = onsets_threshold(w.onsets), low = high - 0.01;
    assert_none(note(&w, 1, low, 0, 0));
    assert_false(w.candidate[HEAD]);
    assert_none(note(&w, 2, high, 0.1, 0.2));
    assert_true(w.candidate[HEAD]);
    check_near(note(&w, 10, high, 0.4, 0.7), cos(0.3) * cos(0.5), 1e-6);
    assert_false(w.candidate[HEAD]);
    check_near(note(&w, 20, low, 0.1, 0.2), 1, 1e-6);
    check_near(note(&w, 30, low, 0.1 + M_PI, 0.2), 1, 1e-6);
    check_near(note(&w, 40, high, 0.1 + M_PI / 2, 0.2), 0, 1e-6);
    end(&w);
}

/* Neither step 0, nor one snapshot alone, nor a dropped one, nor an unknown score. */
static void what_is_not_confirmed_is_no_reference(void **state) {
    watch w = start();
    double high = onsets_threshold(w.onsets);
    assert_none(note(&w, 0, high, 0, 0));
    assert_false(w.candidate[HEAD]);
    assert_none(note(&w, 1, high, 0, 0));
    assert_true(w.candidate[HEAD]);
    assert_none(note(&w, 2, high - 0.01, 0, 0));
    assert_none(note(&w, 10, high, 0, 0));
    assert_none(note(&w, 30, high, 0.3, 0)); /* 20 was dropped: a candidate of its own */
    assert_true(w.candidate[HEAD]);
    assert_none(note(&w, 40, NAN, 0, 0));
    assert_none(note(&w, 50, high, 0.5, 0));
    check_near(note(&w, 60, high, 0.6, 0), cos(0.1), 1e-6);
    end(&w);
}

/* A snapshot in which the head has no pair is no crossing, and its overlap is NULL. */
static void a_head_without_a_pair_has_no_overlap(void **state) {
    watch w = start();
    double high = onsets_threshold(w.onsets);
    assert_none(note(&w, 10, high, NAN, 0));
    assert_false(w.candidate[HEAD]);
    assert_none(note(&w, 20, high, 0, 0));
    check_near(note(&w, 30, high, 0, 0), 1, 1e-6);
    assert_none(note(&w, 40, high, NAN, 0));
    end(&w);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(the_threshold_is_of_all_heads_and_snapshots),
    cmocka_unit_test(a_confirmed_crossing_is_the_reference),
    cmocka_unit_test(what_is_not_confirmed_is_no_reference),
    cmocka_unit_test(a_head_without_a_pair_has_no_overlap),
};

TEST_MAIN(tests)
