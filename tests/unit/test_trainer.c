/* The trainer's pure parts: the learning rate's closed form, the parameter table's cuts, what a snapshot is due after.
 */
#include "check.h"
#include "inputs.h"

#include "attention/cuda/hopper_cuts.h"
#include "comm/count.h"
#include "core/snapshot_steps.h"
#include "trainer/optimizer.h"
#include "trainer/params.h"
#include "trainer/plan.h"
#include "trainer/schedule.h"

static config schedule(int64_t warmup, int64_t steps) {
    config c = {0};
    c.train.lr = 2e-3;
    c.train.min_lr_ratio = 0.25;
    c.train.warmup = warmup;
    c.train.steps = steps;
    return c;
}

static void test_learning_rate_is_the_closed_form(void **state) {
    config c = schedule(10, 110);
    check_near(schedule_lr(&c, 1), 2e-4, 1e-18);
    check_near(schedule_lr(&c, 10), 2e-3, 1e-18);
    check_near(schedule_lr(&c, 60), 2e-3 * 0.625, 1e-15); /* half way down the cosine */
    check_near(schedule_lr(&c, 110), 5e-4, 1e-18);
    assert_true(schedule_lr(&c, 11) < schedule_lr(&c, 10));
    for (int64_t t = 11; t <= 110; t++) assert_true(schedule_lr(&c, t) < schedule_lr(&c, t - 1));
}

/* docs/cases.md 9: no warm-up, warm-up as long as the run, a single step. */
static void test_learning_rate_is_finite_at_the_edges(void **state) {
    const int64_t cases[][2] = {{0, 10}, {10, 10}, {0, 1}, {1, 1}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        config c = schedule(cases[i][0], cases[i][1]);
        for (int64_t t = 1; t <= c.train.steps; t++) {
            double lr = schedule_lr(&c, t);
            assert_true(isfinite(lr) && lr > 0 && lr <= c.train.lr);
        }
        double last = cases[i][0] == cases[i][1] ? 2e-3 : 5e-4;
        check_near(schedule_lr(&c, c.train.steps), last, 1e-18);
    }
}

static params table(int rank, int size, int own_piece, int pieces) {
    static const param_spec specs[] = {
        {.name = "rows", .rows = 10, .cols = 6, .shard = PARAM_BY_ROWS, .init = PARAM_NORMAL, .std = 1},
        {.name = "more", .rows = 7, .cols = 6, .shard = PARAM_BY_ROWS, .joined = true, .init = PARAM_NORMAL, .std = 1},
        {.name = "gain", .rows = 1, .cols = 6, .init = PARAM_ONES},
        {.name = "cols", .rows = 3, .cols = 10, .shard = PARAM_BY_COLS, .init = PARAM_NORMAL, .std = 1},
        {.name = "shared", .rows = 4, .cols = 6, .partial = true, .init = PARAM_NORMAL, .std = 1},
    };
    params p = {0};
    for (size_t i = 0; i < sizeof specs / sizeof *specs; i++) check_status(params_add(&p, "", &specs[i]), STATUS_OK);
    check_status(params_layout(&p, rank, size, own_piece, pieces), STATUS_OK);
    return p;
}

static void test_every_element_belongs_to_one_rank(void **state) {
    for (int size = 1; size <= 11; size++) {
        int seen[10][6] = {{0}}, wide[3][10] = {{0}};
        for (int rank = 0; rank < size; rank++) {
            params p = table(rank, size, 0, 1);
            const param *rows = &p.list[0], *cols = &p.list[3], *shared = &p.list[4];
            for (int64_t r = 0; r < rows->n_rows; r++)
                for (int64_t c = 0; c < rows->n_cols; c++) seen[rows->row + r][rows->col + c]++;
            for (int64_t r = 0; r < cols->n_rows; r++)
                for (int64_t c = 0; c < cols->n_cols; c++) wide[cols->row + r][cols->col + c]++;
            assert_true(rows->rows * size >= 10 && rows->n_rows <= rows->rows);
            assert_int_equal(shared->n_rows, 4);
            assert_int_equal(shared->region, REGION_PARTIAL);
            assert_int_equal(p.list[1].offset, rows->offset + rows->rows * rows->cols); /* joined */
            params_free(&p);
        }
        for (int r = 0; r < 10; r++)
            for (int c = 0; c < 6; c++) assert_int_equal(seen[r][c], 1);
        for (int r = 0; r < 3; r++)
            for (int c = 0; c < 10; c++) assert_int_equal(wide[r][c], 1);
    }
}

static void test_regions_hold_their_class_and_nothing_else(void **state) {
    params p = table(1, 3, 0, 1);
    for (int i = 0; i < p.count; i++) {
        const param *q = &p.list[i];
        assert_true(q->offset >= p.region_first[q->region]);
        assert_true(q->offset + q->rows * q->cols <= p.region_first[q->region + 1]);
    }
    assert_int_equal(p.list[2].region, REGION_COMPLETE);
    assert_int_equal(params_global_count(&p), 60 + 42 + 6 + 30 + 24);
    params_free(&p);
}

/* Buckets lie one behind the other, in equal aligned pieces; gains are last, what tensor parallelism sums is one range;
 * and over the data-parallel ranks each element of a parameter is in one piece, whose places in master are dense. */
static void test_pieces_hold_every_element_once(void **state) {
    for (int pieces = 1; pieces <= 7; pieces++) {
        int owners[5][64] = {{0}};
        for (int piece = 0; piece < pieces; piece++) {
            params p = table(1, 3, piece, pieces);
            int64_t end = 0, at = 0;
            for (int b = 0; b < p.buckets; b++) {
                assert_int_equal(p.bucket[b].first, end);
                assert_int_equal(p.bucket[b].piece % (ARENA_ALIGN_BYTES / (int)sizeof(float)), 0);
                assert_int_equal(p.bucket[b].own, end + piece * p.bucket[b].piece);
                assert_int_equal(p.bucket[b].at, at);
                end += pieces * p.bucket[b].piece;
                at += p.bucket[b].piece;
            }
            assert_int_equal(end, params_total(&p));
            assert_int_equal(at, p.owned);
            for (int i = 0; i < p.count; i++) {
                const param *q = &p.list[i];
                const param_bucket *b = &p.bucket[q->bucket];
                assert_true(q->offset >= b->first && q->offset + q->rows * q->cols <= b->first + pieces * b->piece);
                assert_int_equal(q->offset >= p.gains_first, q->spec.init == PARAM_ONES);
                param_range own = params_owned(&p, i);
                for (int64_t k = own.first; k < own.first + own.count; k++) {
                    owners[i][k]++;
                    assert_int_equal(own.at + k - own.first - b->at, q->offset + k - b->own);
                }
            }
            params_free(&p);
        }
        params p = table(1, 3, 0, pieces);
        for (int i = 0; i < p.count; i++)
            for (int64_t k = 0; k < p.list[i].rows * p.list[i].cols; k++) assert_int_equal(owners[i][k], 1);
        params_free(&p);
    }
}

/* The same element has the same initial value whatever the cut, and padding is zero. */
static void test_initial_weights_do_not_depend_on_the_cut(void **state) {
    ops o;
    check_status(ops_cpu(&o, 1), STATUS_OK);
    params whole = table(0, 1, 0, 1);
    arena memory = {.size_bytes = 1 << 16, .base = o.alloc(&o, 1 << 16)};
    params_reserve(&whole, DTYPE_F32, &memory);
    check_status(params_init(&whole, &o, 7), STATUS_OK);
    for (int rank = 0; rank < 4; rank++) {
        params part = table(rank, 4, 0, 1);
        arena other = {.size_bytes = 1 << 16, .base = o.alloc(&o, 1 << 16)};
        params_reserve(&part, DTYPE_F32, &other);
        check_status(params_init(&part, &o, 7), STATUS_OK);
        for (int i = 0; i < part.count; i++) {
            const param *q = &part.list[i];
            for (int64_t r = 0; r < q->rows; r++) {
                for (int64_t c = 0; c < q->cols; c++) {
                    float got = part.master[q->offset + r * q->cols + c], want = 0;
                    if (r < q->n_rows && c < q->n_cols)
                        want = whole.master[whole.list[i].offset + (q->row + r) * q->spec.cols + q->col + c];
                    assert_memory_equal(&got, &want, sizeof got);
                }
            }
        }
        o.release(&o, other.base);
        params_free(&part);
    }
    o.release(&o, memory.base);
    params_free(&whole);
}

static void test_snapshots_are_due_densely_then_regularly_and_at_the_end(void **state) {
    config c = {0};
    c.train.steps = 23;
    c.diagnostics.every = 10;
    c.diagnostics.dense_until = 3;
    const int due[] = {0, 1, 2, 3, 10, 20, 23};
    size_t next = 0;
    for (int step = 0; step <= 23; step++) {
        bool expected = next < sizeof due / sizeof *due && due[next] == step;
        next += expected;
        assert_int_equal(snapshot_steps_due(&c, step), expected);
        assert_int_equal(snapshot_steps_next(&c, step - 1), due[next - expected]);
    }
    assert_int_equal(snapshot_steps_next(&c, 23), -1);
}

/* The plan counts what the run will send, and does not count step by step: 10^12 steps take no time. */
static void test_the_plan_counts_snapshots(void **state) {
    const char *settings[] = {"model.size=tiny", "train.warmup=0", "diagnostics.every=10"};
    const int64_t steps[] = {0, 1, 9, 10, 11, 23, 40}, dense[] = {0, 1, 3, 10, 12, 100};
    config c;
    plan p;
    check_status(config_load(&c, NULL, settings, 3), STATUS_OK);
    for (size_t i = 0; i < sizeof steps / sizeof *steps; i++)
        for (size_t j = 0; j < sizeof dense / sizeof *dense; j++) {
            int64_t due = 0;
            c.train.steps = steps[i];
            c.diagnostics.dense_until = dense[j];
            for (int64_t step = 0; step <= steps[i]; step++) due += snapshot_steps_due(&c, step);
            check_status(plan_make(&p, &c), STATUS_OK);
            assert_int_equal(p.snapshots, due);
        }
    c.train.steps = 1000000000000;
    c.diagnostics.dense_until = 0;
    check_status(plan_make(&p, &c), STATUS_OK);
    assert_int_equal(p.snapshots, 100000000001);
    assert_int_equal(p.staging_bytes, 0);
    c.run.device = DEVICE_CUDA;
    c.parallel.tensor = 2;
    check_status(plan_make(&p, &c), STATUS_OK);
    assert_int_equal(p.snapshot_bytes, 4 * 4 * (2 * 256 * 256 + 256)); /* layers, bytes: W_Q, W_K, the norm's gain */
    assert_int_equal(p.staging_bytes, p.snapshot_bytes / 2);
    config_free(&c);
}

/* Against saving and pruning step by step. */
static void test_the_plan_counts_the_checkpoints_that_stay(void **state) {
    config c;
    plan p;
    const char *settings[] = {"model.size=tiny", "train.global_batch=2"};
    check_status(config_load(&c, NULL, settings, 2), STATUS_OK);
    for (int i = 0; i < 400; i++) {
        bool there[41] = {false};
        int64_t kept = 0;
        c.train.steps = 1 + inputs_below(40);
        c.checkpoint.every = inputs_below(12);
        c.checkpoint.keep = 1 + inputs_below(5);
        c.checkpoint.keep_every = inputs_below(15);
        for (int64_t step = 1; step <= c.train.steps; step++) {
            if (step != c.train.steps && (!c.checkpoint.every || step % c.checkpoint.every)) continue;
            there[step] = true;
            for (int64_t old = step, newest = 0; old > 0; old--)
                if (there[old] && newest++ >= c.checkpoint.keep)
                    there[old] = c.checkpoint.keep_every && old % c.checkpoint.keep_every == 0;
        }
        for (int64_t step = 1; step <= c.train.steps; step++) kept += there[step];
        check_status(plan_make(&p, &c), STATUS_OK);
        if (p.checkpoints != kept)
            fail_msg("%ld steps, every %ld, keep %ld, keep_every %ld: %ld, not %ld", (long)c.train.steps,
                     (long)c.checkpoint.every, (long)c.checkpoint.keep, (long)c.checkpoint.keep_every,
                     (long)p.checkpoints, (long)kept);
    }
    assert_int_equal(p.checkpoint_bytes, 12 * p.rank0.parameters);
    config_free(&c);
}

/* What a step really hands to its data-parallel group is what the plan says, but for each rank's loss and, where the
 * gradient is cut, its norm: 8 bytes each. */
static void check_data_parallel_bytes(const char *data, const char *zero, bool cut) {
    const char *settings[] = {"model.layers=2",
                              "model.width=32",
                              "model.heads=4",
                              "model.ffn=20",
                              "model.vocab=61",
                              "model.context=8",
                              "train.warmup=0",
                              data,
                              zero,
                              "train.micro_batch=2",
                              "train.global_batch=12"};
    int32_t tokens[16] = {0};
    config c;
    ops o;
    plan p;
    model m;
    comm_counter counter = {0};
    comm_group self, dp;
    check_status(config_load(&c, NULL, settings, sizeof settings / sizeof *settings), STATUS_OK);
    check_status(ops_cpu(&o, 1), STATUS_OK); /* first: attention's tiles are counted by thread */
    check_status(plan_make(&p, &c), STATUS_OK);
    comm_self(&self);
    comm_count(&dp, &counter, 1, (int)c.parallel.data);
    check_status(model_create(&m, &c, &o, &attn_core_cpu, &self, &dp, 2), STATUS_OK);
    assert_int_equal(p.rank0.bytes, m.memory.size_bytes);
    int64_t others = 0;
    for (int b = 0; b < m.params.buckets && cut; b++) others += (c.parallel.data - 1) * m.params.bucket[b].piece;
    assert_int_equal(p.arrival_bytes, others * (int64_t)sizeof(float));
    for (int i = 0; i < p.accumulation; i++) model_train(&m, tokens, tokens, 1, i == 0, i == p.accumulation - 1);
    optimizer_reduce(&m);
    model_reduce_loss(&m);
    optimizer_norm(&m);
    optimizer_update(&m, &c, 1e-3);
    assert_int_equal(counter.bytes, p.dp_step_bytes + 8 * c.parallel.data + (cut ? 8 : 0));
    model_free(&m);
    config_free(&c);
}

static void test_the_plan_counts_what_data_parallelism_sends(void **state) {
    check_data_parallel_bytes("parallel.data=2", "parallel.zero=0", false);
    check_data_parallel_bytes("parallel.data=2", "parallel.zero=1", true);
    check_data_parallel_bytes("parallel.data=3", "parallel.zero=1", true);
}

/* ZeRO-1 saves memory, most of it where bf16 leaves 12 of 18 bytes a parameter to be cut. */
static void test_the_plan_shows_what_is_saved(void **state) {
    const char *settings[] = {"model.size=60m", "train.warmup=0", "run.device=cuda", "parallel.data=4"};
    config c;
    plan whole, cut;
    check_status(config_load(&c, NULL, settings, 4), STATUS_OK);
    assert_int_equal(c.parallel.zero, 1); /* unless asked otherwise */
    check_status(plan_make(&cut, &c), STATUS_OK);
    c.parallel.zero = 0;
    check_status(plan_make(&whole, &c), STATUS_OK);
    double parameters = (double)whole.rank0.parameters;
    check_near((double)whole.rank0.parameter_bytes, 18 * parameters, 0.01 * 18 * parameters);
    check_near((double)cut.rank0.parameter_bytes, (4 + 2 + 12 / 4.0) * parameters, 0.01 * 9 * parameters);
    /* What is beside the parameters is the same, but for how the arena rounds. */
    check_near((double)(whole.rank0.bytes - cut.rank0.bytes),
               (double)(whole.rank0.parameter_bytes - cut.rank0.parameter_bytes), 8 * ARENA_ALIGN_BYTES);
    check_near((double)whole.dp_step_bytes, 4 * parameters, 0.01 * 4 * parameters);
    check_near((double)cut.dp_step_bytes, 6 * parameters, 0.01 * 6 * parameters);
    config_free(&c);
}

/* Halves send the same in twice as many sums of the embedding, the sublayers and prerope's latents; the rotary key goes
 * once a layer, and the head's gradient is one sum. */
static void check_halves(const char *variant, const char *device, const char *samples, int64_t more) {
    const char *settings[] = {"model.size=tiny",   "train.warmup=0", "train.global_batch=4", variant, device,
                              "parallel.tensor=2", samples};
    config c;
    plan p[3];
    check_status(config_load(&c, NULL, settings, sizeof settings / sizeof *settings), STATUS_OK);
    assert_int_equal(c.parallel.halves, HALVES_AUTO);
    for (int halves = HALVES_AUTO; halves <= HALVES_OFF; halves++) {
        c.parallel.halves = (config_halves)halves;
        check_status(plan_make(&p[halves], &c), STATUS_OK);
    }
    const plan *likely = &p[c.run.device == DEVICE_CUDA ? HALVES_ON : HALVES_OFF];
    assert_int_equal(p[HALVES_ON].rank0.tp_collectives - p[HALVES_OFF].rank0.tp_collectives, more);
    assert_int_equal(p[HALVES_ON].rank0.tp_bytes, p[HALVES_OFF].rank0.tp_bytes);
    check_near(p[HALVES_ON].step_flops, p[HALVES_OFF].step_flops, 0);
    assert_true(p[HALVES_ON].rank0.bytes <= p[HALVES_OFF].rank0.bytes);
    assert_int_equal(p[HALVES_AUTO].rank0.tp_collectives, likely->rank0.tp_collectives);
    assert_int_equal(p[HALVES_AUTO].rank0.bytes, likely->rank0.bytes);
    config_free(&c);
}

static void test_halves_send_the_same(void **state) {
    enum { L = 4 };
    static const char *const devices[] = {"run.device=cpu", "run.device=cuda"};
    for (int i = 0; i < 2; i++) {
        check_halves("attention.variant=mha", devices[i], "train.micro_batch=4", 1 + 4 * L);
        check_halves("attention.variant=mla-prerope", devices[i], "train.micro_batch=4", 1 + 6 * L);
        check_halves("attention.variant=mla-decoupled", devices[i], "train.micro_batch=4", 1 + 4 * L);
        check_halves("attention.variant=mla-decoupled", devices[i], "train.micro_batch=1", 0);
    }
}

/* For each choice: the memory that a model takes, and what is multiplied again as a sum over matrices. */
static void check_recomputes(const char *split, bool keeps_middle) {
    const double layers = 3, width = 32, ffn = 20, vocab = 62, context = 24, samples = 2, tokens = samples * context;
    const char *settings[] = {
        "model.layers=3",           "model.width=32", "model.heads=4", "model.ffn=20",        "model.vocab=62",
        "model.context=24",         "train.warmup=0", split,           "train.micro_batch=2", "train.global_batch=6",
        "train.recompute=attention"};
    double projections = 6 * tokens * width * width, out = 2 * tokens * width * width;
    double mlp = 6 * tokens * width * ffn, head = 2 * tokens * width * vocab;
    double core = 2 * samples * width * context * context;
    double none = layers * (3 * (projections + out + mlp) + 3.5 * core) + 3 * head;
    double full = projections + core + (keeps_middle ? 0 : out) + mlp * 2 / 3;
    const double more[] = {0, (layers - 1) * projections / none, (layers - 1) * full / none};
    config c;
    ops o;
    plan p;
    check_status(config_load(&c, NULL, settings, sizeof settings / sizeof *settings), STATUS_OK);
    check_status(ops_cpu(&o, 1), STATUS_OK); /* first: attention's tiles are counted by thread */
    check_status(plan_make(&p, &c), STATUS_OK);
    check_near(p.step_flops, 3 * none, 0);
    assert_int_equal(p.rank0.bytes, p.recompute[RECOMPUTE_ATTENTION].bytes);
    for (int i = 0; i < PLAN_RECOMPUTES; i++) {
        comm_counter counter = {0};
        comm_group tp, self;
        model m;
        c.train.recompute = (config_recompute)i;
        comm_self(&self);
        comm_count(&tp, &counter, 0, (int)c.parallel.tensor);
        check_status(model_create(&m, &c, &o, &attn_core_cpu, &tp, &self, 2), STATUS_OK);
        assert_int_equal(p.recompute[i].bytes, m.memory.size_bytes);
        check_near(p.recompute[i].more_flops, more[i], 1e-12);
        assert_int_equal(counter.bytes, 0);
        model_free(&m);
    }
    config_free(&c);
}

static void test_the_plan_compares_recomputations(void **state) {
    check_recomputes("parallel.tensor=1", false);
    check_recomputes("parallel.tensor=2", true);
}

typedef struct kept_columns { /* fp32 values a token of one rank */
    int64_t operands, results, shared;
} kept_columns;

/* What one layer more takes until the backward pass, beside its parameters: 64 tokens, so that the arena rounds
 * nothing; width 64, 4 heads, 24 feed-forward units, a latent of 24. */
static void check_kept(const char *variant, const char *latent, int64_t tp, kept_columns want) {
    static const char *const layers[] = {"model.layers=3", "model.layers=4"};
    for (int i = 0; i < PLAN_RECOMPUTES; i++) {
        bool full = i == RECOMPUTE_FULL;
        int64_t kept = 2 + want.shared + (full ? (tp > 1 ? 128 : 64) : 4 * 64 + 2 * 24 / tp + want.results) +
                       (i == RECOMPUTE_NONE ? want.operands : 0);
        int64_t bytes[2];
        for (int more = 0; more < 2; more++) {
            const char *settings[] = {
                "model.width=64", "model.heads=4",        "model.ffn=24", "model.vocab=62", "model.context=32",
                "train.warmup=0", "train.global_batch=2", layers[more],   variant,          latent};
            config c;
            plan p;
            check_status(config_load(&c, NULL, settings, latent ? 10 : 9), STATUS_OK);
            c.train.recompute = (config_recompute)i;
            c.parallel.tensor = tp;
            check_status(plan_make(&p, &c), STATUS_OK);
            bytes[more] = (int64_t)(p.rank0.bytes - p.rank0.parameter_bytes);
            config_free(&c);
        }
        assert_int_equal(bytes[1] - bytes[0], 64 * kept * (int64_t)sizeof(float));
    }
}

static void test_each_recomputation_keeps_what_it_says(void **state) {
    for (int64_t tp = 1; tp <= 2; tp++) {
        int64_t heads = 4 / tp;
        check_kept("attention.variant=mha", NULL, tp, (kept_columns){3 * 16 * heads, 17 * heads, 0});
        check_kept("attention.variant=mla-prerope", "attention.kv_lora_rank=24", tp,
                   (kept_columns){5 * 16 * heads + 24 + 1, 17 * heads, 24});
        check_kept("attention.variant=mla-decoupled", "attention.kv_lora_rank=24", tp,
                   (kept_columns){(24 + 32) * heads + 2 * 24 + 1, 17 * heads, 8});
    }
}

/* Of Hopper's kernels, where attention's backward pass is what needs most. */
static void test_the_plan_counts_the_scratch_of_gpus(void **state) {
    const char *settings[] = {"model.layers=1",          "model.width=256",
                              "model.heads=4",           "model.ffn=8",
                              "model.vocab=61",          "model.context=600",
                              "train.warmup=0",          "run.device=cuda",
                              "train.global_batch=3",    "attention.variant=mla-decoupled",
                              "attention.kv_lora_rank=8"};
    config c;
    plan p;
    model m;
    model_needs on_cpu;
    check_status(config_load(&c, NULL, settings, sizeof settings / sizeof *settings), STATUS_OK);
    check_status(plan_make(&p, &c), STATUS_OK);
    check_status(model_describe(&m, &c, DTYPE_BF16, OPS_CUDA_LOGITS, &attn_core_cpu, 1, 1, 3, &on_cpu), STATUS_OK);
    const attn_dims *d = &m.attention.dims;
    hopper_size size = hopper_size_of(d->nope, d->rope, d->value);
    arena cpu = {0};
    attn_core_args args = {
        .batch = 3, .context = 600, .heads = 4, .kv_heads = 4, .nope = d->nope, .rope = d->rope, .value = d->value};
    attn_core_cpu.backward(NULL, &args, NULL, &cpu);
    size_t shares = (size_t)(3 * 4 * 600 * d->rope) * sizeof(float);
    assert_int_equal(p.rank0.bytes - on_cpu.bytes,
                     hopper_room_of(hopper_cuts[size], 3, 600, 4, 4).all + shares - cpu.peak_bytes);
    model_free(&m);
    config_free(&c);
}

/* With a gradient of 0 an update is the decay alone: of matrices, and of gains where it is asked for. */
static void check_decay(const char *which, bool gains_decay) {
    const char *settings[] = {"model.layers=1",          "model.width=32",
                              "model.heads=4",           "model.ffn=20",
                              "model.vocab=61",          "train.warmup=0",
                              "model.context=8",         "attention.variant=mla-decoupled",
                              "train.weight_decay=0.25", which};
    config c;
    ops o;
    comm_group self;
    model m;
    check_status(config_load(&c, NULL, settings, sizeof settings / sizeof *settings), STATUS_OK);
    check_status(ops_cpu(&o, 1), STATUS_OK);
    comm_self(&self);
    check_status(model_create(&m, &c, &o, &attn_core_cpu, &self, &self, 1), STATUS_OK);
    const params *p = &m.params;
    float *before = malloc((size_t)params_total(p) * sizeof *before);
    assert_non_null(before);
    memcpy(before, p->master, (size_t)params_total(p) * sizeof *before);
    optimizer_norm(&m);
    optimizer_update(&m, &c, 0.5);
    for (int i = 0; i < p->count; i++) {
        const param *q = &p->list[i];
        double kept = q->spec.init == PARAM_NORMAL || gains_decay ? 1 - 0.5 * 0.25 : 1;
        for (int64_t k = q->offset; k < q->offset + q->rows * q->cols; k++)
            check_near(p->master[k], kept * before[k], 1e-7 * fabs(before[k]));
    }
    free(before);
    model_free(&m);
    config_free(&c);
}

static void test_gains_decay_where_it_is_asked_for(void **state) {
    check_decay("train.decay=matrices", false);
    check_decay("train.decay=all", true);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_learning_rate_is_the_closed_form),
    cmocka_unit_test(test_learning_rate_is_finite_at_the_edges),
    cmocka_unit_test(test_every_element_belongs_to_one_rank),
    cmocka_unit_test(test_regions_hold_their_class_and_nothing_else),
    cmocka_unit_test(test_initial_weights_do_not_depend_on_the_cut),
    cmocka_unit_test(test_snapshots_are_due_densely_then_regularly_and_at_the_end),
    cmocka_unit_test(test_the_plan_counts_snapshots),
    cmocka_unit_test_setup(test_the_plan_counts_the_checkpoints_that_stay, inputs_start),
    cmocka_unit_test(test_pieces_hold_every_element_once),
    cmocka_unit_test(test_the_plan_counts_what_data_parallelism_sends),
    cmocka_unit_test(test_the_plan_shows_what_is_saved),
    cmocka_unit_test(test_halves_send_the_same),
    cmocka_unit_test(test_the_plan_compares_recomputations),
    cmocka_unit_test(test_each_recomputation_keeps_what_it_says),
    cmocka_unit_test(test_the_plan_counts_the_scratch_of_gpus),
    cmocka_unit_test(test_gains_decay_where_it_is_asked_for),
};
TEST_MAIN(tests)
