/* A table is read once, row by row; its blobs' columns beforehand, for their number of elements. */
#include "core/json.h"
#include "diag/formats_private.h"
#include "diag/reading.h"

#include <inttypes.h>
#include <string.h>

enum { MOST_COLUMNS = 128, NAME_BYTES = 256 };

/* What blobs hold, little-endian: singular values float64, the others float32 (docs/design.md section 7). */
typedef enum kind { KIND_INT64, KIND_FLOAT64, KIND_STRING, KIND_FLOAT64S, KIND_FLOAT32S } kind;

typedef struct table_out {
    const formats *formats;
    const char *name;
    sqlite3_stmt *rows;
    int columns;
    kind kinds[MOST_COLUMNS];
    formats_file blobs[MOST_COLUMNS]; /* of those that are such */
    int64_t written[MOST_COLUMNS];    /* elements */
    int64_t count;
} table_out;

static bool is_blob(kind k) {
    return k >= KIND_FLOAT64S;
}

static int element_bytes(kind k) {
    return k == KIND_FLOAT64S ? 8 : 4;
}

static const char *column_name(const table_out *t, int i) {
    return sqlite3_column_name(t->rows, i);
}

static kind kind_of(const table_out *t, int i) {
    const char *type = sqlite3_column_decltype(t->rows, i);
    if (type && strcmp(type, "INTEGER") == 0) return KIND_INT64;
    if (type && strcmp(type, "REAL") == 0) return KIND_FLOAT64;
    if (type && strcmp(type, "BLOB") == 0) return strcmp(t->name, "esd") == 0 ? KIND_FLOAT64S : KIND_FLOAT32S;
    return KIND_STRING;
}

/* ---- blobs ---- */

static status count_elements(const table_out *t, int i, int64_t *count) {
    sqlite3_stmt *q = NULL;
    bool row;
    char *sql = sqlite3_mprintf("SELECT coalesce(sum(length(\"%w\") / %d), 0) FROM \"%w\"", column_name(t, i),
                                element_bytes(t->kinds[i]), t->name);
    status s = sql ? formats_ask(t->formats, &q, sql) : status_fail(STATUS_INTERNAL, "out of memory");
    sqlite3_free(sql);
    if (s == STATUS_OK) s = reading_row(t->formats->path, t->formats->db, q, &row);
    if (s == STATUS_OK) *count = sqlite3_column_int64(q, 0);
    sqlite3_finalize(q);
    return s;
}

/* NumPy's format 1.0: magic, version, the header's length, the header up to a multiple of 64 bytes. */
static void write_npy_header(FILE *out, kind k, int64_t count) {
    char header[118]; /* 128 with what stands before */
    int length = snprintf(header, sizeof header, "{'descr': '<f%d', 'fortran_order': False, 'shape': (%" PRId64 ",), }",
                          element_bytes(k), count);
    memset(header + length, ' ', sizeof header - (size_t)length);
    header[sizeof header - 1] = '\n';
    fwrite("\x93NUMPY\x01\x00\x76\x00", 1, 10, out);
    fwrite(header, 1, sizeof header, out);
}

static status open_blobs(table_out *t) {
    for (int i = 0; i < t->columns; i++) {
        char name[NAME_BYTES];
        int64_t count;
        if (!is_blob(t->kinds[i])) continue;
        TRY(count_elements(t, i, &count));
        snprintf(name, sizeof name, "%s.%s.npy", t->name, column_name(t, i));
        TRY(formats_open(t->formats, &t->blobs[i], name));
        write_npy_header(t->blobs[i].text, t->kinds[i], count);
    }
    return STATUS_OK;
}

/* ---- rows ---- */

static void write_real(FILE *out, double value) {
    char text[40];
    snprintf(text, sizeof text, "%.17g", value);
    fprintf(out, "%s%s", text, strpbrk(text, ".en") ? "" : ".0"); /* never taken for an integer; inf */
}

static void write_text(FILE *out, const char *text) {
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"') fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void write_blob(table_out *t, int i, FILE *out) {
    int64_t count = sqlite3_column_bytes(t->rows, i) / element_bytes(t->kinds[i]);
    fprintf(out, "%" PRId64 ",%" PRId64, t->written[i], count);
    fwrite(sqlite3_column_blob(t->rows, i), (size_t)element_bytes(t->kinds[i]), (size_t)count, t->blobs[i].text);
    t->written[i] += count;
}

static void write_cell(table_out *t, int i, FILE *out) {
    if (sqlite3_column_type(t->rows, i) == SQLITE_NULL) {
        if (is_blob(t->kinds[i])) fputc(',', out);
    } else if (is_blob(t->kinds[i]))
        write_blob(t, i, out);
    else if (t->kinds[i] == KIND_INT64)
        fprintf(out, "%lld", sqlite3_column_int64(t->rows, i));
    else if (t->kinds[i] == KIND_FLOAT64)
        write_real(out, sqlite3_column_double(t->rows, i));
    else
        write_text(out, (const char *)sqlite3_column_text(t->rows, i));
}

static status write_rows(table_out *t, FILE *out) {
    for (int i = 0; i < t->columns; i++)
        fprintf(out, is_blob(t->kinds[i]) ? "%s%s_start,%s_count" : "%s%s", i > 0 ? "," : "", column_name(t, i),
                column_name(t, i));
    fputs("\n", out);
    for (bool row = true;;) {
        TRY(reading_row(t->formats->path, t->formats->db, t->rows, &row));
        if (!row) return STATUS_OK;
        for (int i = 0; i < t->columns; i++) {
            if (i > 0) fputc(',', out);
            write_cell(t, i, out);
        }
        fputs("\n", out);
        t->count++;
    }
}

/* ---- tables ---- */

static json_t *describe_column(const char *name, const char *type, const char *file) {
    json_t *column = json_pack("{s:s, s:s}", "name", name, "type", type);
    if (file) json_object_set_new(column, "of", json_string(file));
    return column;
}

static json_t *describe(const table_out *t, const char *file) {
    static const char *const types[] = {"int64", "float64", "string", "float64", "float32"};
    json_t *columns = json_array();
    for (int i = 0; i < t->columns; i++) {
        char name[NAME_BYTES], blobs[NAME_BYTES];
        if (!is_blob(t->kinds[i])) {
            json_array_append_new(columns, describe_column(column_name(t, i), types[t->kinds[i]], NULL));
            continue;
        }
        snprintf(blobs, sizeof blobs, "%s.%s.npy", t->name, column_name(t, i));
        for (int part = 0; part < 2; part++) {
            snprintf(name, sizeof name, "%s%s", column_name(t, i), part == 0 ? "_start" : "_count");
            json_array_append_new(columns, describe_column(name, "int64", blobs));
        }
    }
    return json_pack("{s:s, s:I, s:o}", "file", file, "rows", (json_int_t)t->count, "columns", columns);
}

static status write_table(table_out *t, json_t *tables) {
    char name[NAME_BYTES];
    formats_file file;
    t->columns = sqlite3_column_count(t->rows);
    if (t->columns > MOST_COLUMNS)
        return status_fail(STATUS_DATA, "%s: %s has too many columns", t->formats->path, t->name);
    for (int i = 0; i < t->columns; i++) t->kinds[i] = kind_of(t, i);
    snprintf(name, sizeof name, "%s.csv", t->name);
    TRY(formats_open(t->formats, &file, name));
    status s = open_blobs(t);
    if (s == STATUS_OK) s = write_rows(t, file.text);
    for (int i = 0; i < t->columns; i++) s = formats_close(t->formats, &t->blobs[i], s);
    s = formats_close(t->formats, &file, s);
    if (s == STATUS_OK && json_object_set_new(tables, t->name, describe(t, name)) != 0)
        s = status_fail(STATUS_INTERNAL, "out of memory");
    t->formats->counts->values += t->count;
    return s;
}

static status write_named(const formats *f, const char *name, json_t *tables) {
    table_out t = {.formats = f, .name = name};
    char *sql = sqlite3_mprintf("SELECT * FROM \"%w\"", name);
    status s = sql ? formats_ask(f, &t.rows, sql) : status_fail(STATUS_INTERNAL, "out of memory");
    sqlite3_free(sql);
    if (s == STATUS_OK) s = write_table(&t, tables);
    sqlite3_finalize(t.rows);
    return s;
}

static status write_tables(const formats *f, json_t *tables) {
    static const char sql[] = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
                              " ORDER BY name";
    sqlite3_stmt *q = NULL;
    TRY(formats_ask(f, &q, sql));
    status s = STATUS_OK;
    for (bool row = true; s == STATUS_OK;) {
        s = reading_row(f->path, f->db, q, &row);
        if (s != STATUS_OK || !row) break;
        s = write_named(f, (const char *)sqlite3_column_text(q, 0), tables);
    }
    sqlite3_finalize(q);
    return s;
}

status formats_csv(const formats *f) {
    json_t *tables = json_object(),
           *root = json_pack("{s:s, s:i, s:O}", "format", "bulkhead tables", "version", 1, "tables", tables);
    char *path = file_join(f->folder, "schema.json");
    status s = root && path ? write_tables(f, tables) : status_fail(STATUS_INTERNAL, "out of memory");
    if (s == STATUS_OK) s = json_write_file(path, root);
    f->counts->files += s == STATUS_OK;
    json_decref(tables);
    json_decref(root);
    free(path);
    return s;
}
