/* What every user of a run's database file needs: which errors may pass, what is told to a person, the journal. */
#include "diag/database.h"

#include "core/log.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

bool database_error_passes(int rc) {
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
    case SQLITE_FULL:
    case SQLITE_IOERR:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
    case SQLITE_NOMEM:
    case SQLITE_PROTOCOL:
        return true;
    default:
        return false;
    }
}

status database_failure(sqlite3 *db, const char *path, int rc) {
    switch (rc & 0xff) {
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return status_fail(
            STATUS_IO, "%s is in use by another process that writes it; wait for that one or name another place", path);
    case SQLITE_NOTADB:
    case SQLITE_CORRUPT:
        return status_fail(STATUS_DATA, "%s is not a usable SQLite database: %s", path, sqlite3_errmsg(db));
    default:
        return status_fail(STATUS_IO, "cannot write the database %s: %s", path,
                           db ? sqlite3_errmsg(db) : sqlite3_errstr(rc));
    }
}

static int take_text(void *to, int columns, char **values, char **names) {
    (void)columns, (void)names;
    snprintf(to, 64, "%s", values[0] ? values[0] : "");
    return 0;
}

/* Network file systems accept the pragma and fail at the first write: so a throw-away database on the same file system
 * is written in WAL mode. */
static bool wal_works(const char *path) {
    char probe[4096], file[4104], mode[64] = "";
    sqlite3 *db = NULL;
    snprintf(probe, sizeof(probe), "%s-probe-%ld", path, (long)getpid());
    bool works =
        sqlite3_open(probe, &db) == SQLITE_OK &&
        sqlite3_exec(db, "PRAGMA mmap_size = 0; PRAGMA journal_mode = WAL", take_text, mode, NULL) == SQLITE_OK &&
        strcmp(mode, "wal") == 0 &&
        sqlite3_exec(db, "CREATE TABLE t(x); INSERT INTO t VALUES(1); SELECT x FROM t", NULL, NULL, NULL) == SQLITE_OK;
    sqlite3_close(db);
    const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    for (int i = 0; i < 4; i++) {
        snprintf(file, sizeof(file), "%s%s", probe, ends[i]);
        unlink(file);
    }
    return works;
}

int database_set_journal(sqlite3 *db, const char *path, bool *wal) {
    char mode[64] = "";
    int rc = sqlite3_exec(db, "PRAGMA page_size = 4096; PRAGMA mmap_size = 0", NULL, NULL, NULL);
    if (rc != SQLITE_OK) return rc;
    bool wanted = wal_works(path);
    rc = sqlite3_exec(db, wanted ? "PRAGMA journal_mode = WAL" : "PRAGMA journal_mode = DELETE", take_text, mode, NULL);
    if (rc != SQLITE_OK) return rc;
    *wal = strcmp(mode, "wal") == 0;
    log_info("%s: %s", path,
             *wal ? "write-ahead log" : "rollback journal; write-ahead logs do not work on this file system");
    return *wal ? sqlite3_exec(db, "PRAGMA synchronous = NORMAL", NULL, NULL, NULL) : SQLITE_OK;
}

void database_leave_single_file(sqlite3 *db, const char *path) {
    char mode[64] = "";
    sqlite3_exec(db, "PRAGMA wal_checkpoint(TRUNCATE)", NULL, NULL, NULL);
    int rc = sqlite3_exec(db, "PRAGMA journal_mode = DELETE", take_text, mode, NULL);
    if (rc != SQLITE_OK || strcmp(mode, "delete") != 0)
        log_warn("%s stays in WAL mode (%s): copy it together with its -wal file", path,
                 rc == SQLITE_OK || (rc & 0xff) == SQLITE_BUSY ? "somebody reads it" : sqlite3_errmsg(db));
}
