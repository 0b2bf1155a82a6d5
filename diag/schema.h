/* Private to diag/: the tables and views of docs/design.md section 7, made and brought up to date. The columns of a
 * spectrum come from SPECTRUM_COLUMNS. */
#pragma once

#include "core/status.h"
#include "diag/spectrum.h"

#include <sqlite3.h>

/* Goes up with every change to the tables or views: older files are brought up to it when they are opened for writing,
 * newer ones are refused. 2: parts beyond full, content and rope, weights, nulls; views made again. 3: what a resumed
 * run reads again (gains, null_query_ratio, sessions.messages). 4: null_query_ratio in v_spectra. 5: profile. */
enum { SCHEMA_VERSION = 5 };

#define SCHEMA_NAME(name, type) #name ", "

/* 0 when db is empty, -1 when it is not ours, else the version that it was made or last written by. */
int schema_version(sqlite3 *db);

/* Inside the caller's transaction: makes what is missing in an empty or older database of ours; older ones get the
 * columns that they lack, as NULL, and today's views. SQLITE_MISMATCH when db is another program's or a newer
 * version's. */
int schema_prepare(sqlite3 *db);

/* OK when this version can read db. DATA, with what to do, when it is empty, not ours, or a newer version's. */
status schema_check(sqlite3 *db, const char *path);
