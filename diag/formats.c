#include "diag/formats.h"

#include "core/new_folder.h"
#include "diag/formats_private.h"
#include "diag/merge.h"
#include "diag/reading.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory");
}

status formats_ask(const formats *f, sqlite3_stmt **q, const char *sql) {
    return reading_ask(f->path, f->db, sql, q);
}

/* ---- files ---- */

static status make_parents(const char *path) {
    char *parent = strdup(path);
    if (!parent) return out_of_memory();
    *strrchr(parent, '/') = 0;
    status s = file_make_dirs(parent);
    free(parent);
    return s;
}

static status begin(const char *path, formats_file *out) {
    TRY(make_parents(path));
    TRY(file_begin(&out->writer, path));
    int fd = dup(out->writer.fd); /* the writer's own is synced and closed at the end */
    out->text = fd < 0 ? NULL : fdopen(fd, "w");
    if (out->text) return STATUS_OK;
    if (fd >= 0) close(fd);
    file_discard(&out->writer);
    return status_fail(STATUS_IO, "cannot write %s: %s", path, strerror(errno));
}

/* Names come from the database, which may be anybody's. */
static bool leads_out(const char *name) {
    for (const char *at = strstr(name, ".."); at; at = strstr(at + 1, ".."))
        if ((at == name || at[-1] == '/') && (at[2] == 0 || at[2] == '/')) return true;
    return false;
}

status formats_open(const formats *f, formats_file *out, const char *name) {
    *out = (formats_file){0};
    if (leads_out(name)) return status_fail(STATUS_DATA, "%s has a name that leads out of a folder: %s", f->path, name);
    char *path = file_join(f->folder, name);
    if (!path) return out_of_memory();
    status s = begin(path, out);
    free(path);
    return s;
}

status formats_close(const formats *f, formats_file *file, status so_far) {
    if (!file->text) return so_far;
    bool bad = ferror(file->text) != 0;
    if (fclose(file->text) != 0) bad = true;
    if (bad && so_far == STATUS_OK)
        so_far = status_fail(STATUS_IO, "cannot write %s: %s", file->writer.path, strerror(errno));
    if (so_far != STATUS_OK) {
        file_discard(&file->writer);
        return so_far;
    }
    f->counts->files++;
    return file_commit(&file->writer);
}

/* ---- runs ---- */

static void copy_text(char *to, size_t room, sqlite3_stmt *q, int column) {
    const unsigned char *text = sqlite3_column_text(q, column);
    snprintf(to, room, "%s", text ? (const char *)text : "");
}

/* Names are parts of paths: what would lead elsewhere or is hidden becomes an underscore. */
static void make_safe(char *name) {
    for (char *c = name; *c; c++)
        if (*c == '/' || (unsigned char)*c < ' ' || (c == name && *c == '.')) *c = '_';
}

static status read_times(formats_run *run) {
    sqlite3_stmt *q = NULL;
    int64_t room = 0;
    double s = 0;
    TRY(formats_ask(run->formats, &q, "SELECT step, step_ms FROM train_metrics WHERE run_id = ?1 ORDER BY step"));
    sqlite3_bind_int64(q, 1, run->run_id);
    status result = STATUS_OK;
    for (bool row = true; result == STATUS_OK;) {
        result = reading_row(run->formats->path, run->formats->db, q, &row);
        if (result != STATUS_OK || !row) break;
        if (run->count == room) {
            room = room ? 2 * room : 1024;
            void *grown = realloc(run->times, (size_t)room * sizeof *run->times);
            if (!grown) {
                result = out_of_memory();
                break;
            }
            run->times = grown;
        }
        double ms = reading_real(q, 1);
        s += ms > 0 ? ms / 1000 : 0;
        run->times[run->count++] = (struct formats_time){sqlite3_column_int64(q, 0), s};
    }
    sqlite3_finalize(q);
    return result;
}

double formats_time_s(const formats_run *run, int64_t step) {
    int64_t low = 0, high = run->count; /* the first later than step */
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if (run->times[middle].step <= step)
            low = middle + 1;
        else
            high = middle;
    }
    return run->started_s + (low > 0 ? run->times[low - 1].s : 0);
}

/* Medians over heads of these are curves; all columns are in the CSV. */
#define CURVE(column)                                                                                                  \
    " UNION ALL SELECT '" #column "/' || form || '.' || part || printf('/layer%02d', layer), step, " #column           \
    " FROM layer_spectra WHERE run_id = ?1 AND stat = 'median' AND " #column " IS NOT NULL"

status formats_curves(const formats_run *run, formats_take take, void *user) {
    static const char sql[] =
        "SELECT key, step, value FROM v_metrics WHERE run_id = ?1 AND value IS NOT NULL" CURVE(mp_gap)
            CURVE(outlier_energy) CURVE(stable_rank) CURVE(effective_rank) CURVE(null_gap)
                CURVE(tw_score) " ORDER BY 1, 2";
    sqlite3_stmt *q = NULL;
    TRY(formats_ask(run->formats, &q, sql));
    sqlite3_bind_int64(q, 1, run->run_id);
    status s = STATUS_OK;
    for (bool row = true; s == STATUS_OK;) {
        s = reading_row(run->formats->path, run->formats->db, q, &row);
        if (s != STATUS_OK || !row) break;
        s = take(user, (const char *)sqlite3_column_text(q, 0), sqlite3_column_int64(q, 1),
                 sqlite3_column_double(q, 2));
        run->formats->counts->values++;
    }
    sqlite3_finalize(q);
    return s;
}

static status write_run(const formats *f, sqlite3_stmt *q, status (*write)(const formats_run *)) {
    formats_run run = {.formats = f, .run_id = sqlite3_column_int64(q, 0)};
    copy_text(run.uuid, sizeof run.uuid, q, 1);
    copy_text(run.name, sizeof run.name, q, 2);
    make_safe(run.uuid);
    make_safe(run.name);
    if (!run.name[0]) snprintf(run.name, sizeof run.name, "%s", run.uuid);
    run.started_s = sqlite3_column_double(q, 3);
    run.ended_s = sqlite3_column_type(q, 4) == SQLITE_NULL ? -1 : sqlite3_column_double(q, 4);
    status s = read_times(&run);
    if (s == STATUS_OK) s = write(&run);
    free(run.times);
    f->counts->runs++;
    return s;
}

/* A name that another run of the database has too is followed by the beginning of the run's uuid. */
static status write_runs(const formats *f, status (*write)(const formats_run *)) {
    static const char sql[] = "SELECT run_id, uuid, CASE WHEN (SELECT count(*) FROM runs o WHERE o.name = r.name) > 1"
                              " THEN name || '-' || substr(uuid, 1, 8) ELSE name END, coalesce((julianday(started_at) "
                              "- 2440587.5) * 86400, 0),"
                              " (julianday(ended_at) - 2440587.5) * 86400 FROM runs r ORDER BY run_id";
    sqlite3_stmt *q = NULL;
    TRY(formats_ask(f, &q, sql));
    status s = STATUS_OK;
    for (bool row = true; s == STATUS_OK;) {
        s = reading_row(f->path, f->db, q, &row);
        if (s != STATUS_OK || !row) break;
        s = write_run(f, q, write);
    }
    sqlite3_finalize(q);
    return s;
}

static status count_runs(const formats *f) {
    sqlite3_stmt *q = NULL;
    bool row;
    TRY(formats_ask(f, &q, "SELECT count(*) FROM runs"));
    status s = reading_row(f->path, f->db, q, &row);
    if (s == STATUS_OK) f->counts->runs = sqlite3_column_int(q, 0);
    sqlite3_finalize(q);
    return s;
}

/* ---- the folder ---- */

static status write_all(formats *f, formats_kind kind) {
    switch (kind) {
    case FORMATS_CSV:
        TRY(count_runs(f));
        return formats_csv(f);
    case FORMATS_TENSORBOARD:
        return write_runs(f, formats_tensorboard);
    case FORMATS_MLFLOW:
        return write_runs(f, formats_mlflow);
    }
    return STATUS_OK;
}

static status write_from(const char *database, formats_kind kind, const char *folder, formats_counts *out) {
    formats f = {.path = database, .folder = folder, .counts = out};
    TRY(reading_begin(database, &f.db));
    status s = write_all(&f, kind);
    sqlite3_close(f.db);
    return s;
}

static status write_merged(const char *const *databases, int count, formats_kind kind, const char *folder,
                           formats_counts *out) {
    merge_counts merged;
    char *path = file_join(folder, "merged.db");
    if (!path) return out_of_memory();
    status s = merge_databases(databases, count, path, &merged);
    if (s == STATUS_OK) s = write_from(path, kind, folder, out);
    unlink(path);
    free(path);
    return s;
}

status formats_write(const char *const *databases, int count, formats_kind kind, const char *folder,
                     formats_counts *out) {
    char *partial;
    *out = (formats_counts){0};
    TRY(new_folder_check(folder));
    TRY(new_folder_make(&partial, folder));
    status s =
        count == 1 ? write_from(databases[0], kind, partial, out) : write_merged(databases, count, kind, partial, out);
    if (s == STATUS_OK) return new_folder_publish(partial, folder);
    new_folder_discard(partial);
    return s;
}
