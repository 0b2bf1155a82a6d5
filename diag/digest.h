/* Private to diag/: whether rows of a database are still the same. */
#pragma once

#include <sqlite3.h>
#include <stdint.h>

/* Adds the rows of a table that hold a condition, with id as ?1, to *sum: equal for equal rows in any order. Returns
 * SQLite's code. */
int digest_rows(sqlite3 *db, const char *table, const char *condition, int64_t id, uint64_t *sum);
