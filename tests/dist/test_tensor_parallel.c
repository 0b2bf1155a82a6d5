/* Tensor parallelism: the same model over P ranks as on one (same_run.h), whole steps and attention sublayers alone
 * with a random output gradient, for every variant. Run with 2 and 4 ranks. */
#include "attention_pass.h"
#include "late.h"
#include "same_run.h"

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
    o->zero(o, m->params.gradient, (size_t)params_total(&m->params) * sizeof(float));
    l->weights.adds = true;
    attention_forward(m, layer, tx, result);
    comm_all_reduce(&r->tp, result.data, n * d, DTYPE_F32, COMM_SUM, "test output", layer);
    o->download(o, out, result.data, bytes);
    attention_backward(m, layer, tx, tdout, result);
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
        check_parameters(r, alone, GRADIENT);
    }
    free(block);
}

/* A step in two halves of the micro-batch, by a group whose sums come late, with the samples at once, by three (halves
 * of one and two) and one by one, where there are no halves. */
static void check_halves(const char *const *settings, int count) {
    static const int64_t micro_batches[] = {1, BATCH / 3, BATCH};
    const char *all[MOST_SETTINGS];
    memcpy(all, settings, (size_t)count * sizeof *all);
    all[count] = "parallel.halves=on";
    for (int i = 0; i < 3; i++) {
        run alone, r;
        late slow;
        open_run(&alone, settings, count, 0, 1);
        open_run(&r, all, count + 1, world_size(), (int)micro_batches[i]);
        assert_int_equal(r.model.parts, i < 2 ? 2 : 1);
        if (i == 1) assert_true(r.model.part[0].count == 1 && r.model.part[1].count == 2);
        if (late_can(&r.tp)) late_make(&slow, &r.tp);
        set_weights(&alone);
        set_weights(&r);
        check_step(&r, &alone);
        close_run(&r);
        close_run(&alone);
    }
}

/* Everything over P = world_size() ranks. */
static void check_all(const char *const *settings, int count) {
    run alone, r;
    open_run(&alone, settings, count, 0, 1);
    open_run(&r, settings, count, world_size(), 1);
    check_initial_weights(&r, &alone);
    set_weights(&alone);
    set_weights(&r);
    assert_int_equal(r.model.parts, 1);
    check_attention(&r, &alone);
    check_step(&r, &alone);
    close_run(&r);
    close_run(&alone);
    check_halves(settings, count);
}

#define CHECK_ALL(...)                                                                                                 \
    do {                                                                                                               \
        static const char *const settings_[] = {__VA_ARGS__};                                                          \
        check_all(settings_, sizeof settings_ / sizeof *settings_);                                                    \
    } while (0)

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
    if (world_size() <= 2) check_all(two, 2);
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
    check_parameters(&r, &alone, GRADIENT);
    close_run(&r);
    close_run(&alone);
}

/* While a part is waited for the other's sum is under way: but for the two ends of a pass, and in the decoupled
 * variant, where all samples come before the rotary key, once before it and once behind it in each layer. */
static void check_under_way(const char *const *settings, int count, int alone) {
    const char *all[MOST_SETTINGS];
    int32_t tokens[BATCH * CONTEXT];
    run r;
    late slow;
    memcpy(all, settings, (size_t)count * sizeof *all);
    all[count] = "parallel.halves=on";
    draw_tokens(tokens, 3);
    open_run(&r, all, count + 1, world_size(), 1);
    if (late_can(&r.tp)) {
        late_make(&slow, &r.tp);
        train_pass(&r, tokens, tokens);
        assert_int_equal(slow.alone, alone);
        assert_int_equal(slow.count, 0);
    }
    close_run(&r);
}

static void something_is_under_way(void **state) {
    static const char *const mha_settings[] = {"attention.variant=mha"}, *const key[] = {KEY_VALUES},
                             *const rotary[] = {DECOUPLED};
    check_under_way(mha_settings, 1, 2);
    check_under_way(key, sizeof key / sizeof *key, 2);
    check_under_way(rotary, sizeof rotary / sizeof *rotary, 2 + 2 * LAYERS);
}

/* The same call gives the same bits. */
static void check_the_same_bits(const char *halves) {
    const char *const settings[] = {DECOUPLED, halves};
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

static void the_same_bits_again(void **state) {
    check_the_same_bits("parallel.halves=off");
    check_the_same_bits("parallel.halves=on");
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
    cmocka_unit_test(loss_of_initial_weights),
    cmocka_unit_test(something_is_under_way),
    cmocka_unit_test(the_same_bits_again),
};

DIST_MAIN(tests)
