/* Queries: what is printed is what is stored, JSON is strict, and nothing is ever written. */
#include "check.h"
#include "diag/query.h"
#include "diag/store.h"
#include "rundb.h"
#include "snapshots.h"

#include <jansson.h>

enum { LAYERS = 2, HEADS = 3 };

/* A run of two snapshots in rundb_path; the tests then plant values by SQL. */
static void make_run(void) {
    config c = diagnostics_config(VARIANT_MHA, LAYERS, HEADS, 4, 24);
    maps *m;
    store *s;
    check_status(maps_open(&m, &c, 1), STATUS_OK);
    const store_session session = {.config = &c,
                                   .device = "cpu",
                                   .hosts = "here",
                                   .code_version = "0",
                                   .tp = 1,
                                   .dp = 1,
                                   .matrices = maps_matrices(m),
                                   .matrix_count = maps_count(m)};
    check_status(store_open(&s, rundb_path, &session), STATUS_OK);
    for (int step = 0; step <= 10; step += 10) {
        snapshot parts = {0};
        snapshot_fill(&parts, &c, (uint64_t)step + 1);
        store_record r = {.kind = STORE_SNAPSHOT, .snapshot = {.step = step, .status = "done"}};
        r.snapshot.rows = malloc((size_t)maps_count(m) * sizeof(spectrum));
        double *values = malloc((size_t)maps_value_count(m) * sizeof(double));
        check_status(maps_compute(m, &parts, r.snapshot.rows, values), STATUS_OK);
        store_add(s, &r);
        free(values);
        snapshot_free(&parts);
    }
    for (int step = 1; step <= 9; step++) {
        store_record r = {.kind = STORE_STEP,
                          .step = {.step = step, .loss = step == 3 ? NAN : 6, .tokens_per_s = 100 * step}};
        store_add(s, &r);
    }
    store_record eval = {.kind = STORE_EVAL, .eval = {.step = 10, .tokens = 64, .loss = 5, .split = "validation"}};
    store_add(s, &eval);
    snprintf(eval.eval.split, sizeof(eval.eval.split), "unigram");
    eval.eval.loss = 6.25;
    store_add(s, &eval);
    store_event(s, 4, "warn", "fault", "a \"quoted\", odd\nmessage");
    check_status(store_close(s), STATUS_OK);
    maps_close(m);
}

static void change(const char *sql) {
    sqlite3 *db = rundb_open(SQLITE_OPEN_READWRITE);
    if (sqlite3_exec(db, sql, NULL, NULL, NULL) != SQLITE_OK) fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    sqlite3_close(db);
}

/* What the request prints about rundb_path (twice: about it and itself again). The caller frees it. */
static char *answer(query_request r, int databases) {
    const char *paths[] = {rundb_path, rundb_folder};
    char *text = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&text, &size);
    check_status(query_run(paths, databases, &r, out), STATUS_OK);
    fclose(out);
    return text;
}

static json_t *json_answer(query_request r, int databases) {
    json_error_t error;
    r.format = TABLE_JSON;
    char *text = answer(r, databases);
    json_t *j = json_loads(text, JSON_REJECT_DUPLICATES, &error); /* rejects NaN and Infinity as well */
    if (!j) fail_msg("%s in %s", error.text, text);
    free(text);
    return j;
}

static double number_at(const json_t *rows, size_t row, const char *key) {
    return json_number_value(json_object_get(json_array_get(rows, row), key));
}

static query_request about(const char *question) {
    return (query_request){.question = question, .layer = -1, .step = -1};
}

static void layers_gives_first_and_last(void **state) {
    make_run();
    json_t *rows = json_answer(about("layers"), 1);
    assert_int_equal(json_array_size(rows), LAYERS);
    for (int layer = 0; layer < LAYERS; layer++) {
        char sql[300];
        for (int step = 0; step <= 10; step += 10) {
            snprintf(
                sql, sizeof(sql),
                "SELECT stable_rank FROM v_spectra WHERE form = 'score' AND scope = 'head' AND step = %d AND layer = %d"
                " ORDER BY stable_rank LIMIT 1 OFFSET 1",
                step, layer);
            check_near(number_at(rows, (size_t)layer, step ? "stable_rank_last" : "stable_rank_first"),
                       rundb_number(sql), 1e-12);
        }
    }
    check_near(number_at(rows, 0, "validation_loss"), 5, 0);
    check_near(number_at(rows, 0, "perplexity"), exp(5), 1e-9);
    check_near(number_at(rows, 0, "tokens_per_s"), 500, 0);
    check_near(number_at(rows, 0, "unigram_entropy"), 6.25, 0);
    check_near(number_at(rows, 1, "step_last"), 10, 0);
    json_decref(rows);
}

static void layers_reads_well(void **state) {
    make_run();
    change("UPDATE layer_spectra SET outlier_energy = 0.125, mp_gap = 1.5, stable_rank = 3.25, effective_rank = NULL");
    char *text = answer(about("layers"), 1);
    assert_non_null(strstr(
        text, "test (mha)   validation loss 5.0000 (perplexity 148.4)   unigram entropy 6.2500   500 tokens/s\n"));
    assert_non_null(strstr(text, "layer      step 0   step 10"));
    assert_non_null(strstr(
        text, "    1       0.125     0.125        1.50      1.50         3.2       3.2           -         -\n"));
    assert_non_null(strstr(text, "median over heads"));
    free(text);
    change("DELETE FROM layer_spectra WHERE step < 10");
    text = answer(about("layers"), 1);
    assert_non_null(strstr(text, "layer               step 10               step 10"));
    assert_non_null(strstr(
        text, "\n    1                 0.125                  1.50                   3.2                     -\n"));
    free(text);
    query_request other = about("layers");
    other.form = "channel";
    other.stat = "max";
    other.layer = 1;
    text = answer(other, 1);
    assert_non_null(strstr(text, "channel form, part full, maximum over heads"));
    assert_null(strstr(text, "\n    0  "));
    free(text);
    other.part = "rope";
    text = answer(other, 1);
    assert_non_null(strstr(text, "no snapshot of this form and part"));
    free(text);
    /* Runs of one name in two databases are told apart. */
    char head[200];
    snprintf(head, sizeof(head), "\n%s: test (mha)", rundb_folder);
    text = answer(about("layers"), 2);
    assert_non_null(strstr(text, head));
    free(text);
}

/* What stands below a table speaks of its columns; a table without rows says so, but not to a program. */
static void tables_explain_themselves(void **state) {
    make_run();
    char *text = answer(about("compare"), 1);
    assert_non_null(strstr(text, "  layers_with_spikes  "));
    assert_non_null(strstr(text, "layers_with_spikes: layers where"));
    free(text);
    query_request none = {.sql = "SELECT step FROM train_metrics WHERE 0"};
    text = answer(none, 1);
    assert_string_equal(text, "step\n(no rows)\n");
    free(text);
    none.format = TABLE_CSV;
    text = answer(none, 1);
    assert_string_equal(text, "step\r\n");
    free(text);
}

static void every_question_has_an_answer_in_every_format(void **state) {
    make_run();
    const size_t rows[] = {LAYERS, LAYERS * HEADS, 1, 1, LAYERS, 1};
    for (int i = 0; query_question_name(i); i++) {
        query_request r = about(query_question_name(i));
        json_t *once = json_answer(r, 1), *twice = json_answer(r, 2);
        assert_int_equal(json_array_size(once), rows[i]);
        assert_int_equal(json_array_size(twice), 2 * rows[i]);
        assert_string_equal(json_string_value(json_object_get(json_array_get(twice, rows[i]), "database")),
                            rundb_folder);
        assert_null(json_object_get(json_array_get(once, 0), "database"));
        json_decref(once);
        json_decref(twice);
        r.format = TABLE_CSV;
        char *text = answer(r, 1);
        size_t lines = 0;
        for (char *c = text; (c = strstr(c, "\r\n")); c += 2) lines++;
        assert_int_equal(lines, rows[i] + 1);
        free(text);
        r.format = TABLE_ALIGNED;
        text = answer(r, 1);
        assert_true(strlen(text) > 50 && strlen(query_question_help(i)) > 5);
        free(text);
    }
}

static void heads_and_spikes_follow_their_options(void **state) {
    make_run();
    query_request r = about("heads");
    r.layer = 1;
    r.step = 0;
    json_t *rows = json_answer(r, 1);
    assert_int_equal(json_array_size(rows), HEADS);
    check_near(number_at(rows, 0, "step"), 0, 0);
    json_decref(rows);
    change("UPDATE layer_spectra SET mp_gap = 0.5;"
           "UPDATE layer_spectra SET mp_gap = 1.25 WHERE form = 'score' AND stat = 'max' AND layer = 1 AND step = 10");
    rows = json_answer(about("spikes"), 1);
    assert_true(json_is_null(json_object_get(json_array_get(rows, 0), "first_step")));
    check_near(number_at(rows, 1, "first_step"), 10, 0);
    json_decref(rows);
    rows = json_answer(about("compare"), 1);
    check_near(number_at(rows, 0, "layers_with_spikes"), 1, 0);
    check_near(number_at(rows, 0, "layers"), LAYERS, 0);
    json_decref(rows);
}

/* NaN was stored as NULL; an infinity that somebody else wrote is not JSON either. */
static void json_is_strict(void **state) {
    make_run();
    change(
        "UPDATE train_metrics SET grad_norm = 9e999 WHERE step = 4; UPDATE events SET message = CAST(x'ff41' AS TEXT)");
    query_request r = {.sql = "SELECT t.step, loss, grad_norm, x'00ff' AS b, message FROM train_metrics t, events",
                       .layer = -1};
    json_t *rows = json_answer(r, 1);
    assert_true(json_is_null(json_object_get(json_array_get(rows, 2), "loss")));
    assert_true(json_is_null(json_object_get(json_array_get(rows, 3), "grad_norm")));
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 0), "b")), "00ff");
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 0), "message")), "?A");
    json_decref(rows);
    r.sql = "SELECT 1 WHERE 0";
    rows = json_answer(r, 1);
    assert_int_equal(json_array_size(rows), 0);
    json_decref(rows);
}

static void csv_quotes_what_it_must(void **state) {
    make_run();
    query_request r = {.sql = "SELECT message, NULL AS empty, 0.1 AS tenth FROM events", .format = TABLE_CSV};
    char *text = answer(r, 1);
    assert_string_equal(text, "message,empty,tenth\r\n\"a \"\"quoted\"\", odd\nmessage\",,0.10000000000000001\r\n");
    free(text);
}

static void refused(const char *path, const char *sql, status want) {
    query_request r = sql ? (query_request){.sql = sql} : about("layers");
    check_status(query_run(&path, 1, &r, stdout), want);
    assert_true(strlen(status_message()) > 0);
    status_clear();
}

static void nothing_is_ever_written(void **state) {
    make_run();
    int files = rundb_files();
    double before = rundb_number("SELECT total(lambda_max) + count(*) FROM spectra");
    char vacuum[200], attach[200];
    snprintf(vacuum, sizeof(vacuum), "VACUUM INTO '%s/copy.db'", rundb_folder);
    snprintf(attach, sizeof(attach), "ATTACH '%s/new.db' AS fresh", rundb_folder);
    const char *const writes[] = {"DELETE FROM spectra",
                                  "UPDATE runs SET name = 'x' RETURNING name",
                                  "DROP TABLE runs",
                                  "CREATE TABLE t(x)",
                                  "INSERT INTO meta VALUES('a', 'b')",
                                  "SELECT 1; DELETE FROM runs",
                                  "PRAGMA user_version = 7",
                                  vacuum,
                                  attach,
                                  "BEGIN EXCLUSIVE",
                                  "CREATE TEMP TABLE t(x)"};
    for (size_t i = 0; i < sizeof(writes) / sizeof(*writes); i++) refused(rundb_path, writes[i], STATUS_USAGE);
    assert_int_equal(rundb_files(), files);
    check_near(rundb_number("SELECT total(lambda_max) + count(*) FROM spectra"), before, 0);
    check_sql("PRAGMA user_version", 0);
}

static void wrong_input_has_its_own_code(void **state) {
    make_run();
    refused("/nowhere/run.db", NULL, STATUS_NO_INPUT);
    refused(rundb_path, "SELEC 1", STATUS_USAGE);
    refused(rundb_path, "SELECT nothing FROM runs", STATUS_USAGE);
    refused(rundb_path, "", STATUS_USAGE);
    char path[100];
    snprintf(path, sizeof(path), "%s/other", rundb_folder);
    FILE *f = fopen(path, "w");
    for (int i = 0; i < 500; i++) fputs("text, text. ", f);
    fclose(f);
    refused(path, NULL, STATUS_DATA);
    refused(path, "SELECT 1", STATUS_DATA);
    unlink(path);
    sqlite3 *db;
    sqlite3_open(path, &db);
    sqlite3_exec(db, "CREATE TABLE people(name)", NULL, NULL, NULL);
    sqlite3_close(db);
    refused(path, NULL, STATUS_DATA);
    query_request r = about("layers");
    r.part = "rop";
    const char *own = rundb_path;
    check_status(query_run(&own, 1, &r, stdout), STATUS_USAGE);
}

/* A run that is being written, and a finished file in a folder where nothing can be created. */
static void live_and_read_only_databases_are_read(void **state) {
    make_run();
    sqlite3 *writer = rundb_open(SQLITE_OPEN_READWRITE);
    sqlite3_exec(writer, "PRAGMA journal_mode = WAL; BEGIN IMMEDIATE; UPDATE runs SET name = 'half'", NULL, NULL, NULL);
    json_t *rows = json_answer(about("runs"), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 0), "run")), "test");
    json_decref(rows);
    sqlite3_exec(writer, "COMMIT", NULL, NULL, NULL);
    sqlite3_close(writer); /* leaves WAL mode in the file's header */
    chmod(rundb_folder, 0500);
    rows = json_answer(about("runs"), 1);
    assert_string_equal(json_string_value(json_object_get(json_array_get(rows, 0), "run")), "half");
    json_decref(rows);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(layers_gives_first_and_last, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(layers_reads_well, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(tables_explain_themselves, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(every_question_has_an_answer_in_every_format, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(heads_and_spikes_follow_their_options, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(json_is_strict, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(csv_quotes_what_it_must, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(nothing_is_ever_written, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(wrong_input_has_its_own_code, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(live_and_read_only_databases_are_read, rundb_setup, rundb_teardown),
};

TEST_MAIN(tests)
