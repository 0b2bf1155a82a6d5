/* From a database to what `watch` shows: a few rows of each table, and two series in bins. */
#include "diag/glance.h"

#include "diag/reading.h"
#include "diag/report_series.h"
#include "diag/schema.h"
#include "diag/spectrum.h"

#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

const char *glance_column(int index) {
    return index < SPECTRUM_COLUMN_COUNT ? spectrum_columns[index].name : NULL;
}

status glance_find_column(const char *name, int *index) {
    for (*index = 0; *index < SPECTRUM_COLUMN_COUNT; ++*index)
        if (strcmp(spectrum_columns[*index].name, name) == 0) return STATUS_OK;
    return status_fail(STATUS_USAGE, "there is no column \"%s\"; docs/spectra.md has them all", name);
}

/* ---------------------------------------------------------------- cells */

static void copy_text(sqlite3_stmt *q, int column, char *to, size_t bytes) {
    const char *text = (const char *)sqlite3_column_text(q, column);
    snprintf(to, bytes, "%s", text ? text : "");
}

static int64_t whole(sqlite3_stmt *q, int column) {
    return sqlite3_column_type(q, column) == SQLITE_INTEGER ? sqlite3_column_int64(q, column) : -1;
}

/* Calls for each row of the statement. */
static status each_row(const report_source *from, const char *sql, void (*take)(sqlite3_stmt *q, glance *g),
                       glance *g) {
    sqlite3_stmt *q = NULL;
    status result = report_ask(from, sql, &q);
    while (result == STATUS_OK) {
        bool row;
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        take(q, g);
    }
    sqlite3_finalize(q);
    return result;
}

/* ---------------------------------------------------------------- the run's numbers */

static void take_run(sqlite3_stmt *q, glance *g) {
    copy_text(q, 0, g->name, sizeof g->name);
    copy_text(q, 1, g->variant, sizeof g->variant);
    copy_text(q, 2, g->status, sizeof g->status);
    g->steps = whole(q, 3);
    g->attempt = whole(q, 4);
    g->exit_code = whole(q, 5);
    g->events_total = whole(q, 6);
}

static void take_step(sqlite3_stmt *q, glance *g) {
    g->step = whole(q, 0);
    g->loss = reading_real(q, 1);
    g->grad_norm = reading_real(q, 2);
    g->lr = reading_real(q, 3);
}

static void take_speed(sqlite3_stmt *q, glance *g) {
    g->tokens_per_s = reading_real(q, 0);
    double left = g->step >= 0 && g->steps >= g->step ? (double)(g->steps - g->step) : NAN;
    g->seconds_left = left * reading_real(q, 1) / 1000;
}

static void take_validation(sqlite3_stmt *q, glance *g) {
    g->validation_step = whole(q, 0);
    g->validation_loss = reading_real(q, 1);
}

static void take_counts(sqlite3_stmt *q, glance *g) {
    g->snapshots = whole(q, 0);
    g->waiting = whole(q, 1);
    g->missed = whole(q, 2);
}

static void take_snapshot(sqlite3_stmt *q, glance *g) {
    g->snapshot_step = whole(q, 0);
    g->lag_ms = reading_real(q, 1);
    g->compute_ms = reading_real(q, 2);
}

/* They come newest first. */
static void take_event(sqlite3_stmt *q, glance *g) {
    if (g->event_count == GLANCE_EVENTS) return;
    memmove(g->events + 1, g->events, (size_t)g->event_count * sizeof *g->events);
    glance_event *e = g->events;
    g->event_count++;
    e->step = whole(q, 0);
    copy_text(q, 1, e->time, sizeof e->time);
    copy_text(q, 2, e->level, sizeof e->level);
    copy_text(q, 3, e->kind, sizeof e->kind);
    copy_text(q, 4, e->message, sizeof e->message);
}

static status read_numbers(const report_source *from, glance *g) {
    TRY(each_row(
        from,
        "SELECT name, variant, status,"
        " (SELECT CAST(value AS INTEGER) FROM params WHERE run_id = ?1 AND key = 'train.steps'), attempt, exit_code,"
        " (SELECT count(*) FROM events WHERE run_id = ?1) FROM runs LEFT JOIN sessions USING(run_id)"
        " WHERE run_id = ?1 ORDER BY attempt DESC LIMIT 1",
        take_run, g));
    TRY(each_row(from,
                 "SELECT step, loss, grad_norm, lr FROM train_metrics WHERE run_id = ?1 ORDER BY step DESC LIMIT 1",
                 take_step, g));
    TRY(each_row(from,
                 "SELECT avg(tokens_per_s), avg(step_ms) FROM (SELECT tokens_per_s, step_ms FROM train_metrics"
                 " WHERE run_id = ?1 ORDER BY step DESC LIMIT 20)",
                 take_speed, g));
    TRY(each_row(from,
                 "SELECT step, loss FROM eval_metrics WHERE run_id = ?1 AND split = 'validation'"
                 " ORDER BY step DESC LIMIT 1",
                 take_validation, g));
    TRY(each_row(from,
                 "SELECT count(*) FILTER (WHERE status = 'done'), count(*) FILTER (WHERE status = 'planned'),"
                 " count(*) FILTER (WHERE status NOT IN ('done', 'planned')) FROM snapshots WHERE run_id = ?1",
                 take_counts, g));
    TRY(each_row(from,
                 "SELECT step, lag_ms, compute_ms FROM snapshots WHERE run_id = ?1 AND status = 'done'"
                 " ORDER BY step DESC LIMIT 1",
                 take_snapshot, g));
    return each_row(from,
                    "SELECT step, time, level, kind, message FROM events WHERE run_id = ?1"
                    " ORDER BY attempt DESC, seq DESC LIMIT 20",
                    take_event, g);
}

/* ---------------------------------------------------------------- series */

static status read_losses(const report_source *from, glance *g) {
    static const char sql[] = "SELECT step, 0, loss FROM train_metrics WHERE run_id = ?1 ORDER BY step";
    report_grid grid = {0};
    TRY(report_read_bins(from, sql, &g->loss_bins));
    status result = report_read_grid(from, sql, &g->loss_bins, 1, 1, &grid);
    if (result == STATUS_OK) memcpy(g->losses, grid.median, (size_t)g->loss_bins.count * sizeof *g->losses);
    report_grid_close(&grid);
    return result;
}

static void take_layers(sqlite3_stmt *q, glance *g) {
    int64_t layers = whole(q, 0);
    g->layers = layers > 0 && layers <= REPORT_LAYERS ? (int)layers : 0;
}

static status read_map(const report_source *from, glance *g) {
    report_grid grid = {0};
    TRY(each_row(from,
                 "SELECT max(layer) + 1 FROM matrices WHERE run_id = ?1 AND form = ?2 AND part = ?3 AND scope = 'head'",
                 take_layers, g));
    TRY(report_read_bins(from, "SELECT step FROM snapshots WHERE run_id = ?1 AND status <> 'planned' ORDER BY step",
                         &g->map_bins));
    char *sql = report_layers_sql(from, "median");
    status result = sql ? report_read_grid(from, sql, &g->map_bins, 1, g->layers, &grid) : report_out_of_memory();
    sqlite3_free(sql);
    if (result == STATUS_OK) {
        g->map = grid.median;
        grid.median = NULL;
    }
    report_grid_close(&grid);
    return result;
}

/* ---------------------------------------------------------------- the door */

/* Seconds since the database or its log was changed. */
static double idle_seconds(const char *path) {
    static const char *const ends[] = {"", "-wal"};
    char file[4104];
    struct stat info;
    struct timespec now;
    double newest = NAN;
    bool folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    for (int i = 0; i < 2; i++) {
        snprintf(file, sizeof file, "%s%s%s", path, folder ? "/run.db" : "", ends[i]);
        if (stat(file, &info) == 0)
            newest = fmax(newest, (double)info.st_mtim.tv_sec + 1e-9 * (double)info.st_mtim.tv_nsec);
    }
    clock_gettime(CLOCK_REALTIME, &now);
    return fmax(0, (double)now.tv_sec + 1e-9 * (double)now.tv_nsec - newest);
}

static void take_id(sqlite3_stmt *q, glance *g) {
    g->run_id = whole(q, 0);
}

static status no_run(const char *path) {
    return status_fail(STATUS_NO_INPUT, "%s holds no run yet", path);
}

static status read_all(report_source *from, glance *g) {
    if (sqlite3_exec(from->db, "BEGIN", NULL, NULL, NULL) != SQLITE_OK)
        return reading_failure(from->path, from->db, sqlite3_errcode(from->db));
    TRY(each_row(from, "SELECT run_id FROM runs ORDER BY started_at DESC, run_id DESC LIMIT 1", take_id, g));
    if (g->run_id < 0) return no_run(from->path);
    from->run_id = g->run_id;
    TRY(read_numbers(from, g));
    TRY(read_losses(from, g));
    return read_map(from, g);
}

status glance_read(const char *path, const char *column, glance *out) {
    const report_request request = {.form = "score", .part = "full", .columns = {column}};
    report_source from = {.path = path, .request = &request};
    *out = (glance){.run_id = -1,
                    .attempt = -1,
                    .exit_code = -1,
                    .step = -1,
                    .steps = -1,
                    .snapshot_step = -1,
                    .validation_step = -1,
                    .loss = NAN,
                    .grad_norm = NAN,
                    .lr = NAN,
                    .tokens_per_s = NAN,
                    .seconds_left = NAN,
                    .validation_loss = NAN,
                    .lag_ms = NAN,
                    .compute_ms = NAN,
                    .column = column,
                    .idle_s = idle_seconds(path)};
    TRY(reading_open(path, &from.db));
    /* A run's first transaction makes the tables. */
    status result = schema_version(from.db) == 0 ? no_run(path) : reading_check(path, from.db);
    if (result == STATUS_OK) result = read_all(&from, out);
    sqlite3_close(from.db);
    return result;
}

void glance_free(glance *g) {
    free(g->map);
    g->map = NULL;
}

bool glance_has_ended(const glance *g) {
    return g->status[0] && strcmp(g->status, "running") != 0;
}

/* ---------------------------------------------------------------- JSON */

static json_t *number_json(int64_t number) {
    return number >= 0 ? json_integer(number) : json_null();
}

static json_t *reals_json(const double *values, int n) {
    json_t *list = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(list, json_finite(values[i]));
    return list;
}

/* The last step of each bin. */
static json_t *steps_json(const report_bins *bins) {
    json_t *list = json_array();
    for (int i = 0; i < bins->count; i++) json_array_append_new(list, json_integer(bins->last[i]));
    return list;
}

static json_t *map_json(const glance *g) {
    json_t *values = json_array(), *j = json_object();
    for (int layer = 0; layer < g->layers; layer++)
        json_array_append_new(values, reals_json(g->map + layer * g->map_bins.count, g->map_bins.count));
    json_object_set_new(j, "column", json_text(g->column));
    json_object_set_new(j, "steps", steps_json(&g->map_bins));
    json_object_set_new(j, "values", values);
    return j;
}

static json_t *events_json(const glance *g) {
    json_t *list = json_array();
    for (int i = 0; i < g->event_count; i++) {
        const glance_event *e = &g->events[i];
        json_array_append_new(list, json_pack("{so so so so so}", "step", number_json(e->step), "time",
                                              json_text(e->time), "level", json_text(e->level), "kind",
                                              json_text(e->kind), "message", json_text(e->message)));
    }
    return list;
}

json_t *glance_json(const glance *g) {
    return json_pack(
        "{so so so so so so so so so so so so so so so so so so so so so s{so so} so so}", "name", json_text(g->name),
        "variant", json_text(g->variant), "status", json_text(g->status), "attempt", number_json(g->attempt),
        "exit_code", number_json(g->exit_code), "idle_s", json_finite(g->idle_s), "step", number_json(g->step), "steps",
        number_json(g->steps), "loss", json_finite(g->loss), "grad_norm", json_finite(g->grad_norm), "lr",
        json_finite(g->lr), "tokens_per_s", json_finite(g->tokens_per_s), "seconds_left", json_finite(g->seconds_left),
        "validation_loss", json_finite(g->validation_loss), "validation_step", number_json(g->validation_step),
        "snapshots", number_json(g->snapshots), "snapshots_waiting", number_json(g->waiting), "snapshots_missed",
        number_json(g->missed), "snapshot_step", number_json(g->snapshot_step), "lag_ms", json_finite(g->lag_ms),
        "compute_ms", json_finite(g->compute_ms), "losses", "steps", steps_json(&g->loss_bins), "median",
        reals_json(g->losses, g->loss_bins.count), "map", map_json(g), "events", events_json(g));
}
