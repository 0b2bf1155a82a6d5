/* The run's database: opening, the queue of records, and the writing of each kind (docs/design.md section 7).
 *
 * SQLite's own error is the message. A transient failure (locked, disk full, I/O) rolls the transaction back and keeps
 * the queue; a record that the database will never take is dropped, logged and counted. */
#include "diag/store.h"

#include "core/log.h"
#include "diag/schema.h"

#include <errno.h>
#include <math.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { OPEN_WAIT_MS = 5000, RUN_WAIT_MS = 1000 };
static const size_t MOST_WAITING_BYTES = (size_t)256 << 20;

#define SCHEMA_MARK(name, type) "?, "

/* Every statement that is prepared once: STATEMENT(name, sql). */
#define STATEMENTS(STATEMENT)                                                                                          \
    STATEMENT(step, "INSERT OR REPLACE INTO train_metrics VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)")                          \
    STATEMENT(eval, "INSERT OR REPLACE INTO eval_metrics VALUES(?, ?, ?, ?, ?, ?)")                                    \
    STATEMENT(event, "INSERT OR REPLACE INTO events VALUES(?, ?, ?, ?, ?, ?, ?, ?)")                                   \
    STATEMENT(snapshot,                                                                                                \
              "INSERT INTO snapshots(run_id, step, tokens, status, lag_ms, compute_ms) VALUES(?, ?, ?, ?, ?, ?)"       \
              " ON CONFLICT(run_id, step) DO UPDATE SET tokens = excluded.tokens, status = excluded.status,"           \
              " lag_ms = excluded.lag_ms, compute_ms = excluded.compute_ms RETURNING snapshot_id")                     \
    STATEMENT(spectrum,                                                                                                \
              "INSERT OR REPLACE INTO spectra(snapshot_id, matrix_id, " SPECTRUM_COLUMNS(                              \
                  SCHEMA_NAME) "null_id, null_ratio, status) VALUES(?, ?, " SPECTRUM_COLUMNS(SCHEMA_MARK) "?, ?, ?)")  \
    STATEMENT(                                                                                                         \
        layer,                                                                                                         \
        "INSERT OR REPLACE INTO layer_spectra(" SPECTRUM_COLUMNS(                                                      \
            SCHEMA_NAME) "run_id, form, part, stat, step, layer) VALUES(" SPECTRUM_COLUMNS(SCHEMA_MARK) "?, ?, ?, ?, " \
                                                                                                        "?, ?)")       \
    STATEMENT(null,                                                                                                    \
              "INSERT OR REPLACE INTO nulls(null_id, key, draws, seed, m, s, lambda_max_mean, lambda_max_sd,"          \
              " stable_rank_mean, stable_rank_sd, effective_rank_mean, effective_rank_sd, effective_rank_rest_mean,"   \
              " effective_rank_rest_sd, participation_ratio_mean, participation_ratio_sd, alpha_mean, alpha_sd)"       \
              " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")                                         \
    STATEMENT(esd, "INSERT OR REPLACE INTO esd VALUES(?, ?, ?, ?)")                                                    \
    STATEMENT(steps_seen, "UPDATE sessions SET first_step = ?3, last_step = ?4 WHERE run_id = ?1 AND attempt = ?2")    \
    STATEMENT(exit_code, "UPDATE sessions SET exit_code = ?3 WHERE run_id = ?1 AND attempt = ?2")                      \
    STATEMENT(run_end, "UPDATE runs SET status = ?2, ended_at = ?3 WHERE run_id = ?1")                                 \
    STATEMENT(begin, "BEGIN IMMEDIATE")                                                                                \
    STATEMENT(commit, "COMMIT")                                                                                        \
    STATEMENT(rollback, "ROLLBACK")

enum {
#define STATEMENT(name, sql) SQL_##name,
    STATEMENTS(STATEMENT)
#undef STATEMENT
        SQL_COUNT
};

static const char *const statement_text[SQL_COUNT] = {
#define STATEMENT(name, sql) sql,
    STATEMENTS(STATEMENT)
#undef STATEMENT
};

typedef struct waiting {
    store_record record;
    size_t bytes;
    int64_t number; /* an event's place in the session */
    char time[32];
    struct waiting *next;
} waiting;

struct store {
    sqlite3 *db;
    sqlite3_stmt *sql[SQL_COUNT];
    char *path;
    bool wal;
    int64_t run_id, attempt, events;
    int64_t first_step, last_step; /* of this session; -1: none yet */
    const maps_matrix *matrices;
    int matrix_count;
    int64_t *matrix_id;
    double *column_of_heads; /* one column over a layer's heads */
    waiting *first, **last;
    int waiting_count, lost;
    size_t waiting_bytes;
    int64_t failures; /* of flushes, since the last that succeeded */
    bool ended;
};

/* ---------------------------------------------------------------- small things */

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the run's database");
}

/* UTC, as SQLite's date functions read it. */
static void now_text(char *to, size_t size) {
    time_t now = time(NULL);
    struct tm utc;
    strftime(to, size, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
}

static void bind_real(sqlite3_stmt *q, int index, double x) {
    if (isfinite(x))
        sqlite3_bind_double(q, index, x);
    else
        sqlite3_bind_null(q, index);
}

static void bind_text(sqlite3_stmt *q, int index, const char *text) {
    sqlite3_bind_text(q, index, text, -1, SQLITE_STATIC);
}

/* Runs a bound statement that returns no rows. */
static int run_statement(sqlite3_stmt *q) {
    sqlite3_step(q);
    return sqlite3_reset(q);
}

/* Errors that time or an administrator may cure. */
static bool is_transient(int rc) {
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_NOMEM:
    case SQLITE_PROTOCOL:
        return true;
    default:
        return false;
    }
}

/* The error of opening or preparing, told to the person in front of the terminal. */
static status open_failure(sqlite3 *db, const char *path, int rc) {
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return status_fail(
            STATUS_IO, "%s is in use by another process that writes it; wait for that run or choose another run.dir",
            path);
    case SQLITE_MISMATCH:
        return status_fail(STATUS_DATA, "%s is a database of another program or version; choose another run.dir", path);
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return status_fail(STATUS_DATA, "%s is not a usable SQLite database: %s", path, sqlite3_errmsg(db));
    default:
        return status_fail(STATUS_IO, "cannot write the database %s: %s", path,
                           db ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
    }
}

/* ---------------------------------------------------------------- opening */

static int take_text(void *to, int columns, char **values, char **names) {
    (void)columns, (void)names;
    snprintf(to, 64, "%s", values[0] ? values[0] : "");
    return 0;
}

/* Network file systems accept the pragma and fail at the first write: so a throw-away database on the same file system
 * is written in WAL mode. */
static bool wal_works(const char *path) {
    char probe[4096], file[4104], mode[64] = "";
    sqlite3 *db = NULL;
    snprintf(probe, sizeof(probe), "%s-probe-%ld", path, (long)getpid());
    bool works =
        sqlite3_open(probe, &db) == SQLITE_OK &&
        sqlite3_exec(db, "PRAGMA mmap_size = 0; PRAGMA journal_mode = WAL", take_text, mode, NULL) == SQLITE_OK &&
        strcmp(mode, "wal") == 0 &&
        sqlite3_exec(db, "CREATE TABLE t(x); INSERT INTO t VALUES(1); SELECT x FROM t", NULL, NULL, NULL) == SQLITE_OK;
    sqlite3_close(db);
    const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    for (int i = 0; i < 4; i++) {
        snprintf(file, sizeof(file), "%s%s", probe, ends[i]);
        unlink(file);
    }
    return works;
}

static int64_t query_int(store *s, const char *sql, int64_t absent) {
    sqlite3_stmt *q = NULL;
    int64_t value = absent;
    if (sqlite3_prepare_v2(s->db, sql, -1, &q, NULL) == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW &&
        sqlite3_column_type(q, 0) != SQLITE_NULL)
        value = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    return value;
}

/* A version 4 UUID. */
static void make_uuid(char to[37]) {
    unsigned char b[16] = {0};
    if (getrandom(b, sizeof(b), 0) != (ssize_t)sizeof(b)) {
        uint64_t seed = (uint64_t)time(NULL) << 20 ^ (uint64_t)getpid();
        memcpy(b, &seed, sizeof(seed));
    }
    b[6] = (unsigned char)((b[6] & 0x0f) | 0x40);
    b[8] = (unsigned char)((b[8] & 0x3f) | 0x80);
    for (int i = 0, at = 0; i < 16; i++) {
        at += snprintf(to + at, 37 - (size_t)at, "%02x", b[i]);
        if (i == 3 || i == 5 || i == 7 || i == 9) to[at++] = '-';
    }
}

typedef struct param_writer {
    sqlite3_stmt *insert;
    int64_t run_id;
    int rc;
} param_writer;

static void write_param(void *user, const char *key, const char *value) {
    param_writer *w = user;
    sqlite3_bind_int64(w->insert, 1, w->run_id);
    bind_text(w->insert, 2, key);
    bind_text(w->insert, 3, value);
    int rc = run_statement(w->insert);
    if (w->rc == SQLITE_OK) w->rc = rc;
}

static int write_params(store *s, const config *c) {
    param_writer w = {.run_id = s->run_id};
    w.rc = sqlite3_prepare_v2(s->db, "INSERT OR REPLACE INTO params VALUES(?, ?, ?)", -1, &w.insert, NULL);
    if (w.rc == SQLITE_OK) config_visit(c, write_param, &w);
    sqlite3_finalize(w.insert);
    return w.rc;
}

static char *join_tags(config_list tags) {
    size_t bytes = 1;
    for (int i = 0; i < tags.count; i++) bytes += strlen(tags.items[i]) + 1;
    char *text = calloc(bytes, 1);
    for (int i = 0; text && i < tags.count; i++) {
        if (i > 0) strcat(text, ",");
        strcat(text, tags.items[i]);
    }
    return text;
}

/* The run's row: new with a new UUID, or the one that is there, running again. */
static int write_run(store *s, const config *c) {
    char uuid[37], now[32], *tags = join_tags(c->run.tags), *yaml = config_to_yaml(c);
    sqlite3_stmt *q = NULL;
    s->run_id = query_int(s, "SELECT min(run_id) FROM runs", -1);
    bool fresh = s->run_id < 0;
    if (fresh) s->run_id = 1;
    make_uuid(uuid);
    now_text(now, sizeof(now));
    int rc = tags && yaml
                 ? sqlite3_prepare_v2(
                       s->db,
                       fresh ? "INSERT INTO runs VALUES(?1, ?2, ?3, ?4, ?5, ?6, 'running', ?7, NULL, ?8, ?9)"
                             : "UPDATE runs SET name = ?3, run_group = ?4, tags = ?5, variant = ?6, status = 'running',"
                               " ended_at = NULL, seed = ?8, config_yaml = ?9 WHERE run_id = ?1",
                       -1, &q, NULL)
                 : SQLITE_NOMEM;
    if (rc == SQLITE_OK) {
        const char *const texts[] = {uuid, c->run.name, c->run.group, tags, config_variant_name(c->attention.variant),
                                     now};
        sqlite3_bind_int64(q, 1, s->run_id);
        for (int i = 0; i < (fresh ? 6 : 5); i++) bind_text(q, 2 + i, texts[i]);
        sqlite3_bind_int64(q, 8, c->run.seed);
        bind_text(q, 9, yaml);
        rc = run_statement(q);
    }
    sqlite3_finalize(q);
    free(tags);
    free(yaml);
    return rc == SQLITE_OK ? write_params(s, c) : rc;
}

static int write_session(store *s, const store_session *session) {
    sqlite3_stmt *q = NULL;
    s->attempt = query_int(s, "SELECT max(attempt) + 1 FROM sessions", 1);
    int rc = sqlite3_prepare_v2(s->db,
                                "INSERT INTO sessions(run_id, attempt, slurm_job_id, hosts, device, tp, dp, threads,"
                                " code_version) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                                -1, &q, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_bind_int64(q, 1, s->run_id);
        sqlite3_bind_int64(q, 2, s->attempt);
        bind_text(q, 3, getenv("SLURM_JOB_ID"));
        bind_text(q, 4, session->hosts);
        bind_text(q, 5, session->device);
        sqlite3_bind_int(q, 6, session->tp);
        sqlite3_bind_int(q, 7, session->dp);
        sqlite3_bind_int64(q, 8, session->config->run.threads);
        bind_text(q, 9, session->code_version);
        rc = run_statement(q);
    }
    sqlite3_finalize(q);
    return rc;
}

/* Gives every matrix its id: in the list's order where they are new, as they were where the run goes on. */
static int write_matrices(store *s) {
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(s->db,
                                "INSERT INTO matrices(run_id, form, part, scope, layer, head, tensor, rows, cols)"
                                " VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET rows = excluded.rows,"
                                " cols = excluded.cols RETURNING matrix_id",
                                -1, &q, NULL);
    for (int i = 0; i < s->matrix_count && rc == SQLITE_OK; i++) {
        const maps_matrix *m = &s->matrices[i];
        sqlite3_bind_int64(q, 1, s->run_id);
        bind_text(q, 2, maps_form_names[m->form]);
        bind_text(q, 3, maps_part_names[m->part]);
        bind_text(q, 4, maps_scope_names[m->scope]);
        sqlite3_bind_int(q, 5, m->layer);
        sqlite3_bind_int(q, 6, m->head);
        bind_text(q, 7, m->tensor);
        sqlite3_bind_int(q, 8, m->rows);
        sqlite3_bind_int(q, 9, m->cols);
        if (sqlite3_step(q) == SQLITE_ROW) s->matrix_id[i] = sqlite3_column_int64(q, 0);
        rc = sqlite3_reset(q);
    }
    sqlite3_finalize(q);
    return rc;
}

static int prepare_statements(store *s) {
    for (int i = 0; i < SQL_COUNT; i++) {
        int rc = sqlite3_prepare_v3(s->db, statement_text[i], -1, SQLITE_PREPARE_PERSISTENT, &s->sql[i], NULL);
        if (rc != SQLITE_OK) return rc;
    }
    return SQLITE_OK;
}

/* Another program's database, or another version's, must not be written into. */
static bool is_foreign(store *s) {
    if (query_int(s, "SELECT count(*) FROM sqlite_schema", 0) == 0) return false;
    return query_int(s, "SELECT value = '" SCHEMA_VERSION "' FROM meta WHERE key = 'schema_version'", 0) == 0;
}

static int write_start(store *s, const store_session *session) {
    int rc = sqlite3_exec(s->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc == SQLITE_OK && is_foreign(s)) return SQLITE_MISMATCH;
    if (rc == SQLITE_OK) rc = sqlite3_exec(s->db, schema_tables, NULL, NULL, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_exec(s->db, schema_views, NULL, NULL, NULL);
    if (rc == SQLITE_OK)
        rc = sqlite3_exec(s->db, "INSERT OR IGNORE INTO meta VALUES('schema_version', '" SCHEMA_VERSION "')", NULL,
                          NULL, NULL);
    if (rc == SQLITE_OK) rc = write_run(s, session->config);
    if (rc == SQLITE_OK) rc = write_session(s, session);
    if (rc == SQLITE_OK) rc = write_matrices(s);
    if (rc == SQLITE_OK) rc = sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
    return rc == SQLITE_OK ? prepare_statements(s) : rc;
}

static int set_journal(store *s) {
    char mode[64] = "";
    int rc = sqlite3_exec(s->db, "PRAGMA page_size = 4096; PRAGMA mmap_size = 0", NULL, NULL, NULL);
    if (rc != SQLITE_OK) return rc;
    bool wanted = wal_works(s->path);
    rc = sqlite3_exec(s->db, wanted ? "PRAGMA journal_mode = WAL" : "PRAGMA journal_mode = DELETE", take_text, mode,
                      NULL);
    if (rc != SQLITE_OK) return rc;
    s->wal = strcmp(mode, "wal") == 0;
    log_info("%s: %s", s->path,
             s->wal ? "write-ahead log" : "rollback journal; write-ahead logs do not work on this file system");
    return s->wal ? sqlite3_exec(s->db, "PRAGMA synchronous = NORMAL", NULL, NULL, NULL) : SQLITE_OK;
}

static void store_free(store *s) {
    for (int i = 0; i < SQL_COUNT; i++) sqlite3_finalize(s->sql[i]);
    sqlite3_close(s->db);
    free(s->matrix_id);
    free(s->column_of_heads);
    free(s->path);
    free(s);
}

status store_open(store **out, const char *path, const store_session *session) {
    store *s = calloc(1, sizeof(*s));
    if (!s) return out_of_memory();
    s->last = &s->first;
    s->first_step = s->last_step = -1;
    s->matrices = session->matrices;
    s->matrix_count = session->matrix_count;
    s->path = strdup(path);
    s->matrix_id = calloc((size_t)session->matrix_count + 1, sizeof(*s->matrix_id));
    s->column_of_heads = calloc((size_t)session->matrix_count + 1, sizeof(*s->column_of_heads));
    status result = s->path && s->matrix_id && s->column_of_heads ? STATUS_OK : out_of_memory();
    if (result == STATUS_OK) {
        int rc = sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
        if (rc == SQLITE_OK) rc = sqlite3_busy_timeout(s->db, OPEN_WAIT_MS);
        if (rc == SQLITE_OK) rc = set_journal(s);
        if (rc == SQLITE_OK) rc = write_start(s, session);
        if (rc == SQLITE_OK) rc = sqlite3_busy_timeout(s->db, RUN_WAIT_MS);
        if (rc != SQLITE_OK) result = open_failure(s->db, path, rc);
    }
    if (result != STATUS_OK) {
        store_free(s);
        s = NULL;
    }
    *out = s;
    return result;
}

/* ---------------------------------------------------------------- writing one record */

static int write_step(store *s, const diag_step *r) {
    sqlite3_stmt *q = s->sql[SQL_step];
    const double values[] = {r->loss, r->grad_norm, r->lr, r->step_ms, r->tokens_per_s, r->mfu};
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, r->step);
    sqlite3_bind_int64(q, 3, r->tokens);
    for (int i = 0; i < 6; i++) bind_real(q, 4 + i, values[i]);
    return run_statement(q);
}

static int write_eval(store *s, const diag_eval *r) {
    sqlite3_stmt *q = s->sql[SQL_eval];
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, r->step);
    bind_text(q, 3, r->split);
    bind_real(q, 4, r->loss);
    bind_real(q, 5, exp(r->loss));
    sqlite3_bind_int64(q, 6, r->tokens);
    return run_statement(q);
}

static int write_event(store *s, const waiting *w) {
    const diag_event *r = &w->record.event;
    sqlite3_stmt *q = s->sql[SQL_event];
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, s->attempt);
    sqlite3_bind_int64(q, 3, w->number);
    sqlite3_bind_int64(q, 4, r->step);
    bind_text(q, 5, w->time);
    bind_text(q, 6, r->level);
    bind_text(q, 7, r->kind);
    bind_text(q, 8, r->message);
    return run_statement(q);
}

static int write_finish(store *s, const diag_finish *r, const char *when) {
    sqlite3_stmt *q = s->sql[SQL_exit_code];
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, s->attempt);
    sqlite3_bind_int(q, 3, r->exit_code);
    int rc = run_statement(q);
    if (rc != SQLITE_OK) return rc;
    q = s->sql[SQL_run_end];
    sqlite3_bind_int64(q, 1, s->run_id);
    bind_text(q, 2, r->status);
    bind_text(q, 3, when);
    return run_statement(q);
}

static void bind_columns(sqlite3_stmt *q, int first, const double *columns, bool real) {
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++) {
        if (!real && spectrum_columns[i].integer && isfinite(columns[i]))
            sqlite3_bind_int64(q, first + i, (int64_t)columns[i]);
        else
            bind_real(q, first + i, columns[i]);
    }
}

static int write_spectrum(store *s, int64_t snapshot_id, int index, const spectrum *row) {
    sqlite3_stmt *q = s->sql[SQL_spectrum];
    sqlite3_bind_int64(q, 1, snapshot_id);
    sqlite3_bind_int64(q, 2, s->matrix_id[index]);
    bind_columns(q, 3, row->column, false);
    if (row->null_id != 0)
        sqlite3_bind_int64(q, 3 + SPECTRUM_COLUMN_COUNT, row->null_id);
    else
        sqlite3_bind_null(q, 3 + SPECTRUM_COLUMN_COUNT);
    bind_real(q, 4 + SPECTRUM_COLUMN_COUNT, row->null_ratio);
    bind_text(q, 5 + SPECTRUM_COLUMN_COUNT, spectrum_status_name(row->status));
    return run_statement(q);
}

static int write_null(store *s, const store_null *r) {
    sqlite3_stmt *q = s->sql[SQL_null];
    sqlite3_bind_int64(q, 1, r->null_id);
    bind_text(q, 2, r->key);
    sqlite3_bind_int64(q, 3, r->draws);
    sqlite3_bind_int64(q, 4, r->seed);
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++) {
        bind_real(q, 5 + 2 * i, r->moments.mean[i]);
        bind_real(q, 6 + 2 * i, r->moments.sd[i]);
    }
    return run_statement(q);
}

static int write_esd(store *s, int64_t snapshot_id, int index, const double *values) {
    const maps_matrix *m = &s->matrices[index];
    sqlite3_stmt *q = s->sql[SQL_esd];
    if (isnan(values[m->first_value])) return SQLITE_OK; /* a matrix without spectrum */
    sqlite3_bind_int64(q, 1, snapshot_id);
    sqlite3_bind_int64(q, 2, s->matrix_id[index]);
    sqlite3_bind_int(q, 3, m->rank);
    sqlite3_bind_blob64(q, 4, values + m->first_value, (sqlite3_uint64)m->rank * sizeof(double), SQLITE_STATIC);
    return run_statement(q);
}

static int write_layer_row(store *s, int index, const char *stat, int64_t step, const double *columns) {
    const maps_matrix *m = &s->matrices[index];
    sqlite3_stmt *q = s->sql[SQL_layer];
    bind_columns(q, 1, columns, true);
    sqlite3_bind_int64(q, SPECTRUM_COLUMN_COUNT + 1, s->run_id);
    bind_text(q, SPECTRUM_COLUMN_COUNT + 2, maps_form_names[m->form]);
    bind_text(q, SPECTRUM_COLUMN_COUNT + 3, maps_part_names[m->part]);
    bind_text(q, SPECTRUM_COLUMN_COUNT + 4, stat);
    sqlite3_bind_int64(q, SPECTRUM_COLUMN_COUNT + 5, step);
    sqlite3_bind_int(q, SPECTRUM_COLUMN_COUNT + 6, m->layer);
    return run_statement(q);
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median and largest over `heads` rows, column by column, of what is not NULL. */
static void over_heads(store *s, const spectrum *rows, int heads, spectrum *median, spectrum *most) {
    for (int c = 0; c < SPECTRUM_COLUMN_COUNT; c++) {
        int n = 0;
        for (int h = 0; h < heads; h++)
            if (!isnan(rows[h].column[c])) s->column_of_heads[n++] = rows[h].column[c];
        qsort(s->column_of_heads, (size_t)n, sizeof(double), ascending);
        median->column[c] = n ? 0.5 * (s->column_of_heads[(n - 1) / 2] + s->column_of_heads[n / 2]) : NAN;
        most->column[c] = n ? s->column_of_heads[n - 1] : NAN;
    }
}

/* layer_spectra of the maps (not of single weights): the matrices of a layer stand side by side in the list. */
static int write_layers(store *s, int64_t step, const spectrum *rows) {
    int rc = SQLITE_OK;
    for (int i = 0, heads; i < s->matrix_count && rc == SQLITE_OK; i += heads) {
        const maps_matrix *m = &s->matrices[i];
        heads = 1;
        if (m->form == MAPS_weight) continue;
        if (m->scope == MAPS_layer) {
            rc = write_layer_row(s, i, "layer", step, rows[i].column);
            continue;
        }
        while (i + heads < s->matrix_count && m[heads].layer == m->layer && m[heads].form == m->form &&
               m[heads].part == m->part && m[heads].scope == m->scope)
            heads++;
        spectrum median, most;
        over_heads(s, rows + i, heads, &median, &most);
        rc = write_layer_row(s, i, "median", step, median.column);
        if (rc == SQLITE_OK) rc = write_layer_row(s, i, "max", step, most.column);
    }
    return rc;
}

static int write_snapshot(store *s, const store_snapshot *r) {
    sqlite3_stmt *q = s->sql[SQL_snapshot];
    int64_t id = 0;
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, r->step);
    sqlite3_bind_int64(q, 3, r->tokens);
    bind_text(q, 4, r->status);
    bind_real(q, 5, r->lag_ms);
    bind_real(q, 6, r->compute_ms);
    if (sqlite3_step(q) == SQLITE_ROW) id = sqlite3_column_int64(q, 0);
    int rc = sqlite3_reset(q);
    for (int i = 0; r->rows && i < s->matrix_count && rc == SQLITE_OK; i++) {
        rc = write_spectrum(s, id, i, &r->rows[i]);
        if (rc == SQLITE_OK && r->values) rc = write_esd(s, id, i, r->values);
    }
    return rc == SQLITE_OK && r->rows ? write_layers(s, r->step, r->rows) : rc;
}

static int write_record(store *s, const waiting *w) {
    switch (w->record.kind) {
    case STORE_STEP:
        return write_step(s, &w->record.step);
    case STORE_EVAL:
        return write_eval(s, &w->record.eval);
    case STORE_EVENT:
        return write_event(s, w);
    case STORE_SNAPSHOT:
        return write_snapshot(s, &w->record.snapshot);
    case STORE_NULL:
        return write_null(s, &w->record.null);
    case STORE_FINISH:
        return write_finish(s, &w->record.finish, w->time);
    }
    return SQLITE_INTERNAL;
}

static int write_steps_seen(store *s) {
    sqlite3_stmt *q = s->sql[SQL_steps_seen];
    if (s->first_step < 0) return SQLITE_OK;
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, s->attempt);
    sqlite3_bind_int64(q, 3, s->first_step);
    sqlite3_bind_int64(q, 4, s->last_step);
    return run_statement(q);
}

/* ---------------------------------------------------------------- the queue */

static void free_rows(waiting *w) {
    if (w->record.kind != STORE_SNAPSHOT) return;
    free(w->record.snapshot.rows);
    free(w->record.snapshot.values);
    w->record.snapshot.rows = NULL;
    w->record.snapshot.values = NULL;
}

/* A database that stays away must not cost all memory: the oldest spectra go, their snapshots are recorded as failed.
 */
static void bound_memory(store *s) {
    for (waiting *w = s->first; w && s->waiting_bytes > MOST_WAITING_BYTES; w = w->next) {
        if (w->record.kind != STORE_SNAPSHOT || !w->record.snapshot.rows) continue;
        free_rows(w);
        w->record.snapshot.status = "failed";
        s->waiting_bytes -= w->bytes;
        w->bytes = 0;
        s->lost++;
    }
}

static size_t rows_bytes(const store *s, const store_snapshot *r) {
    size_t bytes = 0;
    if (r->rows) bytes += (size_t)s->matrix_count * sizeof(spectrum);
    if (r->values && s->matrix_count > 0) {
        const maps_matrix *last = &s->matrices[s->matrix_count - 1];
        bytes += (size_t)(last->first_value + last->rank) * sizeof(double);
    }
    return bytes;
}

void store_add(store *s, const store_record *record) {
    waiting *w = calloc(1, sizeof(*w));
    if (!w) {
        log_error("out of memory: a record for the database is lost");
        s->lost++;
        return;
    }
    w->record = *record;
    now_text(w->time, sizeof(w->time));
    if (record->kind == STORE_EVENT) w->number = ++s->events;
    if (record->kind == STORE_SNAPSHOT) w->bytes = rows_bytes(s, &record->snapshot);
    if (record->kind == STORE_FINISH) s->ended = true;
    if (record->kind == STORE_STEP) {
        if (s->first_step < 0) s->first_step = record->step.step;
        s->last_step = record->step.step;
    }
    *s->last = w;
    s->last = &w->next;
    s->waiting_count++;
    s->waiting_bytes += w->bytes;
    bound_memory(s);
}

void store_event(store *s, int64_t step, const char *level, const char *kind, const char *format, ...) {
    store_record r = {.kind = STORE_EVENT, .event = {.step = step}};
    va_list args;
    va_start(args, format);
    vsnprintf(r.event.message, sizeof(r.event.message), format, args);
    va_end(args);
    snprintf(r.event.level, sizeof(r.event.level), "%s", level);
    snprintf(r.event.kind, sizeof(r.event.kind), "%s", kind);
    store_add(s, &r);
}

static void forget_written(store *s) {
    while (s->first) {
        waiting *next = s->first->next;
        free_rows(s->first);
        free(s->first);
        s->first = next;
    }
    s->last = &s->first;
    s->waiting_count = 0;
    s->waiting_bytes = 0;
}

/* The first failure in a row leaves an event; the others are counted. */
static status note_failure(store *s, int rc) {
    char why[200];
    snprintf(why, sizeof(why), "%s", sqlite3_errmsg(s->db));
    run_statement(s->sql[SQL_rollback]);
    if (s->failures++ == 0) {
        log_warn("%s could not be written (%s); %d records wait for the next attempt", s->path, why, s->waiting_count);
        store_event(s, s->last_step, "warn", "fault",
                    "the database could not be written: %s; records were kept and written later", why);
    }
    return status_fail(STATUS_IO, "%s could not be written: %s", s->path, rc == SQLITE_OK ? "" : why);
}

status store_flush(store *s) {
    if (!s->first) return STATUS_OK;
    int rc = run_statement(s->sql[SQL_begin]);
    if (rc != SQLITE_OK) return note_failure(s, rc);
    for (const waiting *w = s->first; w; w = w->next) {
        rc = write_record(s, w);
        if (rc == SQLITE_OK) continue;
        if (is_transient(rc)) return note_failure(s, rc);
        log_error("%s refuses a record, which is lost: %s", s->path, sqlite3_errmsg(s->db));
        s->lost++;
    }
    rc = write_steps_seen(s);
    if (rc == SQLITE_OK) rc = run_statement(s->sql[SQL_commit]);
    if (rc != SQLITE_OK) return note_failure(s, rc);
    if (s->failures > 0) log_info("%s takes records again after %lld failed attempts", s->path, (long long)s->failures);
    s->failures = 0;
    forget_written(s);
    return STATUS_OK;
}

bool store_is_cheap(const store *s) {
    return s->wal;
}
int store_waiting(const store *s) {
    return s->waiting_count;
}

/* ---------------------------------------------------------------- closing */

/* One file that can be copied and opened read-only. A reader may hold it: then it stays in WAL mode. */
static void leave_single_file(store *s) {
    for (int i = 0; i < SQL_COUNT; i++) {
        sqlite3_finalize(s->sql[i]);
        s->sql[i] = NULL;
    }
    if (!s->wal) return;
    char mode[64] = "";
    sqlite3_exec(s->db, "PRAGMA wal_checkpoint(TRUNCATE)", NULL, NULL, NULL);
    int rc = sqlite3_exec(s->db, "PRAGMA journal_mode = DELETE", take_text, mode, NULL);
    if (rc != SQLITE_OK || strcmp(mode, "delete") != 0)
        log_warn("%s stays in WAL mode (%s): copy it together with its -wal file", s->path,
                 rc == SQLITE_OK || (rc & 0xff) == SQLITE_BUSY ? "somebody reads it" : sqlite3_errmsg(s->db));
}

status store_close(store *s) {
    if (!s) return STATUS_OK;
    if (!s->ended) {
        store_record r = {.kind = STORE_FINISH,
                          .finish = {.last_step = s->last_step, .exit_code = STATUS_INTERNAL, .status = "failed"}};
        store_add(s, &r);
    }
    sqlite3_busy_timeout(s->db, OPEN_WAIT_MS);
    status result = store_flush(s);
    if (result != STATUS_OK) log_error("%s: %d records were never written", s->path, s->waiting_count);
    if (result == STATUS_OK && s->lost > 0)
        result = status_fail(STATUS_IO, "%s: %d records were lost; log.txt says why", s->path, s->lost);
    forget_written(s);
    leave_single_file(s);
    store_free(s);
    return result;
}
