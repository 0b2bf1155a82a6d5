/* Rows from SQL, collected over several databases, and printed: aligned for people, CSV (RFC 4180) or strict JSON for
 * programs. SQL's NULL, NaN and infinities are "-", empty and null. */
#pragma once

#include "core/status.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct sqlite3_stmt;

typedef enum table_format { TABLE_ALIGNED, TABLE_CSV, TABLE_JSON } table_format;

typedef struct table_cell {
    enum { CELL_NULL, CELL_INTEGER, CELL_REAL, CELL_TEXT } kind;
    int64_t integer;
    double real;
    char *text; /* blobs: in hexadecimal */
} table_cell;

typedef struct table {
    int columns, rows, capacity;
    char **names;      /* [columns] */
    table_cell *cells; /* [rows, columns] */
} table;

/* Adds the row that the statement stands on. source: what its first cell says, in a column "database"; NULL: no such
 * column. All statements of a table have the same columns. */
status table_add(table *t, struct sqlite3_stmt *q, const char *source);

/* Names the columns where no row has. */
status table_name_columns(table *t, struct sqlite3_stmt *q, const char *source);

/* For rows that come from no statement: names the columns, then adds a row of NULL cells, which the caller fills; a
 * text is malloc'ed and becomes the table's. */
status table_set_columns(table *t, const char *const *names, int columns);
status table_new_row(table *t, table_cell **cells);

/* The cell of the column of that name; a NULL cell when there is none. */
const table_cell *table_cell_at(const table *t, int row, const char *name);

/* The number in a cell, NaN when there is none. */
double table_number(const table *t, int row, const char *name);

void table_print(const table *t, table_format format, FILE *out);
void table_free(table *t);
