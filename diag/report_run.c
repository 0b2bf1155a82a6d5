/* From a database to what the page shows of a run. Rows are read in the order of the tables' keys and go into bins at
 * once: what is in memory are 200 bins of a series and the values of one bin. */
#include "diag/report_run.h"

#include "diag/reading.h"
#include "diag/report_bins.h"
#include "diag/report_esd.h"
#include "diag/report_series.h"

#include <sqlite3.h>
#include <stdbool.h>
#include <string.h>

/* ---------------------------------------------------------------- rows */

static json_t *cell_at(sqlite3_stmt *q, int column) {
    switch (sqlite3_column_type(q, column)) {
    case SQLITE_NULL:
        return json_null();
    case SQLITE_INTEGER:
        return json_integer(sqlite3_column_int64(q, column));
    case SQLITE_FLOAT:
        return json_finite(sqlite3_column_double(q, column));
    default:
        return json_text((const char *)sqlite3_column_text(q, column));
    }
}

/* Every row as an array of its cells. */
static status rows_of(const report_source *from, const char *sql, json_t *to, const char *key) {
    sqlite3_stmt *q = NULL;
    json_t *rows = json_array();
    status result = report_ask(from, sql, &q);
    for (bool row = true; result == STATUS_OK && row;) {
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        json_t *cells = json_array();
        for (int i = 0; i < sqlite3_column_count(q); i++) json_array_append_new(cells, cell_at(q, i));
        if (json_array_append_new(rows, cells) != 0) result = report_out_of_memory();
    }
    sqlite3_finalize(q);
    if (json_object_set_new(to, key, rows) != 0 && result == STATUS_OK) result = report_out_of_memory();
    return result;
}

/* The one row's cells under their names. */
static status facts_of(const report_source *from, const char *sql, json_t *to) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    status result = report_ask(from, sql, &q);
    if (result == STATUS_OK) result = reading_row(from->path, from->db, q, &row);
    for (int i = 0; result == STATUS_OK && row && i < sqlite3_column_count(q); i++)
        if (json_object_set_new(to, sqlite3_column_name(q, i), cell_at(q, i)) != 0) result = report_out_of_memory();
    sqlite3_finalize(q);
    return result;
}

/* ---------------------------------------------------------------- series */

static json_t *bins_json(const report_bins *bins) {
    json_t *series = json_object(), *first = json_array(), *last = json_array(), *rows = json_array();
    for (int i = 0; i < bins->count; i++) {
        json_array_append_new(first, json_integer(bins->first[i]));
        json_array_append_new(last, json_integer(bins->last[i]));
        json_array_append_new(rows, json_integer(bins->rows[i]));
    }
    json_object_set_new(series, "first", first);
    json_object_set_new(series, "last", last);
    json_object_set_new(series, "rows", rows);
    return series;
}

/* Adds the series under its key: names [count] of medians and maxima, each [cells] of bins. */
static status put_series(json_t *run, const char *key, json_t *series, const char *const *names, int count, int cells,
                         const report_bins *bins, const double *median, const double *max,
                         json_t *(*encoded)(const double *, size_t)) {
    json_t *values = json_object();
    size_t n = (size_t)cells * (size_t)bins->count;
    int failed = 0;
    for (int i = 0; i < count; i++) {
        json_t *both = json_object();
        failed |= json_object_set_new(both, "median", encoded(median + (size_t)i * n, n));
        failed |= json_object_set_new(both, "max", encoded(max + (size_t)i * n, n));
        failed |= json_object_set_new(values, names[i], both);
    }
    failed |= json_object_set_new(series, "values", values);
    failed |= json_object_set_new(run, key, series);
    return failed ? report_out_of_memory() : STATUS_OK;
}

static status put_metrics(const report_source *from, json_t *run, const char *key, const char *sql,
                          const char *const *names, int count) {
    report_bins bins;
    report_grid g = {0};
    TRY(report_read_bins(from, sql, &bins));
    status result = report_read_grid(from, sql, &bins, count, 1, &g);
    if (result == STATUS_OK)
        result = put_series(run, key, bins_json(&bins), names, count, 1, &bins, g.median, g.max, report_floats);
    report_grid_close(&g);
    return result;
}

/* ---------------------------------------------------------------- spectra */

/* heads[layer]: how many heads are recorded; the array's length is the number of layers. */
static status read_heads(const report_source *from, json_t *heads) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    status result = report_ask(from,
                               "SELECT layer, count(*) FROM matrices WHERE run_id = ?1 AND form = ?2 AND part = ?3"
                               " AND scope = 'head' GROUP BY layer ORDER BY layer",
                               &q);
    while (result == STATUS_OK) {
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        int64_t layer = sqlite3_column_int64(q, 0);
        if (layer < 0 || layer >= REPORT_LAYERS) continue;
        while ((int64_t)json_array_size(heads) < layer) json_array_append_new(heads, json_integer(0));
        json_array_append_new(heads, cell_at(q, 1));
    }
    sqlite3_finalize(q);
    return result;
}

static status put_spectra(const report_source *from, json_t *run) {
    static const char *const stats[] = {"median", "max"};
    report_bins bins;
    report_grid g[2] = {{0}, {0}};
    json_t *heads = json_array();
    int columns = 0;
    while (columns < REPORT_COLUMNS && from->request->columns[columns]) columns++;
    status result = read_heads(from, heads);
    int layers = (int)json_array_size(heads);
    /* What was planned and is missing has a snapshot's row, and is a gap. */
    if (result == STATUS_OK)
        result = report_read_bins(from, "SELECT step FROM snapshots WHERE run_id = ?1 ORDER BY step", &bins);
    for (int i = 0; result == STATUS_OK && i < 2; i++) {
        char *sql = report_layers_sql(from, stats[i]);
        result = sql ? report_read_grid(from, sql, &bins, columns, layers, &g[i]) : report_out_of_memory();
        sqlite3_free(sql);
    }
    if (result == STATUS_OK) {
        json_t *series = bins_json(&bins);
        json_object_set(series, "heads", heads);
        result = put_series(run, "spectra", series, from->request->columns, columns, layers, &bins, g[0].median,
                            g[1].max, report_coded);
    }
    for (int i = 0; i < 2; i++) report_grid_close(&g[i]);
    json_decref(heads);
    return result;
}

/* ---------------------------------------------------------------- the run */

static status fill_run(const report_source *from, json_t *run) {
    static const char *const train[] = {"loss", "grad_norm"};
    TRY(facts_of(from,
                 "SELECT name, variant, status, seed, run_group AS \"group\", started_at AS started, ended_at AS ended"
                 " FROM runs WHERE run_id = ?1",
                 run));
    TRY(rows_of(from, "SELECT key, value FROM params WHERE run_id = ?1 ORDER BY key", run, "params"));
    TRY(rows_of(from,
                "SELECT step, time, level, kind, message FROM (SELECT * FROM events WHERE run_id = ?1"
                " ORDER BY level = 'info', attempt, seq LIMIT 200) ORDER BY attempt, seq",
                run, "events"));
    TRY(facts_of(from, "SELECT count(*) AS events_total FROM events WHERE run_id = ?1", run));
    TRY(put_metrics(from, run, "train",
                    "SELECT step, 0, loss, grad_norm FROM train_metrics WHERE run_id = ?1 ORDER BY step", train, 2));
    TRY(put_metrics(from, run, "validation",
                    "SELECT step, 0, loss FROM eval_metrics WHERE run_id = ?1 AND split = 'validation' ORDER BY step",
                    train, 1));
    TRY(put_spectra(from, run));
    return report_esd(from, run);
}

status report_run(const report_source *from, json_t **out) {
    *out = json_object();
    json_object_set_new(*out, "database", json_text(from->path));
    json_object_set_new(*out, "run_id", json_integer(from->run_id));
    status result = fill_run(from, *out);
    if (result != STATUS_OK) {
        json_decref(*out);
        *out = NULL;
    }
    return result;
}
