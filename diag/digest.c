/* The sum of a hash a row: the order of rows is the file's own. */
#include "diag/digest.h"

#include <string.h>
#include <xxhash.h>

/* Of type and bytes, so that 1 is not '1' and no value runs into the next. */
static void add_value(XXH3_state_t *hash, sqlite3_stmt *row, int i) {
    int type = sqlite3_column_type(row, i);
    int64_t whole = sqlite3_column_int64(row, i);
    double number = sqlite3_column_double(row, i);
    const void *bytes = &whole;
    size_t length = type == SQLITE_NULL ? 0 : sizeof(whole);
    if (type == SQLITE_FLOAT) bytes = &number;
    if (type == SQLITE_TEXT || type == SQLITE_BLOB) {
        bytes = sqlite3_column_blob(row, i);
        length = (size_t)sqlite3_column_bytes(row, i);
    }
    XXH3_64bits_update(hash, &type, sizeof(type));
    XXH3_64bits_update(hash, &length, sizeof(length));
    XXH3_64bits_update(hash, bytes, length);
}

int digest_rows(sqlite3 *db, const char *table, const char *condition, int64_t id, uint64_t *sum) {
    sqlite3_stmt *row = NULL;
    XXH3_state_t *hash = XXH3_createState();
    char *sql = sqlite3_mprintf("SELECT * FROM \"%w\" WHERE %s", table, condition);
    int rc = hash && sql ? sqlite3_prepare_v2(db, sql, -1, &row, NULL) : SQLITE_NOMEM;
    if (rc == SQLITE_OK) rc = sqlite3_bind_int64(row, 1, id);
    while (rc == SQLITE_OK && (rc = sqlite3_step(row)) == SQLITE_ROW) {
        rc = XXH3_64bits_reset_withSeed(hash, XXH64(table, strlen(table), 0)) == XXH_OK ? SQLITE_OK : SQLITE_ERROR;
        for (int i = 0; i < sqlite3_column_count(row); i++) add_value(hash, row, i);
        *sum += XXH3_64bits_digest(hash);
    }
    sqlite3_finalize(row);
    sqlite3_free(sql);
    XXH3_freeState(hash);
    return rc == SQLITE_DONE ? SQLITE_OK : rc;
}
