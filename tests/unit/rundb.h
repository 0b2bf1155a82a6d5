/* A run folder of its own for each test, raw SQL on its database, and what the database must always satisfy. */
#pragma once

#include "check.h"

#include <dirent.h>
#include <sqlite3.h>
#include <sys/stat.h>
#include <unistd.h>

static char rundb_folder[64], rundb_path[80];

static inline int rundb_setup(void **state) {
    snprintf(rundb_folder, sizeof(rundb_folder), "/tmp/bulkhead-test-XXXXXX");
    if (!mkdtemp(rundb_folder)) return -1;
    snprintf(rundb_path, sizeof(rundb_path), "%s/run.db", rundb_folder);
    status_clear();
    return 0;
}

static inline int rundb_teardown(void **state) {
    chmod(rundb_folder, 0700);
    DIR *d = opendir(rundb_folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[400];
        snprintf(path, sizeof(path), "%s/%s", rundb_folder, e->d_name);
        if (e->d_name[0] != '.') unlink(path);
    }
    if (d) closedir(d);
    return rmdir(rundb_folder);
}

/* Files in the folder. */
static inline int rundb_files(void) {
    int n = 0;
    DIR *d = opendir(rundb_folder);
    for (struct dirent *e; d && (e = readdir(d));) n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

/* The sizes of its files together. */
static inline off_t rundb_bytes(void) {
    off_t sum = 0;
    DIR *d = opendir(rundb_folder);
    for (struct dirent *e; d && (e = readdir(d));) {
        char path[400];
        struct stat info;
        snprintf(path, sizeof(path), "%s/%s", rundb_folder, e->d_name);
        if (e->d_name[0] != '.' && stat(path, &info) == 0) sum += info.st_size;
    }
    closedir(d);
    return sum;
}

static inline sqlite3 *rundb_open(int flags) {
    sqlite3 *db = NULL;
    if (sqlite3_open_v2(rundb_path, &db, flags, NULL) != SQLITE_OK) fail_msg("%s", sqlite3_errmsg(db));
    return db;
}

/* Statements that change it, each must succeed. */
static inline void rundb_change(const char *sql) {
    sqlite3 *db = rundb_open(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    char *why = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK) fail_msg("%s", why);
    sqlite3_close(db);
}

/* Makes the database from a file of SQL. */
static inline void rundb_load(const char *path) {
    char sql[32768];
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    size_t bytes = fread(sql, 1, sizeof(sql) - 1, f);
    fclose(f);
    sql[bytes] = '\0';
    rundb_change(sql);
}

/* The first cell of the answer; NaN for NULL or no row. */
static inline double rundb_number(const char *sql) {
    sqlite3 *db = rundb_open(SQLITE_OPEN_READWRITE); /* WAL asks a reader for the shared memory */
    sqlite3_stmt *q = NULL;
    double x = NAN;
    if (sqlite3_prepare_v2(db, sql, -1, &q, NULL) != SQLITE_OK) fail_msg("%s: %s", sql, sqlite3_errmsg(db));
    if (sqlite3_step(q) == SQLITE_ROW && sqlite3_column_type(q, 0) != SQLITE_NULL) x = sqlite3_column_double(q, 0);
    sqlite3_finalize(q);
    sqlite3_close(db);
    return x;
}

#define check_sql(sql, want) check_near(rundb_number(sql), want, 0)
