#include "trainer/plan.h"

#include "core/snapshot_steps.h"
#include "diag/diag.h"

#include <stdio.h>

static int64_t snapshot_bytes(const config *c, const model *m) {
    int64_t bytes = 0;
    for (int i = 0; i < m->params.count; i++) {
        const param_spec *spec = &m->params.list[i].spec;
        if (diag_wants(c, m->params.list[i].name)) bytes += spec->rows * spec->cols * (int64_t)sizeof(float);
    }
    return bytes;
}

static int64_t common_multiple(int64_t a, int64_t b) {
    int64_t x = a, y = b;
    while (y) {
        int64_t rest = x % y;
        x = y;
        y = rest;
    }
    return a / x * b;
}

/* Checkpoints that are there at the end: the newest, and each keep_every-th of the others. */
static int64_t kept_checkpoints(const config *c) {
    int64_t every = c->checkpoint.every, each = c->checkpoint.keep_every, steps = c->train.steps;
    if (every == 0 || every >= steps) return 1;
    int64_t made = steps / every + (steps % every != 0), newest = made < c->checkpoint.keep ? made : c->checkpoint.keep;
    int64_t oldest = (made - newest + 1) * every;
    if (oldest > steps) oldest = steps;
    return newest + (each ? (oldest - 1) / common_multiple(every, each) : 0);
}

enum { STEP_ROW_BYTES = 320 };

static int64_t database_bytes(const config *c, int64_t snapshots) {
    diag_size each = diag_snapshot_size(c);
    int64_t esd = c->diagnostics.esd_every ? c->train.steps / c->diagnostics.esd_every + 1 : 0;
    if (esd > snapshots) esd = snapshots;
    return snapshots * each.spectra_bytes + esd * each.esd_bytes + STEP_ROW_BYTES * c->train.steps;
}

/* auto is planned as the CPU would run it. */
static bool on_gpu(const config *c) {
    return c->run.device == DEVICE_CUDA;
}

static dtype activation_type(const config *c) {
    bool bf16 = on_gpu(c) && c->train.precision == PRECISION_AUTO;
    return bf16 || c->train.precision == PRECISION_BF16 ? DTYPE_BF16 : DTYPE_F32;
}

/* Gradients are summed in fp32; under ZeRO-1 the compute copies are gathered, gains in fp32. */
static int64_t data_parallel_bytes(const params *p) {
    int64_t gains = params_total(p) - p->gains_first, fp32 = sizeof(float);
    int64_t gathered = p->gains_first * (int64_t)dtype_bytes(p->compute_type) + gains * fp32;
    return params_total(p) * fp32 + (p->pieces > 1 ? gathered : 0);
}

/* Over MPI the pieces of the others come into memory of their own: one of each bucket, where all are under way. */
static int64_t arrival_bytes(const params *p) {
    return (params_total(p) - params_total(p) / p->pieces) * (int64_t)sizeof(float);
}

/* What each choice of train.recompute needs. m: the model of the configured one; flops: of a rank's micro-batch with
 * none. */
static status compare_recomputes(plan *p, const config *c, model *m, double *flops) {
    const attn_core *core = on_gpu(c) ? &attn_core_cuda_room : &attn_core_cpu;
    int64_t logits = on_gpu(c) ? OPS_CUDA_LOGITS : OPS_CPU_LOGITS;
    config choice = *c;
    if (choice.parallel.halves == HALVES_AUTO) choice.parallel.halves = on_gpu(c) ? HALVES_ON : HALVES_OFF;
    for (int i = 0; i < PLAN_RECOMPUTES; i++) {
        model described = {0};
        model_needs needs = {0};
        choice.train.recompute = (config_recompute)i;
        status s =
            model_describe(&described, &choice, activation_type(c), logits, core, p->tp, p->dp, p->micro_batch, &needs);
        if (s == STATUS_OK) {
            if (i == RECOMPUTE_NONE) *flops = needs.train_flops;
            p->recompute[i] =
                (plan_recompute){.bytes = (int64_t)needs.bytes, .more_flops = needs.train_flops / *flops - 1};
        }
        if (s == STATUS_OK && choice.train.recompute == c->train.recompute) {
            *m = described;
            p->rank0 = needs;
        } else {
            model_free(&described);
        }
        TRY(s);
    }
    return STATUS_OK;
}

status plan_make(plan *out, const config *c) {
    TRY(diag_check_alerts(c));
    int tp = (int)c->parallel.tensor, dp = c->parallel.data ? (int)c->parallel.data : 1;
    int64_t batch = c->train.global_batch;
    if (batch % dp != 0)
        return status_fail(STATUS_CONFIG, "train.global_batch: %ld samples cannot be split over %d data-parallel ranks",
                           (long)batch, dp);
    int64_t micro = c->train.micro_batch ? c->train.micro_batch : batch / dp;
    *out = (plan){.tp = tp,
                  .dp = dp,
                  .diagnostics_ranks = (int)c->diagnostics.ranks,
                  .world = tp * dp + (int)c->diagnostics.ranks,
                  .micro_batch = micro,
                  .accumulation = batch / dp / micro,
                  .tokens_per_step = batch * c->model.context,
                  .snapshots = snapshot_steps_count(c)};
    if (micro * out->accumulation * dp != batch)
        return status_fail(STATUS_CONFIG, "train.micro_batch: each rank's %ld samples a step are no multiple of %ld",
                           (long)(batch / dp), (long)micro);
    double flops = 0;
    model m = {0};
    status s = compare_recomputes(out, c, &m, &flops);
    if (s == STATUS_OK) {
        int64_t partial = m.params.region_first[REGION_COMPLETE] - m.params.region_first[REGION_PARTIAL];
        out->step_flops = tp * flops * (double)(out->accumulation * dp);
        out->tp_step_bytes = tp == 1 ? 0 : out->rank0.tp_bytes * out->accumulation + partial * (int64_t)sizeof(float);
        out->dp_step_bytes = dp == 1 ? 0 : data_parallel_bytes(&m.params);
        out->arrival_bytes = on_gpu(c) ? 0 : arrival_bytes(&m.params);
        out->snapshot_bytes = snapshot_bytes(c, &m);
        bool staged = c->run.device == DEVICE_CUDA && c->diagnostics.ranks > 0;
        out->staging_bytes = staged ? out->snapshot_bytes / (tp * dp) : 0;
        out->checkpoint_bytes = 3 * out->rank0.parameters * (int64_t)sizeof(float);
        out->checkpoints = kept_checkpoints(c);
        out->database_bytes = database_bytes(c, out->snapshots);
    }
    model_free(&m);
    return s;
}

static double mib(int64_t bytes) {
    return (double)bytes / 0x1p20;
}

static int64_t rank_bytes(const plan *p, int64_t model_bytes) {
    return model_bytes + p->staging_bytes + p->arrival_bytes;
}

void plan_print(const plan *p, const config *c) {
    printf("model          %s, %.2f million parameters\n", config_variant_name(c->attention.variant),
           (double)p->rank0.parameters / 1e6);
    printf("ranks          tensor %d x data %d + diagnostics %d = %d\n", p->tp, p->dp, p->diagnostics_ranks, p->world);
    printf("step           %ld tokens: %ld micro-batches of %ld samples a rank, %.3f TFLOP\n", (long)p->tokens_per_step,
           (long)p->accumulation, (long)p->micro_batch, p->step_flops / 1e12);
    printf("memory         %.1f MiB a compute rank, %.1f of them weights, gradients and moments\n",
           mib(rank_bytes(p, (int64_t)p->rank0.bytes)), mib((int64_t)p->rank0.parameter_bytes));
    for (int i = 0; i < PLAN_RECOMPUTES; i++)
        printf("%-14s %-9s %9.1f MiB, %4.1f%% more operations%s\n", i == 0 ? "recompute" : "",
               config_recompute_name((config_recompute)i), mib(rank_bytes(p, p->recompute[i].bytes)),
               100 * p->recompute[i].more_flops, i == (int)c->train.recompute ? " (as configured)" : "");
    printf("communication  a rank and step: %.2f MiB tensor parallel (%ld collectives), %.2f MiB data parallel\n",
           mib(p->tp_step_bytes), (long)(p->tp == 1 ? 0 : p->rank0.tp_collectives * p->accumulation),
           mib(p->dp_step_bytes));
    printf("snapshots      %ld of %.2f MiB; database about %.1f MiB\n", (long)p->snapshots, mib(p->snapshot_bytes),
           mib(p->database_bytes));
    printf("checkpoints    %ld of %.1f MiB stay; host memory for the copy of one, cut over the ranks\n",
           (long)p->checkpoints, mib(p->checkpoint_bytes));
}
