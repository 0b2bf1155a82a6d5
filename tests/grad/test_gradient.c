/* Gradients of models of random shapes are the derivatives of their loss: each parameter is moved along its own
 * gradient and the loss must change by the gradient's norm. Finds what fixed shapes do not: a stride that is right only
 * where two dimensions agree, a size of one, a context of one.
 *
 * The loss is fp32 inside, so a step begins with one that changes it by STEP, far above its rounding (NOISE), and is
 * made shorter where the loss curves. Normed vectors have 8 elements or more: in one dimension RMSNorm is a jump. */
#include "inputs.h"
#include "trainer/model.h"

enum { SHAPES = 12, STEPS = 8, MOST_SETTINGS = 32, SETTING_BYTES = 48 };
static const double STEP = 4e-3, NOISE = 2e-6, CURVATURE = 0.02;

typedef struct settings {
    char text[MOST_SETTINGS][SETTING_BYTES];
    int count;
} settings;

__attribute__((format(printf, 2, 3))) static void set(settings *s, const char *format, ...) {
    assert_true(s->count < MOST_SETTINGS);
    va_list values;
    va_start(values, format);
    vsnprintf(s->text[s->count++], SETTING_BYTES, format, values);
    va_end(values);
}

static long between(long least, long most) {
    return least + inputs_below(most - least + 1);
}

static void random_mla(settings *s, config_variant variant) {
    bool norm = between(0, 3) > 0;
    long least = norm ? 8 : 1;
    set(s, "attention.latent_norm=%s", norm ? "true" : "false");
    set(s, "attention.kv_lora_rank=%ld", between(least, 30));
    if (variant == VARIANT_MLA_PREROPE) return;
    set(s, "attention.q_lora_rank=%ld", between(0, 1) * between(least, 30));
    set(s, "attention.qk_nope_head_dim=%ld", between(1, 20));
    set(s, "attention.qk_rope_head_dim=%ld", 2 * between(1, 8));
    set(s, "attention.v_head_dim=%ld", between(1, 20));
}

static settings random_shape(config_variant variant) {
    settings s = {0};
    bool hidden = variant == VARIANT_MLA_PREROPE && between(0, 1);
    long heads = between(1, 4), head_dim = 2 * between(hidden ? 4 : 1, 10);
    set(&s, "attention.variant=%s", config_variant_name(variant));
    set(&s, "model.layers=%ld", between(1, 3));
    set(&s, "model.width=%ld", hidden ? heads * head_dim : between(8, 70));
    set(&s, "model.heads=%ld", heads);
    set(&s, "model.head_dim=%ld", head_dim);
    set(&s, "model.ffn=%ld", between(1, 50));
    set(&s, "model.vocab=%ld", between(5, 70));
    set(&s, "model.context=%ld", between(0, 3) ? between(1, 70) : between(1, 3));
    set(&s, "model.tie_embeddings=%s", between(0, 1) ? "true" : "false");
    set(&s, "run.seed=%ld", between(1, 1000));
    if (variant == VARIANT_MHA) {
        set(&s, "model.kv_heads=%ld", between(0, 1) ? heads : 1);
        set(&s, "attention.v_head_dim=%ld", between(1, 20));
    } else {
        random_mla(&s, variant);
    }
    if (hidden) set(&s, "attention.prerope_source=hidden");
    return s;
}

typedef struct problem {
    config config;
    ops ops;
    comm_group alone;
    model model;
    int32_t *input, *target;
} problem;

static void open_problem(problem *p, const settings *s) {
    const char *lines[MOST_SETTINGS];
    *p = (problem){0};
    for (int i = 0; i < s->count; i++) {
        lines[i] = s->text[i];
        print_message("  %s", lines[i]);
    }
    long batch = between(1, 3);
    print_message("  batch=%ld\n", batch);
    check_status(config_load(&p->config, NULL, lines, s->count), STATUS_OK);
    check_status(ops_cpu(&p->ops, 1 + (int)inputs_below(2)), STATUS_OK);
    comm_self(&p->alone);
    check_status(model_create(&p->model, &p->config, &p->ops, &attn_core_cpu, &p->alone, &p->alone, batch), STATUS_OK);
    model *m = &p->model;
    for (int i = 0; i < m->params.count; i++) { /* far from a start's near-uniform attention */
        tensor w = params_weight(&m->params, i);
        bool gain = m->params.list[i].spec.init == PARAM_ONES;
        inputs_normal(tensor_f32(w), w.rows * w.cols, gain ? 0.2 : 1 / sqrt((double)w.cols));
        if (gain)
            for (int64_t j = 0; j < w.cols; j++) tensor_f32(w)[j] += 1;
    }
    p->input = malloc((size_t)m->tokens * sizeof *p->input);
    p->target = malloc((size_t)m->tokens * sizeof *p->target);
    for (int64_t i = 0; i < m->tokens; i++) {
        p->input[i] = (int32_t)inputs_below(m->vocab);
        p->target[i] = (int32_t)inputs_below(m->vocab);
    }
}

static void close_problem(problem *p) {
    free(p->input);
    free(p->target);
    model_free(&p->model);
    comm_close(&p->alone);
    config_free(&p->config);
}

static double loss(problem *p) {
    model_evaluate(&p->model, p->input, p->target, p->model.batch);
    return model_take_loss(&p->model) / (double)p->model.tokens;
}

/* The loss with w moved by `step` along the direction. */
static double loss_at(problem *p, float *w, const float *kept, const float *direction, int64_t n, double step) {
    for (int64_t j = 0; j < n; j++) w[j] = (float)(kept[j] + step * direction[j]);
    double at = loss(p);
    memcpy(w, kept, (size_t)n * sizeof *w);
    return at;
}

static void check_parameter(problem *p, int i) {
    params *all = &p->model.params;
    float *w = tensor_f32(params_weight(all, i)), *g = tensor_f32(params_gradient(all, i));
    int64_t n = all->list[i].rows * all->list[i].cols;
    double norm = 0, size = 0;
    for (int64_t j = 0; j < n; j++) {
        norm += (double)g[j] * g[j];
        size += (double)w[j] * w[j];
    }
    norm = sqrt(norm);
    if (norm == 0) return;
    float *kept = malloc((size_t)(2 * n) * sizeof *kept), *direction = kept + n;
    memcpy(kept, w, (size_t)n * sizeof *kept);
    for (int64_t j = 0; j < n; j++) direction[j] = (float)(g[j] / norm);
    double slope = NAN;
    bool agrees = false;
    for (int halving = 0; halving < STEPS && !agrees; halving += 2) {
        double step = ldexp(fmin(STEP / norm, 0.02 * sqrt(size)), -halving);
        slope = (loss_at(p, w, kept, direction, n, step) - loss_at(p, w, kept, direction, n, -step)) / (2 * step);
        agrees = fabs(slope - norm) <= CURVATURE * norm + NOISE / step;
    }
    if (!agrees) fail_msg("%s: the loss moves by %.6g along a gradient of norm %.6g", all->list[i].name, slope, norm);
    free(kept);
}

static void check_variant(config_variant variant) {
    for (int shape = 0; shape < SHAPES; shape++) {
        problem p;
        settings s = random_shape(variant);
        open_problem(&p, &s);
        model_train(&p.model, p.input, p.target, 1.0f / (float)p.model.tokens, true, true);
        model_take_loss(&p.model);
        for (int i = 0; i < p.model.params.count; i++) check_parameter(&p, i);
        check_status(model_status(&p.model), STATUS_OK);
        close_problem(&p);
    }
}

static void gradient_of_mha_is_the_derivative(void **state) {
    check_variant(VARIANT_MHA);
}
static void gradient_of_mla_prerope_is_the_derivative(void **state) {
    check_variant(VARIANT_MLA_PREROPE);
}
static void gradient_of_mla_decoupled_is_the_derivative(void **state) {
    check_variant(VARIANT_MLA_DECOUPLED);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup(gradient_of_mha_is_the_derivative, inputs_start),
    cmocka_unit_test_setup(gradient_of_mla_prerope_is_the_derivative, inputs_start),
    cmocka_unit_test_setup(gradient_of_mla_decoupled_is_the_derivative, inputs_start),
};
TEST_MAIN(tests)
