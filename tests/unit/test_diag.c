/* The diagnostics service, message by message: records, whole and broken snapshots, and a service over a local channel.
 */
#include "check.h"
#include "diag/serve.h"
#include "rundb.h"
#include "snapshots.h"

enum { LAYERS = 2, HEADS = 2, WIDTH = 24, HEAD_DIM = 6, SENDERS = 2 };

static config test_config(void) {
    config c = diagnostics_config(VARIANT_MLA_DECOUPLED, LAYERS, HEADS, HEAD_DIM, WIDTH);
    c.diagnostics.esd_every = 20;
    return c;
}

static diag *open_diag(const config *c) {
    diag *d = NULL;
    check_status(diag_open(&d, c, rundb_folder, "cpu", SENDERS, 1, "here", -1), STATUS_OK);
    return d;
}

/* The share of one sender: every other tensor, starting with its own number. */
static channel_message make_share(const snapshot *s, int sender, int64_t step) {
    snapshot_piece pieces[64];
    int count = 0;
    for (int i = sender; i < s->count; i += SENDERS) {
        const snapshot_tensor *t = &s->tensors[i];
        pieces[count] = (snapshot_piece){.rows = t->rows, .cols = t->cols, .n_rows = t->rows, .n_cols = t->cols};
        memcpy(pieces[count++].name, t->name, sizeof(t->name));
    }
    channel_message m = {
        .kind = CHANNEL_SNAPSHOT, .sender = sender, .step = step, .bytes = snapshot_message_bytes(pieces, count)};
    m.data = malloc(m.bytes);
    float *values = snapshot_message_begin(m.data, pieces, count);
    for (int i = sender; i < s->count; i += SENDERS) {
        const snapshot_tensor *t = &s->tensors[i];
        memcpy(values, t->data, (size_t)(t->rows * t->cols) * sizeof(float));
        values += t->rows * t->cols;
    }
    return m;
}

/* Hands d, the diagnostics rank of that number, a share of noise of that step, `cut` bytes left off its end. Returns
 * the credits. */
static int send_share_to(diag *d, int rank, const config *c, int sender, int64_t step, size_t cut) {
    snapshot s = {0};
    snapshot_fill(&s, c, (uint64_t)step);
    snapshot_keep(&s, c, rank);
    channel_message m = make_share(&s, sender, step);
    m.bytes -= cut;
    int credits = diag_take(d, &m, SENDERS);
    free(m.data);
    snapshot_free(&s);
    return credits;
}

static int send_share(diag *d, const config *c, int sender, int64_t step, size_t cut) {
    return send_share_to(d, 0, c, sender, step, cut);
}

static void send_record(diag *d, int kind, const void *data, size_t bytes) {
    char copy[1024];
    memcpy(copy, data, bytes);
    channel_message m = {.kind = kind, .bytes = bytes, .data = copy};
    assert_int_equal(diag_take(d, &m, SENDERS), 0);
}

static void send_finish(diag *d) {
    diag_finish finish = {.last_step = 20, .status = "finished"};
    send_record(d, DIAG_FINISH, &finish, sizeof(finish));
}

static void shares_become_spectra(void **state) {
    config c = test_config();
    diag *d = open_diag(&c);
    assert_int_equal(send_share(d, &c, 0, 10, 0), 0);
    assert_int_equal(send_share(d, &c, 0, 20, 0), 0); /* one rank is a snapshot ahead */
    assert_int_equal(send_share(d, &c, 1, 10, 0), 1);
    assert_int_equal(send_share(d, &c, 1, 20, 0), 1);
    send_finish(d);
    check_status(diag_close(d), STATUS_OK);
    double matrices = rundb_number("SELECT count(*) FROM matrices");
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'done' AND tokens = step * 4 * 64 AND compute_ms > 0 AND "
              "lag_ms > 0",
              2);
    check_sql("SELECT count(*) FROM spectra WHERE status = 'ok'", 2 * matrices);
    check_sql("SELECT count(*) FROM esd JOIN snapshots USING(snapshot_id) WHERE step = 20", matrices);
    check_sql("SELECT count(*) FROM esd", matrices);
    check_sql("SELECT count(*) FROM vectors JOIN snapshots USING(snapshot_id) WHERE step = 20", matrices);
    check_sql("SELECT count(*) FROM vectors", matrices);
    check_sql("SELECT count(*) FROM spectra WHERE top_overlap IS NOT NULL", 0); /* no head has an onset */
    check_sql("SELECT count(*) FROM runs WHERE status = 'finished'", 1);
}

/* A lost, a damaged and a doubled share: an event, a failed snapshot, the credit back, and the next snapshot is well.
 */
static void broken_snapshots_do_not_stop_the_service(void **state) {
    config c = test_config();
    diag *d = open_diag(&c);
    assert_int_equal(send_share(d, &c, 0, 1, 4), 0);
    assert_int_equal(send_share(d, &c, 1, 1, 0), 1);
    assert_int_equal(send_share(d, &c, 0, 2, 0), 0);
    assert_int_equal(send_share(d, &c, 0, 2, 0), 1);
    assert_int_equal(send_share(d, &c, 0, 3, 0), 0); /* its other share never comes */
    assert_int_equal(send_share(d, &c, 0, 4, 0), 0);
    assert_int_equal(send_share(d, &c, 1, 4, 0), 1);
    assert_int_equal(diag_give_up(d, SENDERS), 1);
    assert_int_equal(diag_give_up(d, SENDERS), 0);
    send_finish(d);
    check_status(diag_close(d), STATUS_OK);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'failed' AND step IN (1, 2, 3)", 3);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'done' AND step = 4", 1);
    check_sql("SELECT count(*) FROM events WHERE kind = 'snapshot' AND step IN (1, 2, 3)", 3);
    check_sql("SELECT count(*) FROM events WHERE kind = 'snapshot' AND message LIKE '%refused%'", 2);
    check_sql("SELECT count(*) FROM events WHERE kind = 'fault' AND message LIKE 'rank 0%'", 2);
}

static void send_checkpoint(diag *d, int64_t step) {
    send_record(d, DIAG_CHECKPOINT, &step, sizeof(step));
}

/* Neither while a snapshot of its time is under way nor while rows wait for a database that others hold. */
static void a_checkpoint_is_confirmed_when_its_rows_are_in(void **state) {
    config c = test_config();
    diag *d = open_diag(&c);
    diag_step step = {.step = 1, .tokens = 256, .loss = 6};
    assert_int_equal(diag_confirmed(d), -1);
    send_checkpoint(d, 0);
    assert_int_equal(diag_confirmed(d), 0);
    assert_int_equal(send_share(d, &c, 0, 10, 0), 0);
    assert_int_equal(send_share(d, &c, 0, 20, 0), 0);
    send_checkpoint(d, 10);
    assert_int_equal(diag_confirmed(d), 0);
    assert_int_equal(send_share(d, &c, 1, 10, 0), 1);
    assert_int_equal(diag_confirmed(d), 10);
    check_sql("SELECT count(*) FROM snapshots", 1);
    sqlite3 *other = rundb_open(SQLITE_OPEN_READWRITE);
    assert_int_equal(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
    send_record(d, DIAG_STEP, &step, sizeof(step));
    send_checkpoint(d, 11);
    assert_int_equal(diag_confirmed(d), 10);
    sqlite3_close(other);
    send_checkpoint(d, 12);
    assert_int_equal(diag_confirmed(d), 12);
    check_sql("SELECT count(*) FROM train_metrics", 1);
    send_finish(d);
    check_status(diag_close(d), STATUS_OK);
}

/* More snapshots under way than there are credits: the oldest has lost a share. */
static void the_oldest_makes_room(void **state) {
    config c = test_config();
    diag *d = open_diag(&c);
    enum { LAST = CHANNEL_SNAPSHOT_CREDITS + 2 }; /* one more than there is room for */
    int credits = 0;
    for (int step = 1; step <= LAST; step++) credits += send_share(d, &c, 0, step, 0);
    assert_int_equal(credits, 1);
    credits += send_share(d, &c, 1, LAST, 0);
    assert_int_equal(credits, 2);
    assert_int_equal(diag_give_up(d, SENDERS), LAST - 2);
    check_status(diag_close(d), STATUS_OK);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'failed'", LAST - 1);
    check_sql("SELECT step FROM snapshots WHERE status = 'done'", LAST);
}

/* A model with other shapes than the configuration says. */
static void another_model_is_a_failed_snapshot(void **state) {
    config c = test_config(), other = test_config();
    other.model.width = WIDTH + 1;
    diag *d = open_diag(&c);
    assert_int_equal(send_share(d, &other, 0, 1, 0), 0);
    assert_int_equal(send_share(d, &other, 1, 1, 0), 1);
    check_status(diag_close(d), STATUS_OK);
    check_sql(
        "SELECT count(*) FROM events WHERE kind = 'snapshot' AND message LIKE '%layers.0.attention_norm is 1 x 25%'",
        1);
}

static void records_become_rows(void **state) {
    config c = test_config();
    diag *d = open_diag(&c);
    diag_step step = {.step = 1, .tokens = 256, .loss = 6, .mfu = NAN};
    diag_eval eval = {.step = 1, .tokens = 100, .loss = 2, .split = "validation"};
    diag_event event = {.step = 3, .level = "info", .kind = "drop"};
    memset(event.message, 'x', sizeof(event.message)); /* not terminated */
    send_record(d, DIAG_STEP, &step, sizeof(step));
    send_record(d, DIAG_EVAL, &eval, sizeof(eval));
    send_record(d, DIAG_EVENT, &event, sizeof(event));
    send_record(d, DIAG_STEP, &step, sizeof(step) - 1);
    send_record(d, 77, &step, sizeof(step));
    send_finish(d);
    check_status(diag_close(d), STATUS_OK);
    check_sql("SELECT count(*) FROM train_metrics WHERE loss = 6", 1);
    check_sql("SELECT count(*) FROM eval_metrics WHERE abs(perplexity - 7.38905609893065) < 1e-12", 1);
    check_sql("SELECT count(*) FROM snapshots WHERE step = 3 AND status = 'dropped'", 1);
    check_sql("SELECT length(message) FROM events WHERE kind = 'drop'", 511);
    check_sql("SELECT count(*) FROM events WHERE kind = 'fault'", 2);
}

/* What the database refuses to the end is told to whoever closes the service: a run must not look well without it. */
static void lost_records_are_an_error(void **state) {
    config c = test_config();
    diag *d = open_diag(&c);
    sqlite3 *other = rundb_open(SQLITE_OPEN_READWRITE);
    sqlite3_exec(other, "CREATE TRIGGER refuse BEFORE INSERT ON eval_metrics BEGIN SELECT raise(ABORT, 'no'); END",
                 NULL, NULL, NULL);
    sqlite3_close(other);
    diag_eval eval = {.step = 1, .tokens = 100, .loss = 2, .split = "validation"};
    send_record(d, DIAG_EVAL, &eval, sizeof(eval));
    send_finish(d);
    assert_int_equal(diag_close(d), STATUS_IO);
    assert_non_null(strstr(status_message(), "1 records were lost"));
    check_sql("SELECT count(*) FROM runs WHERE status = 'finished'", 1);
}

/* diag_serve over a channel in one process, as a run without diagnostics ranks has it: metrics, no spectra. */
static void a_local_channel_is_served(void **state) {
    config c = test_config();
    c.diagnostics.ranks = 0;
    channel_sender *sender;
    channel_receiver *receiver;
    check_status(channel_local_open(&sender, &receiver), STATUS_OK);
    diag *d = open_diag(&c);
    for (int i = 1; i <= 50; i++) {
        diag_step step = {.step = i, .tokens = 256 * i, .loss = 6.0 / i};
        check_status(channel_post(sender, DIAG_STEP, i, &step, sizeof(step)), STATUS_OK);
    }
    diag_checkpoint checkpoint = {.step = 50};
    check_status(channel_post(sender, DIAG_CHECKPOINT, 50, &checkpoint, sizeof(checkpoint)), STATUS_OK);
    diag_finish finish = {.last_step = 50, .status = "finished"};
    check_status(channel_post(sender, DIAG_FINISH, 50, &finish, sizeof(finish)), STATUS_OK);
    check_status(channel_sender_close(sender), STATUS_OK);
    check_status(diag_serve(d, receiver, 1), STATUS_OK);
    channel_receiver_close(receiver);
    assert_int_equal(diag_confirmed(d), 50);
    check_status(diag_close(d), STATUS_OK);
    check_sql("SELECT count(*) FROM train_metrics", 50);
    check_sql("SELECT count(*) FROM matrices", 0);
    check_sql("SELECT last_step FROM sessions", 50);
}

/* ---- two diagnostics ranks in one process: what the second sends through a local channel goes to the first ---- */

typedef struct two_ranks {
    config config;
    diag *first, *second;
    channel_sender *relay;
    channel_receiver *from_second;
} two_ranks;

static void open_two(two_ranks *t) {
    t->config = test_config();
    t->config.diagnostics.ranks = 2;
    check_status(channel_local_open(&t->relay, &t->from_second), STATUS_OK);
    t->first = open_diag(&t->config);
    check_status(diag_open_further(&t->second, &t->config, 1, t->relay), STATUS_OK);
}

/* Hands the first rank `count` messages of the second's, `cut` bytes left off their ends. Returns the credits. */
static int relay(two_ranks *t, int count, size_t cut) {
    int credits = 0;
    for (int i = 0; i < count; i++) {
        channel_message m;
        check_status(channel_receive(t->from_second, &m), STATUS_OK);
        m.sender = SENDERS;
        m.bytes -= cut;
        credits += diag_take(t->first, &m, SENDERS);
        channel_release(t->from_second, &m);
    }
    return credits;
}

static void close_two(two_ranks *t) {
    check_status(diag_close(t->second), STATUS_OK);
    check_status(channel_sender_close(t->relay), STATUS_OK);
    channel_receiver_close(t->from_second);
    send_finish(t->first);
    check_status(diag_close(t->first), STATUS_OK);
}

static void send_both_shares(diag *d, int rank, const config *c, int64_t step, int credits) {
    assert_int_equal(send_share_to(d, rank, c, 0, step, 0), 0);
    assert_int_equal(send_share_to(d, rank, c, 1, step, 0), credits);
}

/* Whoever is first, a snapshot is done when the spectra of both are there; both know what one alone computes. */
static void spectra_of_two_ranks_meet(void **state) {
    static const char *const digits = "SELECT sum(matrix_id * length(replace(hex(u) || hex(v), '3', ''))) FROM vectors";
    two_ranks t;
    config alone = test_config();
    diag *d = open_diag(&alone);
    send_both_shares(d, 0, &alone, 20, 1);
    check_status(diag_close(d), STATUS_OK);
    double matrices = rundb_number("SELECT count(*) FROM matrices");
    double sum = rundb_number("SELECT sum(lambda_max * matrix_id) FROM spectra"), of_pairs = rundb_number(digits);
    unlink(rundb_path);
    open_two(&t);
    send_both_shares(t.second, 1, &t.config, 10, 1);
    assert_int_equal(relay(&t, 1, 0), 0); /* before any share has come to the first */
    send_both_shares(t.first, 0, &t.config, 10, 1);
    send_both_shares(t.first, 0, &t.config, 20, 0);
    send_both_shares(t.second, 1, &t.config, 20, 1);
    assert_int_equal(relay(&t, 1, 0), 1);
    close_two(&t);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'done' AND compute_ms > 0", 2);
    check_sql("SELECT count(*) FROM spectra WHERE status = 'ok'", 2 * matrices);
    check_sql("SELECT count(*) FROM esd", matrices);
    check_sql("SELECT count(*) FROM vectors", matrices);
    check_sql(digits, of_pairs);
    check_sql("SELECT sum(lambda_max * matrix_id) FROM spectra JOIN snapshots USING(snapshot_id) WHERE step = 20", sum);
    check_sql("SELECT count(*) FROM events", 0);
}

/* A worker of a further rank that was started again does not know what its rank had sent. */
static void what_a_rank_sends_twice_counts_once(void **state) {
    two_ranks t;
    channel_message again;
    const diag_checkpoint checkpoint = {.step = 10};
    const channel_message saved = {
        .kind = DIAG_CHECKPOINT, .step = 10, .bytes = sizeof(checkpoint), .data = (void *)&checkpoint};
    open_two(&t);
    send_both_shares(t.second, 1, &t.config, 10, 1);
    check_status(channel_receive(t.from_second, &again), STATUS_OK);
    again.sender = SENDERS;
    assert_int_equal(diag_take(t.first, &again, SENDERS), 0);
    assert_int_equal(diag_take(t.first, &again, SENDERS), 0);
    assert_int_equal(rundb_number("SELECT count(*) FROM snapshots WHERE status = 'done'"), 0);
    send_both_shares(t.first, 0, &t.config, 10, 1);
    assert_int_equal(diag_take(t.first, &again, SENDERS), 0);
    channel_release(t.from_second, &again);
    diag_take(t.first, &saved, SENDERS);
    assert_int_equal(diag_confirmed(t.first), 10);
    close_two(&t);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'done'", 1);
    check_sql("SELECT count(*) FROM spectra WHERE status = 'ok'", rundb_number("SELECT count(*) FROM matrices"));
    check_sql("SELECT count(*) FROM events", 0);
}

/* What one of two ranks cannot do, damages or never sends: that snapshot is failed, with the reason, and no other. */
static void a_missing_half_is_a_failed_snapshot(void **state) {
    two_ranks t;
    open_two(&t);
    assert_int_equal(send_share_to(t.second, 1, &t.config, 0, 1, 0), 0);
    assert_int_equal(send_share_to(t.second, 1, &t.config, 1, 1, 4),
                     1); /* cut off: an event, and a part without spectra */
    send_both_shares(t.first, 0, &t.config, 1, 0);
    assert_int_equal(relay(&t, 2, 0), 1);
    send_both_shares(t.first, 0, &t.config, 2, 0);
    send_both_shares(t.second, 1, &t.config, 2, 1);
    assert_int_equal(relay(&t, 1, 8), 1);
    send_both_shares(t.first, 0, &t.config, 3, 0);
    send_both_shares(t.second, 1, &t.config, 3, 1);
    assert_int_equal(relay(&t, 1, 0), 1);
    send_both_shares(t.first, 0, &t.config, 4, 0); /* the second is gone */
    assert_int_equal(diag_give_up(t.first, SENDERS), 1);
    close_two(&t);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'failed' AND step IN (1, 2, 4)", 3);
    check_sql("SELECT count(*) FROM snapshots WHERE status = 'done' AND step = 3", 1);
    check_sql("SELECT count(*) FROM events WHERE kind = 'fault' AND step = 1 AND message LIKE 'rank 1%'", 1);
    check_sql("SELECT count(*) FROM events WHERE kind = 'snapshot' AND message LIKE '%rank 1: a share was refused'", 1);
    check_sql("SELECT count(*) FROM events WHERE kind = 'snapshot' AND step = 2 AND message LIKE '%bytes where%'", 1);
    check_sql("SELECT count(*) FROM events WHERE kind = 'snapshot' AND step = 4 AND message LIKE '%1 of 2%'", 1);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(shares_become_spectra, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(broken_snapshots_do_not_stop_the_service, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_checkpoint_is_confirmed_when_its_rows_are_in, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(the_oldest_makes_room, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(another_model_is_a_failed_snapshot, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(records_become_rows, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(lost_records_are_an_error, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(spectra_of_two_ranks_meet, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(what_a_rank_sends_twice_counts_once, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_missing_half_is_a_failed_snapshot, rundb_setup, rundb_teardown),
    cmocka_unit_test_setup_teardown(a_local_channel_is_served, rundb_setup, rundb_teardown),
};

TEST_MAIN(tests)
