/* Opening run databases to read them. */
#pragma once

#include "core/status.h"

struct sqlite3;

/* Opens a database read-only; given: the file, or a run folder with its run.db. NO_INPUT when it is missing, DATA when
 * it is no SQLite database, IO when it cannot be read. The caller closes *db, which is NULL after a failure. */
status reading_open(const char *given, struct sqlite3 **db);

/* DATA when the database is not of a run, or of a newer version's. path: for the message. */
status reading_check(const char *path, struct sqlite3 *db);

/* What SQLite's code rc says about a reading that failed: DATA or IO. */
status reading_failure(const char *path, struct sqlite3 *db, int rc);
