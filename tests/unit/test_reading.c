/* Reading databases that another process writes: one moment, and what is refused. */
#include "check.h"
#include "diag/reading.h"
#include "diag/schema.h"
#include "rundb.h"

static int count(sqlite3 *db, const char *sql) {
    sqlite3_stmt *q;
    bool row;
    check_status(reading_ask(rundb_path, db, sql, &q), STATUS_OK);
    check_status(reading_row(rundb_path, db, q, &row), STATUS_OK);
    assert_true(row);
    int n = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    return n;
}

static void what_is_read_is_of_one_moment(void **state) {
    sqlite3 *writer = rundb_open(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE), *db;
    assert_int_equal(schema_prepare(writer), SQLITE_OK);
    sqlite3_close(writer);
    rundb_change("PRAGMA journal_mode = WAL; INSERT INTO runs(run_id) VALUES(1)");
    check_status(reading_begin(rundb_path, &db), STATUS_OK);
    assert_int_equal(count(db, "SELECT count(*) FROM runs"), 1);
    rundb_change("INSERT INTO runs(run_id) VALUES(2); INSERT INTO params VALUES(2, 'a', 'b')");
    assert_int_equal(count(db, "SELECT count(*) FROM runs"), 1);
    assert_int_equal(count(db, "SELECT count(*) FROM params"), 0);
    sqlite3_close(db);
    check_status(reading_begin(rundb_folder, &db), STATUS_OK);
    assert_int_equal(count(db, "SELECT count(*) FROM runs"), 2);
    sqlite3_close(db);
}

static void what_is_refused_leaves_nothing_open(void **state) {
    sqlite3 *db;
    sqlite3_stmt *q;
    check_status(reading_begin(rundb_path, &db), STATUS_NO_INPUT);
    assert_null(db);
    rundb_change("CREATE TABLE foreign_one(x)");
    check_status(reading_begin(rundb_path, &db), STATUS_DATA);
    assert_null(db);
    rundb_change("CREATE TABLE meta(key, value); INSERT INTO meta VALUES('schema_version', '1')");
    status_clear();
    check_status(reading_begin(rundb_path, &db), STATUS_OK);
    check_status(reading_ask(rundb_path, db, "SELECT nothing FROM runs", &q), STATUS_DATA);
    assert_non_null(strstr(status_message(), "not a whole run database"));
    assert_null(q);
    sqlite3_close(db);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(what_is_read_is_of_one_moment, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(what_is_refused_leaves_nothing_open, rundb_setup, rundb_teardown),
};

TEST_MAIN(tests)
