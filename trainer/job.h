/* Private to the trainer's loop: one rank's training job. job.c sets a compute rank up, step.c makes one step, loop.c
 * the steps with what lies between them, profiling.c says where their time goes, train.c is the life of a rank. */
#pragma once

#include "comm/channel.h"
#include "comm/watchdog.h"
#include "core/ops/profile.h"
#include "data/dataset.h"
#include "data/info.h"
#include "diag/diag.h"
#include "trainer/checkpoint.h"
#include "trainer/resume.h"
#include "trainer/snapshots.h"
#include "trainer/train.h"

#include <pthread.h>

/* What the compute ranks derive, and where they compute: the database's keeper records it. */
typedef struct derived {
    int64_t threads, micro_batch, data_parallel;
    int64_t resume_step; /* the database goes on behind it; -1: it begins */
    int64_t saved_step;  /* the same, where the run folder has the checkpoint itself */
    bool queues;         /* compute rank 0's device does: its host threads have little to do, but at once */
    char device[64];     /* of compute rank 0 */
    char hosts[256];     /* h1,h2,... */
} derived;

/* Tokens of a micro-batch, [B, T], from the table's host_alloc: one is filled while the device has the other. */
enum { BATCHES = 2 };

typedef struct token_batch {
    int32_t *input, *target;
    ops_mark taken; /* behind it the memory may be filled again */
} token_batch;

/* A step that has been queued and whose loss the host has not seen yet. */
typedef struct open_step {
    int64_t number; /* 0: there is none */
    double lr, begun_s;
} open_step;

typedef struct job {
    config c;
    comm_roles roles;
    ops ops;
    const attn_core *core;
    comm_group tp, dp;
    comm_group all; /* every compute rank, host memory: what they agree on after a step */
    model model;
    dataset train, validation;
    dataset_info info; /* vocab 0: there is none */
    bool validates;
    sampler sampler;
    resume resume;
    derived derived;
    int64_t micro_batch, accumulation;
    int64_t first_step, last_step; /* the run goes on behind the first one; 0: it begins */
    checkpoint_state state;        /* after the last step; loss and counts after the last that is settled */
    open_step open;
    double settled_s; /* when that was */
    token_batch batch[BATCHES];
    int64_t batches; /* filled so far */
    channel_sender *sender;
    channel_sender *records; /* the same on compute rank 0, NULL on the others: what all ranks know is said once */
    snapshots snapshots;
    bool watches;             /* snapshots are sent */
    checkpoint_source source; /* of checkpoints */
    checkpoint_writer *writer;
    int64_t saved_step; /* of the last checkpoint of the run folder, begun or read; -1: none */
    int requests;       /* what alerts have asked for and has not come about (channel_request) */
    bool stopped;       /* an alert ended the run */
    int signal;         /* that ended it; 0: none */
    comm_watchdog *watchdog;
    double started_s, tokens_per_s;
    int64_t profile_steps;       /* that are to be profiled, of compute rank 0 */
    struct profiling *profiling; /* of profiling.c; NULL: no step is */
    /* diagnostics.ranks: 0: compute rank 0 keeps the database itself, in a thread */
    diag *local_diag;
    channel_receiver *local_receiver;
    pthread_t local_thread;
    bool local_thread_runs;
} job;

/* ---- job.c ---- */

/* What one rank can find wrong alone: shapes, device, data. */
status job_prepare(job *j);

/* Memory, groups, the model with its first weights. Collective over the compute ranks. */
status job_build(job *j);

/* What was made by the two, also after a failure. */
void job_close(job *j);

/* The channel of a compute rank and, without diagnostics ranks, its other end. After a failure: job_abandon_channel. */
status job_open_channel(job *j);

/* IO when the database that this rank keeps has lost records. */
status job_close_channel(job *j);

/* After a start that failed: the other end may not exist. */
void job_abandon_channel(job *j);

/* ---- step.c ---- */

/* Step `number`: gradients of its samples, an update, its snapshot and validation. Where the device has a queue, the
 * host goes on before it knows the step's loss, and settles the step before it instead. job_settle's failures. */
status job_step(job *j, int64_t number);

/* Waits for the last step's loss, and records and tells what it was. INTERNAL when training cannot go on behind a loss
 * or gradient that is not finite. Nothing without an open step. */
status job_settle(job *j);

/* The snapshot and the records of step 0. */
void job_begin(job *j);

/* The mean loss over the first windows of the validation shards, recorded for that step. */
void job_validate(job *j, int64_t step);

/* ---- profiling.c: each does nothing where there is nothing to profile ---- */

/* Around each step. The first steps of a start are not profiled; after the last of profile_steps the profile is printed
 * and recorded. */
void profiling_begin(job *j, int64_t number);
void profiling_end(job *j);

/* Around what is no part of a step. */
void profiling_pause(const job *j);
void profiling_resume(const job *j);

/* After the last step: prints and records what was profiled of steps that were to be more. */
void profiling_finish(job *j);

/* ---- loop.c ---- */

/* From the first step to the last one, with checkpoints. RESTART when a signal ended it behind a checkpoint; IO when
 * the last checkpoint could not be written. */
status job_loop(job *j);
