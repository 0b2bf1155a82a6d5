/* The run's database: opening, with the rows of the run and of this session, and closing (docs/design.md section 7).
 * SQLite's own error is the message. */
#include "core/log.h"
#include "diag/database.h"
#include "diag/schema.h"
#include "diag/store_private.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { OPEN_WAIT_MS = 5000, RUN_WAIT_MS = 1000 };

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the run's database");
}

/* UTC, as SQLite's date functions read it. */
void store_now(char *to, size_t size) {
    time_t now = time(NULL);
    struct tm utc;
    strftime(to, size, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &utc));
}

void store_bind_real(sqlite3_stmt *q, int index, double x) {
    if (isfinite(x))
        sqlite3_bind_double(q, index, x);
    else
        sqlite3_bind_null(q, index);
}

void store_bind_text(sqlite3_stmt *q, int index, const char *text) {
    sqlite3_bind_text(q, index, text, -1, SQLITE_STATIC);
}

/* Runs a bound statement that returns no rows. */
int store_run(sqlite3_stmt *q) {
    sqlite3_step(q);
    return sqlite3_reset(q);
}

int64_t store_query_int(store *s, const char *sql, int64_t absent) {
    sqlite3_stmt *q = NULL;
    int64_t value = absent;
    int rc = sqlite3_prepare_v2(s->db, sql, -1, &q, NULL);
    if (rc == SQLITE_OK && sqlite3_bind_parameter_count(q) > 0) rc = sqlite3_bind_int64(q, 1, s->run_id);
    if (rc == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW && sqlite3_column_type(q, 0) != SQLITE_NULL)
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
    store_bind_text(w->insert, 2, key);
    store_bind_text(w->insert, 3, value);
    int rc = store_run(w->insert);
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
    s->run_id = store_query_int(s, "SELECT min(run_id) FROM runs", -1);
    bool fresh = s->fresh = s->run_id < 0;
    if (fresh) s->run_id = 1;
    make_uuid(uuid);
    store_now(now, sizeof(now));
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
        for (int i = 0; i < (fresh ? 6 : 5); i++) store_bind_text(q, 2 + i, texts[i]);
        sqlite3_bind_int64(q, 8, c->run.seed);
        store_bind_text(q, 9, yaml);
        rc = store_run(q);
    }
    sqlite3_finalize(q);
    free(tags);
    free(yaml);
    return rc == SQLITE_OK ? write_params(s, c) : rc;
}

static int write_session(store *s, const store_session *session) {
    sqlite3_stmt *q = NULL;
    s->attempt = store_query_int(s, "SELECT max(attempt) + 1 FROM sessions WHERE run_id = ?1", 1);
    int rc = sqlite3_prepare_v2(s->db,
                                "INSERT INTO sessions(run_id, attempt, slurm_job_id, hosts, device, tp, dp, threads,"
                                " code_version) VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?)",
                                -1, &q, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_bind_int64(q, 1, s->run_id);
        sqlite3_bind_int64(q, 2, s->attempt);
        store_bind_text(q, 3, getenv("SLURM_JOB_ID"));
        store_bind_text(q, 4, session->hosts);
        store_bind_text(q, 5, session->device);
        sqlite3_bind_int(q, 6, session->tp);
        sqlite3_bind_int(q, 7, session->dp);
        sqlite3_bind_int64(q, 8, session->config->run.threads);
        store_bind_text(q, 9, session->code_version);
        rc = store_run(q);
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
        store_bind_text(q, 2, maps_form_names[m->form]);
        store_bind_text(q, 3, maps_part_names[m->part]);
        store_bind_text(q, 4, maps_scope_names[m->scope]);
        sqlite3_bind_int(q, 5, m->layer);
        sqlite3_bind_int(q, 6, m->head);
        store_bind_text(q, 7, m->tensor);
        sqlite3_bind_int(q, 8, m->rows);
        sqlite3_bind_int(q, 9, m->cols);
        if (sqlite3_step(q) == SQLITE_ROW) s->matrix_id[i] = sqlite3_column_int64(q, 0);
        rc = sqlite3_reset(q);
    }
    sqlite3_finalize(q);
    return rc;
}

static int write_start(store *s, const store_session *session) {
    int rc = sqlite3_exec(s->db, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc == SQLITE_OK) rc = schema_prepare(s->db);
    if (rc == SQLITE_OK) rc = write_run(s, session->config);
    if (rc == SQLITE_OK && session->start == STORE_RUN_GOES_ON) rc = store_forget_behind(s, session->resume_step);
    if (rc == SQLITE_OK)
        rc = session->start == STORE_SESSION_GOES_ON ? store_find_session(s) : write_session(s, session);
    if (rc == SQLITE_OK) rc = write_matrices(s);
    if (rc == SQLITE_OK) rc = sqlite3_exec(s->db, "COMMIT", NULL, NULL, NULL);
    return rc == SQLITE_OK ? store_prepare(s) : rc;
}

static void store_free(store *s) {
    store_unprepare(s);
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
    s->first_step = s->last_step = s->written_step = -1;
    s->matrices = session->matrices;
    s->matrix_count = session->matrix_count;
    s->path = strdup(path);
    s->matrix_id = calloc((size_t)session->matrix_count + 1, sizeof(*s->matrix_id));
    s->column_of_heads = calloc((size_t)session->matrix_count + 1, sizeof(*s->column_of_heads));
    status result = s->path && s->matrix_id && s->column_of_heads ? STATUS_OK : out_of_memory();
    if (result == STATUS_OK) {
        int rc = sqlite3_open_v2(path, &s->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
        if (rc == SQLITE_OK) rc = sqlite3_busy_timeout(s->db, OPEN_WAIT_MS);
        if (rc == SQLITE_OK) rc = database_set_journal(s->db, s->path, &s->wal);
        if (rc == SQLITE_OK) rc = write_start(s, session);
        if (rc == SQLITE_OK) rc = sqlite3_busy_timeout(s->db, RUN_WAIT_MS);
        if (rc == SQLITE_MISMATCH)
            result = schema_check(s->db, path);
        else if (rc != SQLITE_OK)
            result = database_failure(s->db, path, rc);
    }
    if (result != STATUS_OK) {
        store_free(s);
        s = NULL;
    }
    *out = s;
    return result;
}

status store_close(store *s) {
    if (!s) return STATUS_OK;
    if (!s->ended) {
        store_record r = {.kind = STORE_FINISH,
                          .finish = {.last_step = s->last_step, .exit_code = STATUS_INTERNAL, .status = "failed"}};
        store_add(s, &r);
    }
    sqlite3_busy_timeout(s->db, OPEN_WAIT_MS);
    status result = store_flush_last(s);
    if (result != STATUS_OK) log_error("%s: %d records were never written", s->path, s->waiting_count);
    if (result == STATUS_OK && s->lost > 0)
        result = status_fail(STATUS_IO, "%s: %d records were lost; log.txt says why", s->path, s->lost);
    store_forget(s);
    store_unprepare(s);
    if (s->wal) database_leave_single_file(s->db, s->path);
    store_free(s);
    return result;
}
