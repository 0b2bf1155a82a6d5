/* A run that goes on: what is deleted, and what is read again of what was written. */
#include "diag/schema.h"
#include "diag/store_private.h"

#include "diag/database.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define OF_SNAPSHOTS "snapshot_id IN (SELECT snapshot_id FROM snapshots WHERE run_id = ?1 AND step > ?2)"
#define OF_RUN       "run_id = ?1 AND step > ?2"

int store_forget_behind(store *s, int64_t step) {
    static const char *const sql[] = {
        "DELETE FROM spectra WHERE " OF_SNAPSHOTS, "DELETE FROM esd WHERE " OF_SNAPSHOTS,
        "DELETE FROM vectors WHERE " OF_SNAPSHOTS, "DELETE FROM snapshots WHERE " OF_RUN,
        "DELETE FROM layer_spectra WHERE " OF_RUN, "DELETE FROM gains WHERE " OF_RUN,
        "DELETE FROM train_metrics WHERE " OF_RUN, "DELETE FROM eval_metrics WHERE " OF_RUN,
        "DELETE FROM profile WHERE " OF_RUN,
    };
    int rc = SQLITE_OK;
    for (size_t i = 0; i < sizeof(sql) / sizeof(*sql) && rc == SQLITE_OK; i++) {
        sqlite3_stmt *q = NULL;
        rc = sqlite3_prepare_v2(s->db, sql[i], -1, &q, NULL);
        if (rc == SQLITE_OK) {
            sqlite3_bind_int64(q, 1, s->run_id);
            sqlite3_bind_int64(q, 2, step);
            rc = store_run(q);
        }
        sqlite3_finalize(q);
    }
    return rc;
}

int store_find_session(store *s) {
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(
        s->db,
        "SELECT attempt, coalesce(first_step, -1), coalesce(last_step, -1), coalesce(messages, 0), (SELECT"
        " coalesce(max(seq), 0) FROM events e WHERE e.run_id = s.run_id AND e.attempt = s.attempt)"
        " FROM sessions s WHERE run_id = ?1 ORDER BY attempt DESC LIMIT 1",
        -1, &q, NULL);
    if (rc == SQLITE_OK) rc = sqlite3_bind_int64(q, 1, s->run_id);
    if (rc == SQLITE_OK && (rc = sqlite3_step(q)) == SQLITE_ROW) {
        s->attempt = sqlite3_column_int64(q, 0);
        s->first_step = sqlite3_column_int64(q, 1);
        s->last_step = s->written_step = sqlite3_column_int64(q, 2);
        s->message = s->messages = sqlite3_column_int64(q, 3);
        s->events = sqlite3_column_int64(q, 4);
    }
    int end = sqlite3_finalize(q);
    if (rc == SQLITE_ROW) return SQLITE_OK;
    return rc == SQLITE_DONE ? SQLITE_CORRUPT : end; /* a session that goes on has a row */
}

bool store_is_new(const store *s) {
    return s->fresh;
}

int64_t store_last_metrics(store *s) {
    return store_query_int(s, "SELECT max(step) FROM train_metrics WHERE run_id = ?1", -1);
}

int64_t store_last_snapshot(store *s) {
    return store_query_int(s, "SELECT max(step) FROM snapshots WHERE run_id = ?1", -1);
}

/* ---- reading ---- */

enum { READ_SNAPSHOTS, READ_GAINS, READ_SPECTRA, READ_VECTORS, READ_COUNT };

static const char *const read_sql[READ_COUNT] = {
    [READ_SNAPSHOTS] = "SELECT snapshot_id, step, coalesce(tokens, -1), lag_ms, compute_ms FROM snapshots"
                       " WHERE run_id = ?1 AND status = 'done' ORDER BY step",
    [READ_GAINS] = "SELECT tensor, gain FROM gains WHERE run_id = ?1 AND step = ?2",
    [READ_SPECTRA] = "SELECT matrix_id, " SPECTRUM_COLUMNS(SCHEMA_NAME) "null_id, null_ratio, null_query_ratio, status"
                                                                        " FROM spectra WHERE snapshot_id = ?1",
    [READ_VECTORS] = "SELECT matrix_id, u, v FROM vectors WHERE snapshot_id = ?1",
};

/* Where a matrix stands in the list. */
typedef struct place {
    int64_t id;
    int index;
} place;

typedef struct reader {
    store *s;
    const store_visitor *visitor;
    sqlite3_stmt *q[READ_COUNT];
    place *places; /* [matrix_count], by id */
    spectrum *rows;
    float *pairs;
    int64_t step;
} reader;

static int by_id(const void *a, const void *b) {
    int64_t x = ((const place *)a)->id, y = ((const place *)b)->id;
    return (x > y) - (x < y);
}

/* -1: the run no longer records it. */
static int index_of(const reader *r, int64_t id) {
    place wanted = {.id = id};
    const place *p = bsearch(&wanted, r->places, (size_t)r->s->matrix_count, sizeof(wanted), by_id);
    return p ? p->index : -1;
}

static double real(sqlite3_stmt *q, int i) {
    return sqlite3_column_type(q, i) == SQLITE_NULL ? NAN : sqlite3_column_double(q, i);
}

static void read_spectrum(sqlite3_stmt *q, spectrum *row) {
    const char *text = (const char *)sqlite3_column_text(q, 4 + SPECTRUM_COLUMN_COUNT);
    spectrum_clear(row, SPECTRUM_STATUS_ok);
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++) row->column[i] = real(q, 1 + i);
    row->null_id = sqlite3_column_int64(q, 1 + SPECTRUM_COLUMN_COUNT);
    row->null_ratio = real(q, 2 + SPECTRUM_COLUMN_COUNT);
    row->null_query_ratio = real(q, 3 + SPECTRUM_COLUMN_COUNT);
    while (text && strcmp(spectrum_status_name(row->status), text) != 0 && row->status < SPECTRUM_STATUS_failed)
        row->status++;
}

static void read_pair(const maps_matrix *m, sqlite3_stmt *q, float *pair) {
    int u = sqlite3_column_bytes(q, 1), v = sqlite3_column_bytes(q, 2);
    if (u != m->left * (int)sizeof(*pair) || v != m->right * (int)sizeof(*pair)) return;
    memcpy(pair, sqlite3_column_blob(q, 1), (size_t)u);
    memcpy(pair + m->left, sqlite3_column_blob(q, 2), (size_t)v);
}

/* Calls for each row of the answer. Returns SQLITE_DONE after the last. */
static int each_row(reader *r, int which, int64_t first, int64_t second, void (*take)(reader *r, sqlite3_stmt *q)) {
    sqlite3_stmt *q = r->q[which];
    int rc;
    sqlite3_bind_int64(q, 1, first);
    if (sqlite3_bind_parameter_count(q) > 1) sqlite3_bind_int64(q, 2, second);
    while ((rc = sqlite3_step(q)) == SQLITE_ROW) take(r, q);
    sqlite3_reset(q);
    return rc;
}

static void take_gains(reader *r, sqlite3_stmt *q) {
    store_gains g = {.step = r->step,
                     .count = sqlite3_column_bytes(q, 1) / (int)sizeof(float),
                     .gain = (float *)sqlite3_column_blob(q, 1)};
    strncpy(g.tensor, (const char *)sqlite3_column_text(q, 0), sizeof(g.tensor) - 1);
    r->visitor->gains(r->visitor->user, &g);
}

static void take_spectrum(reader *r, sqlite3_stmt *q) {
    int i = index_of(r, sqlite3_column_int64(q, 0));
    if (i >= 0) read_spectrum(q, &r->rows[i]);
}

static void take_pair(reader *r, sqlite3_stmt *q) {
    int i = index_of(r, sqlite3_column_int64(q, 0));
    if (i >= 0) read_pair(&r->s->matrices[i], q, r->pairs + r->s->matrices[i].first_pair);
}

static int read_snapshot(reader *r, int64_t id, const store_snapshot *record) {
    r->step = record->step;
    for (int i = 0; i < r->s->matrix_count; i++) {
        spectrum_clear(&r->rows[i], SPECTRUM_STATUS_nonfinite);
        r->pairs[r->s->matrices[i].first_pair] = NAN;
    }
    int rc = each_row(r, READ_GAINS, r->s->run_id, record->step, take_gains);
    if (rc == SQLITE_DONE) rc = each_row(r, READ_SPECTRA, id, 0, take_spectrum);
    if (rc == SQLITE_DONE) rc = each_row(r, READ_VECTORS, id, 0, take_pair);
    if (rc == SQLITE_DONE) r->visitor->snapshot(r->visitor->user, record);
    return rc;
}

static int read_snapshots(reader *r) {
    sqlite3_stmt *q = r->q[READ_SNAPSHOTS];
    sqlite3_bind_int64(q, 1, r->s->run_id);
    int rc;
    while ((rc = sqlite3_step(q)) == SQLITE_ROW) {
        const store_snapshot record = {.step = sqlite3_column_int64(q, 1),
                                       .tokens = sqlite3_column_int64(q, 2),
                                       .status = "done",
                                       .lag_ms = real(q, 3),
                                       .compute_ms = real(q, 4),
                                       .rows = r->rows,
                                       .pairs = r->pairs};
        rc = read_snapshot(r, sqlite3_column_int64(q, 0), &record);
        if (rc != SQLITE_DONE) break;
    }
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}

static int open_reader(reader *r) {
    const store *s = r->s;
    const maps_matrix *last = &s->matrices[s->matrix_count - 1];
    r->places = malloc((size_t)s->matrix_count * sizeof(*r->places));
    r->rows = malloc((size_t)s->matrix_count * sizeof(*r->rows));
    r->pairs = malloc((size_t)(last->first_pair + last->left + last->right) * sizeof(*r->pairs));
    if (!r->places || !r->rows || !r->pairs) return SQLITE_NOMEM;
    for (int i = 0; i < s->matrix_count; i++) r->places[i] = (place){s->matrix_id[i], i};
    qsort(r->places, (size_t)s->matrix_count, sizeof(*r->places), by_id);
    int rc = SQLITE_OK;
    for (int i = 0; i < READ_COUNT && rc == SQLITE_OK; i++)
        rc = sqlite3_prepare_v2(s->db, read_sql[i], -1, &r->q[i], NULL);
    return rc;
}

status store_read_back(store *s, const store_visitor *visitor) {
    reader r = {.s = s, .visitor = visitor};
    if (s->matrix_count == 0) return STATUS_OK;
    int rc = open_reader(&r);
    if (rc == SQLITE_OK) rc = read_snapshots(&r);
    status result = rc == SQLITE_OK ? STATUS_OK : database_failure(s->db, s->path, rc);
    for (int i = 0; i < READ_COUNT; i++) sqlite3_finalize(r.q[i]);
    free(r.places);
    free(r.rows);
    free(r.pairs);
    return result;
}
