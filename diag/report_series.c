#include "diag/report_series.h"

#include "diag/reading.h"

#include <sqlite3.h>
#include <stdbool.h>

enum { SQL_BYTES = 1024 };

status report_read_bins(const report_source *from, const char *steps, report_bins *bins) {
    char counting[SQL_BYTES];
    sqlite3_stmt *q = NULL;
    bool row = false;
    sqlite3_snprintf(sizeof counting, counting, "SELECT count(*) FROM (%s)", steps);
    status result = report_ask(from, counting, &q);
    if (result == STATUS_OK) result = reading_row(from->path, from->db, q, &row);
    report_bins_begin(bins, row ? sqlite3_column_int64(q, 0) : 0);
    sqlite3_finalize(q);
    q = NULL;
    if (result == STATUS_OK) result = report_ask(from, steps, &q);
    while (result == STATUS_OK) {
        result = reading_row(from->path, from->db, q, &row);
        if (result != STATUS_OK || !row) break;
        report_bins_add(bins, sqlite3_column_int64(q, 0));
    }
    sqlite3_finalize(q);
    return result;
}

status report_read_grid(const report_source *from, const char *sql, const report_bins *bins, int columns, int layers,
                        report_grid *g) {
    sqlite3_stmt *q = NULL;
    bool row = false;
    TRY(report_grid_open(g, columns * layers, bins->count));
    status result = report_ask(from, sql, &q);
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

char *report_layers_sql(const report_source *from, const char *stat) {
    sqlite3_str *s = sqlite3_str_new(NULL);
    sqlite3_str_appendall(s, "SELECT step, layer");
    for (int i = 0; i < REPORT_COLUMNS && from->request->columns[i]; i++) {
        sqlite3_str_appendall(s, ", ");
        report_put_column(from, s, "layer_spectra", from->request->columns[i]);
    }
    sqlite3_str_appendf(s,
                        " FROM layer_spectra WHERE run_id = ?1 AND form = ?2 AND part = ?3 AND stat = '%s'"
                        " ORDER BY step, layer",
                        stat);
    return sqlite3_str_finish(s);
}
