/* Gradient accumulation (docs/cases.md 5): a global batch of 8 as 8 x 1, 4 x 2, 2 x 4 and 1 x 8 samples has the same
 * loss, gradient and first moment, for each variant. The larger micro-batches pass the head in several pieces. */
#include "device.h"

#include "core/rng.h"
#include "trainer/optimizer.h"

enum { GLOBAL_BATCH = 8, CONTEXT = 40 };

typedef struct outcome {
    double loss;
    int64_t count;
    float *gradient, *moment;
} outcome;

static float *flat_to_host(ops *o, float *values, int64_t count) {
    return test_to_host(o, tensor_make(values, DTYPE_F32, 1, count)).data;
}

static outcome one_step(const char *variant, int64_t micro) {
    char setting[64];
    snprintf(setting, sizeof setting, "attention.variant=%s", variant);
    const char *settings[] = {setting,
                              "model.layers=2",
                              "model.width=32",
                              "model.heads=4",
                              "model.ffn=40",
                              "model.vocab=61",
                              "model.context=40",
                              "train.clip=0",
                              "attention.qk_rope_head_dim=4"};
    config c;
    ops o;
    comm_group self;
    model m;
    int decoupled = strcmp(variant, "mla-decoupled") == 0;
    check_status(config_load(&c, NULL, settings, sizeof settings / sizeof *settings - !decoupled), STATUS_OK);
    const attn_core *core = test_device(&o, 1, 0, 1);
    o.logit_elements = 1; /* as few rows of logits at a time as there can be */
    comm_self(&self);
    check_status(model_create(&m, &c, &o, core, &self, &self, micro), STATUS_OK);
    int32_t tokens[GLOBAL_BATCH * CONTEXT + 1];
    for (uint64_t i = 0; i < sizeof tokens / sizeof *tokens; i++) tokens[i] = (int32_t)(rng_u64(5, 6, i) % 61);

    for (int64_t first = 0; first < GLOBAL_BATCH; first += micro)
        model_train(&m, tokens + first * CONTEXT, tokens + 1 + first * CONTEXT, 1.0f / (GLOBAL_BATCH * CONTEXT),
                    first == 0, first + micro == GLOBAL_BATCH);
    optimizer_reduce(&m);
    optimizer_norm(&m);
    assert_int_equal(m.chunk < m.tokens, micro >= 4);
    outcome r = {.loss = model_take_loss(&m) / (GLOBAL_BATCH * CONTEXT), .count = params_total(&m.params)};
    r.gradient = flat_to_host(&o, m.params.gradient, r.count);
    optimizer_update(&m, &c, 1e-3);
    r.moment = flat_to_host(&o, m.params.moment1, r.count);
    check_status(model_status(&m), STATUS_OK);
    model_free(&m);
    if (o.close) o.close(&o);
    config_free(&c);
    return r;
}

static void accumulates(const char *variant) {
    outcome whole = one_step(variant, GLOBAL_BATCH);
    check_near(whole.loss, log(61), 0.2);
    for (int64_t micro = 1; micro < GLOBAL_BATCH; micro *= 2) {
        outcome r = one_step(variant, micro);
        check_near(r.loss, whole.loss, 1e-6 * whole.loss);
        check_near(relative_error(r.gradient, whole.gradient, (size_t)whole.count), 0, 1e-5);
        check_near(relative_error(r.moment, whole.moment, (size_t)whole.count), 0, 1e-5);
        free(r.gradient);
        free(r.moment);
    }
    /* Adam's first moment after step 1 is (1 - beta1) times the gradient: nothing is doubled on the way. */
    for (int64_t i = 0; i < whole.count; i++) check_near(whole.moment[i], 0.1 * whole.gradient[i], 1e-7);
    free(whole.gradient);
    free(whole.moment);
}

static void test_mha(void **state) {
    accumulates("mha");
}
static void test_prerope(void **state) {
    accumulates("mla-prerope");
}
static void test_decoupled(void **state) {
    accumulates("mla-decoupled");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_mha),
    cmocka_unit_test(test_prerope),
    cmocka_unit_test(test_decoupled),
};
TEST_MAIN(tests)
