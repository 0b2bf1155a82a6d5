/* Tables, views, and the way from an older version to this one. */
#include "diag/schema.h"

#include <stdlib.h>
#include <string.h>

#define COLUMN(name, type)  #name " " #type ", "
#define REAL(name, type)    #name " REAL, "
#define JOINED(name, type)  "p." #name ", "
#define AVERAGE(name, type) "avg(l." #name ") AS " #name ", "

/* clang-format off */
static const char tables[] =
"CREATE TABLE IF NOT EXISTS meta(key TEXT PRIMARY KEY, value TEXT);"

"CREATE TABLE IF NOT EXISTS runs(run_id INTEGER PRIMARY KEY, uuid TEXT UNIQUE, name TEXT, run_group TEXT, tags TEXT,"
" variant TEXT, status TEXT, started_at TEXT, ended_at TEXT, seed INTEGER, config_yaml TEXT);"

"CREATE TABLE IF NOT EXISTS sessions(run_id INTEGER, attempt INTEGER, slurm_job_id TEXT, hosts TEXT, device TEXT,"
" tp INTEGER, dp INTEGER, threads INTEGER, code_version TEXT, first_step INTEGER, last_step INTEGER,"
" exit_code INTEGER, messages INTEGER, PRIMARY KEY(run_id, attempt));"

"CREATE TABLE IF NOT EXISTS params(run_id INTEGER, key TEXT, value TEXT, PRIMARY KEY(run_id, key));"

"CREATE TABLE IF NOT EXISTS snapshots(snapshot_id INTEGER PRIMARY KEY, run_id INTEGER, step INTEGER, tokens INTEGER,"
" status TEXT, lag_ms REAL, compute_ms REAL, UNIQUE(run_id, step));"

"CREATE TABLE IF NOT EXISTS matrices(matrix_id INTEGER PRIMARY KEY, run_id INTEGER NOT NULL, form TEXT NOT NULL,"
" part TEXT NOT NULL, scope TEXT NOT NULL, layer INTEGER NOT NULL, head INTEGER NOT NULL, tensor TEXT NOT NULL,"
" rows INTEGER NOT NULL, cols INTEGER NOT NULL, UNIQUE(run_id, form, part, scope, layer, head, tensor));"

"CREATE TABLE IF NOT EXISTS spectra(snapshot_id INTEGER, matrix_id INTEGER, "
SPECTRUM_COLUMNS(COLUMN)
"null_id INTEGER, null_ratio REAL, status TEXT, null_query_ratio REAL, PRIMARY KEY(snapshot_id, matrix_id))"
" WITHOUT ROWID;"

/* stat: median and max over the heads; layer: the layer-scope map's own values. */
"CREATE TABLE IF NOT EXISTS layer_spectra(run_id INTEGER, form TEXT, part TEXT, stat TEXT, step INTEGER,"
" layer INTEGER, "
SPECTRUM_COLUMNS(REAL)
"PRIMARY KEY(run_id, form, part, stat, step, layer)) WITHOUT ROWID;"

"CREATE TABLE IF NOT EXISTS esd(snapshot_id INTEGER, matrix_id INTEGER, n INTEGER, singular_values BLOB,"
" PRIMARY KEY(snapshot_id, matrix_id));"

"CREATE TABLE IF NOT EXISTS vectors(snapshot_id INTEGER, matrix_id INTEGER, u BLOB, v BLOB,"
" PRIMARY KEY(snapshot_id, matrix_id));"

/* Norm gains, float32, that ensembles keep from that step on; by them a resumed run knows which. */
"CREATE TABLE IF NOT EXISTS gains(run_id INTEGER, step INTEGER, tensor TEXT, gain BLOB,"
" PRIMARY KEY(run_id, step, tensor)) WITHOUT ROWID;"

"CREATE TABLE IF NOT EXISTS nulls(null_id INTEGER PRIMARY KEY, key TEXT UNIQUE, draws INTEGER, seed INTEGER, m REAL,"
" s REAL, lambda_max_mean REAL, lambda_max_sd REAL, stable_rank_mean REAL, stable_rank_sd REAL,"
" effective_rank_mean REAL, effective_rank_sd REAL, effective_rank_rest_mean REAL, effective_rank_rest_sd REAL,"
" participation_ratio_mean REAL, participation_ratio_sd REAL, alpha_mean REAL, alpha_sd REAL);"

"CREATE TABLE IF NOT EXISTS train_metrics(run_id INTEGER, step INTEGER, tokens INTEGER, loss REAL, grad_norm REAL,"
" lr REAL, step_ms REAL, tokens_per_s REAL, mfu REAL, PRIMARY KEY(run_id, step)) WITHOUT ROWID;"

"CREATE TABLE IF NOT EXISTS eval_metrics(run_id INTEGER, step INTEGER, split TEXT, loss REAL, perplexity REAL,"
" tokens INTEGER, PRIMARY KEY(run_id, step, split)) WITHOUT ROWID;"

"CREATE TABLE IF NOT EXISTS profile(run_id INTEGER, step INTEGER, phase TEXT, steps INTEGER, ms REAL, share REAL,"
" flops REAL, bytes REAL, tflops REAL, gb_per_s REAL, ratio REAL, PRIMARY KEY(run_id, step, phase)) WITHOUT ROWID;"

"CREATE TABLE IF NOT EXISTS events(run_id INTEGER, attempt INTEGER, seq INTEGER, step INTEGER, time TEXT, level TEXT,"
" kind TEXT, message TEXT, PRIMARY KEY(run_id, attempt, seq));";

static const char views[] =
"DROP VIEW IF EXISTS v_spectra; DROP VIEW IF EXISTS v_layer_step; DROP VIEW IF EXISTS v_spike_onset;"
" DROP VIEW IF EXISTS v_variant_compare; DROP VIEW IF EXISTS v_metrics;"

"CREATE VIEW v_spectra AS SELECT r.run_id, r.name AS run, r.variant, s.step, s.tokens, m.form, m.part,"
" m.scope, m.layer, m.head, m.tensor, m.rows, m.cols, "
SPECTRUM_COLUMNS(JOINED)
"1.0 / p.mp_gap AS mp_softrank, p.null_id, p.null_ratio, p.null_query_ratio, p.status"
" FROM spectra p JOIN snapshots s USING(snapshot_id) JOIN matrices m USING(matrix_id)"
" JOIN runs r ON r.run_id = s.run_id;"

"CREATE VIEW v_layer_step AS SELECT r.name AS run, r.variant, r.seed, l.*, 1.0 / l.mp_gap AS mp_softrank"
" FROM layer_spectra l JOIN runs r USING(run_id);"

/* Naive: the first step at which one head's lambda_max is over the Marchenko-Pastur edge. A product of noise matrices
 * may cross that edge, and a spike may stay under it: no evidence by itself. */
"CREATE VIEW v_spike_onset AS SELECT r.run_id, r.name AS run, r.variant, l.form, l.part, l.layer,"
" min(l.step) AS step, 'naive MP' AS edge FROM layer_spectra l JOIN runs r USING(run_id)"
" WHERE l.stat = 'max' AND l.mp_gap > 1 GROUP BY l.run_id, l.form, l.part, l.layer;"

"CREATE VIEW v_variant_compare AS SELECT r.variant, l.form, l.part, l.stat, l.step,"
" count(DISTINCT l.run_id) AS runs, "
SPECTRUM_COLUMNS(AVERAGE)
"1.0 / avg(l.mp_gap) AS mp_softrank FROM layer_spectra l JOIN runs r USING(run_id)"
" GROUP BY r.variant, l.form, l.part, l.stat, l.step;"

"CREATE VIEW v_metrics AS"
" SELECT run_id, 'train_loss' AS key, loss AS value, step FROM train_metrics"
" UNION ALL SELECT run_id, 'grad_norm', grad_norm, step FROM train_metrics"
" UNION ALL SELECT run_id, 'lr', lr, step FROM train_metrics"
" UNION ALL SELECT run_id, 'step_ms', step_ms, step FROM train_metrics"
" UNION ALL SELECT run_id, 'tokens_per_s', tokens_per_s, step FROM train_metrics"
" UNION ALL SELECT run_id, 'mfu', mfu, step FROM train_metrics"
" UNION ALL SELECT run_id, split || '_loss', loss, step FROM eval_metrics"
" UNION ALL SELECT run_id, split || '_perplexity', perplexity, step FROM eval_metrics;";
/* clang-format on */

/* ---- versions ---- */

int schema_version(sqlite3 *db) {
    sqlite3_stmt *q = NULL;
    int objects = -1, version = -1;
    if (sqlite3_prepare_v2(db, "SELECT count(*) FROM sqlite_schema", -1, &q, NULL) == SQLITE_OK &&
        sqlite3_step(q) == SQLITE_ROW)
        objects = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    if (objects == 0) return 0;
    q = NULL;
    if (sqlite3_prepare_v2(db, "SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'schema_version'", -1, &q, NULL) ==
            SQLITE_OK &&
        sqlite3_step(q) == SQLITE_ROW && sqlite3_column_int(q, 0) > 0)
        version = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    return version;
}

status schema_check(sqlite3 *db, const char *path) {
    int version = schema_version(db);
    if (version > SCHEMA_VERSION)
        return status_fail(STATUS_DATA,
                           "%s was written by a newer version of Bulkhead (schema %d, this one knows %d); use that one",
                           path, version, SCHEMA_VERSION);
    return version > 0 ? STATUS_OK : status_fail(STATUS_DATA, "%s is a SQLite database, but not of a run", path);
}

/* A table of today's as one row: table, column, type. */
static const char columns_of_all[] =
    "SELECT t.name, c.name, c.type FROM sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'";

static int add_column(sqlite3 *db, sqlite3_stmt *column) {
    const char *table = (const char *)sqlite3_column_text(column, 0);
    const char *name = (const char *)sqlite3_column_text(column, 1);
    if (sqlite3_table_column_metadata(db, NULL, table, name, NULL, NULL, NULL, NULL, NULL) == SQLITE_OK)
        return SQLITE_OK;
    char *sql = sqlite3_mprintf("ALTER TABLE \"%w\" ADD COLUMN \"%w\" %s", table, name, sqlite3_column_text(column, 2));
    int rc = sql ? sqlite3_exec(db, sql, NULL, NULL, NULL) : SQLITE_NOMEM;
    sqlite3_free(sql);
    return rc;
}

/* Columns that an older database lacks, found by comparison with a new one. */
static int add_missing_columns(sqlite3 *db) {
    sqlite3 *fresh = NULL;
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_open(":memory:", &fresh);
    if (rc == SQLITE_OK) rc = sqlite3_exec(fresh, tables, NULL, NULL, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_prepare_v2(fresh, columns_of_all, -1, &q, NULL);
    while (rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW) rc = add_column(db, q);
    sqlite3_finalize(q);
    sqlite3_close(fresh);
    return rc;
}

int schema_prepare(sqlite3 *db) {
    int version = schema_version(db);
    if (version == SCHEMA_VERSION) return SQLITE_OK;
    if (version < 0 || version > SCHEMA_VERSION) return SQLITE_MISMATCH;
    int rc = sqlite3_exec(db, tables, NULL, NULL, NULL);
    if (rc == SQLITE_OK && version > 0) rc = add_missing_columns(db);
    if (rc == SQLITE_OK) rc = sqlite3_exec(db, views, NULL, NULL, NULL);
    if (rc != SQLITE_OK) return rc;
    char *sql = sqlite3_mprintf("INSERT OR REPLACE INTO meta VALUES('schema_version', '%d')", SCHEMA_VERSION);
    rc = sql ? sqlite3_exec(db, sql, NULL, NULL, NULL) : SQLITE_NOMEM;
    sqlite3_free(sql);
    return rc;
}
