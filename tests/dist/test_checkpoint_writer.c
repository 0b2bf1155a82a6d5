/* How a checkpoint comes about over all ranks: it waits for the database, but not for ever; what one rank cannot copy
 * or write makes none, on all ranks, and the next one is tried. What of a device fails, a table that says so shows. */
#include "same_run.h"

#include "core/clock.h"
#include "core/file.h"
#include "diag/diag.h"
#include "folder.h"
#include "trainer/checkpoint.h"

typedef struct fixture {
    run run;
    comm_roles roles;
    comm_group all;
    folder folder;              /* rank 0 makes it */
    channel_receiver *receiver; /* on rank 0: what the database would get */
    checkpoint_source source;
    checkpoint_writer *writer;
} fixture;

static bool first(void) {
    return world_rank() == 0;
}

static void share_folder(fixture *f) {
    if (first()) f->folder = folder_make();
    MPI_Bcast(f->folder.path, sizeof f->folder.path, MPI_CHAR, 0, MPI_COMM_WORLD);
    free(f->run.config.run.dir);
    f->run.config.run.dir = strdup(f->folder.path);
    assert_non_null(f->run.config.run.dir);
}

static void open_fixture(fixture *f, double patience_s) {
    static const char *const settings[] = {"attention.variant=mla-decoupled"};
    *f = (fixture){.folder.used = 0};
    open_run(&f->run, settings, 1, 1, 1);
    check_status(comm_roles_split(&f->roles, 1, 0, 0), STATUS_OK);
    check_status(comm_over_mpi(&f->all, MPI_COMM_WORLD), STATUS_OK);
    share_folder(f);
    f->source = (checkpoint_source){.config = &f->run.config,
                                    .run = "0123456789abcdef",
                                    .params = &f->run.model.params,
                                    .ops = &f->run.ops,
                                    .roles = &f->roles,
                                    .database_patience_s = patience_s};
    if (first()) check_status(channel_local_open(&f->source.records, &f->receiver), STATUS_OK);
    check_status(comm_agree(f->roles.world, checkpoint_writer_open(&f->writer, &f->source)), STATUS_OK);
}

/* From begin to end, as the training loop does it. */
static void make(fixture *f, int64_t step) {
    const checkpoint_state state = {.step = step, .updates = step, .loss = 3, .validation_loss = NAN};
    checkpoint_begin(f->writer, &state);
    checkpoint_fence(f->writer);
    for (bool moves = true; moves;) {
        agreement a = {0};
        checkpoint_tell(f->writer, &a);
        check_status(agreement_make(&f->all, &a), STATUS_OK);
        moves = checkpoint_settle(f->writer, &a) || a.writing;
    }
}

/* The events so far, as "warn checkpoint: text" lines. Only on rank 0. */
static void check_events(fixture *f, const char *want) {
    char got[2048] = "";
    check_status(channel_sender_close(f->source.records), STATUS_OK);
    for (;;) {
        channel_message m;
        diag_event e;
        check_status(channel_receive(f->receiver, &m), STATUS_OK);
        if (m.kind == CHANNEL_END) break;
        assert_int_equal(m.kind, DIAG_EVENT);
        memcpy(&e, m.data, sizeof e);
        size_t used = strlen(got);
        snprintf(got + used, sizeof got - used, "%s %s: %s\n", e.level, e.kind, e.message);
        channel_release(f->receiver, &m);
    }
    channel_receiver_close(f->receiver);
    assert_string_equal(got, want);
}

static void check_there(fixture *f, int64_t step, bool there) {
    char path[CHECKPOINT_PATH_BYTES];
    MPI_Barrier(MPI_COMM_WORLD);
    checkpoint_path(path, &f->run.config, step, true);
    assert_int_equal(file_exists(path), there);
    checkpoint_path(path, &f->run.config, step, false);
    assert_false(file_exists(path));
}

static void close_fixture(fixture *f) {
    checkpoint_writer_close(f->writer);
    MPI_Barrier(MPI_COMM_WORLD);
    if (first()) folder_remove(&f->folder);
    comm_close(&f->all);
    comm_roles_free(&f->roles);
    close_run(&f->run);
}

static void it_waits_for_the_database_but_not_for_ever(void **state) {
    fixture f;
    const double patience_s = 1;
    open_fixture(&f, patience_s);
    double start = clock_now_s();
    if (first()) channel_confirm(f.receiver, 0); /* an older step */
    make(&f, 1);
    assert_true(clock_now_s() - start >= patience_s);
    check_status(checkpoint_result(f.writer), STATUS_OK);
    check_there(&f, 1, true);
    if (first())
        check_events(&f, "warn checkpoint: the database was behind by more than 1 s\n"
                         "info checkpoint: step-00000001\n");
    close_fixture(&f);
}

/* The word of a later step does, too. */
static void it_appears_when_the_rows_are_in(void **state) {
    fixture f;
    open_fixture(&f, 1e9);
    if (first()) channel_confirm(f.receiver, 3);
    make(&f, 2);
    make(&f, 3);
    check_there(&f, 2, true);
    check_there(&f, 3, true);
    char *checkpoints = file_join(f.folder.path, "checkpoints");
    assert_int_equal(checkpoint_latest(checkpoints), 3);
    free(checkpoints);
    if (first()) check_events(&f, "info checkpoint: step-00000002\ninfo checkpoint: step-00000003\n");
    close_fixture(&f);
}

static status lost_copy(ops *o) {
    return status_fail(STATUS_INTERNAL, "a checkpoint: the device is lost");
}

/* The last rank's device fails: there is no checkpoint, the reason is told once, and the next one is made. */
static void a_copy_that_fails_makes_no_checkpoint(void **state) {
    fixture f;
    open_fixture(&f, 1e9);
    if (first()) channel_confirm(f.receiver, INT64_MAX);
    status (*const works)(ops * o) = f.run.ops.save_wait;
    if (world_rank() == world_size() - 1) f.run.ops.save_wait = lost_copy;
    make(&f, 4);
    check_status(checkpoint_result(f.writer), STATUS_INTERNAL);
    assert_non_null(strstr(status_message(), "the checkpoint of step 4 could not be written"));
    status_clear();
    check_there(&f, 4, false);
    f.run.ops.save_wait = works;
    make(&f, 5);
    check_status(checkpoint_result(f.writer), STATUS_OK);
    check_there(&f, 5, true);
    if (first())
        check_events(&f, "error checkpoint: not written: a checkpoint: the device is lost\n"
                         "info checkpoint: step-00000005\n");
    close_fixture(&f);
}

/* The file system fails one rank in the same way. */
static void a_shard_that_cannot_be_written_makes_no_checkpoint(void **state) {
    fixture f;
    char path[CHECKPOINT_PATH_BYTES], shard[CHECKPOINT_PATH_BYTES + 64];
    open_fixture(&f, 1e9);
    if (first()) channel_confirm(f.receiver, INT64_MAX);
    checkpoint_path(path, &f.run.config, 6, false);
    snprintf(shard, sizeof shard, "%s/rank-%05d.safetensors/in-the-way", path, world_size() - 1);
    if (first()) check_status(file_make_dirs(shard), STATUS_OK);
    MPI_Barrier(MPI_COMM_WORLD);
    make(&f, 6);
    check_status(checkpoint_result(f.writer), STATUS_IO);
    status_clear();
    checkpoint_path(path, &f.run.config, 6, true);
    assert_false(file_exists(path));
    make(&f, 7);
    check_status(checkpoint_result(f.writer), STATUS_OK);
    check_there(&f, 7, true);
    if (first()) check_status(channel_sender_close(f.source.records), STATUS_OK);
    if (first()) channel_receiver_close(f.receiver);
    close_fixture(&f);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(it_waits_for_the_database_but_not_for_ever),
    cmocka_unit_test(it_appears_when_the_rows_are_in),
    cmocka_unit_test(a_copy_that_fails_makes_no_checkpoint),
    cmocka_unit_test(a_shard_that_cannot_be_written_makes_no_checkpoint),
};

DIST_MAIN(tests)
