/* What one record becomes: the rows of each kind, by upserts (docs/design.md section 7). */
#include "diag/schema.h"
#include "diag/store_private.h"

#include <math.h>
#include <stdlib.h>

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
    STATEMENT(spectrum, "INSERT OR REPLACE INTO spectra(snapshot_id, matrix_id, " SPECTRUM_COLUMNS(                    \
                            SCHEMA_NAME) "null_id, null_ratio, status, null_query_ratio) VALUES(?, "                   \
                                         "?, " SPECTRUM_COLUMNS(SCHEMA_MARK) "?, ?, ?, ?)")                            \
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
    STATEMENT(pair, "INSERT OR REPLACE INTO vectors VALUES(?, ?, ?, ?)")                                               \
    STATEMENT(gains, "INSERT OR REPLACE INTO gains VALUES(?, ?, ?, ?)")                                                \
    STATEMENT(profile, "INSERT OR REPLACE INTO profile VALUES(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)")                       \
    STATEMENT(progress,                                                                                                \
              "UPDATE sessions SET first_step = ?3, last_step = ?4, messages = ?5 WHERE run_id = ?1 AND attempt = ?2") \
    STATEMENT(exit_code, "UPDATE sessions SET exit_code = ?3 WHERE run_id = ?1 AND attempt = ?2")                      \
    STATEMENT(run_end, "UPDATE runs SET status = ?2, ended_at = ?3 WHERE run_id = ?1")

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

int store_prepare(store *s) {
    s->sql = calloc(SQL_COUNT, sizeof(*s->sql));
    if (!s->sql) return SQLITE_NOMEM;
    for (int i = 0; i < SQL_COUNT; i++) {
        int rc = sqlite3_prepare_v3(s->db, statement_text[i], -1, SQLITE_PREPARE_PERSISTENT, &s->sql[i], NULL);
        if (rc != SQLITE_OK) return rc;
    }
    return SQLITE_OK;
}

void store_unprepare(store *s) {
    for (int i = 0; s->sql && i < SQL_COUNT; i++) sqlite3_finalize(s->sql[i]);
    free(s->sql);
    s->sql = NULL;
}

static int write_step(store *s, const diag_step *r) {
    sqlite3_stmt *q = s->sql[SQL_step];
    const double values[] = {r->loss, r->grad_norm, r->lr, r->step_ms, r->tokens_per_s, r->mfu};
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, r->step);
    sqlite3_bind_int64(q, 3, r->tokens);
    for (int i = 0; i < 6; i++) store_bind_real(q, 4 + i, values[i]);
    return store_run(q);
}

static int write_eval(store *s, const diag_eval *r) {
    sqlite3_stmt *q = s->sql[SQL_eval];
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, r->step);
    store_bind_text(q, 3, r->split);
    store_bind_real(q, 4, r->loss);
    store_bind_real(q, 5, exp(r->loss));
    sqlite3_bind_int64(q, 6, r->tokens);
    return store_run(q);
}

static int write_event(store *s, const waiting *w) {
    const diag_event *r = &w->record.event;
    sqlite3_stmt *q = s->sql[SQL_event];
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, s->attempt);
    sqlite3_bind_int64(q, 3, w->number);
    sqlite3_bind_int64(q, 4, r->step);
    store_bind_text(q, 5, w->time);
    store_bind_text(q, 6, r->level);
    store_bind_text(q, 7, r->kind);
    store_bind_text(q, 8, r->message);
    return store_run(q);
}

static int write_profile(store *s, const diag_profile *r) {
    sqlite3_stmt *q = s->sql[SQL_profile];
    const double values[] = {r->ms, r->share, r->flops, r->bytes, r->tflops, r->gb_per_s, r->ratio};
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, r->step);
    store_bind_text(q, 3, r->phase);
    sqlite3_bind_int64(q, 4, r->steps);
    for (int i = 0; i < 7; i++) store_bind_real(q, 5 + i, values[i]);
    return store_run(q);
}

static int write_finish(store *s, const diag_finish *r, const char *when) {
    sqlite3_stmt *q = s->sql[SQL_exit_code];
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, s->attempt);
    sqlite3_bind_int(q, 3, r->exit_code);
    int rc = store_run(q);
    if (rc != SQLITE_OK) return rc;
    q = s->sql[SQL_run_end];
    sqlite3_bind_int64(q, 1, s->run_id);
    store_bind_text(q, 2, r->status);
    store_bind_text(q, 3, when);
    return store_run(q);
}

static void bind_columns(sqlite3_stmt *q, int first, const double *columns, bool real) {
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++) {
        if (!real && spectrum_columns[i].integer && isfinite(columns[i]))
            sqlite3_bind_int64(q, first + i, (int64_t)columns[i]);
        else
            store_bind_real(q, first + i, columns[i]);
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
    store_bind_real(q, 4 + SPECTRUM_COLUMN_COUNT, row->null_ratio);
    store_bind_text(q, 5 + SPECTRUM_COLUMN_COUNT, spectrum_status_name(row->status));
    store_bind_real(q, 6 + SPECTRUM_COLUMN_COUNT, row->null_query_ratio);
    return store_run(q);
}

static int write_gains(store *s, const store_gains *r) {
    sqlite3_stmt *q = s->sql[SQL_gains];
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, r->step);
    store_bind_text(q, 3, r->tensor);
    sqlite3_bind_blob64(q, 4, r->gain, (sqlite3_uint64)r->count * sizeof(*r->gain), SQLITE_STATIC);
    return store_run(q);
}

static int write_null(store *s, const store_null *r) {
    sqlite3_stmt *q = s->sql[SQL_null];
    sqlite3_bind_int64(q, 1, r->null_id);
    store_bind_text(q, 2, r->key);
    sqlite3_bind_int64(q, 3, r->draws);
    sqlite3_bind_int64(q, 4, r->seed);
    for (int i = 0; i < NULLS_STATISTIC_COUNT; i++) {
        store_bind_real(q, 5 + 2 * i, r->moments.mean[i]);
        store_bind_real(q, 6 + 2 * i, r->moments.sd[i]);
    }
    return store_run(q);
}

static int write_esd(store *s, int64_t snapshot_id, int index, const double *values) {
    const maps_matrix *m = &s->matrices[index];
    sqlite3_stmt *q = s->sql[SQL_esd];
    if (isnan(values[m->first_value])) return SQLITE_OK; /* a matrix without spectrum */
    sqlite3_bind_int64(q, 1, snapshot_id);
    sqlite3_bind_int64(q, 2, s->matrix_id[index]);
    sqlite3_bind_int(q, 3, m->rank);
    sqlite3_bind_blob64(q, 4, values + m->first_value, (sqlite3_uint64)m->rank * sizeof(double), SQLITE_STATIC);
    return store_run(q);
}

/* u and v, float32, little-endian. */
static int write_pair(store *s, int64_t snapshot_id, int index, const float *pairs) {
    const maps_matrix *m = &s->matrices[index];
    const float *u = pairs + m->first_pair, *v = u + m->left;
    sqlite3_stmt *q = s->sql[SQL_pair];
    if (isnan(u[0])) return SQLITE_OK;
    sqlite3_bind_int64(q, 1, snapshot_id);
    sqlite3_bind_int64(q, 2, s->matrix_id[index]);
    sqlite3_bind_blob64(q, 3, u, (sqlite3_uint64)m->left * sizeof(*u), SQLITE_STATIC);
    sqlite3_bind_blob64(q, 4, v, (sqlite3_uint64)m->right * sizeof(*v), SQLITE_STATIC);
    return store_run(q);
}

static int write_layer_row(store *s, int index, const char *stat, int64_t step, const double *columns) {
    const maps_matrix *m = &s->matrices[index];
    sqlite3_stmt *q = s->sql[SQL_layer];
    bind_columns(q, 1, columns, true);
    sqlite3_bind_int64(q, SPECTRUM_COLUMN_COUNT + 1, s->run_id);
    store_bind_text(q, SPECTRUM_COLUMN_COUNT + 2, maps_form_names[m->form]);
    store_bind_text(q, SPECTRUM_COLUMN_COUNT + 3, maps_part_names[m->part]);
    store_bind_text(q, SPECTRUM_COLUMN_COUNT + 4, stat);
    sqlite3_bind_int64(q, SPECTRUM_COLUMN_COUNT + 5, step);
    sqlite3_bind_int(q, SPECTRUM_COLUMN_COUNT + 6, m->layer);
    return store_run(q);
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
    if (r->tokens >= 0)
        sqlite3_bind_int64(q, 3, r->tokens);
    else
        sqlite3_bind_null(q, 3);
    store_bind_text(q, 4, r->status);
    store_bind_real(q, 5, r->lag_ms);
    store_bind_real(q, 6, r->compute_ms);
    if (sqlite3_step(q) == SQLITE_ROW) id = sqlite3_column_int64(q, 0);
    int rc = sqlite3_reset(q);
    for (int i = 0; r->rows && i < s->matrix_count && rc == SQLITE_OK; i++) {
        rc = write_spectrum(s, id, i, &r->rows[i]);
        if (rc == SQLITE_OK && r->values) rc = write_esd(s, id, i, r->values);
        if (rc == SQLITE_OK && r->pairs) rc = write_pair(s, id, i, r->pairs);
    }
    return rc == SQLITE_OK && r->rows ? write_layers(s, r->step, r->rows) : rc;
}

int store_write_record(store *s, const waiting *w) {
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
    case STORE_GAINS:
        return write_gains(s, &w->record.gains);
    case STORE_PROFILE:
        return write_profile(s, &w->record.profile);
    case STORE_FINISH:
        return write_finish(s, &w->record.finish, w->time);
    }
    return SQLITE_INTERNAL;
}

static void bind_number(sqlite3_stmt *q, int index, int64_t number, bool exists) {
    if (exists)
        sqlite3_bind_int64(q, index, number);
    else
        sqlite3_bind_null(q, index);
}

int store_write_progress(store *s, int64_t last, int64_t messages) {
    sqlite3_stmt *q = s->sql[SQL_progress];
    sqlite3_bind_int64(q, 1, s->run_id);
    sqlite3_bind_int64(q, 2, s->attempt);
    bind_number(q, 3, s->first_step, last >= 0);
    bind_number(q, 4, last, last >= 0);
    bind_number(q, 5, messages, messages > 0);
    return store_run(q);
}
