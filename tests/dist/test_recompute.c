/* train.recompute: what is computed again in the backward pass is the same, bit for bit, communicates nothing, takes
 * the memory and the operations that the plan says, and memory falls. Over P x Q ranks (same_run.h), with ZeRO-1 and
 * accumulation. Run with 1 to 4 ranks. */
#include "same_run.h"

#define COUNT(list) (int)(sizeof(list) / sizeof *(list))

enum { STEPS = 3, PARTS = 3 }; /* parts of each rank's samples, so that buffers are used more than once */

typedef struct outcome {
    double losses[STEPS], evaluation;
    float *gradient[STEPS], *master; /* [values] */
    int64_t values;
    uint64_t tp_collectives, dp_collectives;
    size_t bytes, peak_bytes;
    double flops; /* of one micro-batch's products */
} outcome;

/* Loss, gradients and weights of each step, and of a validation that comes between two: the next step must not take
 * what that one left behind. */
static void train_steps(run *r, outcome *out) {
    int32_t input[BATCH * CONTEXT], target[BATCH * CONTEXT];
    model *m = &r->model;
    out->values = params_total(&m->params);
    for (int step = 0; step < STEPS; step++) {
        draw_tokens(input, (uint64_t)step + 1);
        draw_tokens(target, 100);
        double before = ops_flops(&r->ops);
        out->losses[step] = train_pass(r, input, target);
        out->flops = (ops_flops(&r->ops) - before) / PARTS;
        out->gradient[step] = gathered(r, GRADIENT);
        optimizer_norm(m);
        optimizer_update(m, &r->config, 1e-2);
        if (step > 0) continue;
        model_evaluate(m, input, target, 1);
        model_reduce_loss(m);
        out->evaluation = model_take_loss(m);
    }
    out->master = gathered(r, MASTER);
    out->tp_collectives = r->tp.sequence;
    out->dp_collectives = r->dp.sequence;
    out->bytes = m->memory.size_bytes;
    out->peak_bytes = m->memory.peak_bytes;
    check_status(model_status(m), STATUS_OK);
}

/* What a planner, who has none of the ranks, says of rank 0. */
static void check_plan(const run *r, const outcome *got) {
    model described;
    model_needs needs;
    check_status(model_describe(&described, &r->config, r->ops.activation, r->ops.logit_elements, r->core, r->tp.size,
                                r->dp.size, r->micro_batch, &needs),
                 STATUS_OK);
    assert_int_equal(got->bytes, needs.bytes);
    assert_int_equal(got->peak_bytes, needs.bytes);
    if (r->tp.rank == 0) check_near(got->flops, needs.train_flops, 0);
    model_free(&described);
}

static outcome train(const char *const *settings, int count, int tp, const char *recompute) {
    const char *all[MOST_SETTINGS];
    outcome out = {0};
    run r;
    memcpy(all, settings, (size_t)count * sizeof *all);
    all[count] = recompute;
    open_run(&r, all, count + 1, tp, PARTS);
    set_weights(&r);
    train_steps(&r, &out);
    check_plan(&r, &out);
    close_run(&r);
    return out;
}

static void free_outcome(outcome *o) {
    for (int i = 0; i < STEPS; i++) free(o->gradient[i]);
    free(o->master);
}

static void check_bits(const char *recompute, const char *what, int tp, const float *got, const float *want,
                       int64_t count) {
    for (int64_t i = 0; i < count; i++)
        if (memcmp(&got[i], &want[i], sizeof *got) != 0)
            fail_msg("rank %d of %d, P = %d, %s: %s: value %ld is %.9g, not %.9g", world_rank(), world_size(), tp,
                     recompute, what, (long)i, got[i], want[i]);
}

static void check_mode(const char *const *settings, int count, int tp, const char *recompute, const outcome *want) {
    outcome got = train(settings, count, tp, recompute);
    for (int i = 0; i < STEPS; i++) {
        check_bits(recompute, "gradient", tp, got.gradient[i], want->gradient[i], want->values);
        check_near(got.losses[i], want->losses[i], 0);
    }
    check_near(got.evaluation, want->evaluation, 0);
    check_bits(recompute, "weights", tp, got.master, want->master, want->values);
    assert_int_equal(got.tp_collectives, want->tp_collectives);
    assert_int_equal(got.dp_collectives, want->dp_collectives);
    assert_true(got.flops > want->flops);
    assert_true(got.bytes < want->bytes);
    free_outcome(&got);
}

/* The choices at every split of the world that the model's heads allow. */
static void check_splits(const char *const *settings, int count) {
    for (int tp = 1; tp <= world_size(); tp *= 2) {
        outcome want = train(settings, count, tp, "train.recompute=none");
        check_mode(settings, count, tp, "train.recompute=attention", &want);
        check_mode(settings, count, tp, "train.recompute=full", &want);
        free_outcome(&want);
    }
}

/* Without and with halves. */
static void check_recomputed(const char *const *settings, int count) {
    const char *all[MOST_SETTINGS];
    memcpy(all, settings, (size_t)count * sizeof *all);
    all[count] = "parallel.halves=on";
    check_splits(all, count);
    if (world_size() > 1) check_splits(all, count + 1);
}

#define CHECK(...)                                                                                                     \
    do {                                                                                                               \
        static const char *const settings_[] = {__VA_ARGS__};                                                          \
        check_recomputed(settings_, COUNT(settings_));                                                                 \
    } while (0)

static void mha(void **state) {
    CHECK("attention.variant=mha", "attention.v_head_dim=12");
}
static void mha_grouped(void **state) {
    if (world_size() > 2) skip(); /* two kv heads */
    CHECK("attention.variant=mha", "model.kv_heads=2");
}
static void mha_tied_embeddings(void **state) {
    CHECK("attention.variant=mha", "model.tie_embeddings=true");
}
static void mha_without_zero(void **state) {
    CHECK("attention.variant=mha", "parallel.zero=0");
}
static void prerope_key(void **state) {
    CHECK(KEY_VALUES);
}
static void prerope_hidden(void **state) {
    CHECK(KEY_VALUES, "attention.prerope_source=hidden");
}
static void decoupled(void **state) {
    CHECK(DECOUPLED);
}
static void decoupled_query_latent(void **state) {
    CHECK(DECOUPLED, "attention.q_lora_rank=20", "model.tie_embeddings=true");
}
static void decoupled_without_norms(void **state) {
    CHECK(DECOUPLED, "attention.q_lora_rank=20", "attention.latent_norm=false");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(mha),
    cmocka_unit_test(mha_grouped),
    cmocka_unit_test(mha_tied_embeddings),
    cmocka_unit_test(mha_without_zero),
    cmocka_unit_test(prerope_key),
    cmocka_unit_test(prerope_hidden),
    cmocka_unit_test(decoupled),
    cmocka_unit_test(decoupled_query_latent),
    cmocka_unit_test(decoupled_without_norms),
};

DIST_MAIN(tests)
