/* MLflow's file store: FOLDER/1 is the experiment, in it a folder a run: meta.yaml, metrics/KEY with lines "ms value
 * step", params/KEY and tags/KEY with a value each, artifacts. */
#include "core/json.h"
#include "diag/formats_private.h"
#include "diag/reading.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 512, MOST_VALUE_BYTES = 6000 /* MLflow takes no longer parameters */ };

typedef struct store {
    const formats_run *run;
    char id[40];          /* the uuid without hyphens */
    char key[NAME_BYTES]; /* of the open file */
    formats_file file;
} store;

static void name_in_run(const store *m, const char *kind, const char *key, char name[NAME_BYTES]) {
    snprintf(name, NAME_BYTES, "1/%s/%s/%s", m->id, kind, key);
}

static int64_t milliseconds(double s) {
    return (int64_t)(s * 1000 + 0.5);
}

/* ---- metrics ---- */

static status next_curve(store *m, const char *key) {
    char name[NAME_BYTES];
    TRY(formats_close(m->run->formats, &m->file, STATUS_OK));
    snprintf(m->key, sizeof m->key, "%s", key);
    name_in_run(m, "metrics", key, name);
    return formats_open(m->run->formats, &m->file, name);
}

static status write_point(void *user, const char *key, int64_t step, double value) {
    store *m = user;
    if (strcmp(key, m->key) != 0) TRY(next_curve(m, key));
    fprintf(m->file.text, "%" PRId64 " %.17g %" PRId64 "\n", milliseconds(formats_time_s(m->run, step)), value, step);
    return STATUS_OK;
}

/* ---- parameters, tags ---- */

static status write_text(const store *m, const char *kind, const char *key, const char *value) {
    char name[NAME_BYTES];
    formats_file file;
    name_in_run(m, kind, key, name);
    TRY(formats_open(m->run->formats, &file, name));
    fprintf(file.text, "%.*s", MOST_VALUE_BYTES, value);
    return formats_close(m->run->formats, &file, STATUS_OK);
}

/* Rows of two texts; a NULL is none. */
static status write_texts(const store *m, const char *kind, const char *sql) {
    const formats *f = m->run->formats;
    sqlite3_stmt *q = NULL;
    TRY(formats_ask(f, &q, sql));
    sqlite3_bind_int64(q, 1, m->run->run_id);
    status s = STATUS_OK;
    for (bool row = true; s == STATUS_OK;) {
        s = reading_row(f->path, f->db, q, &row);
        if (s != STATUS_OK || !row) break;
        const char *value = (const char *)sqlite3_column_text(q, 1);
        if (value && value[0]) s = write_text(m, kind, (const char *)sqlite3_column_text(q, 0), value);
    }
    sqlite3_finalize(q);
    return s;
}

/* ---- meta.yaml ---- */

/* A text as YAML and JSON have it, in quotes; malloc'ed. NULL: out of memory. */
static char *quoted(const char *text) {
    json_t *json = json_text(text);
    char *out = json ? json_dumps(json, JSON_ENCODE_ANY) : NULL;
    json_decref(json);
    return out;
}

static status write_experiment(const formats_run *run) {
    formats_file file;
    TRY(formats_open(run->formats, &file, "1/meta.yaml"));
    fprintf(file.text,
            "artifact_location: mlflow-artifacts:/1\ncreation_time: %" PRId64 "\nexperiment_id: '1'\n"
            "last_update_time: %" PRId64 "\nlifecycle_stage: active\nname: bulkhead\n",
            milliseconds(run->started_s), milliseconds(run->started_s));
    return formats_close(run->formats, &file, STATUS_OK);
}

/* MLflow's RunStatus. */
static status status_number(const formats_run *run, int *number) {
    enum { RUNNING = 1, FINISHED = 3, FAILED = 4, KILLED = 5 };
    sqlite3_stmt *q = NULL;
    bool row;
    TRY(formats_ask(run->formats, &q, "SELECT status FROM runs WHERE run_id = ?1"));
    sqlite3_bind_int64(q, 1, run->run_id);
    status s = reading_row(run->formats->path, run->formats->db, q, &row);
    const char *text = s == STATUS_OK && row ? (const char *)sqlite3_column_text(q, 0) : NULL;
    *number = !text || strcmp(text, "running") == 0 ? RUNNING
              : strcmp(text, "finished") == 0       ? FINISHED
              : strcmp(text, "failed") == 0         ? FAILED
                                                    : KILLED;
    sqlite3_finalize(q);
    return s;
}

static status write_meta(const store *m) {
    const formats_run *run = m->run;
    char name[NAME_BYTES], ended[32] = "null", *run_name = quoted(run->name);
    formats_file file;
    int number = 0;
    if (!run_name) return status_fail(STATUS_INTERNAL, "out of memory");
    if (run->ended_s >= 0) snprintf(ended, sizeof ended, "%" PRId64, milliseconds(run->ended_s));
    snprintf(name, sizeof name, "1/%s/meta.yaml", m->id);
    status s = status_number(run, &number);
    if (s == STATUS_OK) s = formats_open(run->formats, &file, name);
    if (s == STATUS_OK) {
        fprintf(
            file.text,
            "artifact_uri: mlflow-artifacts:/1/%s/artifacts\nend_time: %s\nentry_point_name: ''\nexperiment_id: '1'\n"
            "lifecycle_stage: active\nrun_id: %s\nrun_name: %s\nrun_uuid: %s\nsource_name: bulkhead\nsource_type: 4\n"
            "source_version: ''\nstart_time: %" PRId64 "\nstatus: %d\ntags: []\nuser_id: bulkhead\n",
            m->id, ended, m->id, run_name, m->id, milliseconds(run->started_s), number);
        s = formats_close(run->formats, &file, s);
    }
    free(run_name);
    return s;
}

/* MLflow knows a run's folder by these, empty or not. */
static status make_parts(const store *m) {
    static const char *const parts[] = {"metrics", "params", "artifacts"};
    status s = STATUS_OK;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && s == STATUS_OK; i++) {
        char name[NAME_BYTES];
        name_in_run(m, parts[i], "", name);
        char *path = file_join(m->run->formats->folder, name);
        s = path ? file_make_dirs(path) : status_fail(STATUS_INTERNAL, "out of memory");
        free(path);
    }
    return s;
}

status formats_mlflow(const formats_run *run) {
    store m = {.run = run};
    size_t length = 0;
    for (const char *c = run->uuid; *c; c++)
        if (*c != '-') m.id[length++] = *c;
    if (run->formats->counts->runs == 0) TRY(write_experiment(run));
    TRY(write_meta(&m));
    TRY(make_parts(&m));
    TRY(write_text(&m, "tags", "mlflow.runName", run->name));
    TRY(write_texts(&m, "tags",
                    "SELECT 'variant', variant FROM runs WHERE run_id = ?1 UNION ALL"
                    " SELECT 'run_group', run_group FROM runs WHERE run_id = ?1 UNION ALL"
                    " SELECT 'tags', tags FROM runs WHERE run_id = ?1"));
    TRY(write_texts(&m, "params", "SELECT key, value FROM params WHERE run_id = ?1"));
    return formats_close(run->formats, &m.file, formats_curves(run, write_point, &m));
}
