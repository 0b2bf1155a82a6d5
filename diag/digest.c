/* The sum of a hash a row: the order of rows is the file's own. */
#include "diag/digest.h"

#include <string.h>
#include <xxhash.h>

/* Of type and value, so that 1 is not '1' and no value runs into the next. */
static void add_value(XXH3_state_t *hash, sqlite3_stmt *row, int i) {
    int64_t head[2] = {sqlite3_column_type(row, i), 0}; /* the type; a number's bits or a length */
    const void *bytes = NULL;
    double number;
    switch (head[0]) {
    case SQLITE_INTEGER:
        head[1] = sqlite3_column_int64(row, i);
        break;
    case SQLITE_FLOAT:
        number = sqlite3_column_double(row, i);
        memcpy(&head[1], &number, sizeof(number));
        break;
    case SQLITE_TEXT:
    case SQLITE_BLOB:
        bytes = sqlite3_column_blob(row, i);
        head[1] = sqlite3_column_bytes(row, i);
        break;
    }
    XXH3_64bits_update(hash, head, sizeof(head));
    if (bytes) XXH3_64bits_update(hash, bytes, (size_t)head[1]);
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
