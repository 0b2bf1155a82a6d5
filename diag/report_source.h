/* Private to the report: what its parts know of the run that they read, and numbers as JSON. */
#pragma once

#include "core/json.h"
#include "diag/report.h"

#include <stdbool.h>
#include <stddef.h>

struct sqlite3;
struct sqlite3_stmt;
struct sqlite3_str;

enum { REPORT_LAYERS = 1000 /* as the configuration */ };

typedef struct report_source {
    struct sqlite3 *db; /* in the caller's transaction */
    const char *path;   /* for messages */
    int64_t run_id;
    const report_request *request; /* form, part and columns are set */
    int64_t esd_bytes;             /* what the codes of its singular values may take */
} report_source;

status report_out_of_memory(void);

/* A statement about the run: ?1 its id, ?2 form, ?3 part, where they stand in it. DATA where the database lacks what it
 * asks for; the caller finalizes *q. */
status report_ask(const report_source *from, const char *sql, struct sqlite3_stmt **q);

/* Appends the column's name; where the table, an older database's, lacks it, a NULL of that name. */
void report_put_column(const report_source *from, struct sqlite3_str *sql, const char *table, const char *name);

/* float32, little-endian, NaN for none, in base64. A new reference; NULL: out of memory. */
json_t *report_floats(const double *values, size_t n);

/* {low, high, codes: report_codes in base64}. A new reference; NULL: out of memory. */
json_t *report_coded(const double *values, size_t n);
