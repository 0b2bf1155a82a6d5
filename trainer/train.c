/* The life of one rank of a training job. Compute ranks step; diagnostics ranks serve the channel.
 *
 * Boundary errors (configuration, data, folders) are agreed on by all ranks after each stage of the set-up and end the
 * job with one message. An operation or collective that fails in mid-step leaves the ranks in different places: it
 * aborts the job. */
#include "trainer/train.h"
#include "core/clock.h"

#include "comm/channel.h"
#include "comm/watchdog.h"
#include "core/file.h"
#include "core/log.h"
#include "core/snapshot_steps.h"
#include "data/dataset.h"
#include "diag/diag.h"
#include "trainer/device.h"
#include "trainer/optimizer.h"
#include "trainer/run_folder.h"
#include "trainer/schedule.h"
#include "trainer/snapshots.h"
#include "trainer/vocab.h"

#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What the compute ranks derive, and where compute rank 0 computes: the database's keeper records it. */
typedef struct derived {
    int64_t threads, micro_batch, data_parallel;
    char device[64], host[64];
} derived;

typedef struct trainer {
    config c;
    comm_roles roles;
    ops ops;
    const attn_core *core;
    comm_group tp, dp;
    model model;
    dataset train, validation;
    dataset_info info; /* vocab 0: there is none */
    bool validates;
    sampler sampler;
    derived derived;
    int64_t micro_batch, accumulation, last_step;
    int64_t updates;         /* made so far: the steps but those that were left out */
    int32_t *input, *target; /* one micro-batch */
    channel_sender *sender;
    snapshots snapshots;
    bool watches;           /* snapshots are sent */
    bool may_stop, stopped; /* an alert may end the run; did */
    comm_watchdog *watchdog;
    double started_s, loss, validation_loss, tokens_per_s;
    /* diagnostics.ranks: 0: compute rank 0 keeps the database itself, in a thread */
    diag *local_diag;
    channel_receiver *local_receiver;
    pthread_t local_thread;
    bool local_thread_runs;
} trainer;

/* ---------------------------------------------------------------- set-up */

static int64_t cores(void) {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

/* Threads come from the compute ranks alone, so that a run is the same with and without diagnostics ranks. */
static void resolve_threads(trainer *t) {
    int64_t share = cores() / t->roles.local_compute_ranks;
    if (t->c.run.threads == 0) t->c.run.threads = share > 1 ? share : 1;
}

static status resolve_batch(trainer *t) {
    int64_t batch = t->c.train.global_batch, dp = t->roles.dp;
    if (batch % dp != 0)
        return status_fail(
            STATUS_CONFIG,
            "train.global_batch: %ld samples cannot be split over %ld data-parallel ranks; choose a multiple",
            (long)batch, (long)dp);
    t->micro_batch = t->c.train.micro_batch ? t->c.train.micro_batch : batch / dp;
    if (batch / dp % t->micro_batch != 0)
        return status_fail(STATUS_CONFIG,
                           "train.micro_batch: each rank's %ld samples a step are no multiple of %ld; choose a divisor",
                           (long)(batch / dp), (long)t->micro_batch);
    t->accumulation = batch / dp / t->micro_batch;
    t->c.train.micro_batch = t->micro_batch;
    t->c.parallel.data = dp;
    return STATUS_OK;
}

static status open_data(trainer *t) {
    const config *c = &t->c;
    if (c->data.train.count == 0)
        return status_fail(STATUS_CONFIG,
                           "data.train: no training shards are named; make some with `bulkhead prepare`");
    TRY(dataset_open(&t->train, (const char *const *)c->data.train.items, c->data.train.count, c->model.context,
                     c->model.vocab));
    t->validates = c->data.validation.count > 0;
    if (t->validates)
        TRY(dataset_open(&t->validation, (const char *const *)c->data.validation.items, c->data.validation.count,
                         c->model.context, c->model.vocab));
    t->sampler = (sampler){.data = &t->train,
                           .seed = (uint64_t)c->run.seed,
                           .global_batch = c->train.global_batch,
                           .repeat = c->data.repeat};
    t->last_step = sampler_last_step(&t->sampler);
    if (t->last_step == 0)
        return status_fail(
            STATUS_DATA,
            "data.train: %ld samples of %ld tokens are fewer than one global batch of %ld; set data.repeat: "
            "true or lower train.global_batch",
            (long)t->train.windows, (long)c->model.context, (long)c->train.global_batch);
    if (t->last_step > c->train.steps) t->last_step = c->train.steps;
    return STATUS_OK;
}

static status prepare_compute(trainer *t) {
    resolve_threads(t);
    TRY(resolve_batch(t));
    TRY(diag_check_alerts(&t->c, &t->may_stop));
    TRY(device_open(&t->ops, &t->core, &t->c, &t->roles));
    TRY(open_data(t));
    size_t tokens = (size_t)(t->micro_batch * t->c.model.context);
    t->input = malloc(tokens * sizeof *t->input);
    t->target = malloc(tokens * sizeof *t->target);
    if (!t->input || !t->target) return status_fail(STATUS_CONFIG, "out of memory for a batch of %zu tokens", tokens);
    return STATUS_OK;
}

static status build_compute(trainer *t) {
    TRY(comm_roles_groups(&t->roles, &t->ops, &t->tp, &t->dp));
    TRY(model_create(&t->model, &t->c, &t->ops, t->core, &t->tp, &t->dp, t->micro_batch));
    comm_register(&t->tp, t->model.memory.base, t->model.memory.size_bytes);
    comm_register(&t->dp, t->model.memory.base, t->model.memory.size_bytes);
    TRY(comm_status(&t->tp));
    TRY(comm_status(&t->dp));
    t->watches = t->c.diagnostics.ranks > 0;
    return t->watches ? snapshots_plan(&t->snapshots, &t->model, &t->c, &t->roles) : STATUS_OK;
}

static void *serve_local(void *argument) {
    trainer *t = argument;
    /* What fails inside is recorded there; training goes on. */
    if (diag_serve(t->local_diag, t->local_receiver, 1) != STATUS_OK) log_error("diagnostics: %s", status_message());
    return NULL;
}

/* The channel of a compute rank. */
static status open_sender(trainer *t) {
    if (t->c.diagnostics.ranks > 0) {
        TRY(channel_sender_open(&t->sender, &t->roles, t->snapshots.message_bytes, &t->ops));
        channel_snapshot_split(t->sender, t->snapshots.shares);
        return STATUS_OK;
    }
    if (t->roles.compute_rank != 0) return STATUS_OK;
    TRY(diag_open(&t->local_diag, &t->c, t->c.run.dir, t->derived.device, t->roles.tp, t->roles.dp, t->derived.host,
                  -1));
    TRY(channel_local_open(&t->sender, &t->local_receiver));
    if (pthread_create(&t->local_thread, NULL, serve_local, t) != 0)
        return status_fail(STATUS_INTERNAL, "cannot start the database thread");
    t->local_thread_runs = true;
    return STATUS_OK;
}

static void post(trainer *t, int kind, int64_t step, const void *record, size_t bytes) {
    if (t->roles.compute_rank != 0) return;
    if (channel_post(t->sender, kind, step, record, bytes) != STATUS_OK)
        log_error("step %ld: a record could not be sent: %s", (long)step, status_message());
}

static void post_event(trainer *t, int64_t step, const char *level, const char *kind, const char *message) {
    diag_event event = {.step = step};
    snprintf(event.level, sizeof event.level, "%s", level);
    snprintf(event.kind, sizeof event.kind, "%s", kind);
    snprintf(event.message, sizeof event.message, "%s", message);
    post(t, DIAG_EVENT, step, &event, sizeof event);
}

/* ---------------------------------------------------------------- validation */

/* Windows [first, first + count) of d into the batch; the rest of the batch is filled with token 0. */
static void load_windows(trainer *t, const dataset *d, int64_t first, int64_t count) {
    int64_t context = t->c.model.context;
    memset(t->input, 0, (size_t)(t->micro_batch * context) * sizeof *t->input);
    memset(t->target, 0, (size_t)(t->micro_batch * context) * sizeof *t->target);
    for (int64_t i = 0; i < count; i++) dataset_window(d, first + i, t->input + i * context, t->target + i * context);
}

/* What a model that knows only the tokens' frequencies would reach: the line that a run must get under. */
static void post_unigram_entropy(trainer *t) {
    if (t->info.vocab == 0) return;
    const dataset_split *split = t->validates ? &t->info.validation : &t->info.train;
    diag_eval record = {.tokens = split->tokens, .loss = split->unigram_entropy_nats, .split = "unigram"};
    post(t, DIAG_EVAL, 0, &record, sizeof record);
}

/* Mean loss over the first windows of the validation shards; every token weighs the same. */
static void validate(trainer *t, int64_t step) {
    int64_t context = t->c.model.context, windows = t->c.train.eval_tokens / context;
    if (windows < 1) windows = 1;
    if (windows > t->validation.windows) windows = t->validation.windows;
    for (int64_t first = 0, batch = 0; first < windows; first += t->micro_batch, batch++) {
        if (batch % t->roles.dp != t->roles.dp_rank) continue;
        int64_t count = windows - first < t->micro_batch ? windows - first : t->micro_batch;
        load_windows(t, &t->validation, first, count);
        model_evaluate(&t->model, t->input, t->target, count);
    }
    model_reduce_loss(&t->model);
    double sum = model_take_loss(&t->model);
    diag_eval record = {.step = step, .tokens = windows * context, .loss = sum / (double)(windows * context)};
    snprintf(record.split, sizeof record.split, "validation");
    post(t, DIAG_EVAL, step, &record, sizeof record);
    t->validation_loss = record.loss;
    if (t->roles.compute_rank == 0)
        log_info("step %ld: validation loss %.4f over %ld tokens", (long)step, record.loss, (long)record.tokens);
}

/* ---------------------------------------------------------------- a step */

static void snapshot_if_due(trainer *t, int64_t step) {
    if (!t->watches || !snapshot_steps_due(&t->c, step)) return;
    if (!snapshots_admitted(&t->c, &t->roles, t->sender, step)) {
        post_event(t, step, "info", "drop", "snapshot dropped: the diagnostics rank is behind");
        return;
    }
    if (snapshots_send(&t->snapshots, t->sender, step) != STATUS_OK) {
        log_error("step %ld: snapshots end here: %s", (long)step, status_message());
        t->watches = false;
    }
}

/* Loss and gradients of this rank's share of the step's samples: sample s of the global batch belongs to data-parallel
 * rank s / (global_batch / Q). */
static void accumulate(trainer *t, int64_t step) {
    int64_t context = t->c.model.context, share = t->c.train.global_batch / t->roles.dp;
    float scale = (float)(1.0 / (double)(t->c.train.global_batch * context));
    model_zero_gradients(&t->model);
    for (int64_t k = 0; k < t->accumulation; k++) {
        for (int64_t i = 0; i < t->micro_batch; i++) {
            int64_t sample = t->roles.dp_rank * share + k * t->micro_batch + i;
            dataset_window(&t->train, sampler_window(&t->sampler, step, sample), t->input + i * context,
                           t->target + i * context);
        }
        model_train(&t->model, t->input, t->target, scale, k == t->accumulation - 1);
    }
}

static void progress(const trainer *t, const diag_step *r) {
    if (t->roles.compute_rank != 0) return;
    bool due = r->step % t->c.train.log_every == 0 || r->step == 1 || r->step == t->last_step;
    double left_s = (double)(t->last_step - r->step) * (clock_now_s() - t->started_s) / (double)r->step;
    if (isatty(STDERR_FILENO) && !due)
        fprintf(stderr, "\rstep %ld/%ld  loss %.4f  %.0f tokens/s  %.0f s left\033[K", (long)r->step,
                (long)t->last_step, r->loss, r->tokens_per_s, left_s);
    if (due)
        log_info("%sstep %ld/%ld  loss %.4f  grad norm %.3f  lr %.2e  %.0f tokens/s  %.0f s left",
                 isatty(STDERR_FILENO) ? "\r\033[K" : "", (long)r->step, (long)t->last_step, r->loss, r->grad_norm,
                 r->lr, r->tokens_per_s, left_s);
}

/* A loss or gradient that is not finite: the update was left out on every rank; stop, or go on with the next step. */
static status not_finite(trainer *t, const diag_step *r) {
    char message[256];
    snprintf(message, sizeof message, "step %ld: loss %g, gradient norm %g: not finite; the update is left out",
             (long)r->step, r->loss, r->grad_norm);
    post_event(t, r->step, "error", "nan", message);
    if (t->c.train.on_nan == ON_NAN_STOP)
        return status_fail(STATUS_INTERNAL,
                           "%s and training stops (train.on_nan: stop); lower train.lr or raise train.warmup", message);
    if (t->roles.compute_rank == 0) log_warn("%s", message);
    return STATUS_OK;
}

static status step(trainer *t, int64_t number) {
    double start = clock_now_s();
    int64_t tokens = t->c.train.global_batch * t->c.model.context;
    accumulate(t, number);
    optimizer_reduce(&t->model);
    model_reduce_loss(&t->model);
    double loss = model_take_loss(&t->model);
    diag_step record = {.step = number,
                        .tokens = number * tokens,
                        .loss = loss / (double)tokens,
                        .grad_norm = optimizer_norm(&t->model),
                        .lr = schedule_lr(&t->c, number),
                        .mfu = NAN};
    bool finite = isfinite(record.loss) && isfinite(record.grad_norm);
    if (finite) optimizer_update(&t->model, &t->c, ++t->updates, record.lr);
    status s = model_status(&t->model);
    if (s != STATUS_OK) {
        log_error("step %ld: %s", (long)number, status_message());
        comm_abort(s);
    }
    record.step_ms = 1e3 * (clock_now_s() - start);
    record.tokens_per_s = 1e3 * (double)tokens / record.step_ms;
    t->loss = record.loss;
    post(t, DIAG_STEP, number, &record, sizeof record);
    progress(t, &record);
    if (!finite) TRY(not_finite(t, &record));
    snapshot_if_due(t, number);
    int64_t every = t->c.train.eval_every;
    if (t->validates && (number == t->last_step || (every && number % every == 0))) validate(t, number);
    return STATUS_OK;
}

/* The end that an alert asked for: as at the last step, with a validation. */
static void stop_if_asked(trainer *t, int64_t number) {
    int64_t every = t->c.train.eval_every;
    if (!snapshots_stop_asked(&t->roles, t->sender) || number == t->last_step) return;
    t->stopped = true;
    t->last_step = number;
    if (t->validates && !(every && number % every == 0)) validate(t, number);
    post_event(t, number, "warn", "stop", "an alert asked for the end of the run");
    if (t->roles.compute_rank == 0)
        log_warn("an alert asked for the end of the run: it ends after step %ld", (long)number);
}

static status train_loop(trainer *t) {
    status s = STATUS_OK;
    int64_t number = 0;
    const comm_group *const groups[] = {&t->tp, &t->dp};
    TRY(comm_watch(&t->watchdog, groups, 2, COMM_COLLECTIVE_PATIENCE_S));
    t->started_s = clock_now_s();
    post_unigram_entropy(t);
    snapshot_if_due(t, 0);
    if (t->validates && t->last_step == 0) validate(t, 0);
    while (s == STATUS_OK && number < t->last_step && !t->stopped) {
        comm_watch_step(t->watchdog, ++number);
        s = step(t, number);
        if (t->may_stop && s == STATUS_OK) stop_if_asked(t, number);
    }
    comm_unwatch(t->watchdog);
    double seconds = clock_now_s() - t->started_s;
    t->tokens_per_s = (double)(number * t->c.train.global_batch * t->c.model.context) / seconds;

    if (s == STATUS_OK && number < t->c.train.steps && !t->stopped) {
        char message[256];
        snprintf(message, sizeof message,
                 "the data ends after step %ld of %ld (data.repeat: false); training stops there", (long)number,
                 (long)t->c.train.steps);
        post_event(t, number, "warn", "data", message);
        if (t->roles.compute_rank == 0) log_warn("%s", message);
    }
    diag_finish finish = {.last_step = number, .exit_code = s};
    snprintf(finish.status, sizeof finish.status, "%s",
             s != STATUS_OK ? "failed"
             : t->stopped   ? "stopped"
                            : "finished");
    post(t, DIAG_FINISH, number, &finish, sizeof finish);
    return s;
}

/* ---------------------------------------------------------------- the ranks */

static void announce(const trainer *t) {
    const config *c = &t->c;
    if (t->roles.compute_rank != 0) return;
    log_info("run %s: %s, %.2f million parameters, tensor parallel %d, data parallel %d, %ld threads a rank, %s",
             c->run.name, config_variant_name(c->attention.variant),
             (double)params_global_count(&t->model.params) / 1e6, t->roles.tp, t->roles.dp, (long)c->run.threads,
             t->ops.name);
    log_info("%ld training samples of %ld tokens; %ld steps of %ld samples; folder %s", (long)t->train.windows,
             (long)c->model.context, (long)t->last_step, (long)c->train.global_batch, c->run.dir);
}

/* IO when the database that this rank keeps has lost records. */
static status close_channel(trainer *t) {
    if (t->sender && channel_sender_close(t->sender) != STATUS_OK) log_error("channel: %s", status_message());
    if (t->local_thread_runs) pthread_join(t->local_thread, NULL);
    if (t->local_receiver) channel_receiver_close(t->local_receiver);
    return diag_close(t->local_diag);
}

/* After a start that failed: the other end may not exist. */
static void abandon_channel(trainer *t) {
    if (t->sender && !t->local_diag) {
        channel_sender_abandon(t->sender);
        t->sender = NULL;
    }
    close_channel(t);
}

static void close_compute(trainer *t) {
    snapshots_free(&t->snapshots);
    comm_close(&t->tp); /* before the memory that they know goes */
    comm_close(&t->dp);
    model_free(&t->model);
    dataset_close(&t->train);
    dataset_close(&t->validation);
    free(t->input);
    free(t->target);
    device_close(&t->ops);
}

static void report(trainer *t) {
    if (t->roles.compute_rank != 0) return;
    printf("run %s: %s, %ld steps", t->c.run.name, config_variant_name(t->c.attention.variant), (long)t->last_step);
    if (t->last_step > 0) printf(", loss %.4f", t->loss);
    if (t->validates) printf(", validation loss %.4f", t->validation_loss);
    if (t->last_step > 0) printf(", %.0f tokens/s", t->tokens_per_s);
    if (t->ops.used_bytes) printf(", %.2f GiB of GPU memory", (double)t->ops.used_bytes(&t->ops) / 0x1p30);
    printf("\n%s/run.db\n", t->c.run.dir);
    fflush(stdout);
}

static status open_log(trainer *t) {
    char path[4096];
    run_folder_path(path, sizeof path, &t->c, "log.txt");
    return log_to_file(path);
}

/* From compute rank 0 to all ranks. */
static status share_derived(trainer *t) {
    derived *d = &t->derived;
    if (t->roles.compute_rank == 0) {
        *d = (derived){.threads = t->c.run.threads, .micro_batch = t->micro_batch, .data_parallel = t->c.parallel.data};
        snprintf(d->device, sizeof d->device, "%s", t->ops.device);
        snprintf(d->host, sizeof d->host, "%s", t->roles.host);
    }
    if (MPI_Bcast(d, sizeof *d, MPI_BYTE, t->roles.compute_world_ranks[0], t->roles.world) != MPI_SUCCESS)
        return status_fail(STATUS_INTERNAL, "passing on what the compute ranks derived failed");
    if (!t->roles.diagnostics) return STATUS_OK;
    t->c.run.threads = d->threads;
    t->c.train.micro_batch = d->micro_batch;
    t->c.parallel.data = d->data_parallel;
    return STATUS_OK;
}

static status run_compute(trainer *t) {
    MPI_Comm world = t->roles.world;
    bool first = t->roles.compute_rank == 0;
    status s = comm_agree(world, prepare_compute(t));
    if (s == STATUS_OK) s = comm_agree(world, build_compute(t));
    if (s == STATUS_OK) s = share_derived(t);
    if (s == STATUS_OK) s = comm_agree(world, first ? run_folder_create(&t->c) : STATUS_OK);
    if (s == STATUS_OK) {
        status mine = first ? open_log(t) : STATUS_OK;
        if (mine == STATUS_OK) mine = open_sender(t);
        s = comm_agree(world, mine);
        if (s == STATUS_OK) {
            announce(t);
            s = train_loop(t);
            if (s == STATUS_OK) report(t);
            status closed = close_channel(t);
            if (s == STATUS_OK) s = closed;
        } else {
            abandon_channel(t);
            if (first) run_folder_discard(&t->c);
        }
    }
    close_compute(t);
    return s;
}

/* What a diagnostics rank works with. relay: from a further one to the first. */
typedef struct watcher {
    diag *diag;
    channel_receiver *receiver;
    channel_sender *relay;
} watcher;

static status open_watcher(watcher *w, trainer *t) {
    int rank = t->roles.diagnostics_rank;
    TRY(open_log(t));
    if (rank > 0) {
        TRY(channel_relay_open(&w->relay, &t->roles));
        TRY(diag_open_further(&w->diag, &t->c, rank, w->relay));
    } else {
        TRY(diag_open(&w->diag, &t->c, t->c.run.dir, t->derived.device, t->roles.tp, t->roles.dp, t->derived.host, -1));
    }
    return channel_receiver_open(&w->receiver, &t->roles);
}

static status serve(watcher *w, const trainer *t) {
    status s = diag_serve(w->diag, w->receiver, t->roles.tp * t->roles.dp);
    channel_receiver_close(w->receiver);
    if (w->relay && channel_sender_close(w->relay) != STATUS_OK) log_error("channel: %s", status_message());
    return s;
}

/* Stage by stage the same agreements as run_compute. */
static status run_diagnostics(trainer *t) {
    MPI_Comm world = t->roles.world;
    watcher w = {0};
    status s = comm_agree(world, STATUS_OK);              /* shapes and data */
    if (s == STATUS_OK) s = comm_agree(world, STATUS_OK); /* memory */
    if (s == STATUS_OK) s = share_derived(t);
    if (s == STATUS_OK) s = comm_agree(world, STATUS_OK); /* run folder */
    if (s == STATUS_OK) {
        if (t->roles.oversubscribed && nice(10) == -1) log_debug("the diagnostics rank keeps its priority");
        s = comm_agree(world, open_watcher(&w, t));
        if (s == STATUS_OK) {
            s = serve(&w, t);
        } else {
            if (w.receiver) channel_receiver_abandon(w.receiver);
            if (w.relay) channel_sender_abandon(w.relay);
        }
    }
    status closed = diag_close(w.diag);
    return s == STATUS_OK ? closed : s;
}

status train_run(const train_options *options) {
    trainer *t = calloc(1, sizeof *t);
    if (!t) return status_fail(STATUS_INTERNAL, "out of memory");
    status s = config_load(&t->c, options->config_path, options->settings, options->setting_count);
    if (s == STATUS_OK) s = vocab_resolve(&t->c, &t->info);
    s = comm_agree(MPI_COMM_WORLD, s);
    if (s == STATUS_OK)
        s = comm_roles_split(&t->roles, (int)t->c.parallel.tensor, (int)t->c.parallel.data,
                             (int)t->c.diagnostics.ranks);
    if (s == STATUS_OK) {
        char who[32] = "";
        if (t->roles.diagnostics) snprintf(who, sizeof who, "diagnostics");
        if (t->roles.compute_rank > 0) snprintf(who, sizeof who, "rank %d", t->roles.compute_rank);
        log_setup(who, LOG_INFO);
        s = t->roles.diagnostics ? run_diagnostics(t) : run_compute(t);
        s = comm_agree(t->roles.world, s);
    }
    comm_roles_free(&t->roles);
    config_free(&t->c);
    log_close();
    free(t);
    return s;
}
