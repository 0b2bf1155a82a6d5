/* Private to diag/: the SQLite file below store and merge. */
#pragma once

#include "core/status.h"

#include <sqlite3.h>
#include <stdbool.h>

/* Errors that time or an administrator may cure: locked, disk full, I/O. */
bool database_error_passes(int rc);

/* A failure to open or write, told to the person in front of the terminal: IO, or DATA when the file is no database. db
 * may be NULL. */
status database_failure(sqlite3 *db, const char *path, int rc);

/* Write-ahead log where the file system of path allows it, else a rollback journal; log.txt says which. Returns an
 * SQLite code. */
int database_set_journal(sqlite3 *db, const char *path, bool *wal);

/* From WAL mode to one file that can be copied and opened read-only. A reader may hold it: then it stays in WAL mode,
 * and a log line says so. No statement may be unfinished. */
void database_leave_single_file(sqlite3 *db, const char *path);
