/* What the parts of the report share: statements about a run, and numbers as JSON. */
#include "diag/report_source.h"

#include "diag/reading.h"
#include "diag/report_bins.h"

#include <sqlite3.h>
#include <stdlib.h>

status report_out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the report");
}

status report_ask(const report_source *from, const char *sql, sqlite3_stmt **q) {
    TRY(reading_ask(from->path, from->db, sql, q));
    sqlite3_bind_int64(*q, 1, from->run_id);
    sqlite3_bind_text(*q, 2, from->request->form, -1, SQLITE_STATIC);
    sqlite3_bind_text(*q, 3, from->request->part, -1, SQLITE_STATIC);
    return STATUS_OK;
}

void report_put_column(const report_source *from, sqlite3_str *sql, const char *table, const char *name) {
    bool there = sqlite3_table_column_metadata(from->db, NULL, table, name, NULL, NULL, NULL, NULL, NULL) == SQLITE_OK;
    sqlite3_str_appendf(sql, there ? "%s" : "NULL AS %s", name);
}

static json_t *base64_json(const void *bytes, size_t n) {
    char *text = report_base64(bytes, n);
    json_t *j = text ? json_string(text) : NULL;
    free(text);
    return j;
}

json_t *report_floats(const double *values, size_t n) {
    float *single = malloc((n + 1) * sizeof *single);
    for (size_t i = 0; single && i < n; i++) single[i] = (float)values[i];
    json_t *j = single ? base64_json(single, n * sizeof *single) : NULL;
    free(single);
    return j;
}

json_t *report_coded(const double *values, size_t n) {
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
