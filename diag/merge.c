/* Rows travel from a reading connection to a writing one, table by table. What a column is called says what it is:
 * run_id, snapshot_id, matrix_id and null_id are numbers of their file and are translated; everything else is copied.
 * So a new table or column needs nothing here. */
#include "diag/merge.h"

#include "diag/database.h"
#include "diag/digest.h"
#include "diag/reading.h"
#include "diag/schema.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WAIT_MS = 5000, MOST_COLUMNS = 128 };

typedef struct id_pair {
    int64_t from, to;
} id_pair;

/* What the ids of one kind became, ascending by from. */
typedef struct id_map {
    id_pair *pairs;
    int count, capacity;
} id_map;

/* Kinds of ids, and the tables that give them. key: the columns by which a row is known in any file. */
enum { RUNS, SNAPSHOTS, MATRICES, NULLS, KINDS };
static const struct id_kind {
    const char *table, *id, *key;
    bool of_run;
} kinds[KINDS] = {
    [RUNS] = {"runs", "run_id", "uuid", true},
    [SNAPSHOTS] = {"snapshots", "snapshot_id", "run_id, step", true},
    [MATRICES] = {"matrices", "matrix_id", "run_id, form, part, scope, layer, head, tensor", true},
    [NULLS] = {"nulls", "null_id", "key", false},
};

typedef struct merge {
    sqlite3 *from, *to;
    const char *from_path, *to_path;
    id_map ids[KINDS];
    uint64_t digest; /* of digest_run */
} merge;

/* ---- failures ---- */

static status write_failure(const merge *m) {
    return database_failure(m->to, m->to_path, sqlite3_errcode(m->to));
}
static status read_failure(const merge *m) {
    return reading_failure(m->from_path, m->from, sqlite3_errcode(m->from));
}

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for merging");
}

static status change(const merge *m, const char *sql) {
    return sqlite3_exec(m->to, sql, NULL, NULL, NULL) == SQLITE_OK ? STATUS_OK : write_failure(m);
}

/* The same for a statement about one run, with its id as ?1. */
static status change_run(const merge *m, const char *sql, int64_t run_id) {
    sqlite3_stmt *q = NULL;
    int rc = sqlite3_prepare_v2(m->to, sql, -1, &q, NULL);
    if (rc == SQLITE_OK) {
        sqlite3_bind_int64(q, 1, run_id);
        rc = sqlite3_step(q) == SQLITE_DONE ? SQLITE_OK : SQLITE_ERROR;
    }
    status s = rc == SQLITE_OK ? STATUS_OK : write_failure(m);
    sqlite3_finalize(q);
    return s;
}

/* ---- ids ---- */

static status remember(id_map *map, int64_t from, int64_t to) {
    if (map->count == map->capacity) {
        int capacity = 2 * map->capacity + 64;
        id_pair *more = realloc(map->pairs, (size_t)capacity * sizeof(*more));
        if (!more) return out_of_memory();
        map->pairs = more;
        map->capacity = capacity;
    }
    map->pairs[map->count++] = (id_pair){from, to};
    return STATUS_OK;
}

static int by_from(const void *a, const void *b) {
    int64_t x = ((const id_pair *)a)->from, y = ((const id_pair *)b)->from;
    return (x > y) - (x < y);
}

/* -1: no kind of id. */
static int kind_of_column(const char *name) {
    for (int k = 0; k < KINDS; k++)
        if (strcmp(kinds[k].id, name) == 0) return k;
    return -1;
}

/* Binds column i of a row that was read: translated where it is an id. An id that its file does not explain is DATA,
 * but for one of a null. */
static status bind(const merge *m, sqlite3_stmt *insert, int at, sqlite3_stmt *row, int i, int kind) {
    if (kind < 0 || sqlite3_column_type(row, i) == SQLITE_NULL) {
        sqlite3_bind_value(insert, at, sqlite3_column_value(row, i));
        return STATUS_OK;
    }
    const id_map *map = &m->ids[kind];
    id_pair wanted = {.from = sqlite3_column_int64(row, i)};
    const id_pair *found =
        map->count ? bsearch(&wanted, map->pairs, (size_t)map->count, sizeof(wanted), by_from) : NULL;
    if (!found && kind == NULLS) {
        sqlite3_bind_null(insert, at); /* its row is not written yet */
        return STATUS_OK;
    }
    if (!found)
        return status_fail(STATUS_DATA, "%s is damaged: %s %lld is nowhere explained", m->from_path, kinds[kind].id,
                           (long long)wanted.from);
    sqlite3_bind_int64(insert, at, found->to);
    return STATUS_OK;
}

/* ---- tables ---- */

typedef struct columns {
    int count, kind[MOST_COLUMNS];
    char *names[MOST_COLUMNS];
} columns;

static void free_columns(columns *c) {
    for (int i = 0; i < c->count; i++) sqlite3_free(c->names[i]);
}

static bool has_column(sqlite3 *db, const char *table, const char *name) {
    return sqlite3_table_column_metadata(db, NULL, table, name, NULL, NULL, NULL, NULL, NULL) == SQLITE_OK;
}

/* The columns that both files have: an older source lacks some. None: it lacks the table. */
static status list_columns(const merge *m, const char *table, columns *out) {
    sqlite3_stmt *q = NULL;
    *out = (columns){0};
    if (sqlite3_prepare_v2(m->to, "SELECT name FROM pragma_table_info(?)", -1, &q, NULL) != SQLITE_OK)
        return write_failure(m);
    sqlite3_bind_text(q, 1, table, -1, SQLITE_STATIC);
    status s = STATUS_OK;
    while (s == STATUS_OK && sqlite3_step(q) == SQLITE_ROW && out->count < MOST_COLUMNS) {
        const char *name = (const char *)sqlite3_column_text(q, 0);
        if (!has_column(m->from, table, name)) continue;
        out->kind[out->count] = kind_of_column(name);
        out->names[out->count] = sqlite3_mprintf("%s", name);
        if (!out->names[out->count++]) s = out_of_memory();
    }
    sqlite3_finalize(q);
    if (s != STATUS_OK) free_columns(out);
    return s;
}

/* before, then the format with each name for both %w, separated by commas. */
static char *join(char *before, const columns *c, int first, const char *format) {
    char *text = before;
    for (int i = first; i < c->count; i++) {
        char *item = sqlite3_mprintf(format, c->names[i], c->names[i]);
        text = sqlite3_mprintf("%z%s%s", text, i > first ? ", " : "", item ? item : "");
        sqlite3_free(item);
    }
    return text;
}

static char *marks(char *before, int count) {
    for (int i = 0; i < count; i++) before = sqlite3_mprintf("%z%s?", before, i ? ", " : "");
    return before;
}

/* Rows of a table whose ids are known, condition: with the run's id as ?1. */
static char *select_sql(const char *table, const columns *c, const char *condition) {
    return sqlite3_mprintf("%z FROM \"%w\" WHERE %s", join(sqlite3_mprintf("SELECT "), c, 0, "\"%w\""), table,
                           condition);
}

static char *insert_sql(const char *table, const columns *c) {
    char *names = join(sqlite3_mprintf("INSERT INTO \"%w\"(", table), c, 0, "\"%w\"");
    return sqlite3_mprintf("%z)", marks(sqlite3_mprintf("%z) VALUES(", names), c->count));
}

/* Of a table that gives ids, its id first: the row that has this key gets the values and says its id. A new row gets a
 * new id; in nulls its old one, where that is free. */
static char *upsert_sql(const struct id_kind *k, const columns *c) {
    char *id = k->of_run ? sqlite3_mprintf("nullif(?1, ?1)")
                         : sqlite3_mprintf("(SELECT ?1 WHERE ?1 NOT IN (SELECT %s FROM %s))", k->id, k->table);
    char *names = join(sqlite3_mprintf("INSERT INTO %s(", k->table), c, 0, "\"%w\"");
    char *values = marks(sqlite3_mprintf("%z) VALUES(%z, ", names, id), c->count - 1);
    char *sets =
        join(sqlite3_mprintf("%z) ON CONFLICT(%s) DO UPDATE SET ", values, k->key), c, 1, "\"%w\" = excluded.\"%w\"");
    return sqlite3_mprintf("%z RETURNING %s", sets, k->id);
}

/* Both statements of a copy; the run's id in the source is bound. */
static status prepare_copy(const merge *m, sqlite3_stmt **select, char *select_text, sqlite3_stmt **insert,
                           char *insert_text, int64_t run_id) {
    status s = select_text && insert_text ? STATUS_OK : out_of_memory();
    if (s == STATUS_OK && sqlite3_prepare_v2(m->from, select_text, -1, select, NULL) != SQLITE_OK) s = read_failure(m);
    if (s == STATUS_OK && sqlite3_prepare_v2(m->to, insert_text, -1, insert, NULL) != SQLITE_OK) s = write_failure(m);
    if (s == STATUS_OK) sqlite3_bind_int64(*select, 1, run_id);
    sqlite3_free(select_text);
    sqlite3_free(insert_text);
    return s;
}

/* One row; id: of the table that gives ids of this kind, else -1. */
static status copy_row(merge *m, const columns *c, sqlite3_stmt *row, sqlite3_stmt *insert, int id) {
    for (int i = 0; i < c->count; i++) TRY(bind(m, insert, i + 1, row, i, i == 0 && id >= 0 ? -1 : c->kind[i]));
    int rc = sqlite3_step(insert);
    int64_t given = rc == SQLITE_ROW ? sqlite3_column_int64(insert, 0) : -1;
    if (sqlite3_reset(insert) != SQLITE_OK) return write_failure(m);
    return id < 0 ? STATUS_OK : remember(&m->ids[id], sqlite3_column_int64(row, 0), given);
}

static status copy_rows(merge *m, const char *table, const char *condition, int id, int64_t run_id) {
    columns c;
    TRY(list_columns(m, table, &c));
    if (c.count == 0) return STATUS_OK;
    sqlite3_stmt *select = NULL, *insert = NULL;
    status s = prepare_copy(m, &select, select_sql(table, &c, condition), &insert,
                            id < 0 ? insert_sql(table, &c) : upsert_sql(&kinds[id], &c), run_id);
    while (s == STATUS_OK) {
        int rc = sqlite3_step(select);
        if (rc == SQLITE_DONE) break;
        s = rc == SQLITE_ROW ? copy_row(m, &c, select, insert, id) : read_failure(m);
    }
    sqlite3_finalize(select);
    sqlite3_finalize(insert);
    free_columns(&c);
    return s;
}

/* ---- a run ---- */

static const char of_run[] = "run_id = ?1",
                  of_snapshots[] = "snapshot_id IN (SELECT snapshot_id FROM snapshots WHERE run_id = ?1)";

/* Calls for each table that both files have, has rows of runs and gives no ids. */
static status each_table(merge *m, status (*visit)(merge *m, const char *table, const char *condition, int64_t run_id),
                         int64_t run_id) {
    sqlite3_stmt *q = NULL;
    static const char all[] = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%'";
    if (sqlite3_prepare_v2(m->to, all, -1, &q, NULL) != SQLITE_OK) return write_failure(m);
    status s = STATUS_OK;
    while (s == STATUS_OK && sqlite3_step(q) == SQLITE_ROW) {
        const char *table = (const char *)sqlite3_column_text(q, 0);
        bool gives_ids = false;
        for (int k = 0; k < KINDS; k++) gives_ids = gives_ids || strcmp(kinds[k].table, table) == 0;
        if (gives_ids) continue;
        if (has_column(m->from, table, "snapshot_id"))
            s = visit(m, table, of_snapshots, run_id);
        else if (has_column(m->from, table, "run_id"))
            s = visit(m, table, of_run, run_id);
    }
    sqlite3_finalize(q);
    return s;
}

static status copy_table(merge *m, const char *table, const char *condition, int64_t run_id) {
    return copy_rows(m, table, condition, -1, run_id);
}

static status empty_table(merge *m, const char *table, const char *condition, int64_t run_id) {
    char *sql = sqlite3_mprintf("DELETE FROM \"%w\" WHERE %s", table, condition);
    status s = sql ? change_run(m, sql, run_id) : out_of_memory();
    sqlite3_free(sql);
    return s;
}

static status digest_table(merge *m, const char *table, const char *condition, int64_t run_id) {
    return digest_rows(m->to, table, condition, run_id, &m->digest) == SQLITE_OK ? STATUS_OK : write_failure(m);
}

/* All that the output has of a run, in m->digest. */
static status digest_run(merge *m, int64_t run_id) {
    m->digest = 0;
    for (int k = RUNS; k <= MATRICES; k++) TRY(digest_table(m, kinds[k].table, of_run, run_id));
    return each_table(m, digest_table, run_id);
}

/* How far a file knows a run; the first that differs decides. */
enum { PROGRESS = 5 };
static const char progress_sql[] =
    "SELECT coalesce((SELECT max(attempt) FROM sessions s WHERE s.run_id = r.run_id), -1),"
    " coalesce((SELECT max(step) FROM train_metrics t WHERE t.run_id = r.run_id), -1), r.ended_at IS NOT NULL,"
    " (SELECT count(*) FROM snapshots n WHERE n.run_id = r.run_id),"
    " (SELECT count(*) FROM events e WHERE e.run_id = r.run_id), r.run_id FROM runs r WHERE r.uuid = ?";

/* false: db has no such run. */
static bool read_progress(sqlite3 *db, const char *uuid, int64_t progress[PROGRESS], int64_t *run_id) {
    sqlite3_stmt *q = NULL;
    bool found = sqlite3_prepare_v2(db, progress_sql, -1, &q, NULL) == SQLITE_OK &&
                 sqlite3_bind_text(q, 1, uuid, -1, SQLITE_STATIC) == SQLITE_OK && sqlite3_step(q) == SQLITE_ROW;
    for (int i = 0; found && i < PROGRESS; i++) progress[i] = sqlite3_column_int64(q, i);
    if (found) *run_id = sqlite3_column_int64(q, PROGRESS);
    sqlite3_finalize(q);
    return found;
}

static bool is_older(const int64_t a[PROGRESS], const int64_t b[PROGRESS]) {
    int i = 0;
    while (i < PROGRESS - 1 && a[i] == b[i]) i++;
    return a[i] < b[i];
}

/* What the output had of the run goes, but for its ids. A snapshot that the source does not have either loses its. */
static status copy_run(merge *m, int64_t from_run, int64_t known_run) {
    m->ids[RUNS].count = m->ids[SNAPSHOTS].count = m->ids[MATRICES].count = 0;
    if (known_run >= 0) {
        TRY(each_table(m, empty_table, known_run));
        TRY(change_run(m, "UPDATE snapshots SET status = 'gone' WHERE run_id = ?1", known_run));
    }
    for (int k = RUNS; k <= MATRICES; k++) {
        char condition[64];
        snprintf(condition, sizeof(condition), "run_id = ?1 ORDER BY %s", kinds[k].id);
        TRY(copy_rows(m, kinds[k].table, condition, k, from_run));
    }
    if (known_run >= 0) TRY(change_run(m, "DELETE FROM snapshots WHERE run_id = ?1 AND status = 'gone'", known_run));
    return each_table(m, copy_table, from_run);
}

static status merge_run(merge *m, const char *uuid, merge_counts *counts) {
    int64_t from[PROGRESS], known[PROGRESS], from_run = -1, known_run = -1;
    if (!uuid || !read_progress(m->from, uuid, from, &from_run))
        return status_fail(STATUS_DATA, "%s is damaged: it has a run that cannot be identified", m->from_path);
    if (!read_progress(m->to, uuid, known, &known_run)) {
        counts->added++;
        return copy_run(m, from_run, known_run);
    }
    if (is_older(from, known)) {
        counts->older++;
        return STATUS_OK;
    }
    TRY(digest_run(m, known_run));
    uint64_t before = m->digest;
    TRY(copy_run(m, from_run, known_run));
    TRY(digest_run(m, known_run));
    int *count = m->digest == before ? &counts->same : &counts->updated;
    ++*count;
    return STATUS_OK;
}

/* ---- a source, the output ---- */

static status copy_source(merge *m, merge_counts *counts) {
    sqlite3_stmt *q = NULL;
    for (int k = 0; k < KINDS; k++) m->ids[k].count = 0;
    TRY(copy_rows(m, "nulls", "?1 = ?1 ORDER BY null_id", NULLS, 0));
    if (sqlite3_prepare_v2(m->from, "SELECT uuid FROM runs ORDER BY run_id", -1, &q, NULL) != SQLITE_OK)
        return read_failure(m);
    status s = STATUS_OK;
    while (s == STATUS_OK) {
        int rc = sqlite3_step(q);
        if (rc == SQLITE_DONE) break;
        s = rc == SQLITE_ROW ? merge_run(m, (const char *)sqlite3_column_text(q, 0), counts) : read_failure(m);
    }
    sqlite3_finalize(q);
    return s;
}

static bool same_file(const char *a, const char *b) {
    struct stat x, y;
    return a && b && stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* A source at one moment, which another process may be writing. */
static status open_source(merge *m, const char *path) {
    m->from_path = path;
    TRY(reading_open(path, &m->from));
    TRY(reading_check(path, m->from));
    if (same_file(sqlite3_db_filename(m->from, "main"), m->to_path))
        return status_fail(STATUS_USAGE, "%s is a source and the output; name another file behind -o", path);
    return sqlite3_exec(m->from, "BEGIN", NULL, NULL, NULL) == SQLITE_OK ? STATUS_OK : read_failure(m);
}

static void close_source(merge *m) {
    sqlite3_close(m->from);
    m->from = NULL;
}

static status merge_source(merge *m, const char *path, merge_counts *counts) {
    merge_counts so_far = *counts;
    status s = open_source(m, path);
    if (s == STATUS_OK) s = change(m, "BEGIN IMMEDIATE");
    if (s == STATUS_OK) {
        s = copy_source(m, &so_far);
        if (s == STATUS_OK) s = change(m, "COMMIT");
        if (s == STATUS_OK)
            *counts = so_far;
        else
            sqlite3_exec(m->to, "ROLLBACK", NULL, NULL, NULL);
    }
    close_source(m);
    return s;
}

/* Looked at before its journal is changed: what is not ours stays as it is. */
static status check_output(const merge *m) {
    int rc = sqlite3_exec(m->to, "SELECT count(*) FROM sqlite_schema", NULL, NULL, NULL);
    if (rc != SQLITE_OK) return database_failure(m->to, m->to_path, rc);
    return schema_version(m->to) == 0 ? STATUS_OK : schema_check(m->to, m->to_path);
}

static status open_output(merge *m, bool *wal) {
    int rc = sqlite3_open_v2(m->to_path, &m->to, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL);
    if (rc != SQLITE_OK) return database_failure(m->to, m->to_path, rc);
    sqlite3_busy_timeout(m->to, WAIT_MS);
    TRY(check_output(m));
    rc = database_set_journal(m->to, m->to_path, wal);
    if (rc == SQLITE_OK) rc = sqlite3_exec(m->to, "BEGIN IMMEDIATE", NULL, NULL, NULL);
    if (rc == SQLITE_OK) rc = schema_prepare(m->to);
    if (rc == SQLITE_OK) rc = sqlite3_exec(m->to, "COMMIT", NULL, NULL, NULL);
    return rc == SQLITE_OK ? STATUS_OK : database_failure(m->to, m->to_path, rc);
}

/* Every source is looked at before the output is touched. */
static status check_sources(merge *m, const char *const *sources, int count) {
    status s = STATUS_OK;
    for (int i = 0; i < count && s == STATUS_OK; i++) {
        s = open_source(m, sources[i]);
        close_source(m);
    }
    return s;
}

static void remove_output(const char *path) {
    static const char *const ends[] = {"", "-wal", "-shm", "-journal"};
    char file[4104];
    for (int i = 0; i < 4; i++) {
        snprintf(file, sizeof(file), "%s%s", path, ends[i]);
        unlink(file);
    }
}

status merge_databases(const char *const *sources, int count, const char *to, merge_counts *out) {
    merge m = {.to_path = to};
    bool made = access(to, F_OK) != 0, wal = false;
    *out = (merge_counts){0};
    TRY(check_sources(&m, sources, count));
    status s = open_output(&m, &wal);
    for (int i = 0; i < count && s == STATUS_OK; i++) s = merge_source(&m, sources[i], out);
    if (s == STATUS_OK && wal) database_leave_single_file(m.to, to);
    sqlite3_close(m.to);
    for (int k = 0; k < KINDS; k++) free(m.ids[k].pairs);
    if (s != STATUS_OK && made) remove_output(to);
    return s;
}
