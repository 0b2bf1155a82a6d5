/* Data parallelism: the same model over P x Q ranks as on one (same_run.h), with and without ZeRO-1, for every split of
 * the world with Q > 1 and for accumulation; twenty steps of training; what each rank owns, takes and sends. Run with 2
 * to 4 ranks. */
#include "late.h"
#include "same_run.h"

#include "trainer/agreement.h"
#include "trainer/owned.h"

#define COUNT(list) (int)(sizeof(list) / sizeof *(list))

typedef void (*layout_check)(const char *const *settings, int count, int tp);

/* The check over every split of the world that the model's four heads allow, without and with ZeRO-1 where Q > 1. */
static void over_layouts(const char *const *settings, int count, layout_check check) {
    static const char *const zero[] = {"parallel.zero=0", "parallel.zero=1"};
    const char *all[MOST_SETTINGS];
    memcpy(all, settings, (size_t)count * sizeof *all);
    for (int tp = 1; tp <= world_size() && tp <= 4; tp *= 2) {
        if (world_size() % tp != 0) continue;
        for (int z = tp == world_size(); z < 2; z++) {
            all[count] = zero[z];
            check(all, count + 1, tp);
        }
    }
}

/* ---------------------------------------------------------------- one step */

/* One step of the model alone and over P = tp, each data-parallel rank's samples in so many parts. */
static void check_parts(const char *const *settings, int count, int tp, int micro_batches) {
    run alone, r;
    open_run(&alone, settings, count, 0, 1);
    open_run(&r, settings, count, tp, micro_batches);
    assert_int_equal(r.model.params.pieces, r.config.parallel.zero ? r.dp.size : 1);
    check_initial_weights(&r, &alone);
    set_weights(&alone);
    set_weights(&r);
    check_step(&r, &alone);
    close_run(&r);
    close_run(&alone);
}

static void at_once(const char *const *settings, int count, int tp) {
    check_parts(settings, count, tp, 1);
}

/* Nothing is doubled, weighted twice or sent too early (docs/cases.md 5). */
static void sample_by_sample(const char *const *settings, int count, int tp) {
    check_parts(settings, count, tp, BATCH * tp / world_size());
}

#define CHECK_STEP(...)                                                                                                \
    do {                                                                                                               \
        static const char *const settings_[] = {__VA_ARGS__};                                                          \
        over_layouts(settings_, COUNT(settings_), sample_by_sample);                                                   \
    } while (0)

static void mha(void **state) {
    CHECK_STEP("attention.variant=mha", "attention.v_head_dim=12");
}
static void mha_tied_embeddings(void **state) {
    CHECK_STEP("attention.variant=mha", "model.tie_embeddings=true");
}
static void prerope_key(void **state) {
    CHECK_STEP(KEY_VALUES);
}
static void prerope_hidden(void **state) {
    CHECK_STEP(KEY_VALUES, "attention.prerope_source=hidden");
}
static void decoupled(void **state) {
    CHECK_STEP(DECOUPLED, "attention.q_lora_rank=20");
}
static void decoupled_at_once(void **state) {
    static const char *const settings[] = {DECOUPLED};
    over_layouts(settings, COUNT(settings), at_once);
}
static void decoupled_in_halves(void **state) {
    static const char *const settings[] = {DECOUPLED, "parallel.halves=on"};
    over_layouts(settings, COUNT(settings), at_once);
}

/* ---------------------------------------------------------------- twenty steps */

enum { STEPS = 20 };

/* Losses of the steps, from the initial weights on. */
static void train_steps(run *r, double losses[STEPS]) {
    int32_t input[BATCH * CONTEXT], target[BATCH * CONTEXT];
    for (int step = 1; step <= STEPS; step++) {
        draw_tokens(input, (uint64_t)step);
        draw_tokens(target, 1); /* can be learned */
        losses[step - 1] = train_pass(r, input, target);
        optimizer_norm(&r->model);
        optimizer_update(&r->model, &r->config, 1e-3);
    }
    check_status(model_status(&r->model), STATUS_OK);
}

/* The model alone after those steps: trained by one rank, weights and losses given to all. */
static void train_alone(run *alone, const char *const *settings, int count, double losses[STEPS]) {
    open_run(alone, settings, count, 0, 1);
    if (world_rank() == 0) train_steps(alone, losses);
    float *weights = gathered(alone, MASTER);
    int64_t total = params_total(&alone->model.params);
    MPI_Bcast(losses, STEPS, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    MPI_Bcast(weights, (int)total, MPI_FLOAT, 0, MPI_COMM_WORLD);
    alone->ops.upload(&alone->ops, alone->model.params.master, weights, (size_t)total * sizeof *weights);
    free(weights);
}

static run reference;
static double reference_losses[STEPS];

/* Losses and weights as alone; and twice the same bits. */
static void check_twenty_steps(const char *const *settings, int count, int tp) {
    double losses[2][STEPS];
    float *weights[2];
    if (tp == world_size()) return;
    for (int repeat = 0; repeat < 2; repeat++) {
        run r;
        open_run(&r, settings, count, tp, 1);
        train_steps(&r, losses[repeat]);
        if (repeat == 0) check_parameters(&r, &reference, MASTER);
        check_copies(&r);
        weights[repeat] = gathered(&r, MASTER);
        if (repeat) assert_memory_equal(weights[0], weights[1], (size_t)params_total(&r.model.params) * sizeof(float));
        close_run(&r);
    }
    for (int i = 0; i < STEPS; i++) check_near(losses[0][i], reference_losses[i], 1e-5 * reference_losses[i]);
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
    free(weights[0]);
    free(weights[1]);
}

#define CHECK_TWENTY_STEPS(...)                                                                                        \
    do {                                                                                                               \
        static const char *const settings_[] = {__VA_ARGS__};                                                          \
        train_alone(&reference, settings_, COUNT(settings_), reference_losses);                                        \
        assert_true(reference_losses[STEPS - 1] < reference_losses[0] - 0.3);                                          \
        over_layouts(settings_, COUNT(settings_), check_twenty_steps);                                                 \
        close_run(&reference);                                                                                         \
    } while (0)

static void twenty_steps_mha(void **state) {
    CHECK_TWENTY_STEPS("attention.variant=mha");
}
static void twenty_steps_prerope(void **state) {
    CHECK_TWENTY_STEPS(KEY_VALUES);
}
static void twenty_steps_decoupled(void **state) {
    CHECK_TWENTY_STEPS(DECOUPLED);
}

/* ---------------------------------------------------------------- weights that arrive late */

static int gathered_buckets(const params *p) {
    int count = 0;
    for (int b = 0; b < p->buckets; b++) count += p->bucket[b].piece > 0;
    return count;
}

/* Behind an update no bucket is waited for, and then each before it is read: by a step, or by a validation. */
static void check_late(const char *const *settings, int count, int tp) {
    double losses[2][3][2];
    int32_t tokens[BATCH * CONTEXT];
    draw_tokens(tokens, 9);
    for (int is_late = 0; is_late < 2; is_late++) {
        run r;
        open_run(&r, settings, count, tp, BATCH * tp / world_size());
        late slow;
        bool cut = r.model.params.pieces > 1 && late_can(&r.dp);
        if (is_late && cut) late_make(&slow, &r.dp);
        for (int step = 0; step < 3; step++) {
            losses[is_late][step][0] = train_pass(&r, tokens, tokens);
            optimizer_norm(&r.model);
            optimizer_update(&r.model, &r.config, 1e-2);
            if (is_late && cut) assert_int_equal(slow.count, gathered_buckets(&r.model.params));
            if (step == 1) model_evaluate(&r.model, tokens, tokens, 1);
            model_reduce_loss(&r.model);
            losses[is_late][step][1] = model_take_loss(&r.model);
        }
        check_status(model_status(&r.model), STATUS_OK);
        close_run(&r);
    }
    assert_true(losses[0][1][1] > 0 && losses[0][1][0] < losses[0][0][0]);
    assert_memory_equal(losses[0], losses[1], sizeof losses[0]);
}

static void weights_are_waited_for_bucket_by_bucket(void **state) {
    static const char *const settings[] = {DECOUPLED};
    over_layouts(settings, COUNT(settings), check_late);
}
static void tied_weights_are_waited_for_bucket_by_bucket(void **state) {
    static const char *const settings[] = {"attention.variant=mha", "model.tie_embeddings=true"};
    over_layouts(settings, COUNT(settings), check_late);
}

/* ---------------------------------------------------------------- what is not finite */

/* An element of bucket b, drawn. */
static int64_t element_of(const params *p, int b) {
    return p->bucket[b].first + (int64_t)(rng_u64(31, 2, (uint64_t)b) % (uint64_t)(p->bucket[b].piece * p->pieces));
}

/* Who is found, on every rank. */
static void check_named(run *r, const char *want) {
    char who[64];
    comm_group all;
    check_status(comm_over_mpi(&all, MPI_COMM_WORLD), STATUS_OK);
    model_reduce_loss(&r->model);
    model_report_start(&r->model, 1);
    check_status(agreement_who(&all, !model_report_take(&r->model, 1).own_is_finite, who, sizeof who), STATUS_OK);
    assert_string_equal(who, want);
    comm_close(&all);
}

/* Nobody; and the ranks of one replica, which alone has a loss that is not finite. */
static void check_loss_named(run *r) {
    char want[64] = "rank";
    int tp = r->tp.size, sick = world_size() / tp - 1;
    const double bad = INFINITY;
    check_named(r, "no rank");
    if (r->dp.rank == sick) r->ops.upload(&r->ops, r->model.figures + sick, &bad, sizeof bad);
    snprintf(want, sizeof want,
             tp == 1   ? "rank %d"
             : tp == 2 ? "ranks %d, %d"
                       : "ranks %d, %d, %d, %d",
             sick * tp, sick * tp + 1, sick * tp + 2, sick * tp + 3);
    check_named(r, want);
}

/* A NaN in one rank's gradients alone, whatever the bucket, makes the norm one on all ranks, and no weight moves. Of
 * complete gradients, which tensor-parallel ranks have alike, the first of them has it. */
static void check_nan(const char *const *settings, int count, int tp) {
    int32_t tokens[BATCH * CONTEXT];
    char who[64];
    const float nan = NAN;
    run r;
    open_run(&r, settings, count, tp, 1);
    draw_tokens(tokens, 3);
    check_loss_named(&r);
    params *p = &r.model.params;
    for (int b = 0; b < p->buckets; b++) {
        int64_t at = element_of(p, b);
        int sick = (int)(rng_u64(31, 1, (uint64_t)(b + tp)) % (uint64_t)world_size());
        if (at >= p->region_first[REGION_COMPLETE]) sick -= sick % tp;
        model_train(&r.model, tokens, tokens, 1, true, false);
        if (world_rank() == sick) r.ops.upload(&r.ops, p->gradient + at, &nan, sizeof nan);
        model_train(&r.model, tokens, tokens, 1, false, true);
        optimizer_reduce(&r.model);
        float *before = gathered(&r, MASTER);
        assert_true(isnan(gradient_norm(&r.model)));
        snprintf(who, sizeof who, "rank %d", sick);
        check_named(&r, who);
        optimizer_update(&r.model, &r.config, 1e-3);
        float *after = gathered(&r, MASTER);
        assert_memory_equal(before, after, (size_t)params_total(p) * sizeof *before);
        check_copies(&r);
        free(before);
        free(after);
    }
    check_status(model_status(&r.model), STATUS_OK);
    close_run(&r);
}

static void a_nan_on_one_rank_stops_all(void **state) {
    static const char *const settings[] = {DECOUPLED};
    over_layouts(settings, COUNT(settings), check_nan);
}

/* ---------------------------------------------------------------- what a rank owns */

/* A value that names the parameter and the element; exact in fp32. */
static float name_of(const param *q, int64_t row, int64_t col) {
    return (float)(1 + rng_u64(17, rng_stream(q->name), (uint64_t)(row * q->spec.cols + col)) % (1 << 24));
}

static status name_row(void *user, const param *q, int64_t r, float *row) {
    for (int64_t c = 0; c < q->n_cols; c++) row[c] = name_of(q, q->row + r, q->col + c);
    return STATUS_OK;
}

/* Adds what the boxes of parameter i hold in `base` to its whole tensor, and counts who has been there. */
static void collect(run *r, const owned *boxes, int i, const float *base, float *values, int *owners) {
    int64_t cols = r->model.params.list[i].spec.cols;
    for (int b = 0; b < boxes->count; b++) {
        const owned_box *box = &boxes->boxes[b];
        if (box->param != i) continue;
        for (int64_t row = 0; row < box->n_rows; row++) {
            int64_t at = (box->row + row) * cols + box->col;
            r->ops.download(&r->ops, values + at, base + box->at + row * box->stride,
                            (size_t)box->n_cols * sizeof *values);
            for (int64_t col = 0; col < box->n_cols; col++) owners[at + col]++;
        }
    }
}

/* Every element of every parameter has one owner, who finds it where its box says: the weights, and both moments. */
static void check_owners(const char *const *settings, int count, int tp) {
    run r;
    comm_roles roles;
    owned boxes;
    open_run(&r, settings, count, tp, 1);
    params *p = &r.model.params;
    check_status(comm_roles_split(&roles, tp, 0, 0), STATUS_OK);
    check_status(owned_list(&boxes, p, &roles), STATUS_OK);
    check_status(params_fill(p, &r.ops, name_row, NULL), STATUS_OK);
    for (int moment = 1; moment <= 2; moment++)
        check_status(params_fill_moment(p, &r.ops, moment, name_row, NULL), STATUS_OK);
    const float *const bases[] = {p->master, p->moment1, p->moment2};
    for (int i = 0; i < p->count; i++) {
        const param *q = &p->list[i];
        int elements = (int)(q->spec.rows * q->spec.cols);
        for (int base = 0; base < 3; base++) {
            float *values = calloc((size_t)elements, sizeof *values);
            int *owners = calloc((size_t)elements, sizeof *owners);
            collect(&r, &boxes, i, bases[base], values, owners);
            MPI_Allreduce(MPI_IN_PLACE, values, elements, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
            MPI_Allreduce(MPI_IN_PLACE, owners, elements, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
            for (int e = 0; e < elements; e++) {
                assert_int_equal(owners[e], 1);
                check_near(values[e], name_of(q, e / q->spec.cols, e % q->spec.cols), 0);
            }
            free(values);
            free(owners);
        }
    }
    check_copies(&r);
    owned_free(&boxes);
    comm_roles_free(&roles);
    close_run(&r);
}

static void every_element_has_one_owner(void **state) {
    static const char *const settings[] = {DECOUPLED, "attention.q_lora_rank=20"};
    over_layouts(settings, COUNT(settings), check_owners);
}

/* ---------------------------------------------------------------- memory */

/* What the plan says is what a rank takes; ZeRO-1 saves 12 bytes of each 16, and pads. */
static void check_memory(const char *const *settings, int count, int tp) {
    run r;
    model described;
    model_needs needs;
    open_run(&r, settings, count, tp, 1);
    check_status(model_describe(&described, &r.config, r.ops.activation, r.ops.logit_elements, r.core, tp, r.dp.size,
                                r.micro_batch, &needs),
                 STATUS_OK);
    assert_int_equal(needs.bytes, r.model.memory.size_bytes);
    assert_int_equal(needs.parameter_bytes, params_bytes(&r.model.params));
    int32_t tokens[BATCH * CONTEXT];
    draw_tokens(tokens, 1);
    train_pass(&r, tokens, tokens);
    assert_int_equal(r.model.memory.peak_bytes, needs.bytes); /* all of it is used */
    int64_t total = params_total(&r.model.params), q = r.model.params.pieces;
    int64_t copies = q > 1 && r.ops.activation == DTYPE_F32 ? total : 0;
    if (r.ops.activation == DTYPE_F32)
        assert_int_equal(needs.parameter_bytes, (total + 3 * total / q + copies) * (int64_t)sizeof(float));
    model_free(&described);
    close_run(&r);
}

static void memory_is_as_planned(void **state) {
    static const char *const settings[] = {DECOUPLED};
    over_layouts(settings, COUNT(settings), check_memory);
}

/* ---------------------------------------------------------------- compute copies in bf16 */

static uint16_t bf16_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static ops cpu;

/* The CPU table with copies in bf16, as a GPU's has them. */
static void cast_bf16(ops *o, void *out, const float *x, int64_t count) {
    for (int64_t i = 0; i < count; i++) ((uint16_t *)out)[i] = bf16_of(x[i]);
}

static void adamw_bf16(ops *o, float *weight, float *m, float *v, const float *gradient, void *copy, int64_t count,
                       float weight_decay, const adamw_update *u) {
    cpu.adamw(o, weight, m, v, gradient, NULL, count, weight_decay, u);
    if (copy) cast_bf16(o, copy, weight, count);
}

static const param_spec bf16_specs[] = {
    {.name = "rows", .rows = 37, .cols = 10, .shard = PARAM_BY_ROWS, .init = PARAM_NORMAL, .std = 1},
    {.name = "cols", .rows = 3, .cols = 70, .shard = PARAM_BY_COLS, .init = PARAM_NORMAL, .std = 1},
    {.name = "shared", .rows = 9, .cols = 11, .partial = true, .init = PARAM_NORMAL, .std = 1},
    {.name = "shared gain", .rows = 1, .cols = 11, .partial = true, .init = PARAM_ONES},
    {.name = "gain", .rows = 1, .cols = 130, .init = PARAM_ONES},
};
enum { BF16_SPECS = sizeof bf16_specs / sizeof *bf16_specs, BF16_BYTES = 1 << 17, MOST_RANKS = 4 };

/* A model of those parameters and nothing else, updated once; gradients are a function of name and element. */
static void update_bf16(model *m, ops *o, comm_group *tp, comm_group *dp, arena *memory) {
    static double figures[MOST_RANKS + 2] = {[MOST_RANKS + 1] = 1}; /* losses, squared norms */
    static adamw_update update;
    config c;
    assert_in_range(dp->size, 1, MOST_RANKS);
    load_config(&c, NULL, 0);
    *m = (model){.ops = o, .tp = tp, .dp = dp, .figures = figures + MOST_RANKS - dp->size, .update = &update};
    update.count = 0;
    for (int i = 0; i < BF16_SPECS; i++) check_status(params_add(&m->params, "", &bf16_specs[i]), STATUS_OK);
    check_status(params_layout(&m->params, 0, 1, dp->rank, dp->size), STATUS_OK);
    *memory = (arena){.size_bytes = BF16_BYTES, .base = o->alloc(o, BF16_BYTES)};
    assert_non_null(memory->base);
    params_reserve(&m->params, o->activation, memory);
    check_status(params_init(&m->params, o, 3), STATUS_OK);
    for (int i = 0; i < BF16_SPECS; i++) {
        const param *q = &m->params.list[i];
        rng_normal(tensor_f32(params_gradient(&m->params, i)), 8, rng_stream(q->name), 0, q->rows * q->cols, 1);
    }
    optimizer_update(m, &c, 0.1);
    comm_finish(dp);
    check_status(comm_status(dp), STATUS_OK);
    config_free(&c);
}

/* Matrices arrive in bf16, gains in fp32, on every rank, as one rank alone has them. */
static void copies_in_bf16(void **state) {
    check_status(ops_cpu(&cpu, 1), STATUS_OK);
    ops o = cpu;
    o.activation = DTYPE_BF16;
    o.cast = cast_bf16;
    o.adamw = adamw_bf16;
    comm_group self, dp;
    model alone, m;
    arena memory_alone, memory;
    comm_self(&self);
    check_status(comm_over_mpi(&dp, MPI_COMM_WORLD), STATUS_OK);
    update_bf16(&alone, &o, &self, &self, &memory_alone);
    update_bf16(&m, &o, &self, &dp, &memory);
    for (int i = 0; i < BF16_SPECS; i++) {
        tensor got = params_weight(&m.params, i), want = params_weight(&alone.params, i);
        bool gain = bf16_specs[i].init == PARAM_ONES;
        assert_int_equal(got.type, gain ? DTYPE_F32 : DTYPE_BF16);
        assert_int_equal(want.type, got.type);
        assert_memory_equal(got.data, want.data, (size_t)(got.rows * got.cols) * dtype_bytes(got.type));
        for (int64_t k = 0; gain && k < got.cols; k++) assert_true(tensor_f32(got)[k] != 1);
    }
    comm_close(&dp);
    o.release(&o, memory_alone.base);
    o.release(&o, memory.base);
    params_free(&alone.params);
    params_free(&m.params);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(mha),
    cmocka_unit_test(mha_tied_embeddings),
    cmocka_unit_test(prerope_key),
    cmocka_unit_test(prerope_hidden),
    cmocka_unit_test(decoupled),
    cmocka_unit_test(decoupled_at_once),
    cmocka_unit_test(decoupled_in_halves),
    cmocka_unit_test(twenty_steps_mha),
    cmocka_unit_test(twenty_steps_prerope),
    cmocka_unit_test(twenty_steps_decoupled),
    cmocka_unit_test(weights_are_waited_for_bucket_by_bucket),
    cmocka_unit_test(tied_weights_are_waited_for_bucket_by_bucket),
    cmocka_unit_test(a_nan_on_one_rank_stops_all),
    cmocka_unit_test(every_element_has_one_owner),
    cmocka_unit_test(memory_is_as_planned),
    cmocka_unit_test(copies_in_bf16),
};

DIST_MAIN(tests)
