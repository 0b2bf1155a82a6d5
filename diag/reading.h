/* Opening run databases to read them. */
#pragma once

#include "core/status.h"

#include <stdbool.h>

struct sqlite3;
struct sqlite3_stmt;

/* Opens a database read-only; given: the file, or a run folder with its run.db. NO_INPUT when it is missing, DATA when
 * it is no SQLite database, IO when it cannot be read. The caller closes *db, which is NULL after a failure. */
status reading_open(const char *given, struct sqlite3 **db);

/* DATA when the database is not of a run, or of a newer version's. path: for the message. */
status reading_check(const char *path, struct sqlite3 *db);

/* reading_open and reading_check, and a transaction, so that what another process may be writing is read as of one
 * moment. The caller closes *db, which is NULL after a failure. */
status reading_begin(const char *given, struct sqlite3 **db);

/* A statement. DATA when the database lacks a table or column of it, else reading_failure's failures; the caller
 * finalizes *q. */
status reading_ask(const char *path, struct sqlite3 *db, const char *sql, struct sqlite3_stmt **q);

/* What SQLite's code rc says about a reading that failed: DATA or IO. */
status reading_failure(const char *path, struct sqlite3 *db, int rc);

/* The statement's next row; *row: whether there is one. reading_failure's failures. */
status reading_row(const char *path, struct sqlite3 *db, struct sqlite3_stmt *q, bool *row);

/* A number of the row, NAN where it is NULL, not finite or no number. */
double reading_real(struct sqlite3_stmt *q, int column);
