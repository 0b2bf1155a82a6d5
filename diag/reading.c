/* Opens databases that may be live, finished or in a folder without write permission; nothing is ever written. */
#include "diag/reading.h"

#include "diag/schema.h"

#include <errno.h>
#include <math.h>
#include <sqlite3.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WAIT_MS = 5000 };

static bool exists(const char *path) {
    return access(path, F_OK) == 0;
}

/* A finished database in a folder without write permission cannot have WAL's shared memory: it is read as it lies. */
static int open_immutable(const char *path, sqlite3 **db) {
    char *uri = sqlite3_mprintf("file:"), log[4104];
    snprintf(log, sizeof(log), "%s-wal", path);
    if (exists(log)) return SQLITE_CANTOPEN;
    for (const char *c = path; uri && *c; c++) {
        bool special = *c == '%' || *c == '?' || *c == '#';
        uri = special ? sqlite3_mprintf("%z%%%02X", uri, (unsigned char)*c) : sqlite3_mprintf("%z%c", uri, *c);
    }
    uri = sqlite3_mprintf("%z?immutable=1", uri);
    sqlite3_close(*db);
    int rc = sqlite3_open_v2(uri, db, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, NULL);
    sqlite3_free(uri);
    return rc;
}

static int try_read(sqlite3 *db) {
    return sqlite3_exec(db, "SELECT count(*) FROM sqlite_schema", NULL, NULL, NULL);
}

status reading_failure(const char *path, sqlite3 *db, int rc) {
    int primary = rc & 0xff;
    if (primary == SQLITE_NOTADB || primary == SQLITE_CORRUPT)
        return status_fail(STATUS_DATA, "%s is not a usable SQLite database: %s", path, sqlite3_errmsg(db));
    return status_fail(STATUS_IO, "cannot read %s: %s", path, sqlite3_errmsg(db));
}

status reading_open(const char *given, sqlite3 **db) {
    char path[4096];
    struct stat info;
    *db = NULL;
    bool folder = stat(given, &info) == 0 && S_ISDIR(info.st_mode);
    snprintf(path, sizeof(path), "%s%s", given, folder ? "/run.db" : "");
    if (!exists(path)) return status_fail(STATUS_NO_INPUT, "%s: %s", path, strerror(errno));
    int rc = sqlite3_open_v2(path, db, SQLITE_OPEN_READONLY, NULL);
    sqlite3_busy_timeout(*db, WAIT_MS);
    if (rc == SQLITE_OK) rc = try_read(*db);
    if ((rc & 0xff) == SQLITE_CANTOPEN) {
        rc = open_immutable(path, db);
        if (rc == SQLITE_OK) rc = try_read(*db);
    }
    if (rc == SQLITE_OK) return STATUS_OK;
    status s = reading_failure(path, *db, rc);
    sqlite3_close(*db);
    *db = NULL;
    return s;
}

status reading_check(const char *path, sqlite3 *db) {
    return schema_check(db, path);
}

status reading_begin(const char *given, sqlite3 **db) {
    TRY(reading_open(given, db));
    status s = reading_check(given, *db);
    if (s == STATUS_OK) {
        int rc = sqlite3_exec(*db, "BEGIN", NULL, NULL, NULL);
        if (rc == SQLITE_OK) return STATUS_OK;
        s = reading_failure(given, *db, rc);
    }
    sqlite3_close(*db);
    *db = NULL;
    return s;
}

status reading_ask(const char *path, sqlite3 *db, const char *sql, sqlite3_stmt **q) {
    int rc = sqlite3_prepare_v2(db, sql, -1, q, NULL);
    if (rc == SQLITE_OK) return STATUS_OK;
    if ((rc & 0xff) != SQLITE_ERROR) return reading_failure(path, db, rc);
    return status_fail(STATUS_DATA, "%s is not a whole run database: %s", path, sqlite3_errmsg(db));
}

status reading_row(const char *path, sqlite3 *db, sqlite3_stmt *q, bool *row) {
    int rc = sqlite3_step(q);
    *row = rc == SQLITE_ROW;
    return rc == SQLITE_ROW || rc == SQLITE_DONE ? STATUS_OK : reading_failure(path, db, rc);
}

double reading_real(sqlite3_stmt *q, int column) {
    int type = sqlite3_column_type(q, column);
    double x = type == SQLITE_INTEGER || type == SQLITE_FLOAT ? sqlite3_column_double(q, column) : NAN;
    return isfinite(x) ? x : NAN;
}
