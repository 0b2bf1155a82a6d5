/* From a database to what the page shows of a run. Rows are read in the order of the tables' keys and go into bins at
 * once: what is in memory are 200 bins of a series and the values of one bin. */
#include "diag/report_run.h"

#include "diag/reading.h"
#include "diag/report_bins.h"

#include <math.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_LAYERS = 1000 /* as the configuration */, SQL_BYTES = 1024 };

typedef struct source {
    sqlite3 *db;
    const char *path;
    int64_t run_id;
    const report_request *request;
} source;

/* ---------------------------------------------------------------- SQL and JSON */

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the report");
}

/* A statement about the run: ?1 its id, ?2 form, ?3 part, where they stand in it. */
static status ask(const source *from, const char *sql, sqlite3_stmt **q) {
    int rc = sqlite3_prepare_v2(from->db, sql, -1, q, NULL);
    if ((rc & 0xff) == SQLITE_ERROR)
        return status_fail(STATUS_DATA, "%s is not a whole run database: %s", from->path, sqlite3_errmsg(from->db));
    if (rc != SQLITE_OK) return reading_failure(from->path, from->db, rc);
    sqlite3_bind_int64(*q, 1, from->run_id);
    sqlite3_bind_text(*q, 2, from->request->form, -1, SQLITE_STATIC);
    sqlite3_bind_text(*q, 3, from->request->part, -1, SQLITE_STATIC);
    return STATUS_OK;
}

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
static status rows_of(const source *from, const char *sql, json_t *to, const char *key) {
    sqlite3_stmt *q = NULL;
    json_t *rows = json_array();
    status result = ask(from, sql, &q);
    for (bool row = true; result == STATUS_OK && row;) {
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        json_t *cells = json_array();
        for (int i = 0; i < sqlite3_column_count(q); i++) json_array_append_new(cells, cell_at(q, i));
        if (json_array_append_new(rows, cells) != 0) result = out_of_memory();
    }
    sqlite3_finalize(q);
    if (json_object_set_new(to, key, rows) != 0 && result == STATUS_OK) result = out_of_memory();
    return result;
}

/* The one row's cells under their names. */
static status facts_of(const source *from, const char *sql, json_t *to) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    status result = ask(from, sql, &q);
    if (result == STATUS_OK) result = reading_row(from->path, from->db, q, &row);
    for (int i = 0; result == STATUS_OK && row && i < sqlite3_column_count(q); i++)
        if (json_object_set_new(to, sqlite3_column_name(q, i), cell_at(q, i)) != 0) result = out_of_memory();
    sqlite3_finalize(q);
    return result;
}

/* ---------------------------------------------------------------- series */

/* Bins of the steps that the statement has in its first column; counted first, then read. */
static status read_bins(const source *from, const char *steps, report_bins *bins) {
    char counting[SQL_BYTES];
    sqlite3_stmt *q = NULL;
    bool row = false;
    sqlite3_snprintf(sizeof counting, counting, "SELECT count(*) FROM (%s)", steps);
    status result = ask(from, counting, &q);
    if (result == STATUS_OK) result = reading_row(from->path, from->db, q, &row);
    report_bins_begin(bins, row ? sqlite3_column_int64(q, 0) : 0);
    sqlite3_finalize(q);
    q = NULL;
    if (result == STATUS_OK) result = ask(from, steps, &q);
    while (result == STATUS_OK) {
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        report_bins_add(bins, sqlite3_column_int64(q, 0));
    }
    sqlite3_finalize(q);
    return result;
}

/* The rows (step, layer, one value a column) into a grid of [columns, layers]. */
static status read_grid(const source *from, const char *sql, const report_bins *bins, int columns, int layers,
                        report_grid *g) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    TRY(report_grid_open(g, columns * layers, bins->count));
    status result = ask(from, sql, &q);
    while (result == STATUS_OK) {
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        int bin = report_bins_find(bins, sqlite3_column_int64(q, 0));
        int64_t layer = sqlite3_column_int64(q, 1);
        if (bin < 0 || layer < 0 || layer >= layers) continue;
        for (int c = 0; result == STATUS_OK && c < columns; c++)
            result = report_grid_add(g, bin, c * layers + (int)layer, reading_real(q, 2 + c));
    }
    sqlite3_finalize(q);
    report_grid_finish(g);
    return result;
}

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

static json_t *base64_json(const void *bytes, size_t n) {
    char *text = report_base64(bytes, n);
    json_t *j = text ? json_string(text) : NULL;
    free(text);
    return j;
}

static json_t *floats_json(const double *values, size_t n) {
    float *single = malloc((n + 1) * sizeof *single);
    for (size_t i = 0; single && i < n; i++) single[i] = (float)values[i];
    json_t *j = single ? base64_json(single, n * sizeof *single) : NULL;
    free(single);
    return j;
}

static json_t *codes_json(const double *values, size_t n) {
    double low, high;
    unsigned char *codes = malloc(n + 1);
    if (!codes) return NULL;
    report_codes(values, n, codes, &low, &high);
    json_t *j = json_object();
    json_object_set_new(j, "low", json_real(low));
    json_object_set_new(j, "high", json_real(high));
    int failed = json_object_set_new(j, "codes", base64_json(codes, n));
    free(codes);
    if (failed == 0) return j;
    json_decref(j);
    return NULL;
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
    return failed ? out_of_memory() : STATUS_OK;
}

static status put_metrics(const source *from, json_t *run, const char *key, const char *sql, const char *const *names,
                          int count) {
    report_bins bins;
    report_grid g = {0};
    TRY(read_bins(from, sql, &bins));
    status result = read_grid(from, sql, &bins, count, 1, &g);
    if (result == STATUS_OK)
        result = put_series(run, key, bins_json(&bins), names, count, 1, &bins, g.median, g.max, floats_json);
    report_grid_close(&g);
    return result;
}

/* ---------------------------------------------------------------- spectra */

/* heads[layer]: how many heads are recorded; the array's length is the number of layers. */
static status read_heads(const source *from, json_t *heads) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    status result = ask(from,
                        "SELECT layer, count(*) FROM matrices WHERE run_id = ?1 AND form = ?2 AND part = ?3"
                        " AND scope = 'head' GROUP BY layer ORDER BY layer",
                        &q);
    while (result == STATUS_OK) {
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        int64_t layer = sqlite3_column_int64(q, 0);
        if (layer < 0 || layer >= MOST_LAYERS) continue;
        while ((int64_t)json_array_size(heads) < layer) json_array_append_new(heads, json_integer(0));
        json_array_append_new(heads, cell_at(q, 1));
    }
    sqlite3_finalize(q);
    return result;
}

/* A heat map's rows; a column that an older database lacks is NULL. */
static void layers_sql(const source *from, const char *stat, char *sql) {
    sqlite3_str *s = sqlite3_str_new(NULL);
    sqlite3_str_appendall(s, "SELECT step, layer");
    for (int i = 0; i < REPORT_COLUMNS && from->request->columns[i]; i++) {
        const char *name = from->request->columns[i];
        bool there = sqlite3_table_column_metadata(from->db, NULL, "layer_spectra", name, NULL, NULL, NULL, NULL,
                                                   NULL) == SQLITE_OK;
        sqlite3_str_appendf(s, there ? ", %s" : ", NULL AS %s", name);
    }
    sqlite3_str_appendf(s,
                        " FROM layer_spectra WHERE run_id = ?1 AND form = ?2 AND part = ?3 AND stat = '%s'"
                        " ORDER BY step, layer",
                        stat);
    char *text = sqlite3_str_finish(s);
    sqlite3_snprintf(SQL_BYTES, sql, "%s", text ? text : "");
    sqlite3_free(text);
}

static status put_spectra(const source *from, json_t *run) {
    static const char *const stats[] = {"median", "max"};
    report_bins bins;
    report_grid g[2] = {{0}, {0}};
    char sql[SQL_BYTES];
    json_t *heads = json_array();
    int columns = 0;
    while (columns < REPORT_COLUMNS && from->request->columns[columns]) columns++;
    status result = read_heads(from, heads);
    int layers = (int)json_array_size(heads);
    /* What was planned and is missing has a snapshot's row, and is a gap. */
    if (result == STATUS_OK)
        result = read_bins(from, "SELECT step FROM snapshots WHERE run_id = ?1 ORDER BY step", &bins);
    for (int i = 0; result == STATUS_OK && i < 2; i++) {
        layers_sql(from, stats[i], sql);
        result = read_grid(from, sql, &bins, columns, layers, &g[i]);
    }
    if (result == STATUS_OK) {
        json_t *series = bins_json(&bins);
        json_object_set(series, "heads", heads);
        result = put_series(run, "spectra", series, from->request->columns, columns, layers, &bins, g[0].median,
                            g[1].max, codes_json);
    }
    for (int i = 0; i < 2; i++) report_grid_close(&g[i]);
    json_decref(heads);
    return result;
}

/* ---------------------------------------------------------------- the run */

static status fill_run(const source *from, json_t *run) {
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
    return put_spectra(from, run);
}

status report_run(sqlite3 *db, const char *path, int64_t run_id, const report_request *request, json_t **out) {
    source from = {.db = db, .path = path, .run_id = run_id, .request = request};
    *out = json_object();
    json_object_set_new(*out, "database", json_text(path));
    status result = fill_run(&from, *out);
    if (result != STATUS_OK) {
        json_decref(*out);
        *out = NULL;
    }
    return result;
}
