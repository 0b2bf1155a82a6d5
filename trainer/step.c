/* One step of a job: gradients, the update, and what is told of it. */
#include "trainer/job.h"

#include "core/clock.h"
#include "core/log.h"
#include "core/snapshot_steps.h"
#include "trainer/events.h"
#include "trainer/optimizer.h"
#include "trainer/schedule.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* With train.on_nan: skip, so many updates in a row may be left out: what does not recover by then will not. */
enum { MOST_LEFT_OUT = 10 };

/* ---------------------------------------------------------------- batches */

/* The next one to fill, once the device has what was in it. */
static token_batch *batch_take(job *j) {
    token_batch *b = &j->batch[j->batches++ % BATCHES];
    j->ops.mark_wait(&j->ops, &b->taken);
    return b;
}

/* Behind the work on it. */
static void batch_give(job *j, token_batch *b) {
    j->ops.mark(&j->ops, &b->taken, NULL);
}

/* ---------------------------------------------------------------- validation */

/* Windows [first, first + count) of d into the batch; the rest of the batch is filled with token 0. */
static void load_windows(const job *j, token_batch *b, const dataset *d, int64_t first, int64_t count) {
    int64_t context = j->c.model.context;
    memset(b->input, 0, (size_t)(j->micro_batch * context) * sizeof *b->input);
    memset(b->target, 0, (size_t)(j->micro_batch * context) * sizeof *b->target);
    for (int64_t i = 0; i < count; i++) dataset_window(d, first + i, b->input + i * context, b->target + i * context);
}

/* What a model that knows only the tokens' frequencies would reach: the line that a run must get under. */
static void post_unigram_entropy(job *j) {
    if (j->info.vocab == 0) return;
    const dataset_split *split = j->validates ? &j->info.validation : &j->info.train;
    diag_eval record = {.tokens = split->tokens, .loss = split->unigram_entropy_nats, .split = "unigram"};
    record_post(j->records, DIAG_EVAL, 0, &record, sizeof record);
}

/* Every token weighs the same. */
void job_validate(job *j, int64_t step) {
    int64_t context = j->c.model.context, windows = j->c.train.eval_tokens / context;
    profiling_pause(j);
    if (windows < 1) windows = 1;
    if (windows > j->validation.windows) windows = j->validation.windows;
    for (int64_t first = 0, batch = 0; first < windows; first += j->micro_batch, batch++) {
        if (batch % j->roles.dp != j->roles.dp_rank) continue;
        int64_t count = windows - first < j->micro_batch ? windows - first : j->micro_batch;
        token_batch *b = batch_take(j);
        load_windows(j, b, &j->validation, first, count);
        model_evaluate(&j->model, b->input, b->target, count);
        batch_give(j, b);
    }
    model_reduce_loss(&j->model);
    double sum = model_take_loss(&j->model);
    diag_eval record = {.step = step, .tokens = windows * context, .loss = sum / (double)(windows * context)};
    snprintf(record.split, sizeof record.split, "validation");
    record_post(j->records, DIAG_EVAL, step, &record, sizeof record);
    j->state.validation_loss = record.loss;
    if (j->roles.compute_rank == 0)
        log_info("step %ld: validation loss %.4f over %ld tokens", (long)step, record.loss, (long)record.tokens);
    profiling_resume(j);
}

/* ---------------------------------------------------------------- a step */

static void send_snapshot(job *j, int64_t step) {
    if (!snapshots_admitted(&j->c, &j->roles, j->sender, step)) {
        event_post(j->records, step, "info", "drop", "snapshot dropped: the diagnostics rank is behind");
        return;
    }
    profile_bytes(j->ops.profile, 2 * (double)j->snapshots.message_bytes); /* a copy */
    if (snapshots_send(&j->snapshots, j->sender, step) != STATUS_OK) {
        log_error("step %ld: snapshots end here: %s", (long)step, status_message());
        j->watches = false;
    }
}

static void snapshot_if_due(job *j, int64_t step) {
    if (!j->watches || !snapshot_steps_due(&j->c, step)) return;
    profile_phase before = profile_enter(j->ops.profile, PROFILE_SNAPSHOT);
    send_snapshot(j, step);
    profile_enter(j->ops.profile, before);
}

/* Loss and gradients of this rank's share of the step's samples: sample s of the global batch belongs to data-parallel
 * rank s / (global_batch / Q). */
static void accumulate(job *j, int64_t step) {
    int64_t context = j->c.model.context, share = j->c.train.global_batch / j->roles.dp;
    float scale = (float)(1.0 / (double)(j->c.train.global_batch * context));
    for (int64_t k = 0; k < j->accumulation; k++) {
        token_batch *b = batch_take(j);
        for (int64_t i = 0; i < j->micro_batch; i++) {
            int64_t sample = j->roles.dp_rank * share + k * j->micro_batch + i;
            dataset_window(&j->train, sampler_window(&j->sampler, step, sample), b->input + i * context,
                           b->target + i * context);
        }
        model_train(&j->model, b->input, b->target, scale, k == 0, k == j->accumulation - 1);
        batch_give(j, b);
    }
}

static void progress(const job *j, const diag_step *r) {
    if (j->roles.compute_rank != 0) return;
    bool due = r->step % j->c.train.log_every == 0 || r->step == 1 || r->step == j->last_step;
    int64_t left = j->last_step - r->step, made = r->step - j->first_step;
    double left_s = (double)left * (clock_now_s() - j->started_s) / (double)made;
    if (isatty(STDERR_FILENO) && !due)
        fprintf(stderr, "\rstep %ld/%ld  loss %.4f  %.0f tokens/s  %.0f s left\033[K", (long)r->step,
                (long)j->last_step, r->loss, r->tokens_per_s, left_s);
    if (due)
        log_info("%sstep %ld/%ld  loss %.4f  grad norm %.3f  lr %.2e  %.0f tokens/s  %.0f s left",
                 isatty(STDERR_FILENO) ? "\r\033[K" : "", (long)r->step, (long)j->last_step, r->loss, r->grad_norm,
                 r->lr, r->tokens_per_s, left_s);
}

/* A loss or gradient that is not finite: the update was left out on every rank; stop, or go on with the next step. */
static status not_finite(job *j, const diag_step *r, bool own_is_finite) {
    char message[256], who[128];
    TRY(agreement_who(&j->all, !own_is_finite, who, sizeof who));
    snprintf(message, sizeof message, "step %ld: loss %g, gradient norm %g: not finite on %s; the update is left out",
             (long)r->step, r->loss, r->grad_norm, who);
    event_post(j->records, r->step, "error", "nan", "%s", message);
    if (j->c.train.on_nan == ON_NAN_STOP)
        return status_fail(STATUS_INTERNAL,
                           "%s and training stops (train.on_nan: stop); lower train.lr or raise train.warmup", message);
    if (++j->state.left_out == MOST_LEFT_OUT)
        return status_fail(STATUS_INTERNAL,
                           "%s, the %dth in a row, and training stops; lower train.lr or raise train.warmup", message,
                           MOST_LEFT_OUT);
    if (j->roles.compute_rank == 0) log_warn("%s", message);
    return STATUS_OK;
}

static void tell_spike(job *j, const diag_step *r) {
    double usual;
    if (!spikes_note(&j->state.spikes, r->loss, &usual) || j->roles.compute_rank != 0) return;
    log_warn("step %ld: the loss of %.4f is a spike: the last %d had a median of %.4f", (long)r->step, r->loss,
             SPIKES_WINDOW, usual);
    event_post(j->records, r->step, "warn", "spike", "the loss of %.4f is a spike: the last %d had a median of %.4f",
               r->loss, SPIKES_WINDOW, usual);
}

status job_settle(job *j) {
    const open_step o = j->open;
    if (o.number == 0) return STATUS_OK;
    int64_t tokens = j->c.train.global_batch * j->c.model.context;
    model_report found = model_report_take(&j->model, (int)(o.number % MODEL_REPORTS));
    double now_s = clock_now_s(), from_s = fmax(o.begun_s, j->settled_s);
    diag_step record = {.step = o.number,
                        .tokens = o.number * tokens,
                        .loss = found.loss / (double)tokens,
                        .grad_norm = found.grad_norm,
                        .lr = o.lr,
                        .step_ms = 1e3 * (now_s - from_s),
                        .tokens_per_s = (double)tokens / (now_s - from_s),
                        .mfu = NAN};
    j->open.number = 0;
    j->settled_s = now_s;
    j->state.loss = record.loss;
    record_post(j->records, DIAG_STEP, o.number, &record, sizeof record);
    progress(j, &record);
    tell_spike(j, &record);
    if (!isfinite(record.loss) || !isfinite(record.grad_norm)) return not_finite(j, &record, found.own_is_finite);
    j->state.updates++;
    j->state.left_out = 0;
    return STATUS_OK;
}

status job_step(job *j, int64_t number) {
    const open_step next = {.number = number, .lr = schedule_lr(&j->c, number), .begun_s = clock_now_s()};
    accumulate(j, number);
    optimizer_reduce(&j->model);
    model_reduce_loss(&j->model);
    optimizer_norm(&j->model);
    checkpoint_fence(j->writer);
    optimizer_update(&j->model, &j->c, next.lr);
    model_report_start(&j->model, (int)(number % MODEL_REPORTS));
    status s = model_status(&j->model);
    if (s != STATUS_OK) {
        log_error("step %ld: %s", (long)number, status_message());
        comm_abort(s);
    }
    TRY(job_settle(j));
    j->open = next;
    j->state.step = number;
    if (!j->ops.queues) TRY(job_settle(j));
    snapshot_if_due(j, number);
    int64_t every = j->c.train.eval_every;
    if (!j->validates || (number != j->last_step && !(every && number % every == 0))) return STATUS_OK;
    TRY(job_settle(j));
    job_validate(j, number);
    return STATUS_OK;
}

void job_begin(job *j) {
    post_unigram_entropy(j);
    snapshot_if_due(j, 0);
    if (j->validates && j->last_step == 0) job_validate(j, 0);
}
