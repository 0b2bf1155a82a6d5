/* The steps of a job and what the compute ranks agree on between them: checkpoints, an early end. */
#include "trainer/job.h"

#include "core/clock.h"
#include "core/log.h"
#include "trainer/events.h"
#include "trainer/signals.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

/* What every rank knows goes in, what any of them knew comes out; a checkpoint moves on by it. Whether one is still on
 * its way. */
static bool agree(job *j, agreement *a) {
    j->requests |= j->records ? channel_take_requests(j->records) : 0;
    *a = (agreement){
        .signal = signals_asked(), .stop = j->requests & CHANNEL_STOP, .save = j->requests & CHANNEL_CHECKPOINT};
    checkpoint_tell(j->writer, a);
    if (agreement_make(&j->all, a) != STATUS_OK) {
        log_error("step %ld: %s", (long)j->state.step, status_message());
        comm_abort(STATUS_INTERNAL);
    }
    bool moved = checkpoint_settle(j->writer, a);
    return a->writing || moved;
}

static void wait_for_checkpoint(job *j) {
    agreement a;
    while (agree(j, &a)) nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
}

/* The state behind the last step. One checkpoint at a time. */
static status save(job *j) {
    const diag_checkpoint record = {.step = j->state.step};
    TRY(job_settle(j));
    profiling_pause(j);
    wait_for_checkpoint(j);
    record_post(j->records, DIAG_CHECKPOINT, j->state.step, &record, sizeof record);
    checkpoint_begin(j->writer, &j->state);
    j->requests &= ~CHANNEL_CHECKPOINT;
    j->saved_step = j->state.step;
    profiling_resume(j);
    return STATUS_OK;
}

/* The end that an alert asked for: as at the last step, with a validation. */
static status stop(job *j) {
    int64_t number = j->state.step, every = j->c.train.eval_every;
    j->stopped = true;
    j->last_step = number;
    TRY(job_settle(j));
    if (j->validates && !(every && number % every == 0)) job_validate(j, number);
    event_post(j->records, number, "warn", "stop", "an alert asked for the end of the run");
    if (j->roles.compute_rank == 0)
        log_warn("an alert asked for the end of the run: it ends after step %ld", (long)number);
    return STATUS_OK;
}

static void interrupt(job *j, int signal) {
    j->signal = signal;
    event_post(j->records, j->state.step, "warn", "signal",
               "%s asked for the end of this session: a checkpoint is made", strsignal(signal));
    if (j->roles.compute_rank == 0)
        log_warn("%s: the run ends behind step %ld with a checkpoint", strsignal(signal), (long)j->state.step);
}

static status after_step(job *j) {
    int64_t number = j->state.step, every = j->c.checkpoint.every;
    agreement a;
    agree(j, &a);
    if (a.stop && number < j->last_step) TRY(stop(j));
    if (a.signal && number < j->last_step) interrupt(j, a.signal);
    if (j->signal || a.save || number == j->last_step || (every && number % every == 0)) return save(j);
    return STATUS_OK;
}

static void tell_end_of_data(const job *j) {
    int64_t number = j->state.step;
    if (number >= j->c.train.steps || j->stopped || j->signal) return;
    event_post(j->records, number, "warn", "data",
               "the data ends after step %ld of %ld (data.repeat: false); training stops there", (long)number,
               (long)j->c.train.steps);
    if (j->roles.compute_rank == 0)
        log_warn("the data ends after step %ld of %ld (data.repeat: false); training stops there", (long)number,
                 (long)j->c.train.steps);
}

static void post_finish(const job *j, status s) {
    const char *how = "finished";
    bool all_made = j->state.step >= j->last_step;
    if (j->stopped) how = "stopped";
    if (s == STATUS_RESTART) how = "interrupted";
    /* A run that lacks nothing but its last checkpoint has come to its end. */
    if (s != STATUS_OK && s != STATUS_RESTART && !(s == STATUS_IO && all_made)) how = "failed";
    diag_finish finish = {.last_step = j->state.step, .exit_code = s};
    snprintf(finish.status, sizeof finish.status, "%s", how);
    record_post(j->records, DIAG_FINISH, j->state.step, &finish, sizeof finish);
}

status job_loop(job *j) {
    status s = STATUS_OK;
    const comm_group *const groups[] = {&j->tp, &j->dp, &j->all};
    TRY(comm_watch(&j->watchdog, groups, 3, COMM_COLLECTIVE_PATIENCE_S + j->roles.turn * COMM_TURN_S));
    j->started_s = clock_now_s();
    resume_tell(&j->resume, j->records, j->first_step);
    if (!j->resume.reads) job_begin(j);
    if (j->resume.reads && j->saved_step < 0) s = save(j); /* from elsewhere: it can go on from here by itself now */
    while (s == STATUS_OK && j->state.step < j->last_step && !j->signal) {
        int64_t number = j->state.step + 1;
        comm_watch_step(j->watchdog, number);
        profiling_begin(j, number);
        s = job_step(j, number);
        if (s == STATUS_OK) s = after_step(j);
        profiling_end(j);
    }
    if (s == STATUS_OK) s = job_settle(j);
    profiling_finish(j);
    int64_t made = j->state.step - j->first_step;
    double seconds = clock_now_s() - j->started_s;
    j->tokens_per_s = (double)(made * j->c.train.global_batch * j->c.model.context) / seconds;
    if (s == STATUS_OK && j->saved_step != j->state.step) s = save(j); /* of a run without steps */
    wait_for_checkpoint(j);
    comm_unwatch(j->watchdog);
    if (s == STATUS_OK) tell_end_of_data(j);
    if (s == STATUS_OK) s = comm_agree(j->roles.compute, checkpoint_result(j->writer));
    if (s == STATUS_OK && j->signal)
        s = status_fail(STATUS_RESTART, "%s: stopped behind step %ld with a checkpoint; --resume auto goes on",
                        strsignal(j->signal), (long)j->state.step);
    post_finish(j, s);
    return s;
}
