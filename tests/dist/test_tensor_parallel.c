/* The same model over P tensor-parallel and Q data-parallel ranks as on one: initial weights bit for bit, loss, every
 * parameter's gradient, the gradient's norm and Adam's first moment; rotary and content rows, keys and values apart.
 *
 * Each rank also computes the whole model alone (the reference), with the same weights: larger than initial ones, so
 * that attention is far from uniform. Three layers, so that the rank that owns the rotary key changes; feed-forward
 * units and a vocabulary that no P divides. Run with 2 and 4 ranks; with BULKHEAD_TEST_DEVICE=cuda each on a GPU of its
 * own, over NCCL, the reference on the same GPU. */
#include "core/rng.h"
#include "device.h"
#include "dist.h"
#include "trainer/device.h"
#include "trainer/model.h"
#include "trainer/optimizer.h"

enum { LAYERS = 3, BATCH = 4, CONTEXT = 17, VOCAB = 509, MOST_SETTINGS = 24 };
static const double TOLERANCE = 1e-5;

static const char *const common[] = {
    "model.layers=3",  "model.width=64",   "model.heads=4", "model.head_dim=16", "model.ffn=45",
    "model.vocab=509", "model.context=17", "train.clip=0",  "run.seed=7",
};
enum { COMMON = sizeof common / sizeof *common };

typedef struct run {
    config config;
    ops ops;
    const attn_core *core;
    comm_group tp, dp;
    model model;
    int64_t micro_batch, micro_batches; /* samples at a time, and how often, on this rank */
} run;

/* ---------------------------------------------------------------- two runs of one configuration */

static void split_world(run *r, int tp) {
    MPI_Comm across_tensor, across_data;
    MPI_Comm_split(MPI_COMM_WORLD, world_rank() / tp, world_rank(), &across_tensor);
    MPI_Comm_split(MPI_COMM_WORLD, world_rank() % tp, world_rank(), &across_data);
    check_status(comm_over_device(&r->tp, across_tensor, &r->ops), STATUS_OK);
    check_status(comm_over_device(&r->dp, across_data, &r->ops), STATUS_OK);
    MPI_Comm_free(&across_tensor);
    MPI_Comm_free(&across_data);
}

static void load_config(config *out, const char *const *more, int count) {
    const char *settings[MOST_SETTINGS];
    assert_true(COMMON + count <= MOST_SETTINGS);
    status_clear();
    memcpy(settings, common, sizeof common);
    for (int i = 0; i < count; i++) settings[COMMON + i] = more[i];
    check_status(config_load(out, NULL, settings, COMMON + count), STATUS_OK);
}

/* tp = 0: alone. micro_batches: into how many this rank's samples are cut. */
static void open_run(run *r, const char *const *settings, int count, int tp, int micro_batches) {
    *r = (run){.micro_batches = micro_batches};
    load_config(&r->config, settings, count);
    r->core = test_device(&r->ops, 1, world_rank(), world_size());
    if (tp) {
        split_world(r, tp);
    } else {
        comm_self(&r->tp);
        comm_self(&r->dp);
    }
    assert_int_equal(BATCH % (r->dp.size * micro_batches), 0);
    r->micro_batch = BATCH / r->dp.size / micro_batches;
    check_status(model_create(&r->model, &r->config, &r->ops, r->core, &r->tp, &r->dp, r->micro_batch), STATUS_OK);
}

static void close_run(run *r) {
    model_free(&r->model);
    comm_close(&r->tp);
    comm_close(&r->dp);
    device_close(&r->ops);
    config_free(&r->config);
}

static bool is_gain(const param *q) {
    return q->spec.init == PARAM_ONES;
}

/* Weights that are a function of name and global index, as the initial ones are, but larger; gains around 1. */
static void set_weights(run *r) {
    const params *p = &r->model.params;
    for (int i = 0; i < p->count; i++) {
        const param *q = &p->list[i];
        double scale = is_gain(q) ? 0.25 : strcmp(q->name, "embedding") == 0 ? 0.7 : 0.8 / sqrt((double)q->spec.cols);
        float *host = calloc((size_t)(q->rows * q->cols), sizeof *host);
        for (int64_t row = 0; row < q->n_rows; row++) {
            float *out = host + row * q->cols;
            uint64_t first = (uint64_t)((q->row + row) * q->spec.cols + q->col);
            rng_normal(out, 99, rng_stream(q->name), first, q->n_cols, scale);
            if (is_gain(q))
                for (int64_t c = 0; c < q->n_cols; c++) out[c] += 1;
        }
        r->ops.upload(&r->ops, params_weight(p, i).data, host, (size_t)(q->rows * q->cols) * sizeof *host);
        free(host);
    }
}

/* ---------------------------------------------------------------- comparison */

/* Rows [first, first + count) of each `period` global rows of a parameter: a part of each head. */
typedef struct rows_of {
    const char *what;
    int64_t period, first, count;
} rows_of;

static void check_rows(const char *kind, const param *q, tensor got, tensor want, rows_of part) {
    double difference = 0, norm = 0;
    for (int64_t i = 0; i < q->n_rows; i++) {
        int64_t at = (q->row + i) % part.period - part.first;
        if (at < 0 || at >= part.count) continue;
        for (int64_t j = 0; j < q->n_cols; j++) {
            double a = tensor_f32(got)[i * got.ld + j], b = tensor_f32(want)[(q->row + i) * want.ld + q->col + j];
            difference += (a - b) * (a - b);
            norm += b * b;
        }
    }
    if (!(sqrt(difference) <= TOLERANCE * sqrt(norm)))
        fail_msg("rank %d of %d: %s of %s, %s: off by %.3g of its norm %.3g", world_rank(), world_size(), kind, q->name,
                 part.what, sqrt(difference / norm), sqrt(norm));
}

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), k = strlen(end);
    return n >= k && strcmp(name + n - k, end) == 0;
}

static void check_parameter(const run *r, const char *kind, int i, tensor got, tensor want) {
    const param *q = &r->model.params.list[i];
    const attn_dims *d = &r->model.attention.dims;
    check_rows(kind, q, got, want, (rows_of){"all rows", 1, 0, 1});
    if (d->rope && (ends_with(q->name, ".W_Q") || ends_with(q->name, ".W_UQ"))) {
        check_rows(kind, q, got, want, (rows_of){"content rows", d->nope + d->rope, 0, d->nope});
        check_rows(kind, q, got, want, (rows_of){"rotary rows", d->nope + d->rope, d->nope, d->rope});
    }
    if (ends_with(q->name, ".W_UKV")) {
        check_rows(kind, q, got, want, (rows_of){"key rows", d->nope + d->value, 0, d->nope});
        check_rows(kind, q, got, want, (rows_of){"value rows", d->nope + d->value, d->nope, d->value});
    }
    for (int64_t row = 0; row < q->rows; row++)
        for (int64_t col = 0; col < q->cols; col++)
            if (row >= q->n_rows || col >= q->n_cols) check_near(tensor_f32(got)[row * got.ld + col], 0, 0);
}

static tensor moment(const params *p, int i) {
    return tensor_make(p->moment1 + p->list[i].offset, DTYPE_F32, p->list[i].rows, p->list[i].cols);
}

static void check_parameters(run *r, run *alone, const char *kind, tensor (*view)(const params *, int)) {
    const params *p = &r->model.params, *whole = &alone->model.params;
    assert_int_equal(p->count, whole->count);
    for (int i = 0; i < p->count; i++) {
        assert_string_equal(p->list[i].name, whole->list[i].name);
        tensor got = test_to_host(&r->ops, view(p, i)), want = test_to_host(&alone->ops, view(whole, i));
        check_parameter(r, kind, i, got, want);
        free(got.data);
        free(want.data);
    }
}

/* What every rank of a group holds whole is the same bits on all of them. */
static void check_replicas(run *r, tensor (*view)(const params *, int)) {
    const params *p = &r->model.params;
    for (int i = 0; i < p->count; i++) {
        if (p->list[i].region == REGION_SHARDED) continue;
        tensor t = test_to_host(&r->ops, view(p, i));
        int count = (int)(t.rows * t.cols);
        float *first = malloc((size_t)count * sizeof *first);
        memcpy(first, t.data, (size_t)count * sizeof *first);
        MPI_Bcast(first, count, MPI_FLOAT, 0, MPI_COMM_WORLD);
        assert_memory_equal(first, t.data, (size_t)count * sizeof *first);
        free(first);
        free(t.data);
    }
}

/* ---------------------------------------------------------------- what is compared */

static void draw_tokens(int32_t *tokens, uint64_t stream) {
    for (int i = 0; i < BATCH * CONTEXT; i++) tokens[i] = (int32_t)(rng_u64(5, stream, (uint64_t)i) % VOCAB);
    tokens[0] = VOCAB - 1;
}

static void check_initial_weights(run *r, run *alone) {
    const params *p = &r->model.params, *whole = &alone->model.params;
    for (int i = 0; i < p->count; i++) {
        const param *q = &p->list[i];
        tensor mine = test_to_host(&r->ops, params_weight(p, i)),
               all = test_to_host(&alone->ops, params_weight(whole, i));
        for (int64_t row = 0; row < q->n_rows; row++)
            assert_memory_equal(tensor_f32(mine) + row * mine.ld, tensor_f32(all) + (q->row + row) * all.ld + q->col,
                                (size_t)q->n_cols * sizeof(float));
        free(mine.data);
        free(all.data);
    }
}

/* One layer's attention with a random output gradient: out and dx summed over TP, weight gradients after the step's
 * reduction. */
static void attention_pass(run *r, int layer, const float *x, const float *dout, float *out, float *dx) {
    model *m = &r->model;
    ops *o = &r->ops;
    model_layer *l = &m->layer[layer];
    int64_t n = m->tokens, d = m->width;
    size_t bytes = (size_t)(n * d) * sizeof *x;
    tensor tx = test_to_device(o, x, n, d), tdout = test_to_device(o, dout, n, d);
    tensor result = test_to_device(o, x, n, d);
    model_zero_gradients(m);
    m->variant->forward(&m->attention, layer, &l->weights, &l->saved, tx, result, &m->memory);
    comm_all_reduce(&r->tp, result.data, n * d, DTYPE_F32, COMM_SUM, "test output", layer);
    o->download(o, out, result.data, bytes);
    m->variant->backward(&m->attention, layer, &l->weights, &l->saved, tx, tdout, result, &m->memory);
    comm_all_reduce(&r->tp, result.data, n * d, DTYPE_F32, COMM_SUM, "test gradient", layer);
    o->download(o, dx, result.data, bytes);
    optimizer_reduce(m);
    tensor *const taken[] = {&tx, &tdout, &result};
    for (size_t i = 0; i < sizeof taken / sizeof *taken; i++) o->release(o, taken[i]->data);
}

static void check_attention(run *r, run *alone) {
    int64_t count = alone->model.tokens * alone->model.width;
    float *block = malloc((size_t)(6 * count) * sizeof *block);
    float *x = block, *dout = x + count, *out = dout + count, *dx = out + count, *want_out = dx + count;
    float *want_dx = want_out + count;
    rng_normal(x, 5, 1, 0, count, 1);
    rng_normal(dout, 5, 2, 0, count, 1);
    for (int layer = 0; layer < LAYERS; layer++) {
        attention_pass(alone, layer, x, dout, want_out, want_dx);
        attention_pass(r, layer, x, dout, out, dx);
        check_near(relative_error(out, want_out, (size_t)count), 0, TOLERANCE);
        check_near(relative_error(dx, want_dx, (size_t)count), 0, TOLERANCE);
        check_parameters(r, alone, "sublayer gradient", params_gradient);
    }
    free(block);
}

/* This rank's samples, micro-batch by micro-batch. */
static double train_pass(run *r, const int32_t *input, const int32_t *target) {
    model *m = &r->model;
    int64_t micro = r->micro_batch * m->context, first = r->dp.rank * r->micro_batches * micro;
    model_zero_gradients(m);
    for (int i = 0; i < r->micro_batches; i++) {
        int64_t at = first + i * micro;
        model_train(m, input + at, target + at, 1.0f / (float)(BATCH * m->context), i == r->micro_batches - 1);
    }
    optimizer_reduce(m);
    model_reduce_loss(m);
    return model_take_loss(m) / (double)(BATCH * m->context);
}

static void check_step(run *r, run *alone) {
    int32_t input[BATCH * CONTEXT], target[BATCH * CONTEXT];
    draw_tokens(input, 3);
    draw_tokens(target, 4);
    double want = train_pass(alone, input, target);
    check_near(train_pass(r, input, target), want, 1e-6 * want);
    check_parameters(r, alone, "gradient", params_gradient);
    check_replicas(r, params_gradient);
    double norm = optimizer_norm(&alone->model);
    check_near(optimizer_norm(&r->model), norm, 1e-6 * norm);
    optimizer_update(&alone->model, &alone->config, 1, 1e-3);
    optimizer_update(&r->model, &r->config, 1, 1e-3);
    check_parameters(r, alone, "first moment", moment);
    check_replicas(r, params_weight);
    check_status(model_status(&r->model), STATUS_OK);
    check_status(comm_status(&r->dp), STATUS_OK);
}

/* Everything over P = tp ranks, Q = the others. */
static void check_layout(const char *const *settings, int count, int tp, int micro_batches) {
    run alone, r;
    open_run(&alone, settings, count, 0, 1);
    open_run(&r, settings, count, tp, micro_batches);
    check_initial_weights(&r, &alone);
    set_weights(&alone);
    set_weights(&r);
    if (r.micro_batch == alone.micro_batch) check_attention(&r, &alone);
    check_step(&r, &alone);
    close_run(&r);
    close_run(&alone);
}

#define CHECK_ALL(...)                                                                                                 \
    do {                                                                                                               \
        static const char *const settings_[] = {__VA_ARGS__};                                                          \
        check_layout(settings_, sizeof settings_ / sizeof *settings_, world_size(), 1);                                \
    } while (0)

#define KEY_VALUES "attention.variant=mla-prerope", "attention.kv_lora_rank=24"
#define DECOUPLED                                                                                                      \
    "attention.variant=mla-decoupled", "attention.kv_lora_rank=24", "attention.qk_nope_head_dim=16",                   \
        "attention.qk_rope_head_dim=8", "attention.v_head_dim=12"

static void mha(void **state) {
    CHECK_ALL("attention.variant=mha", "attention.v_head_dim=12");
}
static void mha_tied_embeddings(void **state) {
    CHECK_ALL("attention.variant=mha", "model.tie_embeddings=true");
}
static void prerope_key(void **state) {
    CHECK_ALL(KEY_VALUES);
}
static void prerope_key_without_norm(void **state) {
    CHECK_ALL(KEY_VALUES, "attention.latent_norm=false");
}
static void prerope_hidden(void **state) {
    CHECK_ALL(KEY_VALUES, "attention.prerope_source=hidden");
}
static void prerope_hidden_without_norm(void **state) {
    CHECK_ALL(KEY_VALUES, "attention.prerope_source=hidden", "attention.latent_norm=false");
}
static void decoupled(void **state) {
    CHECK_ALL(DECOUPLED);
}
static void decoupled_query_latent(void **state) {
    CHECK_ALL(DECOUPLED, "attention.q_lora_rank=20");
}
static void decoupled_query_latent_without_norm(void **state) {
    CHECK_ALL(DECOUPLED, "attention.q_lora_rank=20", "attention.latent_norm=false");
}

/* Two kv heads for four heads: split over two ranks, refused over four with a message that names both numbers. */
static void grouped_heads_split_or_refused(void **state) {
    static const char *const two[] = {"attention.variant=mha", "model.kv_heads=2"};
    static const char *const one[] = {"attention.variant=mha", "model.kv_heads=1"};
    if (world_size() <= 2) check_layout(two, 2, world_size(), 1);
    for (int kv_heads = 1; kv_heads <= 2; kv_heads++) {
        if (kv_heads % world_size() == 0) continue;
        run r = {0};
        load_config(&r.config, kv_heads == 1 ? one : two, 2);
        r.core = test_device(&r.ops, 1, world_rank(), world_size());
        split_world(&r, world_size());
        check_status(model_create(&r.model, &r.config, &r.ops, r.core, &r.tp, &r.dp, BATCH), STATUS_CONFIG);
        char number[32];
        snprintf(number, sizeof number, "%d kv heads", kv_heads);
        assert_non_null(strstr(status_message(), number));
        snprintf(number, sizeof number, "%d ranks", world_size());
        assert_non_null(strstr(status_message(), number));
        close_run(&r);
    }
}

/* All ways of splitting the world, with the batch over the data-parallel ranks. */
static void data_parallel(void **state) {
    static const char *const settings[] = {DECOUPLED, "attention.q_lora_rank=20"};
    for (int tp = 1; tp < world_size(); tp *= 2) check_layout(settings, sizeof settings / sizeof *settings, tp, 1);
}

/* The batch a sample at a time, over every split of the world: nothing is doubled or weighted twice (docs/cases.md 5).
 */
static void accumulation(void **state) {
    static const char *const settings[] = {DECOUPLED, "attention.q_lora_rank=20"};
    for (int tp = 1; tp <= world_size(); tp *= 2)
        check_layout(settings, sizeof settings / sizeof *settings, tp, BATCH * tp / world_size());
}

/* Near ln 509, for any number of ranks: 509 is prime, so the last share is padded, and padding stays out of the
 * softmax. */
static void loss_of_initial_weights(void **state) {
    static const char *const settings[] = {"attention.variant=mha"};
    run alone, r;
    open_run(&alone, settings, 1, 0, 1);
    open_run(&r, settings, 1, world_size(), 1);
    int32_t input[BATCH * CONTEXT], target[BATCH * CONTEXT];
    draw_tokens(input, 3);
    draw_tokens(target, 4);
    double want = train_pass(&alone, input, target), loss = train_pass(&r, input, target);
    check_near(want, log(VOCAB), 0.05);
    check_near(loss, want, 1e-6 * want);
    check_parameters(&r, &alone, "gradient", params_gradient);
    close_run(&r);
    close_run(&alone);
}

/* The same call gives the same bits. */
static void the_same_bits_again(void **state) {
    static const char *const settings[] = {DECOUPLED};
    run r;
    open_run(&r, settings, sizeof settings / sizeof *settings, world_size(), 1);
    set_weights(&r);
    int32_t input[BATCH * CONTEXT], target[BATCH * CONTEXT];
    draw_tokens(input, 3);
    draw_tokens(target, 4);
    size_t bytes = (size_t)params_total(&r.model.params) * sizeof(float);
    float *gradient = malloc(bytes), *repeated = malloc(bytes);
    double loss = train_pass(&r, input, target);
    r.ops.download(&r.ops, gradient, r.model.params.gradient, bytes);
    for (int again = 0; again < 3; again++) {
        double other = train_pass(&r, input, target);
        assert_memory_equal(&other, &loss, sizeof loss);
        r.ops.download(&r.ops, repeated, r.model.params.gradient, bytes);
        assert_memory_equal(gradient, repeated, bytes);
    }
    free(gradient);
    free(repeated);
    close_run(&r);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(mha),
    cmocka_unit_test(mha_tied_embeddings),
    cmocka_unit_test(prerope_key),
    cmocka_unit_test(prerope_key_without_norm),
    cmocka_unit_test(prerope_hidden),
    cmocka_unit_test(prerope_hidden_without_norm),
    cmocka_unit_test(decoupled),
    cmocka_unit_test(decoupled_query_latent),
    cmocka_unit_test(decoupled_query_latent_without_norm),
    cmocka_unit_test(grouped_heads_split_or_refused),
    cmocka_unit_test(data_parallel),
    cmocka_unit_test(accumulation),
    cmocka_unit_test(loss_of_initial_weights),
    cmocka_unit_test(the_same_bits_again),
};

DIST_MAIN(tests)
