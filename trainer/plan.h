/* What a configuration will need, before anything is started: measured by running a step over counting tables. */
#pragma once

#include "core/config.h"
#include "trainer/model.h"

typedef struct plan_recompute {
    int64_t bytes;     /* memory of compute rank 0, as rank0.bytes */
    double more_flops; /* over those of none, as a share of them */
} plan_recompute;

enum { PLAN_RECOMPUTES = RECOMPUTE_FULL + 1 };

typedef struct plan {
    model_needs rank0;                         /* of compute rank 0, for one micro-batch */
    plan_recompute recompute[PLAN_RECOMPUTES]; /* by train.recompute */
    int tp, dp, diagnostics_ranks, world;
    int64_t micro_batch, accumulation, tokens_per_step;
    double step_flops;                    /* whole job: matrix products and causal attention, nothing again */
    int64_t tp_step_bytes, dp_step_bytes; /* payload of the collectives of one rank, one step */
    int64_t snapshot_bytes;               /* whole job, one snapshot */
    int64_t staging_bytes;                /* of a GPU, about: its share of a snapshot, on the way out */
    int64_t arrival_bytes;                /* of a CPU rank, at most: gradients of others, before they are added */
    int64_t snapshots;                    /* in the run */
    int64_t checkpoint_bytes;             /* one: fp32 weights and two moments; the ranks hold as much host memory */
    int64_t checkpoints;                  /* kept at the end; one more is there while it is written */
    int64_t database_bytes;               /* estimate: some 320 bytes a spectrum and a step, and blobs */
} plan;

/* CONFIG when the shapes cannot be split. parallel.data absent: planned for one. */
status plan_make(plan *out, const config *c);

/* The plan as text. */
void plan_print(const plan *p, const config *c);
