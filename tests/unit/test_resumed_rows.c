/* A run's database across processes: cut at any snapshot, by a stop or a death, and taken up again, it becomes what it
 * is in one go, bit for bit. Each part of a run is a process of its own. */
#include "check.h"
#include "diag/serve.h"
#include "rundb.h"
#include "snapshots.h"

#include <sys/wait.h>

enum { LAYERS = 2, HEADS = 2, WIDTH = 64, HEAD_DIM = 16, SENDERS = 1, EVERY = 10, SNAPSHOTS = 7, PER_SNAPSHOT = 2 };
enum { LAST_STEP = EVERY * (SNAPSHOTS - 1) };

static char *rules[] = {"tw_score > 4 for 3 snapshots", "stable_rank of channel < 2"};
static char cache_folder[64];

static config test_config(int ranks) {
    config c = diagnostics_config(VARIANT_MLA_DECOUPLED, LAYERS, HEADS, HEAD_DIM, WIDTH);
    c.diagnostics.every = EVERY;
    c.diagnostics.esd_every = 3 * EVERY;
    c.diagnostics.null_draws = 8;
    c.diagnostics.ranks = ranks;
    c.diagnostics.alerts = (config_list){2, rules};
    c.train.steps = LAST_STEP;
    return c;
}

/* Weights that move a little from step to step, gains that move much. */
static void move(snapshot *s, const config *c, int64_t step) {
    snapshot other = {0};
    snapshot_fill(&other, c, (uint64_t)step + 100);
    for (int i = 0; i < s->count; i++)
        for (int64_t j = 0; j < s->tensors[i].rows * s->tensors[i].cols; j++) {
            float *x = &s->tensors[i].data[j], y = other.tensors[i].data[j];
            *x = s->tensors[i].rows == 1 ? y : *x + 0.3f * y;
        }
    snapshot_free(&other);
}

/* A spike that comes at the third snapshot into one head: its queries and keys look along one direction. */
static void plant(snapshot *s, int64_t step) {
    snapshot_tensor *q = (snapshot_tensor *)snapshot_find(s, "layers.1.attention.W_Q");
    snapshot_tensor *k = (snapshot_tensor *)snapshot_find(s, "layers.1.attention.W_UKV");
    if (step < 2 * EVERY) return;
    for (int64_t j = 0; j < q->cols; j++) q->data[j] += 0.3f;
    for (int64_t j = 0; j < k->cols; j++) k->data[j] += 0.4f;
}

/* The snapshot of that step for a diagnostics rank, from one sender. */
static channel_message make_message(const config *c, int rank, int64_t step) {
    snapshot s = {0};
    snapshot_piece pieces[64];
    snapshot_fill(&s, c, 7);
    move(&s, c, step);
    plant(&s, step);
    snapshot_keep(&s, c, rank);
    for (int i = 0; i < s.count; i++) {
        const snapshot_tensor *t = &s.tensors[i];
        pieces[i] = (snapshot_piece){.rows = t->rows, .cols = t->cols, .n_rows = t->rows, .n_cols = t->cols};
        memcpy(pieces[i].name, t->name, sizeof(t->name));
    }
    channel_message m = {.kind = CHANNEL_SNAPSHOT, .step = step, .bytes = snapshot_message_bytes(pieces, s.count)};
    m.data = malloc(m.bytes);
    float *values = snapshot_message_begin(m.data, pieces, s.count);
    for (int i = 0; i < s.count; i++) {
        const snapshot_tensor *t = &s.tensors[i];
        memcpy(values, t->data, (size_t)(t->rows * t->cols) * sizeof(float));
        values += t->rows * t->cols;
    }
    snapshot_free(&s);
    return m;
}

/* The diagnostics ranks of a run in one process. */
typedef struct group {
    config config;
    diag *first, *second; /* NULL: one alone */
    channel_sender *relay;
    channel_receiver *from_second;
    int64_t number;
} group;

static void open_ranks(group *r, int count, int64_t resume_step) {
    *r = (group){.config = test_config(count)};
    check_status(diag_open(&r->first, &r->config, rundb_folder, "cpu", SENDERS, 1, "here", resume_step), STATUS_OK);
    if (count == 1) return;
    check_status(channel_local_open(&r->relay, &r->from_second), STATUS_OK);
    check_status(diag_open_further(&r->second, &r->config, 1, r->relay), STATUS_OK);
}

static void take(group *r, int kind, int64_t step, const void *data, size_t bytes) {
    channel_message m = {.kind = kind, .step = step, .bytes = bytes, .data = (void *)data, .number = ++r->number};
    diag_take(r->first, &m, SENDERS);
}

static void take_snapshot(group *r, int64_t step) {
    channel_message m = make_message(&r->config, 0, step);
    m.number = ++r->number;
    diag_take(r->first, &m, SENDERS);
    free(m.data);
    if (r->second) {
        channel_message part, second = make_message(&r->config, 1, step);
        second.number = r->number;
        diag_take(r->second, &second, SENDERS);
        free(second.data);
        check_status(channel_receive(r->from_second, &part), STATUS_OK);
        part.sender = SENDERS;
        part.number = ++r->number;
        diag_take(r->first, &part, SENDERS);
        channel_release(r->from_second, &part);
    }
}

static void take_profile(group *r, int64_t step) {
    diag_profile record = {.step = step, .steps = 2, .ms = 10, .share = 0.5, .ratio = NAN, .phase = "mlp"};
    take(r, DIAG_PROFILE, step, &record, sizeof(record));
    memcpy(record.phase, "idle", sizeof("idle"));
    take(r, DIAG_PROFILE, step, &record, sizeof(record));
}

/* Steps (from, to], step 0 among them where from is -1; a checkpoint follows the last one. */
static void take_steps(group *r, int64_t from, int64_t to) {
    for (int64_t step = from + 1; step <= to; step++) {
        diag_step record = {.step = step, .tokens = 256 * step, .loss = 6.0 / (double)(1 + step), .mfu = NAN};
        diag_eval eval = {.step = step, .tokens = 100, .loss = 2, .split = "validation"};
        if (step > 0) take(r, DIAG_STEP, step, &record, sizeof(record));
        if (step % EVERY == 0) take_snapshot(r, step);
        if (step % EVERY == 0) take(r, DIAG_EVAL, step, &eval, sizeof(eval));
        if (step % EVERY == 0) take_profile(r, step);
    }
    diag_checkpoint checkpoint = {.step = to};
    take(r, DIAG_CHECKPOINT, to, &checkpoint, sizeof(checkpoint));
    assert_int_equal(diag_confirmed(r->first), to);
}

static void close_ranks(group *r) {
    check_status(diag_close(r->second), STATUS_OK);
    if (r->relay) {
        check_status(channel_sender_close(r->relay), STATUS_OK);
        channel_receiver_close(r->from_second);
    }
    check_status(diag_close(r->first), STATUS_OK);
}

static void finish(group *r) {
    diag_finish record = {.last_step = LAST_STEP, .status = "finished"};
    take(r, DIAG_FINISH, LAST_STEP, &record, sizeof(record));
    diag_end(r->first, SENDERS);
    close_ranks(r);
}

/* One process of a run: goes on behind `resume` (-1: the beginning, DIAG_AGAIN: where the last one died), up to `to`;
 * dies there without a word, stops, or comes to the end of the run. */
typedef struct part {
    int ranks;
    int64_t resume, from, to;
    enum { DIES, STOPS, FINISHES } how;
} part;

static void run_part(part p) {
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        group r;
        open_ranks(&r, p.ranks, p.resume);
        if (p.resume == DIAG_AGAIN) r.number = diag_recorded(r.first).number;
        take_steps(&r, p.from, p.to);
        if (p.how == STOPS) close_ranks(&r);
        if (p.how == FINISHES) finish(&r);
        _exit(0);
    }
    int how = 0;
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_int_equal(how, 0);
}

/* ---- what is in it ---- */

static const char *const tables[] = {"snapshots", "matrices",      "spectra",      "layer_spectra", "esd",    "vectors",
                                     "nulls",     "train_metrics", "eval_metrics", "gains",         "profile"};

/* All cells of all tables, but for times, as text. */
static char *dump(void) {
    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    sqlite3 *db = rundb_open(SQLITE_OPEN_READWRITE);
    for (size_t t = 0; t < sizeof(tables) / sizeof(*tables); t++) {
        char sql[200];
        sqlite3_stmt *q = NULL;
        snprintf(sql, sizeof(sql), "SELECT * FROM %s ORDER BY 1, 2, 3, 4", tables[t]);
        assert_int_equal(sqlite3_prepare_v2(db, sql, -1, &q, NULL), SQLITE_OK);
        while (sqlite3_step(q) == SQLITE_ROW) {
            fprintf(out, "%s", tables[t]);
            for (int i = 0; i < sqlite3_column_count(q); i++) {
                const char *name = sqlite3_column_name(q, i);
                if (strstr(name, "_ms") || strcmp(name, "tokens_per_s") == 0) continue;
                fprintf(out, " %s=", name);
                if (sqlite3_column_type(q, i) == SQLITE_FLOAT)
                    fprintf(out, "%a", sqlite3_column_double(q, i));
                else if (sqlite3_column_type(q, i) == SQLITE_BLOB)
                    for (int b = 0; b < sqlite3_column_bytes(q, i); b++)
                        fprintf(out, "%02x", ((const unsigned char *)sqlite3_column_blob(q, i))[b]);
                else if (sqlite3_column_type(q, i) != SQLITE_NULL)
                    fprintf(out, "%s", (const char *)sqlite3_column_text(q, i));
            }
            fprintf(out, "\n");
        }
        sqlite3_finalize(q);
    }
    sqlite3_close(db);
    fclose(out);
    return text;
}

/* The first line that differs. */
static void check_same(const char *got, const char *want, const char *when) {
    const char *a = got, *b = want;
    while (*a && *b) {
        size_t n = strcspn(a, "\n"), m = strcspn(b, "\n");
        if (n != m || memcmp(a, b, n) != 0) {
            size_t at = 0;
            while (at < n && at < m && a[at] == b[at]) at++;
            at = at > 100 ? at - 100 : 0;
            fail_msg("%s: %.40s ...%.200s\nwhere one run has\n%.40s ...%.200s", when, a, a + at, b, b + at);
        }
        a += n + (a[n] == '\n');
        b += m + (b[m] == '\n');
    }
    if (*a || *b) fail_msg("%s: there is a row more, %.100s", when, *a ? a : b);
}

static void remove_database(void) {
    unlink(rundb_path);
}

static int setup(void **state) {
    snprintf(cache_folder, sizeof(cache_folder), "/tmp/bulkhead-cache-XXXXXX");
    if (!mkdtemp(cache_folder)) return -1;
    setenv("BULKHEAD_CACHE", cache_folder, 1);
    return rundb_setup(state);
}

static int teardown(void **state) {
    char command[128];
    snprintf(command, sizeof(command), "rm -rf %s", cache_folder);
    return system(command) + rundb_teardown(state);
}

static const part whole = {1, -1, -1, LAST_STEP, FINISHES};

/* The dump of a run in one go, which has what the test is about. */
static char *reference(void) {
    run_part(whole); /* makes the ensembles, so that none is waited for where alerts and onsets are looked for */
    remove_database();
    run_part(whole);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'done'", SNAPSHOTS);
    check_sql("SELECT count(*) > 0 FROM spectra WHERE top_overlap > 0.5", 1);
    check_sql("SELECT count(*) > 0 FROM spectra WHERE tw_score_gains IS NOT NULL", 1);
    check_sql("SELECT count(DISTINCT step) > 2 FROM gains", 1);
    check_sql("SELECT count(*) > 0 FROM spectra WHERE null_query_ratio > 0", 1);
    check_sql("SELECT count(*) > 0 FROM events WHERE kind = 'alert' AND message LIKE '%for 3%' AND step = 40", 1);
    char *text = dump();
    remove_database();
    return text;
}

static void check_end(const char *want, const char *when, double attempts, double alerts) {
    char *got = dump();
    check_same(got, want, when);
    free(got);
    check_sql("SELECT count(*) FROM sessions", attempts);
    check_sql("SELECT count(*) FROM events WHERE kind = 'alert'", alerts);
    check_sql("SELECT count(*) FROM runs WHERE status = 'finished' AND ended_at IS NOT NULL", 1);
    remove_database();
}

/* A stop at a checkpoint, as a signal asks for it. */
static void check_stops(const char *want, int ranks, int64_t every) {
    char when[80];
    for (int64_t cut = 0; cut < LAST_STEP; cut += every) {
        snprintf(when, sizeof(when), "%d ranks, stopped at %lld", ranks, (long long)cut);
        run_part((part){ranks, -1, -1, cut, STOPS});
        run_part((part){ranks, cut, cut, LAST_STEP, FINISHES});
        check_end(want, when, 2, 2);
    }
}

static void a_run_goes_on_at_every_snapshot(void **state) {
    char *want = reference();
    check_stops(want, 1, EVERY);
    check_stops(want, 2, 2 * EVERY);
    free(want);
}

/* Nothing of a later step, whichever table. */
static void check_no_row_behind(int64_t step) {
    static const char *const of_snapshots[] = {"spectra", "esd", "vectors"}, *const of_steps[] = {
                                                                                 "snapshots",    "layer_spectra",
                                                                                 "gains",        "train_metrics",
                                                                                 "eval_metrics", "profile"};
    char sql[160];
    for (int i = 0; i < 3; i++) {
        snprintf(sql, sizeof(sql),
                 "SELECT count(*) FROM %s WHERE snapshot_id NOT IN (SELECT snapshot_id FROM snapshots)",
                 of_snapshots[i]);
        check_sql(sql, 0);
    }
    for (size_t i = 0; i < sizeof(of_steps) / sizeof(*of_steps); i++) {
        snprintf(sql, sizeof(sql), "SELECT count(*) FROM %s WHERE step > %lld", of_steps[i], (long long)step);
        check_sql(sql, 0);
    }
}

/* What a crash leaves behind the checkpoint is made again, not twice. Alerts of the time that was lost stay, and come
 * again. */
static void a_crash_leaves_no_row_twice(void **state) {
    char *want = reference(), *again;
    run_part((part){1, -1, -1, 4 * EVERY + 3, DIES});
    check_sql("SELECT count(*) FROM train_metrics", 4 * EVERY + 3);
    run_part((part){1, EVERY + 5, EVERY + 5, 2 * EVERY + 1, DIES});
    check_sql("SELECT count(*) FROM train_metrics", 2 * EVERY + 1);
    check_sql("SELECT count(*) FROM snapshots", 3);
    check_sql("SELECT count(*) > 0 FROM esd", 1);
    check_sql("SELECT count(*) = 2 * count(DISTINCT step) AND count(*) > 4 FROM profile", 1);
    check_no_row_behind(2 * EVERY + 1);
    run_part((part){1, 2 * EVERY, 2 * EVERY, LAST_STEP, FINISHES});
    check_sql("SELECT count(*) FROM train_metrics", LAST_STEP);
    check_sql("SELECT max(last_step) FROM sessions WHERE attempt = 1", 4 * EVERY + 3);
    again = dump();
    check_same(again, want, "after two crashes");
    free(again);
    check_end(want, "after two crashes", 3, 4);
    free(want);
}

/* Whoever writes the database dies and another goes on in the same session: nothing tells it from one. */
static void a_session_goes_on_after_a_death(void **state) {
    char *want = reference(), when[80];
    for (int64_t cut = EVERY; cut < LAST_STEP; cut += 2 * EVERY) {
        snprintf(when, sizeof(when), "died at %lld", (long long)cut);
        run_part((part){1, -1, -1, cut - 1, DIES});
        run_part((part){1, DIAG_AGAIN, cut - 1, cut + EVERY, DIES});
        run_part((part){1, DIAG_AGAIN, cut + EVERY, LAST_STEP, FINISHES});
        check_end(want, when, 1, 2);
    }
    free(want);
}

/* The numbers of messages go on, too: 0 to LAST_STEP are that many steps, snapshots, evaluations, and two checkpoints.
 */
static void messages_are_counted_through_a_death(void **state) {
    run_part((part){1, -1, -1, LAST_STEP - 3, DIES});
    check_sql("SELECT messages FROM sessions", LAST_STEP - 3 + 4 * (SNAPSHOTS - 1));
    run_part((part){1, DIAG_AGAIN, LAST_STEP - 3, LAST_STEP, FINISHES});
    check_sql("SELECT messages FROM sessions", LAST_STEP + 4 * SNAPSHOTS + 2);
    check_sql("SELECT first_step FROM sessions", 1);
    check_sql("SELECT last_step FROM sessions", LAST_STEP);
}

static void missing_rows_are_told(void **state) {
    run_part((part){1, EVERY, EVERY, 2 * EVERY, DIES}); /* there is no database */
    check_sql("SELECT count(*) FROM events WHERE kind = 'resume' AND message LIKE '%database is new%step 10'", 1);
    run_part((part){1, 3 * EVERY, 3 * EVERY, LAST_STEP, FINISHES});
    check_sql("SELECT count(*) FROM events WHERE attempt = 2 AND kind = 'resume' AND message LIKE '%steps 21 to 30 are "
              "missing%'",
              1);
    check_sql("SELECT count(*) FROM train_metrics", EVERY + LAST_STEP - 3 * EVERY);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(a_run_goes_on_at_every_snapshot, setup, teardown),
    cmocka_unit_test_setup_teardown(a_crash_leaves_no_row_twice, setup, teardown),
    cmocka_unit_test_setup_teardown(a_session_goes_on_after_a_death, setup, teardown),
    cmocka_unit_test_setup_teardown(messages_are_counted_through_a_death, setup, teardown),
    cmocka_unit_test_setup_teardown(missing_rows_are_told, setup, teardown),
};

TEST_MAIN(tests)
