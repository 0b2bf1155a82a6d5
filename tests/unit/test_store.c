/* The run's database: rows, upserts, readers beside the writer, and what happens when it cannot be written. */
#include "check.h"
#include "diag/schema.h"
#include "diag/store.h"
#include "rundb.h"
#include "snapshots.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LAYERS = 2, HEADS = 3 };

typedef struct run {
    config config;
    maps *maps;
    store *store;
    store_session session;
} run;

static status open_run(run *r) {
    r->config = diagnostics_config(VARIANT_MHA, LAYERS, HEADS, 4, 24);
    check_status(maps_open(&r->maps, &r->config, 1), STATUS_OK);
    r->session = (store_session){.config = &r->config,
                                 .device = "cpu",
                                 .hosts = "here",
                                 .code_version = "0",
                                 .tp = 2,
                                 .dp = 1,
                                 .matrices = maps_matrices(r->maps),
                                 .matrix_count = maps_count(r->maps)};
    return store_open(&r->store, rundb_path, &r->session);
}

static void close_run(run *r) {
    check_status(store_close(r->store), STATUS_OK);
    maps_close(r->maps);
}

static void add_step(run *r, int64_t step, double loss) {
    store_record record = {.kind = STORE_STEP,
                           .step = {.step = step,
                                    .tokens = 256 * step,
                                    .loss = loss,
                                    .grad_norm = 1,
                                    .lr = 1e-3,
                                    .step_ms = 10,
                                    .tokens_per_s = 25600,
                                    .mfu = NAN}};
    store_add(r->store, &record);
}

/* A snapshot of noise; scale distinguishes a replay. */
static void add_snapshot(run *r, int64_t step, bool with_values, uint64_t seed) {
    snapshot s = {0};
    snapshot_fill(&s, &r->config, seed);
    store_record record = {
        .kind = STORE_SNAPSHOT,
        .snapshot = {.step = step, .tokens = 256 * step, .status = "done", .lag_ms = 2, .compute_ms = 1}};
    record.snapshot.rows = malloc((size_t)maps_count(r->maps) * sizeof(spectrum));
    record.snapshot.values = malloc((size_t)maps_value_count(r->maps) * sizeof(double));
    check_status(maps_compute(r->maps, &s, record.snapshot.rows, record.snapshot.values), STATUS_OK);
    if (!with_values) {
        free(record.snapshot.values);
        record.snapshot.values = NULL;
    }
    store_add(r->store, &record);
    snapshot_free(&s);
}

static void finish(run *r) {
    store_record record = {.kind = STORE_FINISH, .finish = {.last_step = 20, .status = "finished"}};
    store_add(r->store, &record);
}

static void a_run_leaves_its_rows(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    int matrices = maps_count(r.maps);
    add_step(&r, 1, 5.5);
    add_snapshot(&r, 0, true, 1);
    add_snapshot(&r, 10, false, 2);
    store_event(r.store, 10, "info", "checkpoint", "step-%d", 10);
    finish(&r);
    check_status(store_flush(r.store), STATUS_OK);
    assert_int_equal(store_waiting(r.store), 0);
    close_run(&r);
    assert_int_equal(rundb_files(), 1);
    check_sql("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'", 1);
    check_sql("PRAGMA page_size", 4096);
    check_sql("SELECT count(*) FROM pragma_journal_mode WHERE journal_mode = 'delete'", 1);
    check_sql(
        "SELECT count(*) FROM runs WHERE status = 'finished' AND variant = 'mha' AND length(uuid) = 36 AND ended_at",
        1);
    check_sql("SELECT count(*) FROM params WHERE key = 'model.width' AND value = '24'", 1);
    check_sql("SELECT count(*) FROM sessions WHERE attempt = 1 AND tp = 2 AND exit_code = 0 AND first_step = 1", 1);
    check_sql("SELECT count(*) FROM matrices", matrices);
    check_sql("SELECT count(*) FROM spectra", 2 * matrices);
    check_sql("SELECT count(*) FROM esd", matrices);
    check_sql("SELECT count(*) FROM esd JOIN matrices USING(matrix_id) WHERE length(singular_values) = 8 * n AND n = "
              "min(rows, cols)",
              matrices);
    check_sql("SELECT count(*) FROM layer_spectra", 2 * LAYERS * (2 + 2 + 1)); /* score, channel: median, max; layer */
    check_sql("SELECT count(*) FROM events WHERE kind = 'checkpoint' AND message = 'step-10' AND seq = 1", 1);
    check_sql("SELECT count(*) FROM train_metrics WHERE mfu IS NULL AND loss = 5.5", 1);
    check_sql("SELECT count(*) FROM spectra WHERE tw_score IS NULL AND null_id IS NULL AND status = 'ok'",
              2 * matrices);
    check_sql("SELECT count(*) FROM v_spectra", 2 * matrices);
    check_sql("SELECT count(*) FROM spectra WHERE typeof(outliers_above) <> 'integer' OR typeof(lambda_max) <> 'real'",
              0);
}

/* Top pairs of the matrices that have one here; a replay leaves no duplicates. */
static void top_pairs_are_stored(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    const maps_matrix *m = &maps_matrices(r.maps)[1];
    for (int replay = 0; replay < 2; replay++) {
        store_record record = {.kind = STORE_SNAPSHOT, .snapshot = {.step = 10, .status = "done"}};
        int64_t count = maps_pair_count(r.maps);
        record.snapshot.rows = malloc((size_t)maps_count(r.maps) * sizeof(spectrum));
        record.snapshot.pairs = malloc((size_t)count * sizeof(float));
        for (int i = 0; i < maps_count(r.maps); i++) spectrum_clear(&record.snapshot.rows[i], SPECTRUM_STATUS_ok);
        for (int64_t i = 0; i < count; i++) record.snapshot.pairs[i] = NAN;
        for (int i = 0; i < m->left + m->right; i++) record.snapshot.pairs[m->first_pair + i] = (float)i + 1;
        store_add(r.store, &record);
        check_status(store_flush(r.store), STATUS_OK);
    }
    close_run(&r);
    check_sql("SELECT count(*) FROM vectors", 1);
    check_sql("SELECT count(*) FROM vectors JOIN matrices USING(matrix_id) WHERE form = 'score' AND scope = 'head' AND "
              "layer = 0 AND head = 1 AND length(u) = 4 * 24 AND length(v) = 4 * 24",
              1);
    /* 1 and 25 as little-endian fp32 */
    check_sql("SELECT hex(substr(u, 1, 4)) = '0000803F' AND hex(substr(v, 1, 4)) = '0000C841' FROM vectors", 1);
}

/* Matrix ids follow the list: (form, part, scope, layer, head). */
static void ids_are_in_order(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    close_run(&r);
    check_sql("SELECT count(*) FROM matrices a JOIN matrices b ON b.matrix_id = a.matrix_id + 1"
              " WHERE a.form = b.form AND a.scope = b.scope AND a.form <> 'weight' AND (a.layer, a.head) >= (b.layer, "
              "b.head)",
              0);
    check_sql("SELECT form = 'score' AND scope = 'head' AND layer = 0 AND head = 0 FROM matrices WHERE matrix_id = 1",
              1);
}

/* The median and the maximum over heads, by SQL from the heads' own rows. */
static void layer_rows_are_over_the_heads(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    add_snapshot(&r, 0, false, 4);
    close_run(&r);
    const char heads[] =
        "FROM v_spectra v WHERE v.form = l.form AND v.part = l.part AND v.scope = 'head' AND v.layer = l.layer";
    char sql[800];
    snprintf(sql, sizeof(sql),
             "SELECT count(*) FROM layer_spectra l WHERE stat = 'max' AND stable_rank = (SELECT max(stable_rank) %s)",
             heads);
    check_sql(sql, 2 * LAYERS);
    snprintf(sql, sizeof(sql),
             "SELECT count(*) FROM layer_spectra l WHERE stat = 'median' AND stable_rank ="
             " (SELECT stable_rank %s ORDER BY stable_rank LIMIT 1 OFFSET 1)",
             heads);
    check_sql(sql, 2 * LAYERS);
    check_sql("SELECT count(*) FROM layer_spectra l JOIN v_spectra v ON v.scope = 'layer' AND v.layer = l.layer"
              " WHERE l.stat = 'layer' AND l.lambda_max = v.lambda_max AND l.effective_rank = v.effective_rank AND "
              "v.form = 'score'",
              LAYERS);
    check_sql("SELECT count(*) FROM layer_spectra WHERE form = 'weight'", 0);
}

/* What comes twice is there once, with the later value; another session keeps run, ids and rows. */
static void replays_leave_no_duplicates(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    add_step(&r, 1, 5);
    add_step(&r, 2, 4);
    add_snapshot(&r, 2, true, 1);
    close_run(&r); /* without a finish record */
    check_sql("SELECT count(*) FROM runs WHERE status = 'failed'", 1);
    double before = rundb_number("SELECT sum(lambda_max) FROM spectra"),
           rows = rundb_number("SELECT count(*) FROM spectra");
    check_status(open_run(&r), STATUS_OK);
    add_step(&r, 2, 3);
    add_snapshot(&r, 2, true, 2);
    finish(&r);
    close_run(&r);
    check_sql("SELECT count(*) FROM runs", 1);
    check_sql("SELECT count(*) FROM sessions", 2);
    check_sql("SELECT count(*) FROM snapshots", 1);
    check_sql("SELECT count(*) FROM spectra", rows);
    check_sql("SELECT max(matrix_id) - count(*) FROM matrices", 0);
    check_sql("SELECT count(*) FROM train_metrics", 2);
    check_sql("SELECT loss FROM train_metrics WHERE step = 2", 3);
    assert_true(rundb_number("SELECT sum(lambda_max) FROM spectra") != before);
    before = rundb_number("SELECT sum(lambda_max) FROM spectra");
    check_status(open_run(&r), STATUS_OK);
    add_snapshot(&r, 2, true, 2);
    close_run(&r);
    check_sql("SELECT sum(lambda_max) FROM spectra", before);
}

static void not_a_number_becomes_null(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    add_step(&r, 1, NAN);
    add_step(&r, 2, INFINITY);
    snapshot s = {0};
    snapshot_fill(&s, &r.config, 1);
    s.tensors[1].data[0] = NAN;
    store_record record = {.kind = STORE_SNAPSHOT, .snapshot = {.step = 2, .status = "done"}};
    record.snapshot.rows = malloc((size_t)maps_count(r.maps) * sizeof(spectrum));
    record.snapshot.values = malloc((size_t)maps_value_count(r.maps) * sizeof(double));
    check_status(maps_compute(r.maps, &s, record.snapshot.rows, record.snapshot.values), STATUS_OK);
    store_add(r.store, &record);
    snapshot_free(&s);
    int matrices = maps_count(r.maps);
    close_run(&r);
    check_sql("SELECT count(*) FROM train_metrics WHERE loss IS NULL", 2);
    check_sql("SELECT count(*) FROM spectra", matrices);
    check_sql("SELECT count(*) FROM spectra WHERE status = 'nonfinite' AND lambda_max IS NULL AND stable_rank IS NULL",
              4);
    check_sql("SELECT count(*) FROM esd", matrices - 4);
}

/* A reader sees whole snapshots only, all the time, and does not stop the writer. */
static void readers_are_welcome(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    int matrices = maps_count(r.maps);
    sqlite3 *reader = rundb_open(SQLITE_OPEN_READONLY);
    sqlite3_stmt *q = NULL;
    assert_int_equal(sqlite3_prepare_v2(reader, "SELECT count(*) FROM spectra", -1, &q, NULL), SQLITE_OK);
    for (int step = 1; step <= 3; step++) {
        add_snapshot(&r, step, false, (uint64_t)step);
        assert_int_equal(sqlite3_step(q), SQLITE_ROW); /* an open read transaction while the writer commits */
        assert_int_equal(sqlite3_column_int(q, 0), (step - 1) * matrices);
        if (store_is_cheap(r.store)) check_status(store_flush(r.store), STATUS_OK);
        sqlite3_reset(q);
        check_status(store_flush(r.store), STATUS_OK);
    }
    sqlite3_finalize(q);
    sqlite3_close(reader);
    close_run(&r);
    assert_int_equal(rundb_files(), 1);
}

static void a_locked_database_is_refused(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    close_run(&r);
    sqlite3 *other = rundb_open(SQLITE_OPEN_READWRITE);
    assert_int_equal(sqlite3_exec(other, "BEGIN EXCLUSIVE", NULL, NULL, NULL), SQLITE_OK);
    check_status(open_run(&r), STATUS_IO);
    assert_non_null(strstr(status_message(), "in use by another process"));
    maps_close(r.maps);
    sqlite3_close(other);
    status_clear();
    check_status(open_run(&r), STATUS_OK);
    close_run(&r);
}

/* Locked while the run goes on: the rows wait, arrive with the next transaction, and an event tells. */
static void a_lock_on_the_way_only_delays(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    sqlite3 *other = rundb_open(SQLITE_OPEN_READWRITE);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    add_step(&r, 1, 5);
    add_snapshot(&r, 1, false, 1);
    check_status(store_flush(r.store), STATUS_IO);
    status_clear();
    add_step(&r, 2, 4);
    check_status(store_flush(r.store), STATUS_IO);
    status_clear();
    assert_int_equal(store_waiting(r.store), 4); /* three records and one event */
    sqlite3_exec(other, "ROLLBACK", NULL, NULL, NULL);
    sqlite3_close(other);
    check_status(store_flush(r.store), STATUS_OK);
    assert_int_equal(store_waiting(r.store), 0);
    finish(&r);
    close_run(&r);
    check_sql("SELECT count(*) FROM train_metrics", 2);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'done'", 1);
    check_sql("SELECT count(*) FROM events WHERE kind = 'fault' AND message LIKE '%database is locked%'", 1);
}

/* ---- a file system that fails: what SQLite calls to write ---- */

static struct {
    int error;             /* 0: all is well */
    off_t capacity_bytes;  /* of all the run's files */
    int64_t bytes_to_live; /* of a process that is killed in the middle of the write that goes beyond them */
    ssize_t (*real)(int, const void *, size_t, off_t);
} disk = {.bytes_to_live = INT64_MAX};

static ssize_t faulty_write(int file, const void *data, size_t bytes, off_t at) {
    struct stat info = {0};
    fstat(file, &info);
    off_t growth = at + (off_t)bytes - info.st_size;
    if (disk.error != 0 && growth > 0 && rundb_bytes() + growth > disk.capacity_bytes) {
        errno = disk.error;
        return -1;
    }
    if ((disk.bytes_to_live -= (int64_t)bytes) >= 0) return disk.real(file, data, bytes, at);
    disk.real(file, data, bytes / 2, at);
    _exit(0);
}

static void use_faulty_disk(void) {
    sqlite3_vfs *files = sqlite3_vfs_find(NULL);
    for (int i = 0; i < 2; i++) { /* which of the two SQLite was built with */
        const char *name = i ? "pwrite64" : "pwrite";
        sqlite3_syscall_ptr now = files->xGetSystemCall(files, name);
        if (!now || now == (sqlite3_syscall_ptr)faulty_write) continue;
        disk.real = (ssize_t(*)(int, const void *, size_t, off_t))now;
        assert_int_equal(files->xSetSystemCall(files, name, (sqlite3_syscall_ptr)faulty_write), SQLITE_OK);
    }
}

/* From now on the run's files grow by no more than that; error 0: they do again. */
static void fail_writes(int error, off_t room_bytes) {
    use_faulty_disk();
    disk.error = error;
    disk.capacity_bytes = rundb_bytes() + room_bytes;
}

static int mended_teardown(void **state) {
    disk.error = 0;
    return rundb_teardown(state);
}

static void check_integrity(void) {
    check_sql("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'", 1);
}

/* And no snapshot that is done lacks a row. */
static void check_whole(void) {
    check_integrity();
    check_sql("SELECT count(*) FROM snapshots s WHERE status = 'done' AND (SELECT count(*) FROM matrices) <>"
              " (SELECT count(*) FROM spectra WHERE snapshot_id = s.snapshot_id)",
              0);
}

/* Full, read-only, over quota, broken: the records wait, one event tells, and all of it arrives later. */
static void a_failing_disk_only_delays(void **state) {
    static const int errors[] = {ENOSPC, EROFS, EDQUOT, EIO};
    for (int i = 0; i < 4; i++) {
        run r;
        check_status(open_run(&r), STATUS_OK);
        add_step(&r, 1, 5);
        check_status(store_flush(r.store), STATUS_OK);
        for (int step = 1; step <= 3; step++) add_snapshot(&r, step, true, (uint64_t)step);
        add_step(&r, 2, 4);
        fail_writes(errors[i], 3000);
        for (int k = 0; k < 2; k++) {
            assert_int_equal(store_flush(r.store), STATUS_IO);
            status_clear();
        }
        assert_int_equal(store_waiting(r.store), 5); /* and one event */
        fail_writes(0, 0);
        check_sql("SELECT count(*) FROM train_metrics", 1);
        int matrices = maps_count(r.maps);
        close_run(&r);
        check_whole();
        check_sql("SELECT count(*) FROM train_metrics", 2);
        check_sql("SELECT last_step FROM sessions", 2);
        check_sql("SELECT count(*) FROM spectra", 3 * matrices);
        check_sql("SELECT count(*) FROM events WHERE kind = 'fault'", 1);
        unlink(rundb_path);
    }
}

/* Much that waits is written in parts: what fits is there and no longer waits. */
static void a_disk_with_some_room_takes_some(void **state) {
    enum { SNAPSHOTS = 60 };
    run r;
    check_status(open_run(&r), STATUS_OK);
    for (int step = 1; step <= SNAPSHOTS; step++) add_snapshot(&r, step, true, (uint64_t)step);
    add_step(&r, SNAPSHOTS, 4);
    fail_writes(ENOSPC, 500000);
    check_status(store_flush(r.store), STATUS_IO);
    status_clear();
    fail_writes(0, 0);
    int waits = store_waiting(r.store);
    assert_in_range(waits, 2, SNAPSHOTS);
    check_sql("SELECT count(*) FROM snapshots", SNAPSHOTS + 2 - waits); /* 1 step and 1 event wait */
    check_sql("SELECT count(*) FROM train_metrics", 0);
    check_sql("SELECT last_step IS NULL FROM sessions", 1);
    close_run(&r);
    check_whole();
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'done'", SNAPSHOTS);
}

/* A disk that stays full to the end: the small things are written, the spectra are counted as lost. */
static void a_disk_that_stays_full_keeps_the_losses(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    close_run(&r); /* the tables are there: what is written from here on is rows */
    check_status(open_run(&r), STATUS_OK);
    for (int step = 1; step <= 8; step++) {
        add_step(&r, step, 5);
        add_snapshot(&r, step, true, (uint64_t)step);
    }
    finish(&r);
    fail_writes(ENOSPC, 14000); /* two pages in the log, no spectra */
    assert_int_equal(store_close(r.store), STATUS_IO);
    assert_non_null(strstr(status_message(), "records were lost"));
    fail_writes(0, 0);
    status_clear();
    maps_close(r.maps);
    check_whole();
    check_sql("SELECT count(*) FROM train_metrics", 8);
    check_sql("SELECT count(*) FROM snapshots", 8);
    assert_true(rundb_number("SELECT count(*) FROM snapshots WHERE status = 'failed'") > 0);
    check_sql("SELECT count(*) FROM runs WHERE status = 'finished'", 1);
    check_sql("SELECT count(*) FROM events WHERE kind = 'fault'", 1);
}

/* Killed in the middle of any of its writes: the file is whole, its snapshots are whole, and the next session goes on.
 */
static void check_killed(void) {
    int lives = 0;
    for (int64_t room = 0; lives == 0; room = 2 * room + 7000) {
        pid_t child = fork();
        if (child == 0) {
            run r;
            check_status(open_run(&r), STATUS_OK);
            use_faulty_disk();
            disk.bytes_to_live = room;
            for (int step = 1; step <= 8; step++) {
                add_step(&r, step, 5);
                add_snapshot(&r, step, true, (uint64_t)step);
                store_flush(r.store);
            }
            finish(&r);
            store_close(r.store);
            _exit(1);
        }
        int code = 0;
        assert_int_equal(waitpid(child, &code, 0), child);
        lives = WIFEXITED(code) && WEXITSTATUS(code) == 1;
        check_whole();
        run r;
        check_status(open_run(&r), STATUS_OK);
        add_step(&r, 12, 5);
        add_snapshot(&r, 12, true, 12);
        close_run(&r);
        check_whole();
        check_sql("SELECT count(*) FROM sessions", 2);
        assert_int_equal(rundb_files(), 1);
        unlink(rundb_path);
    }
}

static void killed_in_mid_write(void **state) {
    check_killed();
}

static void *no_mapping(void *at, size_t bytes, int protection, int flags, int file, off_t offset) {
    errno = ENODEV;
    return MAP_FAILED;
}

/* A file system that cannot share memory, as network file systems: the probe finds out, and a journal takes over, with
 * the same rows and the same safety. Writes to it cost a disk flush. */
static void without_shared_memory_there_is_a_journal(void **state) {
    sqlite3_vfs *files = sqlite3_vfs_find(NULL);
    assert_int_equal(files->xSetSystemCall(files, "mmap", (sqlite3_syscall_ptr)no_mapping), SQLITE_OK);
    run r;
    check_status(open_run(&r), STATUS_OK);
    assert_false(store_is_cheap(r.store));
    add_step(&r, 1, 5);
    add_snapshot(&r, 1, true, 1);
    check_status(store_flush(r.store), STATUS_OK);
    check_sql("SELECT count(*) FROM pragma_journal_mode WHERE journal_mode = 'delete'", 1);
    check_whole();
    close_run(&r);
    check_sql("SELECT count(*) FROM train_metrics", 1);
    assert_int_equal(rundb_files(), 1);
    unlink(rundb_path);
    check_killed();
    assert_int_equal(files->xSetSystemCall(files, "mmap", NULL), SQLITE_OK);
}

/* What the database will never take does not hold up the rest, and is told at the end. */
static void a_refused_record_is_dropped_and_told(void **state) {
    run r;
    check_status(open_run(&r), STATUS_OK);
    sqlite3 *other = rundb_open(SQLITE_OPEN_READWRITE);
    sqlite3_exec(other, "CREATE TRIGGER refuse BEFORE INSERT ON train_metrics BEGIN SELECT raise(ABORT, 'no'); END",
                 NULL, NULL, NULL);
    sqlite3_close(other);
    add_step(&r, 1, 5);
    add_snapshot(&r, 1, false, 1);
    check_status(store_flush(r.store), STATUS_OK);
    assert_int_equal(store_waiting(r.store), 0);
    assert_int_equal(store_close(r.store), STATUS_IO);
    status_clear();
    maps_close(r.maps);
    check_sql("SELECT count(*) FROM train_metrics", 0);
    check_sql("SELECT count(*) FROM snapshots", 1);
}

static void foreign_files_are_left_alone(void **state) {
    run r;
    FILE *f = fopen(rundb_path, "w");
    for (int i = 0; i < 2000; i++) fputs("no database ", f);
    fclose(f);
    check_status(open_run(&r), STATUS_DATA);
    maps_close(r.maps);
    status_clear();
    struct stat info;
    assert_int_equal(stat(rundb_path, &info), 0);
    assert_int_equal(info.st_size, 24000);
    unlink(rundb_path);
    sqlite3 *other = rundb_open(SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE);
    sqlite3_exec(other, "CREATE TABLE people(name)", NULL, NULL, NULL);
    sqlite3_close(other);
    check_status(open_run(&r), STATUS_DATA);
    maps_close(r.maps);
    check_sql("SELECT count(*) FROM sqlite_schema", 1);
}

/* A file by version 1 is brought up to date, with all its rows, when a session opens it; a newer one is left alone. */
static void older_files_are_upgraded(void **state) {
    run r;
    rundb_load(RUNDB_1);
    check_sql("SELECT value FROM meta WHERE key = 'schema_version'", 1);
    check_status(open_run(&r), STATUS_OK);
    add_snapshot(&r, 4, false, 1);
    close_run(&r);
    check_sql("SELECT value FROM meta WHERE key = 'schema_version'", SCHEMA_VERSION);
    check_sql("SELECT count(*) FROM v_spectra WHERE step < 4 AND lambda_max > 0 AND status = 'ok'", 4);
    check_sql("SELECT count(*) FROM layer_spectra WHERE step < 4 AND effective_rank > 0", 4);
    check_sql("SELECT count(*) FROM runs WHERE uuid = 'aec35e81-e938-48ae-b21e-1ef9b9545bd4'", 1);
    check_sql("SELECT count(*) FROM sessions", 2);
    check_integrity();
    rundb_change("UPDATE meta SET value = '99'; DROP VIEW v_metrics");
    double objects = rundb_number("SELECT count(*) FROM sqlite_schema");
    check_status(open_run(&r), STATUS_DATA);
    assert_non_null(strstr(status_message(), "newer version"));
    maps_close(r.maps);
    check_sql("SELECT count(*) FROM sqlite_schema", objects);
}

/* What a version lacked is there afterwards: a column as NULL, a table, today's views. */
static void an_upgrade_adds_what_is_missing(void **state) {
    run r;
    rundb_load(RUNDB_1);
    rundb_change("DROP VIEW v_spectra; DROP VIEW v_layer_step; DROP VIEW v_variant_compare; DROP TABLE vectors;"
                 "ALTER TABLE spectra DROP COLUMN null_ratio; ALTER TABLE layer_spectra DROP COLUMN alpha;"
                 "CREATE VIEW v_spectra AS SELECT 1 AS old");
    check_status(open_run(&r), STATUS_OK);
    close_run(&r);
    check_sql("SELECT count(*) FROM v_spectra WHERE null_ratio IS NULL AND null_query_ratio IS NULL AND lambda_max > 0",
              4);
    check_sql("SELECT count(*) FROM v_layer_step WHERE alpha IS NULL AND effective_rank > 0", 4);
    check_sql("SELECT count(*) FROM vectors", 0);
    check_integrity();
}

static void a_missing_folder_is_an_error(void **state) {
    run r;
    snprintf(rundb_path, sizeof(rundb_path), "%s/no/run.db", rundb_folder);
    check_status(open_run(&r), STATUS_IO);
    maps_close(r.maps);
    assert_int_equal(rundb_files(), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(a_run_leaves_its_rows, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(top_pairs_are_stored, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(ids_are_in_order, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(layer_rows_are_over_the_heads, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(replays_leave_no_duplicates, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(not_a_number_becomes_null, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(readers_are_welcome, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_locked_database_is_refused, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_lock_on_the_way_only_delays, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_failing_disk_only_delays, rundb_setup, mended_teardown),
    cmocka_unit_test_setup_teardown(a_disk_with_some_room_takes_some, rundb_setup, mended_teardown),
    cmocka_unit_test_setup_teardown(a_disk_that_stays_full_keeps_the_losses, rundb_setup, mended_teardown),
    cmocka_unit_test_setup_teardown(killed_in_mid_write, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(without_shared_memory_there_is_a_journal, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_refused_record_is_dropped_and_told, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(foreign_files_are_left_alone, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(older_files_are_upgraded, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(an_upgrade_adds_what_is_missing, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_missing_folder_is_an_error, rundb_setup, rundb_teardown),
};

TEST_MAIN(tests)
