/* Collecting and printing of query results. */
#include "diag/table.h"

#include "core/json.h"

#include <math.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the rows of the answer");
}

/* ---------------------------------------------------------------- collecting */

static char *hexadecimal(const unsigned char *bytes, int count) {
    char *text = malloc((size_t)count * 2 + 1);
    if (!text) return NULL;
    for (int i = 0; i < count; i++) snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    text[2 * count] = '\0';
    return text;
}

static status read_cell(table_cell *to, sqlite3_stmt *q, int column) {
    *to = (table_cell){.kind = CELL_NULL};
    switch (sqlite3_column_type(q, column)) {
    case SQLITE_INTEGER:
        to->kind = CELL_INTEGER;
        to->integer = sqlite3_column_int64(q, column);
        break;
    case SQLITE_FLOAT:
        to->real = sqlite3_column_double(q, column);
        to->kind = isfinite(to->real) ? CELL_REAL : CELL_NULL;
        break;
    case SQLITE_TEXT:
        to->kind = CELL_TEXT;
        to->text = strdup((const char *)sqlite3_column_text(q, column));
        break;
    case SQLITE_BLOB:
        to->kind = CELL_TEXT;
        to->text = hexadecimal(sqlite3_column_blob(q, column), sqlite3_column_bytes(q, column));
        break;
    default:
        break;
    }
    return to->kind == CELL_TEXT && !to->text ? out_of_memory() : STATUS_OK;
}

status table_set_columns(table *t, const char *const *names, int columns) {
    t->names = calloc((size_t)columns + 1, sizeof(*t->names));
    if (!t->names) return out_of_memory();
    t->columns = columns;
    for (int i = 0; i < columns; i++) {
        t->names[i] = strdup(names[i]);
        if (!t->names[i]) return out_of_memory();
    }
    return STATUS_OK;
}

status table_name_columns(table *t, sqlite3_stmt *q, const char *source) {
    if (t->names) return STATUS_OK;
    int extra = source ? 1 : 0, columns = sqlite3_column_count(q) + extra;
    const char **names = calloc((size_t)columns + 1, sizeof(*names));
    if (!names) return out_of_memory();
    for (int i = 0; i < columns; i++) names[i] = i < extra ? "database" : sqlite3_column_name(q, i - extra);
    status s = table_set_columns(t, names, columns);
    free(names);
    return s;
}

static status make_room(table *t) {
    if (t->rows < t->capacity) return STATUS_OK;
    int capacity = t->capacity ? 2 * t->capacity : 64;
    table_cell *more = realloc(t->cells, (size_t)capacity * (size_t)t->columns * sizeof(*more));
    if (!more) return out_of_memory();
    t->cells = more;
    t->capacity = capacity;
    return STATUS_OK;
}

status table_new_row(table *t, table_cell **cells) {
    TRY(make_room(t));
    *cells = t->cells + (size_t)t->rows * (size_t)t->columns;
    memset(*cells, 0, (size_t)t->columns * sizeof(**cells));
    t->rows++;
    return STATUS_OK;
}

status table_add(table *t, sqlite3_stmt *q, const char *source) {
    TRY(table_name_columns(t, q, source));
    int extra = source ? 1 : 0;
    if (sqlite3_column_count(q) + extra != t->columns)
        return status_fail(STATUS_DATA, "the databases answer with different columns: %d and %d", t->columns - extra,
                           sqlite3_column_count(q));
    table_cell *row;
    TRY(table_new_row(t, &row));
    if (source) {
        row->kind = CELL_TEXT;
        row->text = strdup(source);
        if (!row->text) return out_of_memory();
    }
    for (int i = extra; i < t->columns; i++) TRY(read_cell(&row[i], q, i - extra));
    return STATUS_OK;
}

const table_cell *table_cell_at(const table *t, int row, const char *name) {
    static const table_cell none = {.kind = CELL_NULL};
    for (int i = 0; i < t->columns; i++)
        if (strcmp(t->names[i], name) == 0) return &t->cells[(size_t)row * (size_t)t->columns + (size_t)i];
    return &none;
}

double table_number(const table *t, int row, const char *name) {
    const table_cell *c = table_cell_at(t, row, name);
    return c->kind == CELL_REAL ? c->real : c->kind == CELL_INTEGER ? (double)c->integer : NAN;
}

void table_free(table *t) {
    for (int i = 0; t->names && i < t->columns; i++) free(t->names[i]);
    for (size_t i = 0; i < (size_t)t->rows * (size_t)t->columns; i++) free(t->cells[i].text);
    free(t->names);
    free(t->cells);
    *t = (table){0};
}

/* ---------------------------------------------------------------- printing */

/* The cell as a person reads it, in buffer or the cell's own text. */
static const char *plain(const table_cell *c, char buffer[40]) {
    switch (c->kind) {
    case CELL_INTEGER:
        snprintf(buffer, 40, "%lld", (long long)c->integer);
        return buffer;
    case CELL_REAL:
        snprintf(buffer, 40, fabs(c->real) >= 1000 && fabs(c->real) < 1e7 ? "%.0f" : "%.4g", c->real);
        return buffer;
    case CELL_TEXT:
        return c->text;
    default:
        return "-";
    }
}

/* Characters, not bytes, of UTF-8 text. */
static int width_of(const char *text) {
    int n = 0;
    for (; *text; text++) n += (*text & 0xc0) != 0x80;
    return n;
}

static void print_padded(FILE *out, const char *text, int width, bool right, bool last) {
    int space = width - width_of(text);
    if (right) fprintf(out, "%*s", space, "");
    fputs(text, out);
    if (!right && !last) fprintf(out, "%*s", space, "");
    fputs(last ? "\n" : "  ", out);
}

static void print_aligned(const table *t, FILE *out) {
    char buffer[40];
    int *width = calloc((size_t)t->columns + 1, sizeof(*width));
    bool *right = calloc((size_t)t->columns + 1, sizeof(*right));
    for (int j = 0; width && right && j < t->columns; j++) {
        width[j] = width_of(t->names[j]);
        right[j] = t->rows > 0;
        for (int i = 0; i < t->rows; i++) {
            const table_cell *c = &t->cells[(size_t)i * (size_t)t->columns + (size_t)j];
            int w = width_of(plain(c, buffer));
            if (w > width[j]) width[j] = w;
            if (c->kind == CELL_TEXT) right[j] = false;
        }
    }
    for (int i = -1; width && right && i < t->rows; i++)
        for (int j = 0; j < t->columns; j++) {
            const table_cell *c = i < 0 ? NULL : &t->cells[(size_t)i * (size_t)t->columns + (size_t)j];
            print_padded(out, c ? plain(c, buffer) : t->names[j], width[j], right[j], j + 1 == t->columns);
        }
    if (t->rows == 0) fputs("(no rows)\n", out);
    free(width);
    free(right);
}

static void print_csv_text(FILE *out, const char *text) {
    if (!strpbrk(text, ",\"\r\n")) {
        fputs(text, out);
        return;
    }
    fputc('"', out);
    for (; *text; text++) {
        if (*text == '"') fputc('"', out);
        fputc(*text, out);
    }
    fputc('"', out);
}

static void print_csv(const table *t, FILE *out) {
    for (int i = -1; i < t->rows; i++)
        for (int j = 0; j < t->columns; j++) {
            const table_cell *c = i < 0 ? NULL : &t->cells[(size_t)i * (size_t)t->columns + (size_t)j];
            if (!c || c->kind == CELL_TEXT) print_csv_text(out, c ? c->text : t->names[j]);
            if (c && c->kind == CELL_INTEGER) fprintf(out, "%lld", (long long)c->integer);
            if (c && c->kind == CELL_REAL) fprintf(out, "%.17g", c->real);
            fputs(j + 1 == t->columns ? "\r\n" : ",", out);
        }
}

static json_t *json_cell(const table_cell *c) {
    switch (c->kind) {
    case CELL_INTEGER:
        return json_integer(c->integer);
    case CELL_REAL:
        return json_real(c->real);
    case CELL_TEXT:
        return json_text(c->text);
    default:
        return json_null();
    }
}

static void print_json(const table *t, FILE *out) {
    fputs("[", out);
    for (int i = 0; i < t->rows; i++) {
        json_t *row = json_object();
        for (int j = 0; j < t->columns; j++)
            json_object_set_new(row, t->names[j], json_cell(&t->cells[(size_t)i * (size_t)t->columns + (size_t)j]));
        fputs(i ? ",\n " : "\n ", out);
        json_dumpf(row, out, JSON_COMPACT | JSON_REAL_PRECISION(17));
        json_decref(row);
    }
    fputs("\n]\n", out);
}

void table_print(const table *t, table_format format, FILE *out) {
    switch (format) {
    case TABLE_ALIGNED:
        print_aligned(t, out);
        break;
    case TABLE_CSV:
        print_csv(t, out);
        break;
    case TABLE_JSON:
        print_json(t, out);
        break;
    }
}
