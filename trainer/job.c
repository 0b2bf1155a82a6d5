#include "trainer/job.h"

#include "core/log.h"
#include "trainer/device.h"
#include "trainer/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* Threads come from the compute ranks alone, so that a run is the same with and without diagnostics ranks. */
static void resolve_threads(job *j) {
    int64_t share = device_cores() / j->roles.local_compute_ranks;
    if (j->c.run.threads == 0) j->c.run.threads = share > 1 ? share : 1;
}

static status resolve_batch(job *j) {
    int64_t batch = j->c.train.global_batch, dp = j->roles.dp;
    if (batch % dp != 0)
        return status_fail(
            STATUS_CONFIG,
            "train.global_batch: %ld samples cannot be split over %ld data-parallel ranks; choose a multiple",
            (long)batch, (long)dp);
    j->micro_batch = j->c.train.micro_batch ? j->c.train.micro_batch : batch / dp;
    if (batch / dp % j->micro_batch != 0)
        return status_fail(STATUS_CONFIG,
                           "train.micro_batch: each rank's %ld samples a step are no multiple of %ld; choose a divisor",
                           (long)(batch / dp), (long)j->micro_batch);
    j->accumulation = batch / dp / j->micro_batch;
    j->c.train.micro_batch = j->micro_batch;
    j->c.parallel.data = dp;
    return STATUS_OK;
}

static status open_data(job *j) {
    const config *c = &j->c;
    if (c->data.train.count == 0)
        return status_fail(STATUS_CONFIG,
                           "data.train: no training shards are named; make some with `bulkhead prepare`");
    TRY(dataset_open(&j->train, (const char *const *)c->data.train.items, c->data.train.count, c->model.context,
                     c->model.vocab));
    j->validates = c->data.validation.count > 0;
    if (j->validates)
        TRY(dataset_open(&j->validation, (const char *const *)c->data.validation.items, c->data.validation.count,
                         c->model.context, c->model.vocab));
    j->sampler = (sampler){.data = &j->train,
                           .seed = (uint64_t)c->run.seed,
                           .global_batch = c->train.global_batch,
                           .repeat = c->data.repeat};
    j->last_step = sampler_last_step(&j->sampler);
    if (j->last_step == 0)
        return status_fail(
            STATUS_DATA,
            "data.train: %ld samples of %ld tokens are fewer than one global batch of %ld; set data.repeat: "
            "true or lower train.global_batch",
            (long)j->train.windows, (long)c->model.context, (long)c->train.global_batch);
    if (j->last_step > c->train.steps) j->last_step = c->train.steps;
    return STATUS_OK;
}

status job_prepare(job *j) {
    resolve_threads(j);
    TRY(resolve_batch(j));
    TRY(diag_check_alerts(&j->c));
    TRY(device_open(&j->ops, &j->core, &j->c, &j->roles));
    TRY(open_data(j));
    size_t tokens = (size_t)(j->micro_batch * j->c.model.context);
    for (int i = 0; i < BATCHES; i++) {
        token_batch *b = &j->batch[i];
        b->input = j->ops.host_alloc(&j->ops, tokens * sizeof *b->input);
        b->target = j->ops.host_alloc(&j->ops, tokens * sizeof *b->target);
        if (!b->input || !b->target)
            return status_fail(STATUS_CONFIG, "out of host memory for a batch of %zu tokens", tokens);
    }
    return STATUS_OK;
}

/* A run that goes on does not need what it began with, which may be gone. */
static status build_model(job *j) {
    config c = j->c;
    char none[] = "";
    if (j->resume.reads) c.train.init_from = none;
    if (weights_are_foreign(c.train.init_from))
        return status_fail(STATUS_CONFIG,
                           "train.init_from: %s is another program's model; `bulkhead import %s -o FOLDER` makes "
                           "weights and the configuration that fits them",
                           c.train.init_from, c.train.init_from);
    if (c.parallel.halves == HALVES_AUTO) c.parallel.halves = j->ops.context ? HALVES_ON : HALVES_OFF;
    return model_create(&j->model, &c, &j->ops, j->core, &j->tp, &j->dp, j->micro_batch);
}

status job_build(job *j) {
    TRY(comm_over_mpi(&j->all, j->roles.compute));
    TRY(comm_roles_groups(&j->roles, &j->ops, &j->tp, &j->dp));
    TRY(build_model(j));
    comm_register(&j->tp, j->model.memory.base, j->model.memory.size_bytes);
    comm_register(&j->dp, j->model.memory.base, j->model.memory.size_bytes);
    TRY(comm_status(&j->tp));
    TRY(comm_status(&j->dp));
    j->watches = j->c.diagnostics.ranks > 0;
    return j->watches ? snapshots_plan(&j->snapshots, &j->model, &j->c, &j->roles) : STATUS_OK;
}

static void close_batch(job *j, token_batch *b) {
    if (b->taken.event) j->ops.mark_release(&j->ops, &b->taken);
    if (b->input) j->ops.host_release(&j->ops, b->input);
    if (b->target) j->ops.host_release(&j->ops, b->target);
}

void job_close(job *j) {
    snapshots_free(&j->snapshots);
    comm_close(&j->tp); /* before the memory that they know goes */
    comm_close(&j->dp);
    comm_close(&j->all);
    model_free(&j->model);
    dataset_close(&j->train);
    dataset_close(&j->validation);
    for (int i = 0; i < BATCHES; i++) close_batch(j, &j->batch[i]);
    device_close(&j->ops);
}

/* ---------------------------------------------------------------- the channel */

static void *serve_local(void *argument) {
    job *j = argument;
    /* What fails inside is recorded there; training goes on. */
    if (diag_serve(j->local_diag, j->local_receiver, 1) != STATUS_OK) log_error("diagnostics: %s", status_message());
    return NULL;
}

static status open_sender(job *j) {
    if (j->c.diagnostics.ranks > 0) {
        TRY(channel_sender_open(&j->sender, &j->roles, j->snapshots.message_bytes, &j->ops));
        channel_snapshot_split(j->sender, j->snapshots.shares);
        return STATUS_OK;
    }
    if (j->roles.compute_rank != 0) return STATUS_OK;
    TRY(diag_open(&j->local_diag, &j->c, j->c.run.dir, j->derived.device, j->roles.tp, j->roles.dp, j->derived.hosts,
                  j->derived.resume_step));
    TRY(channel_local_open(&j->sender, &j->local_receiver));
    if (pthread_create(&j->local_thread, NULL, serve_local, j) != 0)
        return status_fail(STATUS_INTERNAL, "cannot start the database thread");
    j->local_thread_runs = true;
    return STATUS_OK;
}

status job_open_channel(job *j) {
    TRY(open_sender(j));
    if (j->roles.compute_rank == 0) j->records = j->sender;
    return STATUS_OK;
}

status job_close_channel(job *j) {
    if (j->sender && channel_sender_close(j->sender) != STATUS_OK) log_error("channel: %s", status_message());
    if (j->local_thread_runs) pthread_join(j->local_thread, NULL);
    if (j->local_receiver) channel_receiver_close(j->local_receiver);
    return diag_close(j->local_diag);
}

void job_abandon_channel(job *j) {
    if (j->sender && !j->local_diag) {
        channel_sender_abandon(j->sender);
        j->sender = NULL;
    }
    job_close_channel(j);
}
