/* A library to preload: no database can be opened, as on a broken disk. */
#include <sqlite3.h>
#include <stddef.h>

int sqlite3_open_v2(const char *path, sqlite3 **db, int flags, const char *vfs) {
    *db = NULL;
    return SQLITE_CANTOPEN;
}
