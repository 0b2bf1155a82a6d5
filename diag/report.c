/* The page: a template (report/page.html) with its style, its script and the runs as JSON in their places, a run at a
 * time. */
#include "diag/report.h"

#include "core/file.h"
#include "diag/reading.h"
#include "diag/report_run.h"
#include "diag/spectrum.h"
#include "page_css.h"
#include "page_html.h"
#include "page_js.h"

#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Codes of singular values: of all runs, and of one. */
enum { ESD_BYTES = 1600000, MOST_ESD_BYTES = 150000 };

typedef struct page {
    file_writer file;
    report_counts counts;
    char **uuids; /* [counts.runs] */
} page;

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the report");
}

/* ---------------------------------------------------------------- the request */

status report_add_column(report_request *request, const char *name) {
    int known = 0, n = 0;
    while (known < SPECTRUM_COLUMN_COUNT && strcmp(spectrum_columns[known].name, name) != 0) known++;
    if (known == SPECTRUM_COLUMN_COUNT)
        return status_fail(STATUS_USAGE, "there is no column \"%s\"; docs/spectra.md has them all", name);
    for (; n < REPORT_COLUMNS && request->columns[n]; n++)
        if (strcmp(request->columns[n], name) == 0)
            return status_fail(STATUS_USAGE, "the column %s is named twice", name);
    if (n == REPORT_COLUMNS)
        return status_fail(STATUS_USAGE, "a page holds %d columns at most; %s is one more", REPORT_COLUMNS, name);
    request->columns[n] = spectrum_columns[known].name;
    return STATUS_OK;
}

static status is_one_of(const char *option, const char *word, const char *const *words) {
    for (int i = 0; words[i]; i++)
        if (strcmp(words[i], word) == 0) return STATUS_OK;
    return status_fail(STATUS_USAGE, "%s: there is no \"%s\"; `bulkhead report --help` lists what there is", option,
                       word);
}

/* The request with its defaults. */
static status complete(const report_request *given, report_request *out) {
    static const char *const forms[] = {"score", "channel", NULL}, *const parts[] = {"full", "content", "rope", NULL},
                             *const columns[REPORT_COLUMNS] = {"effective_rank", "effective_rank_rest",
                                                               "stable_rank",    "outlier_energy",
                                                               "mp_gap",         "null_gap",
                                                               "tw_score",       "top_overlap"};
    *out = *given;
    if (!out->form) out->form = "score";
    if (!out->part) out->part = "full";
    if (!out->columns[0]) memcpy(out->columns, columns, sizeof columns);
    TRY(is_one_of("--form", out->form, forms));
    return is_one_of("--part", out->part, parts);
}

/* A page never takes the place of a database. */
static status check_output(const char *to) {
    char head[16] = "";
    FILE *f = fopen(to, "rb");
    if (!f) return STATUS_OK;
    size_t got = fread(head, 1, sizeof head, f);
    fclose(f);
    if (got == sizeof head && memcmp(head, "SQLite format 3", sizeof head) == 0)
        return status_fail(STATUS_USAGE, "%s is a database; name another file behind -o", to);
    return STATUS_OK;
}

/* ---------------------------------------------------------------- writing */

static status put(page *p, const char *text, size_t bytes) {
    TRY(file_put(&p->file, text, bytes));
    p->counts.bytes += (int64_t)bytes;
    return STATUS_OK;
}

/* JSON inside a script element: "<" is only ever in strings, and as an escape no name can end the element. */
static int put_json(const char *text, size_t bytes, void *user) {
    while (bytes > 0) {
        const char *less = memchr(text, '<', bytes);
        size_t n = less ? (size_t)(less - text) : bytes;
        if (put(user, text, n) != STATUS_OK) return -1;
        if (less && put(user, "\\u003c", 6) != STATUS_OK) return -1;
        n += less != NULL;
        text += n;
        bytes -= n;
    }
    return 0;
}

static status put_value(page *p, const json_t *value) {
    if (json_dump_callback(value, put_json, p, JSON_COMPACT | JSON_ENCODE_ANY) == 0) return STATUS_OK;
    return out_of_memory(); /* where writing failed, its message is the first and stays */
}

static status put_request(page *p, const report_request *r, const json_t *findings) {
    json_t *columns = json_array(), *head = json_object();
    for (int i = 0; i < REPORT_COLUMNS && r->columns[i]; i++)
        json_array_append_new(columns, json_string(r->columns[i]));
    json_object_set_new(head, "version", json_string(BULKHEAD_VERSION));
    json_object_set_new(head, "form", json_string(r->form));
    json_object_set_new(head, "part", json_string(r->part));
    json_object_set_new(head, "columns", columns);
    status result = put(p, "{\"request\":", 11);
    if (result == STATUS_OK) result = put_value(p, head);
    json_decref(head);
    if (result == STATUS_OK) result = put(p, ",\"findings\":", 12);
    if (result == STATUS_OK) result = put_value(p, findings);
    return result == STATUS_OK ? put(p, ",\"runs\":[", 9) : result;
}

/* ---------------------------------------------------------------- runs */

/* Notes the run's uuid; *known: it is on the page already. A run without one is only itself. */
static status note_run(page *p, const char *uuid, bool *known) {
    *known = false;
    for (int i = 0; uuid && uuid[0] && i < p->counts.runs; i++)
        if (strcmp(p->uuids[i], uuid) == 0) *known = true;
    if (*known) return STATUS_OK;
    char **larger = realloc(p->uuids, ((size_t)p->counts.runs + 1) * sizeof *larger);
    if (!larger) return out_of_memory();
    p->uuids = larger;
    larger[p->counts.runs] = strdup(uuid ? uuid : "");
    if (!larger[p->counts.runs]) return out_of_memory();
    p->counts.runs++;
    return STATUS_OK;
}

static status put_run(page *p, const report_source *from) {
    json_t *run = NULL;
    TRY(report_run(from, &run));
    status result = p->counts.runs > 1 ? put(p, ",\n", 2) : STATUS_OK;
    if (result == STATUS_OK) result = put_value(p, run);
    json_decref(run);
    return result;
}

static status put_runs(page *p, sqlite3 *db, const char *path, const report_request *r, int64_t esd_bytes) {
    sqlite3_stmt *q = NULL;
    report_source from = {.db = db, .path = path, .request = r, .esd_bytes = esd_bytes};
    status result = reading_ask(path, db, "SELECT run_id, uuid FROM runs ORDER BY run_id", &q);
    while (result == STATUS_OK) {
        bool row, known;
        result = reading_row(path, db, q, &row);
        if (result != STATUS_OK || !row) break;
        result = note_run(p, (const char *)sqlite3_column_text(q, 1), &known);
        from.run_id = sqlite3_column_int64(q, 0);
        if (result == STATUS_OK && !known) result = put_run(p, &from);
    }
    sqlite3_finalize(q);
    return result;
}

static status put_database(page *p, const char *path, const report_request *r, int64_t esd_bytes) {
    sqlite3 *db;
    TRY(reading_begin(path, &db));
    status result = put_runs(p, db, path, r, esd_bytes);
    sqlite3_close(db);
    return result;
}

static status count_runs(const char *path, int64_t *runs) {
    sqlite3 *db;
    sqlite3_stmt *q = NULL;
    bool row = false;
    TRY(reading_begin(path, &db));
    status result = reading_ask(path, db, "SELECT count(*) FROM runs", &q);
    if (result == STATUS_OK) result = reading_row(path, db, q, &row);
    if (row) *runs += sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    sqlite3_close(db);
    return result;
}

/* Singular values share their budget by the run. */
static status share_budget(const char *const *paths, int count, int64_t *esd_bytes) {
    int64_t runs = 0;
    for (int i = 0; i < count; i++) TRY(count_runs(paths[i], &runs));
    *esd_bytes = runs > 0 ? ESD_BYTES / runs : 0;
    if (*esd_bytes > MOST_ESD_BYTES) *esd_bytes = MOST_ESD_BYTES;
    return STATUS_OK;
}

static status put_data(page *p, const char *const *paths, int count, const report_request *r) {
    int64_t esd_bytes;
    json_t *findings = NULL;
    TRY(share_budget(paths, count, &esd_bytes));
    if (r->no_findings)
        findings = json_null();
    else
        TRY(findings_json(paths, count, &r->findings, &findings));
    status result = put_request(p, r, findings);
    json_decref(findings);
    TRY(result);
    for (int i = 0; i < count; i++) TRY(put_database(p, paths[i], r, esd_bytes));
    return put(p, "]}", 2);
}

/* The template up to the mark; *rest: what is behind it. */
static status put_until(page *p, const char *mark, const char **rest) {
    const char *at = strstr(*rest, mark), *from = *rest;
    *rest = at + strlen(mark);
    return put(p, from, (size_t)(at - from));
}

static status put_page(page *p, const char *const *paths, int count, const report_request *r) {
    const char *rest = page_html;
    TRY(put_until(p, "@STYLE@", &rest));
    TRY(put(p, page_css, strlen(page_css)));
    TRY(put_until(p, "@DATA@", &rest));
    TRY(put_data(p, paths, count, r));
    TRY(put_until(p, "@SCRIPT@", &rest));
    TRY(put(p, page_js, strlen(page_js)));
    return put(p, rest, strlen(rest));
}

status report_write(const char *const *paths, int count, const report_request *request, const char *to,
                    report_counts *out) {
    report_request r;
    page p = {.counts = {0}};
    TRY(complete(request, &r));
    TRY(check_output(to));
    TRY(file_begin(&p.file, to));
    status result = put_page(&p, paths, count, &r);
    for (int i = 0; i < p.counts.runs; i++) free(p.uuids[i]);
    free(p.uuids);
    *out = p.counts;
    if (result == STATUS_OK) return file_commit(&p.file);
    file_discard(&p.file);
    return result;
}
