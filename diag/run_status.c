#include "diag/run_status.h"

#include "diag/reading.h"

#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

/* A session that was killed has not written how it ended. */
static const char sql_status[] = "SELECT status, (SELECT exit_code FROM sessions s WHERE s.run_id = r.run_id"
                                 " ORDER BY attempt DESC LIMIT 1) FROM runs r ORDER BY run_id LIMIT 1";

static const char sql_param[] = "SELECT value FROM params WHERE run_id = (SELECT min(run_id) FROM runs) AND key = ?1";

/* A database whose tables are in the making is none yet. */
static status open_checked(const char *path, sqlite3 **db, const char *sql, sqlite3_stmt **q) {
    *q = NULL;
    TRY(reading_open(path, db));
    int rc = sqlite3_prepare_v2(*db, sql, -1, q, NULL);
    return rc == SQLITE_OK || rc == SQLITE_ERROR ? STATUS_OK : reading_failure(path, *db, rc);
}

status run_status_read(const char *path, run_status *out) {
    sqlite3 *db;
    sqlite3_stmt *q;
    bool row = false;
    *out = (run_status){.exit_code = -1};
    status s = open_checked(path, &db, sql_status, &q);
    if (s == STATUS_OK && q) s = reading_row(path, db, q, &row);
    if (row) {
        const char *word = (const char *)sqlite3_column_text(q, 0);
        snprintf(out->word, sizeof out->word, "%s", word ? word : "");
        if (sqlite3_column_type(q, 1) == SQLITE_INTEGER) out->exit_code = sqlite3_column_int64(q, 1);
    }
    sqlite3_finalize(q);
    sqlite3_close(db);
    if (s != STATUS_NO_INPUT) return s;
    status_clear();
    return STATUS_OK;
}

typedef struct comparison {
    const char *path;
    sqlite3 *db;
    sqlite3_stmt *q;
    status result;
} comparison;

/* A size's name stands for the keys that it sets. */
static bool decides(const char *key) {
    static const char *const sections[] = {"model.", "attention.", "data.", "train.", "run.seed"};
    if (strcmp(key, "model.size") == 0) return false;
    for (size_t i = 0; i < sizeof sections / sizeof *sections; i++)
        if (strncmp(key, sections[i], strlen(sections[i])) == 0) return true;
    return false;
}

static void compare_key(void *user, const char *key, const char *value) {
    comparison *k = user;
    bool row = false;
    if (k->result != STATUS_OK || !value[0] || !decides(key)) return;
    sqlite3_reset(k->q);
    sqlite3_bind_text(k->q, 1, key, -1, SQLITE_STATIC);
    k->result = reading_row(k->path, k->db, k->q, &row);
    const char *was = row ? (const char *)sqlite3_column_text(k->q, 0) : NULL;
    if (was && strcmp(was, value) != 0)
        k->result = status_fail(STATUS_CONFIG, "%s was made with %s \"%s\", not \"%s\"", k->path, key, was, value);
}

status run_status_compare(const char *path, const config *c) {
    comparison k = {.path = path};
    k.result = open_checked(path, &k.db, sql_param, &k.q);
    if (k.q) config_visit(c, compare_key, &k);
    sqlite3_finalize(k.q);
    sqlite3_close(k.db);
    if (k.result != STATUS_NO_INPUT) return k.result;
    status_clear();
    return STATUS_OK;
}
