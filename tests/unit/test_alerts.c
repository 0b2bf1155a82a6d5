/* Alerts: rules from text, when they fire, and the programs that they start. */
#include "check.h"
#include "comm/channel.h"
#include "diag/alerts.h"
#include "diag/alerts_run.h"
#include "rundb.h"
#include "snapshots.h"

#include <unistd.h>

static void good_rules(void **state) {
    alerts_rule r;
    check_status(alerts_parse("tw_score > 7 for 3 snapshots", &r), STATUS_OK);
    assert_string_equal(spectrum_columns[r.column].name, "tw_score");
    assert_true(r.form == MAPS_score && r.part == MAPS_full && r.scope == MAPS_head && !r.tensor[0]);
    assert_string_equal(r.operator, ">");
    check_near(r.limit, 7, 0);
    assert_int_equal(r.snapshots, 3);
    assert_int_equal(r.action, ALERTS_LOG);
    alerts_rule_free(&r);
    check_status(alerts_parse("  alpha of channel rope<=-2.5e-1 then stop ", &r), STATUS_OK);
    assert_true(r.form == MAPS_channel && r.part == MAPS_rope && r.scope == MAPS_head);
    assert_string_equal(r.operator, "<=");
    check_near(r.limit, -0.25, 0);
    assert_int_equal(r.snapshots, 1);
    assert_int_equal(r.action, ALERTS_STOP);
    alerts_rule_free(&r);
    check_status(
        alerts_parse("mp_gap of weight W_K layer >= 1 for 1 snapshot then run: notify 'two words' \"it's\" $HOME; ''",
                     &r),
        STATUS_OK);
    assert_true(r.form == MAPS_weight && r.scope == MAPS_layer && r.action == ALERTS_RUN);
    assert_string_equal(r.tensor, "W_K");
    static const char *const want[] = {"notify", "two words", "it's", "$HOME;", ""};
    for (int i = 0; i < 5; i++) assert_string_equal(r.arguments[i], want[i]);
    assert_null(r.arguments[5]);
    alerts_rule_free(&r);
}

static void wrong_rules_are_named(void **state) {
    static const char *const rules[][2] = {
        {"", "no column"},
        {"tw_scor > 7", "no column tw_scor in docs/spectra.md; the nearest is tw_score;"},
        {"mpgap > 7", "the nearest is mp_gap;"},
        {"tw_score", "missing after"},
        {"tw_score 7", "before 7"},
        {"tw_score = 7", "missing after"},
        {"tw_score >> 7", "missing after"},
        {"tw_score >", "no number"},
        {"tw_score > seven", "seven"},
        {"tw_score > nan", "nan"},
        {"tw_score > 7 for", "how many"},
        {"tw_score > 7 for 0 snapshots", "not 0"},
        {"tw_score > 7 for 2.5 snapshots", "not 2.5"},
        {"tw_score > 7 for 3", "after the number;"},
        {"tw_score > 7 for 3 steps", "not steps"},
        {"tw_score > 7 then", "then what"},
        {"tw_score > 7 then shout", "shout"},
        {"tw_score > 7 then checkpoints", "checkpoints"},
        {"tw_score > 7 then run notify", "colon"},
        {"tw_score > 7 then run:", "no program"},
        {"tw_score > 7 then run: ''", "no program"},
        {"tw_score > 7 then run: echo 'x", "quote"},
        {"tw_score > 7 then stop now", "now"},
        {"tw_score of nothing > 7", "nothing"},
        {"tw_score in head > 7", "before in"},
        {"tw_score of W_", NULL},
    };
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++) {
        alerts_rule r;
        status_clear();
        check_status(alerts_parse(rules[i][0], &r), STATUS_CONFIG);
        if (!strstr(status_message(), rules[i][0]) || (rules[i][1] && !strstr(status_message(), rules[i][1])))
            fail_msg("\"%s\" is answered with: %s", rules[i][0], status_message());
    }
}

/* ---- over snapshots of one column, in 2 layers of 2 heads ---- */

enum { LAYERS = 2, HEADS = 2, COUNT = LAYERS * HEADS };

typedef struct watch {
    config c;
    alerts *alerts;
    maps_matrix matrices[COUNT + 1];
    char said[4096];
    int lines;
} watch;

static void hear(void *user, int64_t step, const char *message) {
    watch *w = user;
    size_t used = strlen(w->said);
    snprintf(w->said + used, sizeof w->said - used, "%lld: %s\n", (long long)step, message);
    w->lines++;
}

static status open_watch(watch *w, char *rule) {
    static char *rules[1];
    rules[0] = rule;
    *w = (watch){.c = {.diagnostics.alerts = {1, rules}, .run.name = "watched"}};
    for (int i = 0; i < COUNT; i++) w->matrices[i] = (maps_matrix){.layer = i / HEADS, .head = i % HEADS, .tensor = ""};
    w->matrices[COUNT] = (maps_matrix){.form = MAPS_channel, .tensor = ""};
    return alerts_open(&w->alerts, &w->c, w->matrices, COUNT + 1, rundb_folder);
}

/* One snapshot with these values of tw_score (and a large one in the channel form). Returns what is asked for. */
static int take(watch *w, int64_t step, const double values[COUNT]) {
    spectrum rows[COUNT + 1];
    for (int i = 0; i <= COUNT; i++) {
        spectrum_clear(&rows[i], SPECTRUM_STATUS_ok);
        rows[i].tw_score = i < COUNT ? values[i] : 1e9;
    }
    w->lines = 0;
    w->said[0] = '\0';
    return alerts_take(w->alerts, step, rows, hear, w);
}

static void it_fires_when_the_count_is_reached_and_again_after_a_break(void **state) {
    watch w;
    check_status(open_watch(&w, "tw_score > 7 for 3 snapshots"), STATUS_OK);
    static const double quiet[] = {0, 7, NAN, 0}, one[] = {0, 0, 8, 0};
    int fired_at[12], n = 0;
    for (int64_t step = 0; step < 12; step++) {
        assert_int_equal(take(&w, step, step == 2 || step == 7 ? quiet : one), 0);
        if (w.lines) fired_at[n++] = (int)step;
    }
    assert_int_equal(n, 2); /* 0 1 are too few; 3 4 5, not again at 6; 8 9 10 */
    assert_int_equal(fired_at[0], 5);
    assert_int_equal(fired_at[1], 10);
    alerts_close(w.alerts);
}

static void one_line_tells_of_the_worst(void **state) {
    watch w;
    check_status(open_watch(&w, "tw_score < 0 then stop"), STATUS_OK);
    assert_int_equal(take(&w, 40, (const double[]){-1, NAN, 3, -5}), CHANNEL_STOP);
    assert_int_equal(w.lines, 1);
    assert_string_equal(w.said, "40: tw_score < 0 then stop: layer 1, head 1: -5 (and 1 more); the run is to stop\n");
    assert_int_equal(take(&w, 50, (const double[]){-1, -0.5, 3, -5}), CHANNEL_STOP); /* head 1 of layer 0 is new */
    assert_non_null(strstr(w.said, "layer 0, head 1: -0.5;"));
    alerts_close(w.alerts);
}

static void a_checkpoint_is_asked_for_at_each_firing(void **state) {
    watch w;
    static const double quiet[] = {0, 0, 0, 0}, loud[] = {0, 8, 0, 0};
    check_status(open_watch(&w, "tw_score > 7 then checkpoint"), STATUS_OK);
    assert_int_equal(take(&w, 10, loud), CHANNEL_CHECKPOINT);
    assert_non_null(strstr(w.said, "layer 0, head 1: 8; a checkpoint is asked for"));
    assert_int_equal(take(&w, 20, loud), 0);
    assert_int_equal(take(&w, 30, quiet), 0);
    assert_int_equal(take(&w, 40, loud), CHANNEL_CHECKPOINT);
    alerts_close(w.alerts);
}

static void limits_themselves(void **state) {
    static char *const rules[] = {"tw_score > 7", "tw_score >= 7", "tw_score < 7", "tw_score <= 7"};
    for (int i = 0; i < 4; i++) {
        watch w;
        check_status(open_watch(&w, rules[i]), STATUS_OK);
        take(&w, 0, (const double[]){7, 7, 7, 7});
        assert_int_equal(w.lines, i % 2);
        alerts_close(w.alerts);
    }
}

static void a_rule_about_nothing_recorded_is_refused(void **state) {
    watch w;
    check_status(open_watch(&w, "tw_score of rope > 7"), STATUS_CONFIG);
    assert_non_null(strstr(status_message(), "part rope"));
    status_clear();
    check_status(open_watch(&w, "tw_score of channel > 7"), STATUS_OK);
    take(&w, 0, (const double[]){0, 0, 0, 0});
    assert_int_equal(w.lines, 1);
    alerts_close(w.alerts);
}

/* ---- programs ---- */

/* The text of a file in the run folder, as soon as it has `want` lines. */
static const char *wait_for_lines(const char *name, int want) {
    static char text[4096];
    char path[128];
    snprintf(path, sizeof path, "%s/%s", rundb_folder, name);
    for (int tries = 0; tries < 2000; tries++) {
        FILE *f = fopen(path, "r");
        size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
        if (f) fclose(f);
        text[n] = '\0';
        int lines = 0;
        for (size_t i = 0; i < n; i++) lines += text[i] == '\n';
        if (lines >= want) return text;
        usleep(5000);
    }
    fail_msg("%s never had %d lines: %s", name, want, text);
    return NULL;
}

static void a_program_gets_its_arguments_and_the_facts(void **state) {
    watch w;
    setenv("OMPI_COMM_WORLD_RANK", "0", 1);
    setenv("BULKHEAD_STEP", "wrong", 1);
    check_status(open_watch(&w, "tw_score > 7 then run: sh -c 'echo $0 $BULKHEAD_RUN $BULKHEAD_STEP $BULKHEAD_LAYER "
                                "$BULKHEAD_HEAD $BULKHEAD_COLUMN $BULKHEAD_VALUE $BULKHEAD_MATRICES "
                                "[$OMPI_COMM_WORLD_RANK]; echo aside >&2' \"a b;\""),
                 STATUS_OK);
    take(&w, 30, (const double[]){0, 8, 9.5, 0});
    assert_string_equal(wait_for_lines("alerts.log", 2), "a b; watched 30 1 0 tw_score 9.5 2 []\naside\n");
    alerts_close(w.alerts);
    unsetenv("OMPI_COMM_WORLD_RANK");
    unsetenv("BULKHEAD_STEP");
}

static void a_program_that_is_not_there_is_told(void **state) {
    watch w;
    check_status(open_watch(&w, "tw_score > 7 then run: no-such-program-anywhere"), STATUS_OK);
    take(&w, 0, (const double[]){8, 0, 0, 0});
    assert_int_equal(w.lines, 2);
    assert_non_null(strstr(w.said, "no-such-program-anywhere does not start"));
    assert_string_equal(status_message(), "");
    alerts_close(w.alerts);
}

static void programs_that_fail_are_told(void **state) {
    watch w;
    static const double fires[] = {8, 0, 0, 0}, quiet[] = {0, 0, 0, 0};
    check_status(open_watch(&w, "tw_score > 7 then run: sh -c 'exit 3'"), STATUS_OK);
    take(&w, 0, fires);
    for (int tries = 0; tries < 2000 && !strstr(w.said, "exit code 3"); tries++) {
        usleep(5000);
        take(&w, 1, quiet);
    }
    assert_non_null(strstr(w.said, "exit code 3"));
    take(&w, 2, quiet);
    assert_int_equal(w.lines, 0);
    alerts_close(w.alerts);
}

static void too_many_programs_are_not_started(void **state) {
    watch w;
    check_status(open_watch(&w, "tw_score > 7 then run: sleep 2"), STATUS_OK);
    for (int64_t step = 0; step < 17; step++) {
        take(&w, 2 * step, (const double[]){8, 0, 0, 0});
        assert_int_equal(strstr(w.said, "still run") != NULL, step == 16);
        take(&w, 2 * step + 1, (const double[]){0, 0, 0, 0});
    }
    alerts_close(w.alerts);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(good_rules),
    cmocka_unit_test(wrong_rules_are_named),
    cmocka_unit_test_setup_teardown(it_fires_when_the_count_is_reached_and_again_after_a_break, rundb_setup,
                                    rundb_teardown),
    cmocka_unit_test_setup_teardown(one_line_tells_of_the_worst, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_checkpoint_is_asked_for_at_each_firing, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(limits_themselves, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_rule_about_nothing_recorded_is_refused, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_program_gets_its_arguments_and_the_facts, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_program_that_is_not_there_is_told, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(programs_that_fail_are_told, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(too_many_programs_are_not_started, rundb_setup, rundb_teardown),
};

TEST_MAIN(tests)
