/* The life of one rank of a training job. Compute ranks step; diagnostics ranks serve the channel.
 *
 * Boundary errors (configuration, data, folders, checkpoints) are agreed on by all ranks after each stage of the set-up
 * and end the job with one message. An operation or collective that fails in mid-step leaves the ranks in different
 * places: it aborts the job. */
#include "trainer/train.h"

#include "core/file.h"
#include "core/log.h"
#include "diag/worker.h"
#include "trainer/job.h"
#include "trainer/optimizer.h"
#include "trainer/run_folder.h"
#include "trainer/signals.h"
#include "trainer/vocab.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void announce(const job *j) {
    const config *c = &j->c;
    if (j->roles.compute_rank != 0) return;
    log_info("run %s: %s, %.2f million parameters, tensor parallel %d, data parallel %d, %ld threads a rank, %s",
             c->run.name, config_variant_name(c->attention.variant),
             (double)params_global_count(&j->model.params) / 1e6, j->roles.tp, j->roles.dp, (long)c->run.threads,
             j->ops.name);
    log_info("%ld training samples of %ld tokens; %ld steps of %ld samples; folder %s", (long)j->train.windows,
             (long)c->model.context, (long)j->last_step, (long)c->train.global_batch, c->run.dir);
}

static void report(job *j) {
    if (j->roles.compute_rank != 0) return;
    printf("run %s: %s, %ld steps", j->c.run.name, config_variant_name(j->c.attention.variant), (long)j->last_step);
    if (j->last_step > 0) printf(", loss %.4f", j->state.loss);
    if (j->validates) printf(", validation loss %.4f", j->state.validation_loss);
    if (j->last_step > 0) printf(", %.0f tokens/s", j->tokens_per_s);
    if (j->ops.used_bytes) printf(", %.2f GiB of GPU memory", (double)j->ops.used_bytes(&j->ops) / 0x1p30);
    printf("\n%s/run.db\n", j->c.run.dir);
    fflush(stdout);
}

static status open_log(job *j) {
    char path[4096];
    run_folder_path(path, sizeof path, &j->c, "log.txt");
    return log_to_file(path);
}

/* A run may go on from another one's checkpoint: then its own folder has none yet. */
static bool has_checkpoint(const job *j) {
    char path[CHECKPOINT_PATH_BYTES];
    checkpoint_path(path, &j->c, j->state.step, true);
    return j->resume.reads && file_exists(path);
}

/* The hosts of the compute ranks, each once, in the order of ranks; what does not fit is left out and said. */
static void list_hosts(char *out, size_t bytes, const char (*host)[sizeof(((comm_roles *)0)->host)], int count) {
    size_t used = 0;
    for (int i = 0; i < count; i++) {
        if (i > 0 && strcmp(host[i], host[i - 1]) == 0) continue; /* they are numbered host by host */
        int length = snprintf(out + used, bytes - used, "%s%s", used ? "," : "", host[i]);
        if (used + (size_t)length >= bytes - sizeof ",...") {
            snprintf(out + used, bytes - used, ",...");
            return;
        }
        used += (size_t)length;
    }
}

/* Compute rank 0 learns where the others are. Collective over the compute ranks. */
static status find_hosts(job *j) {
    const comm_roles *r = &j->roles;
    int count = r->tp * r->dp, size = (int)sizeof r->host;
    char(*host)[sizeof r->host] = calloc((size_t)count, sizeof *host);
    status s = comm_agree(r->compute, host ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory"));
    if (s == STATUS_OK && MPI_Gather(r->host, size, MPI_CHAR, host, size, MPI_CHAR, 0, r->compute) != MPI_SUCCESS)
        s = status_fail(STATUS_INTERNAL, "asking the compute ranks for their hosts failed");
    if (s == STATUS_OK && r->compute_rank == 0)
        list_hosts(j->derived.hosts, sizeof j->derived.hosts, (const char(*)[sizeof r->host])host, count);
    free(host);
    return s;
}

/* From compute rank 0 to all ranks. */
static status share_derived(job *j) {
    derived *d = &j->derived;
    if (j->roles.compute_rank == 0) {
        d->threads = j->c.run.threads;
        d->micro_batch = j->micro_batch;
        d->data_parallel = j->c.parallel.data;
        d->resume_step = j->resume.reads ? j->state.step : -1;
        d->saved_step = has_checkpoint(j) ? j->state.step : -1;
        d->queues = j->ops.queues;
        snprintf(d->device, sizeof d->device, "%s", j->ops.device);
    }
    if (MPI_Bcast(d, sizeof *d, MPI_BYTE, j->roles.compute_world_ranks[0], j->roles.world) != MPI_SUCCESS)
        return status_fail(STATUS_INTERNAL, "passing on what the compute ranks derived failed");
    j->saved_step = d->saved_step;
    if (!j->roles.diagnostics) return STATUS_OK;
    j->c.run.threads = d->threads;
    j->c.train.micro_batch = d->micro_batch;
    j->c.parallel.data = d->data_parallel;
    return STATUS_OK;
}

/* ---------------------------------------------------------------- compute ranks */

static status prepare(job *j, const char *how) {
    TRY(job_prepare(j));
    return j->roles.compute_rank == 0 ? resume_find(&j->resume, &j->c, how) : STATUS_OK;
}

/* Whether there is a checkpoint to read, from compute rank 0 to the others, before memory and first weights. */
static status build(job *j) {
    if (MPI_Bcast(&j->resume.reads, 1, MPI_C_BOOL, 0, j->roles.compute) != MPI_SUCCESS)
        return status_fail(STATUS_INTERNAL, "passing on whether the run goes on failed");
    return job_build(j);
}

static status load(job *j) {
    j->state = (checkpoint_state){.loss = NAN, .validation_loss = NAN};
    if (!j->resume.reads) return STATUS_OK;
    TRY(resume_load(&j->resume, &j->c, j->train.windows, &j->model.params, &j->ops, &j->roles, &j->state));
    optimizer_start(&j->model, j->state.updates);
    j->first_step = j->state.step;
    return STATUS_OK;
}

/* `latest` follows a run that goes back to an older checkpoint of its own. */
static status open_run_folder(job *j) {
    char folder[CHECKPOINT_PATH_BYTES];
    bool held = j->resume.run[0] != '\0'; /* as soon as it has an identity */
    TRY(j->resume.adopts ? run_folder_adopt(&j->c, j->resume.run) : run_folder_create(&j->c, j->resume.run));
    if (!held) TRY(run_folder_hold(&j->c));
    if (!j->resume.adopts) return STATUS_OK;
    checkpoint_folder(folder, &j->c);
    bool back = j->saved_step >= 0 && checkpoint_latest(folder) > j->saved_step;
    return back ? checkpoint_set_latest(&j->c, j->saved_step) : STATUS_OK;
}

static status open_outputs(job *j) {
    if (j->roles.compute_rank == 0) TRY(open_log(j));
    TRY(job_open_channel(j));
    j->source = (checkpoint_source){.config = &j->c,
                                    .run = j->resume.run,
                                    .windows = j->train.windows,
                                    .params = &j->model.params,
                                    .ops = &j->ops,
                                    .roles = &j->roles,
                                    .records = j->records,
                                    .database_patience_s = CHECKPOINT_DATABASE_PATIENCE_S};
    return checkpoint_writer_open(&j->writer, &j->source);
}

static status run_compute(job *j, const train_options *options) {
    MPI_Comm world = j->roles.world;
    bool first = j->roles.compute_rank == 0;
    j->profile_steps = first ? options->profile : 0;
    status s = comm_agree(world, prepare(j, options->resume));
    if (s == STATUS_OK) s = comm_agree(world, build(j));
    if (s == STATUS_OK) s = comm_agree(world, load(j));
    if (s == STATUS_OK) s = find_hosts(j);
    if (s == STATUS_OK) s = share_derived(j);
    if (s == STATUS_OK) s = comm_agree(world, first ? open_run_folder(j) : STATUS_OK);
    if (s == STATUS_OK) {
        s = comm_agree(world, open_outputs(j));
        if (s == STATUS_OK) {
            announce(j);
            s = job_loop(j);
            if (s == STATUS_OK) report(j);
            checkpoint_writer_close(j->writer);
            status closed = job_close_channel(j);
            if (s == STATUS_OK) s = closed;
        } else {
            checkpoint_writer_close(j->writer);
            job_abandon_channel(j);
            if (first && !j->resume.adopts) run_folder_discard(&j->c);
        }
    }
    resume_free(&j->resume);
    job_close(j);
    return s;
}

/* ---------------------------------------------------------------- diagnostics ranks */

/* What a diagnostics rank works with. relay: from a further one to the first. */
typedef struct watcher {
    diag_worker *worker;
    channel_receiver *receiver;
    channel_sender *relay;
} watcher;

static status open_watcher(watcher *w, job *j) {
    int rank = j->roles.diagnostics_rank;
    TRY(open_log(j));
    if (rank > 0) TRY(channel_relay_open(&w->relay, &j->roles));
    TRY(diag_worker_open(&w->worker, &j->c, j->c.run.dir, j->derived.device, j->roles.tp, j->roles.dp, j->derived.hosts,
                         rank, j->derived.resume_step));
    return channel_receiver_open(&w->receiver, &j->roles);
}

static status serve(watcher *w, const job *j) {
    status s = diag_worker_serve(w->worker, w->receiver, w->relay);
    channel_receiver_close(w->receiver);
    if (w->relay && channel_sender_close(w->relay) != STATUS_OK) log_error("channel: %s", status_message());
    return s;
}

/* Stage by stage the same agreements as run_compute. */
static status run_diagnostics(job *j) {
    MPI_Comm world = j->roles.world;
    watcher w = {0};
    status s = comm_agree(world, STATUS_OK);              /* shapes and data */
    if (s == STATUS_OK) s = comm_agree(world, STATUS_OK); /* memory */
    if (s == STATUS_OK) s = comm_agree(world, STATUS_OK); /* checkpoint */
    if (s == STATUS_OK) s = share_derived(j);
    if (s == STATUS_OK) s = comm_agree(world, STATUS_OK); /* run folder */
    if (s == STATUS_OK) {
        if ((j->roles.oversubscribed || j->derived.queues) && nice(10) == -1)
            log_debug("the diagnostics rank keeps its priority");
        s = comm_agree(world, open_watcher(&w, j));
        if (s == STATUS_OK) {
            s = serve(&w, j);
        } else {
            if (w.receiver) channel_receiver_abandon(w.receiver);
            if (w.relay) channel_sender_abandon(w.relay);
        }
    }
    status closed = diag_worker_close(w.worker);
    return s == STATUS_OK ? closed : s;
}

status train_run(const train_options *options) {
    job *j = calloc(1, sizeof *j);
    if (!j) return status_fail(STATUS_INTERNAL, "out of memory");
    status s = config_load(&j->c, options->config_path, options->settings, options->setting_count);
    if (s == STATUS_OK) s = vocab_resolve(&j->c, &j->info);
    s = comm_agree(MPI_COMM_WORLD, s);
    if (s == STATUS_OK)
        s = comm_roles_split(&j->roles, (int)j->c.parallel.tensor, (int)j->c.parallel.data,
                             (int)j->c.diagnostics.ranks);
    if (s == STATUS_OK) {
        char who[32] = "";
        if (j->roles.diagnostics) snprintf(who, sizeof who, "diagnostics");
        if (j->roles.compute_rank > 0) snprintf(who, sizeof who, "rank %d", j->roles.compute_rank);
        log_setup(who, LOG_INFO);
        if (j->roles.diagnostics)
            signals_ignore();
        else
            signals_catch();
        s = j->roles.diagnostics ? run_diagnostics(j) : run_compute(j, options);
        s = comm_agree(j->roles.world, s);
    }
    comm_roles_free(&j->roles);
    config_free(&j->c);
    log_close();
    free(j);
    return s;
}
