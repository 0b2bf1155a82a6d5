/* From a database to the runs of a study. Nothing is judged here: what is missing becomes NaN, and a run that lacks
 * something as a whole says so in `excluded`. */
#include "core/snapshot_steps.h"
#include "diag/findings_study.h"
#include "diag/reading.h"

#include <math.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_SNAPSHOTS = 10000000 };
static const int64_t MOST_STEP = 1000000000000; /* that the configuration allows */

static const char sql_runs[] = "SELECT run_id, uuid, name, variant, status, seed FROM runs ORDER BY run_id";

static const char sql_plan[] =
    "SELECT (SELECT CAST(value AS INTEGER) FROM params WHERE run_id = ?1 AND key = 'diagnostics.every'),"
    " (SELECT CAST(value AS INTEGER) FROM params WHERE run_id = ?1 AND key = 'diagnostics.dense_until'),"
    " (SELECT CAST(value AS INTEGER) FROM params WHERE run_id = ?1 AND key = 'train.steps')";

static const char sql_snapshots[] = "SELECT step, status = 'done' FROM snapshots WHERE run_id = ?1 ORDER BY step";

#define FAMILY "m.form = 'score' AND m.part = 'full' AND m.scope = 'head'"

static const char sql_shape[] = "SELECT count(*), max(layer) + 1, max(head) + 1, min(layer), min(head) FROM matrices m "
                                "WHERE run_id = ?1 AND " FAMILY;

static const char sql_states[] =
    "SELECT s.step, m.layer, m.head, min(m.rows, m.cols) AS r, p.status, p.lambda_max, p.lambda_sum, p.tw_score,"
    " p.tw_score_gains, p.effective_rank_rest, p.z_effective_rank_rest, p.z_effective_rank_rest_gains, p.top_overlap,"
    " n.m, n.s, n.effective_rank_rest_mean"
    " FROM snapshots s JOIN spectra p USING(snapshot_id) JOIN matrices m USING(matrix_id)"
    " LEFT JOIN nulls n ON n.null_id = p.null_id"
    " WHERE s.run_id = ?1 AND s.status = 'done' AND m.run_id = ?1 AND " FAMILY " ORDER BY s.step";

static const char sql_validation[] = "SELECT loss, step FROM eval_metrics WHERE run_id = ?1 AND split = 'validation'"
                                     " ORDER BY step DESC LIMIT 1";

typedef struct source {
    sqlite3 *db;
    const char *path;
} source;

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the findings");
}

/* ---------------------------------------------------------------- SQL */

/* A statement about one run. STATUS_OK with *q NULL: the database lacks a table or column, which *lacks then names. */
static status ask(const source *from, const char *sql, int64_t run_id, sqlite3_stmt **q, char *lacks, size_t size) {
    int rc = sqlite3_prepare_v2(from->db, sql, -1, q, NULL);
    if ((rc & 0xff) == SQLITE_ERROR) {
        if (lacks[0] == '\0') snprintf(lacks, size, "the database lacks something: %s", sqlite3_errmsg(from->db));
        return STATUS_OK;
    }
    if (rc != SQLITE_OK) return reading_failure(from->path, from->db, rc);
    sqlite3_bind_int64(*q, 1, run_id);
    return STATUS_OK;
}

static char *copy_at(sqlite3_stmt *q, int column) {
    const char *text = (const char *)sqlite3_column_text(q, column);
    return strdup(text ? text : "");
}

static bool is_null(sqlite3_stmt *q, int column) {
    return sqlite3_column_type(q, column) == SQLITE_NULL;
}

/* ---------------------------------------------------------------- the plan of snapshots */

/* Of a run's configuration what core/snapshot_steps.h asks for; train.steps -1: nothing is planned but what is
 * recorded.
 */
static status read_plan(const source *from, int64_t run_id, findings_run *r, config *out) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    *out = (config){.train.steps = -1};
    TRY(ask(from, sql_plan, run_id, &q, r->excluded, sizeof r->excluded));
    status result = q ? reading_row(from->path, from->db, q, &row) : STATUS_OK;
    if (result == STATUS_OK && row && !is_null(q, 0) && !is_null(q, 1) && !is_null(q, 2)) {
        int64_t every = sqlite3_column_int64(q, 0), dense = sqlite3_column_int64(q, 1),
                last = sqlite3_column_int64(q, 2);
        bool possible = every >= 1 && dense >= 0 && last >= 0 && every <= MOST_STEP && dense <= MOST_STEP;
        if (possible && last <= MOST_STEP)
            *out = (config){.train.steps = last, .diagnostics = {.ranks = 1, .every = every, .dense_until = dense}};
    }
    sqlite3_finalize(q);
    return result;
}

/* One more planned snapshot. */
static status add_step(findings_run *r, int64_t step, bool recorded) {
    if (r->snapshots >= MOST_SNAPSHOTS)
        return status_fail(STATUS_DATA, "%s: more than %d snapshots are planned; is diagnostics.every in params right?",
                           r->database, MOST_SNAPSHOTS);
    if ((r->snapshots & (r->snapshots - 1)) == 0) { /* a power of two is full */
        size_t larger = r->snapshots ? 2 * (size_t)r->snapshots : 1;
        int64_t *steps = realloc(r->steps, larger * sizeof *steps);
        if (steps) r->steps = steps;
        bool *flags = realloc(r->recorded, larger * sizeof *flags);
        if (flags) r->recorded = flags;
        if (!steps || !flags) return out_of_memory();
    }
    r->steps[r->snapshots] = step;
    r->recorded[r->snapshots++] = recorded;
    return STATUS_OK;
}

/* The next planned step, or INT64_MAX. */
static int64_t next_planned(const config *plan, int64_t step) {
    int64_t next = snapshot_steps_next(plan, step);
    return next < 0 ? INT64_MAX : next;
}

/* The snapshots that the table knows, and those of the plan between them. What lies behind the last recorded one says
 * nothing and is left out. */
static status read_snapshots(const source *from, int64_t run_id, findings_run *r) {
    sqlite3_stmt *q = NULL;
    config p;
    bool row = true;
    TRY(read_plan(from, run_id, r, &p));
    TRY(ask(from, sql_snapshots, run_id, &q, r->excluded, sizeof r->excluded));
    status result = STATUS_OK;
    while (q && result == STATUS_OK) {
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        int64_t step = sqlite3_column_int64(q, 0);
        int64_t due = r->snapshots ? next_planned(&p, r->steps[r->snapshots - 1]) : p.train.steps < 0 ? step : 0;
        for (; due < step && result == STATUS_OK; due = next_planned(&p, due)) result = add_step(r, due, false);
        if (result == STATUS_OK) result = add_step(r, step, sqlite3_column_int(q, 1));
    }
    sqlite3_finalize(q);
    r->planned = p.train.steps < 0 ? r->snapshots : snapshot_steps_count(&p);
    if (r->planned < r->snapshots) r->planned = r->snapshots;
    while (r->snapshots && !r->recorded[r->snapshots - 1]) r->snapshots--;
    for (int k = 0; k < r->snapshots; k++) r->missed += !r->recorded[k];
    return result;
}

/* ---------------------------------------------------------------- the heads */

static status read_shape(const source *from, int64_t run_id, findings_run *r) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    TRY(ask(from, sql_shape, run_id, &q, r->excluded, sizeof r->excluded));
    status result = q ? reading_row(from->path, from->db, q, &row) : STATUS_OK;
    if (row) {
        int64_t count = sqlite3_column_int64(q, 0), layers = sqlite3_column_int64(q, 1);
        int64_t heads = sqlite3_column_int64(q, 2);
        if (count == 0) {
            snprintf(r->excluded, sizeof r->excluded, "no head is recorded in form score, part full");
        } else if (sqlite3_column_int64(q, 3) != 0 || sqlite3_column_int64(q, 4) != 0 || layers > count ||
                   heads > count || layers * heads != count) {
            snprintf(r->excluded, sizeof r->excluded, "not every head of every layer is recorded");
        } else {
            r->layers = (int)layers;
            r->heads = (int)heads;
        }
    }
    sqlite3_finalize(q);
    return result;
}

static bool has_numbers(const char *status_text) {
    return status_text && (strcmp(status_text, "ok") == 0 || strcmp(status_text, "rank_deficient") == 0);
}

/* One row of sql_states. */
static findings_state state_of(sqlite3_stmt *q) {
    findings_state s = {.measured = has_numbers((const char *)sqlite3_column_text(q, 4)),
                        .tw_score = reading_real(q, 7),
                        .tw_score_gains = reading_real(q, 8),
                        .z_rest = reading_real(q, 10),
                        .z_rest_gains = reading_real(q, 11),
                        .top_overlap = reading_real(q, 12)};
    double mean = reading_real(q, 6) / reading_real(q, 3);
    s.excess = reading_real(q, 5) / mean / exp(reading_real(q, 13));
    s.null_sd = reading_real(q, 14);
    s.rest = reading_real(q, 9) / reading_real(q, 15);
    return s;
}

static int index_of(const findings_run *r, int64_t step) {
    int low = 0, high = r->snapshots - 1;
    while (low < high) {
        int middle = (low + high) / 2;
        if (r->steps[middle] < step)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static status read_states(const source *from, int64_t run_id, findings_run *r) {
    sqlite3_stmt *q = NULL;
    TRY(ask(from, sql_states, run_id, &q, r->excluded, sizeof r->excluded));
    if (!q) return STATUS_OK;
    status result = STATUS_OK;
    r->states = calloc((size_t)r->layers * (size_t)r->heads * (size_t)r->snapshots + 1, sizeof *r->states);
    if (!r->states) result = out_of_memory();
    while (result == STATUS_OK) {
        bool row = false;
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        int64_t layer = sqlite3_column_int64(q, 1), head = sqlite3_column_int64(q, 2);
        if (layer < 0 || layer >= r->layers || head < 0 || head >= r->heads) continue; /* no number at all */
        findings_state *s =
            &r->states[(layer * r->heads + head) * r->snapshots + index_of(r, sqlite3_column_int64(q, 0))];
        *s = state_of(q);
        r->without_null += s->measured && isnan(s->tw_score);
    }
    sqlite3_finalize(q);
    return result;
}

static status read_validation(const source *from, int64_t run_id, findings_run *r) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    r->validation_loss = NAN;
    r->validation_step = -1;
    TRY(ask(from, sql_validation, run_id, &q, r->excluded, sizeof r->excluded));
    status result = q ? reading_row(from->path, from->db, q, &row) : STATUS_OK;
    if (row) {
        r->validation_loss = reading_real(q, 0);
        r->validation_step = sqlite3_column_int64(q, 1);
    }
    sqlite3_finalize(q);
    return result;
}

/* ---------------------------------------------------------------- runs */

static bool is_known(const findings_study *study, const char *uuid) {
    for (int i = 0; i < study->count; i++)
        if (uuid[0] && strcmp(study->runs[i].uuid, uuid) == 0) return true;
    return false;
}

static void free_run(findings_run *r) {
    free(r->database);
    free(r->uuid);
    free(r->name);
    free(r->variant);
    free(r->status);
    free(r->steps);
    free(r->recorded);
    free(r->states);
}

static status fill_run(const source *from, sqlite3_stmt *q, findings_run *r) {
    int64_t run_id = sqlite3_column_int64(q, 0);
    r->database = strdup(from->path);
    r->uuid = copy_at(q, 1);
    r->name = copy_at(q, 2);
    r->variant = copy_at(q, 3);
    r->status = copy_at(q, 4);
    r->has_seed = !is_null(q, 5);
    r->seed = sqlite3_column_int64(q, 5);
    if (!r->database || !r->uuid || !r->name || !r->variant || !r->status) return out_of_memory();
    TRY(read_snapshots(from, run_id, r));
    TRY(read_validation(from, run_id, r));
    TRY(read_shape(from, run_id, r));
    return r->excluded[0] ? STATUS_OK : read_states(from, run_id, r);
}

static status add_run(findings_study *study, const source *from, sqlite3_stmt *q) {
    findings_run *larger = realloc(study->runs, ((size_t)study->count + 1) * sizeof *larger), r = {0};
    if (!larger) return out_of_memory();
    study->runs = larger;
    status result = fill_run(from, q, &r);
    if (result != STATUS_OK || is_known(study, r.uuid)) { /* the same run, named twice or merged */
        free_run(&r);
        return result;
    }
    study->runs[study->count++] = r;
    return STATUS_OK;
}

static status read_runs(findings_study *study, const source *from) {
    sqlite3_stmt *q = NULL;
    status result = reading_ask(from->path, from->db, sql_runs, &q);
    while (result == STATUS_OK) {
        bool row = false;
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        result = add_run(study, from, q);
    }
    sqlite3_finalize(q);
    return result;
}

status findings_read(findings_study *study, const char *path) {
    source from = {.path = path};
    TRY(reading_begin(path, &from.db));
    status result = read_runs(study, &from);
    sqlite3_close(from.db);
    return result;
}

void findings_study_free(findings_study *study) {
    for (int i = 0; i < study->count; i++) free_run(&study->runs[i]);
    free(study->runs);
    *study = (findings_study){0};
}
