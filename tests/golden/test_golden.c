/* The model and its attention sublayers against make_golden.py's independent float64 model: one test a file of models/.
 *
 * Compared: loss, each token's loss, final hidden states (also from the cache, a few tokens at a time), logits, every
 * parameter's gradient; for layer 0's attention alone, output, dx and weight gradients for a random output gradient. In
 * fp32 each within TOLERANCE twice: by norm, and the worst element against the largest, so that neither small rows nor
 * single elements hide. In bf16 each by norm within twice the error that the file gives for a naive bf16 version. */
#include "attention_pass.h"
#include "core/safetensors.h"
#include "device.h"
#include "trainer/decoder.h"
#include "trainer/model.h"
#include "trainer/weights.h"

#include <glob.h>

/* fp32 loses about 1e-6 here; a wrong term loses 1e-2 and more. */
static const double TOLERANCE = 1e-5;

typedef struct golden {
    safetensors file;
    config config;
    ops ops;
    const attn_core *core;
    comm_group alone;
    model model;
    int64_t batch, tokens, width;
    int32_t *input, *target;
    double nearest; /* the largest error so far over its limit, and of what */
    char nearest_name[96];
} golden;

static float *read_floats(const golden *g, const char *name, int64_t count) {
    const safetensors_entry *e = safetensors_find(&g->file, name);
    if (!e) fail_msg("%s: no tensor %s", g->file.path, name);
    assert_int_equal(safetensors_elements(e), count);
    float *values = malloc((size_t)count * sizeof *values);
    assert_non_null(values);
    check_status(safetensors_f32(e, values), STATUS_OK);
    return values;
}

static int32_t *read_tokens(const golden *g, const char *name) {
    const safetensors_entry *e = safetensors_find(&g->file, name);
    assert_non_null(e);
    assert_int_equal(safetensors_elements(e), g->tokens);
    int64_t *wide = malloc((size_t)g->tokens * sizeof *wide);
    int32_t *tokens = malloc((size_t)g->tokens * sizeof *tokens);
    check_status(safetensors_i64(e, wide), STATUS_OK);
    for (int64_t i = 0; i < g->tokens; i++) tokens[i] = (int32_t)wide[i];
    free(wide);
    return tokens;
}

/* How far off a result may be by its norm. */
static double limit(const golden *g, const char *name) {
    if (!test_in_bf16()) return TOLERANCE;
    char key[160];
    snprintf(key, sizeof key, "bf16.%s", name);
    const char *naive = safetensors_metadata(&g->file, key);
    if (!naive) fail_msg("%s: no naive error of %s", g->file.path, name);
    return 2 * strtod(naive, NULL);
}

static void check_values(golden *g, const char *name, const float *got, const float *want, int64_t count) {
    double worst = 0, largest = 0, error = relative_error(got, want, (size_t)count), most = limit(g, name);
    for (int64_t i = 0; i < count; i++) {
        worst = fmax(worst, fabs((double)got[i] - want[i]));
        largest = fmax(largest, fabs((double)want[i]));
        if (!isfinite(got[i])) fail_msg("%s[%ld] is %g", name, (long)i, got[i]);
    }
    if (error > g->nearest * most) {
        g->nearest = error / most;
        snprintf(g->nearest_name, sizeof g->nearest_name, "%s", name);
    }
    if (!(error <= most)) fail_msg("%s is off by %.3g of its norm, more than %.3g", name, error, most);
    if (!test_in_bf16() && !(worst <= TOLERANCE * largest))
        fail_msg("%s: an element is off by %.3g of the largest", name, worst / largest);
}

/* A sum of tokens' losses: as far off as the tokens' losses may be. */
static void check_loss(const golden *g, double got, double want) {
    check_near(got, want, (test_in_bf16() ? limit(g, "losses") : 1e-6) * want);
}

/* The files' folder: BULKHEAD_GOLDEN_FOLDER on a machine that the tests were carried to. */
static const char *folder(void) {
    const char *carried = getenv("BULKHEAD_GOLDEN_FOLDER");
    return carried ? carried : GOLDEN_FOLDER;
}

static void check_tensor(golden *g, const char *name, tensor got) {
    float *want = read_floats(g, name, got.rows * got.cols);
    tensor host = test_to_host(&g->ops, got);
    check_values(g, name, host.data, want, got.rows * got.cols);
    free(host.data);
    free(want);
}

/* The configuration that the file's metadata spells out, one setting a line. */
static void load_config(golden *g) {
    char *text = strdup(safetensors_metadata(&g->file, "settings")), *rest = NULL;
    const char *settings[64];
    int count = 0;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        assert_true(count < 64);
        settings[count++] = line;
    }
    check_status(config_load(&g->config, NULL, settings, count), STATUS_OK);
    free(text);
}

/* The model's parameters are exactly the file's, and get its values. */
static void load_weights(golden *g) {
    const params *p = &g->model.params;
    int gradients = 0;
    for (int i = 0; i < g->file.count; i++) gradients += strncmp(g->file.entries[i].name, "gradient.", 9) == 0;
    assert_int_equal(p->count, gradients);
    check_status(weights_load(&g->model.params, &g->ops, &g->file), STATUS_OK);
}

/* A dense [N, d] of the device with these values. */
static tensor to_device(golden *g, const float *values) {
    return test_to_device(&g->ops, values, g->tokens, g->width);
}

static void open_golden(golden *g, const char *name, int threads) {
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.safetensors", folder(), name);
    *g = (golden){0};
    check_status(safetensors_open(&g->file, path), STATUS_OK);
    load_config(g);
    g->batch = strtol(safetensors_metadata(&g->file, "batch"), NULL, 10);
    g->tokens = g->batch * g->config.model.context;
    g->width = g->config.model.width;
    g->core = test_device(&g->ops, threads, 0, 1);
    comm_self(&g->alone);
    check_status(model_create(&g->model, &g->config, &g->ops, g->core, &g->alone, &g->alone, g->batch), STATUS_OK);
    load_weights(g);
    g->input = read_tokens(g, "tokens");
    g->target = read_tokens(g, "targets");
}

static void close_golden(golden *g) {
    free(g->input);
    free(g->target);
    model_free(&g->model);
    if (g->ops.close) g->ops.close(&g->ops);
    comm_close(&g->alone);
    config_free(&g->config);
    safetensors_close(&g->file);
}

static void check_gradients(golden *g) {
    const params *p = &g->model.params;
    for (int i = 0; i < p->count; i++) {
        char name[128];
        snprintf(name, sizeof name, "gradient.%s", p->list[i].name);
        check_tensor(g, name, params_gradient(p, i));
    }
}

/* What is there before a step's first micro-batch must not matter. */
static void poison_gradients(model *m) {
    for (int i = 0; i < m->params.count; i++) {
        tensor t = params_gradient(&m->params, i);
        size_t bytes = (size_t)(t.rows * t.cols) * sizeof(float);
        float *poison = malloc(bytes);
        assert_non_null(poison);
        for (int64_t k = 0; k < t.rows * t.cols; k++) poison[k] = NAN;
        m->ops->upload(m->ops, t.data, poison, bytes);
        m->ops->sync(m->ops);
        free(poison);
    }
}

/* Loss, hidden states and gradients; then the same micro-batch in two more parts, which must add to the same gradient.
 */
static void check_model(golden *g) {
    model *m = &g->model;
    float *loss = read_floats(g, "loss", 1), *losses = read_floats(g, "losses", g->tokens);
    float scale = 1.0f / (float)g->tokens;
    poison_gradients(m);
    model_train(m, g->input, g->target, scale, true, true);
    check_loss(g, model_take_loss(m) / (double)g->tokens, loss[0]);
    check_tensor(g, "hidden", m->final_in);
    check_gradients(g);

    poison_gradients(m);
    model_train(m, g->input, g->target, 0.75f * scale, true, false);
    model_train(m, g->input, g->target, 0.25f * scale, false, true);
    check_loss(g, model_take_loss(m) / (double)g->tokens, 2 * loss[0]);
    check_gradients(g);

    double sum = 0;
    for (int64_t i = 0; i < g->tokens; i++) {
        sum += losses[i];
        if ((i + 1) % m->context != 0) continue;
        model_evaluate(m, g->input, g->target, (i + 1) / m->context);
        check_loss(g, model_take_loss(m), sum);
    }
    check_gradients(g); /* evaluation leaves them */

    float *each = malloc((size_t)g->tokens * sizeof *each);
    model_token_losses(m, g->input, g->target, g->batch, each);
    check_values(g, "losses", each, losses, g->tokens);
    free(each);
    check_status(model_status(m), STATUS_OK);
    free(loss);
    free(losses);
}

/* The logits that follow from the file's hidden states, [N, V]; free it. */
static float *logits_wanted(const golden *g, const float *hidden) {
    const param *head = &g->model.params.list[g->model.head];
    float *weights = read_floats(g, head->name, head->spec.rows * head->spec.cols);
    float *logits = malloc((size_t)(g->tokens * g->model.vocab) * sizeof *logits);
    for (int64_t i = 0; i < g->tokens; i++)
        for (int64_t v = 0; v < g->model.vocab; v++) {
            double sum = 0;
            for (int64_t c = 0; c < g->width; c++) sum += (double)hidden[i * g->width + c] * weights[v * g->width + c];
            logits[i * g->model.vocab + v] = (float)sum;
        }
    free(weights);
    return logits;
}

/* In bf16 the logits are rounded once more than the hidden states that they are made of. */
static void check_logits(const golden *g, const float *got, const float *want, int64_t count) {
    double error = relative_error(got, want, (size_t)count);
    double most = limit(g, "hidden") * (test_in_bf16() ? 2 : 1) + (test_in_bf16() ? 0x1p-8 : 0);
    if (!(error <= most)) fail_msg("logits are off by %.3g of their norm, more than %.3g", error, most);
}

/* One sample through the cache, in steps of 1, 2, 3, 1, ... tokens: its hidden states and, after each step, logits. */
static void decode_sample(golden *g, model *one, const int32_t *tokens, float *hidden, const float *want_logits) {
    decoder d;
    float *logits = malloc((size_t)one->vocab * sizeof *logits);
    check_status(decoder_open(&d, one), STATUS_OK);
    for (int64_t first = 0, step = 1; first < one->context; first += step, step = step % 3 + 1) {
        if (step > one->context - first) step = one->context - first;
        decoder_add(&d, tokens + first, step);
        assert_int_equal(d.scratch.used_bytes, 0);
        tensor rows = test_to_host(&g->ops, tensor_rows(one->final_in, 0, step));
        memcpy(hidden + first * g->width, rows.data, (size_t)(step * g->width) * sizeof *hidden);
        free(rows.data);
        decoder_logits(&d, logits);
        check_logits(g, logits, want_logits + (first + step - 1) * one->vocab, one->vocab);
    }
    check_status(model_status(one), STATUS_OK);
    decoder_close(&d);
    free(logits);
}

static void check_cached(golden *g) {
    model one;
    check_status(model_create(&one, &g->config, &g->ops, g->core, &g->alone, &g->alone, 1), STATUS_OK);
    check_status(weights_load(&one.params, &g->ops, &g->file), STATUS_OK);
    int64_t count = g->tokens * g->width;
    float *want = read_floats(g, "hidden", count), *want_logits = logits_wanted(g, want);
    float *got = malloc((size_t)count * sizeof *got),
          *logits = malloc((size_t)(g->tokens * one.vocab) * sizeof *logits);
    for (int64_t sample = 0; sample < g->batch; sample++) {
        int64_t at = sample * one.context;
        decode_sample(g, &one, g->input + at, got + at * g->width, want_logits + at * one.vocab);
    }
    check_values(g, "hidden", got, want, count);

    model_evaluate(&g->model, g->input, g->target, g->batch);
    model_logits(&g->model, 0, g->tokens, logits);
    check_logits(g, logits, want_logits, g->tokens * one.vocab);
    model_evaluate(&one, g->input, g->target, 1); /* whole again after the cached steps */
    check_status(model_status(&one), STATUS_OK);
    tensor rows = test_to_host(&g->ops, one.final_in);
    assert_int_equal(rows.rows, one.context);
    double error = relative_error(rows.data, want, (size_t)(one.context * g->width));
    if (!(error <= limit(g, "hidden"))) fail_msg("after decoding, hidden states are off by %.3g", error);
    free(rows.data);
    free(want);
    free(want_logits);
    free(got);
    free(logits);
    model_free(&one);
}

/* Layer 0's attention, called as the model calls it, into poisoned outputs. */
static void check_sublayer(golden *g) {
    model *m = &g->model;
    model_layer *layer = &m->layer[0];
    int64_t count = g->tokens * g->width;
    float *x = read_floats(g, "sublayer.x", count), *dout = read_floats(g, "sublayer.dout", count);
    float *poison = malloc((size_t)count * sizeof *poison);
    for (int64_t i = 0; i < count; i++) poison[i] = NAN;
    tensor in = to_device(g, x), out = to_device(g, poison), grad_out = to_device(g, dout), dx = to_device(g, poison);
    m->ops->zero(m->ops, m->params.gradient, (size_t)params_total(&m->params) * sizeof(float));
    layer->weights.adds = true;
    size_t mark = arena_mark(&m->memory);
    attention_forward(m, 0, in, out);
    check_tensor(g, "sublayer.out", out);
    attention_backward(m, 0, in, grad_out, dx);
    check_tensor(g, "sublayer.dx", dx);
    assert_int_equal(arena_mark(&m->memory), mark);
    for (int i = 0; i < layer->attention_count; i++) {
        char name[128];
        const char *global = m->params.list[layer->attention_first + i].name;
        snprintf(name, sizeof name, "sublayer.gradient.%s", global + strlen("layers.0.attention."));
        check_tensor(g, name, layer->weights.gradient[i]);
    }
    free(x);
    free(dout);
    free(poison);
    g->ops.release(&g->ops, in.data);
    g->ops.release(&g->ops, out.data);
    g->ops.release(&g->ops, grad_out.data);
    g->ops.release(&g->ops, dx.data);
}

static void check_file(const char *name) {
    for (int threads = 1; threads <= 2; threads++) {
        golden g;
        open_golden(&g, name, threads);
        check_model(&g);
        check_cached(&g);
        check_sublayer(&g);
        print_message("%s: %s is nearest to its limit, %.2f of it\n", name, g.nearest_name, g.nearest);
        close_golden(&g);
    }
}

#define CASE(name)                                                                                                     \
    static void name(void **state) {                                                                                   \
        check_file(#name);                                                                                             \
    }
CASE(mha_one_kv_head)
CASE(mha_two_kv_heads)
CASE(mha_one_head)
CASE(prerope_key)
CASE(prerope_key_plain)
CASE(prerope_hidden)
CASE(prerope_hidden_plain)
CASE(decoupled)
CASE(decoupled_q_latent)
CASE(decoupled_wide)
CASE(decoupled_plain)

static void every_file_has_its_test(void **state);

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(mha_one_kv_head),      cmocka_unit_test(mha_two_kv_heads),
    cmocka_unit_test(mha_one_head),         cmocka_unit_test(prerope_key),
    cmocka_unit_test(prerope_key_plain),    cmocka_unit_test(prerope_hidden),
    cmocka_unit_test(prerope_hidden_plain), cmocka_unit_test(decoupled),
    cmocka_unit_test(decoupled_q_latent),   cmocka_unit_test(decoupled_wide),
    cmocka_unit_test(decoupled_plain),      cmocka_unit_test(every_file_has_its_test),
};

static void every_file_has_its_test(void **state) {
    glob_t files;
    char pattern[1024];
    snprintf(pattern, sizeof pattern, "%s/*.safetensors", folder());
    assert_int_equal(glob(pattern, 0, NULL, &files), 0);
    assert_int_equal(files.gl_pathc, sizeof tests / sizeof *tests - 1);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        const char *base = strrchr(files.gl_pathv[i], '/') + 1;
        size_t length = (size_t)(strchr(base, '.') - base);
        bool found = false;
        for (size_t k = 0; k < sizeof tests / sizeof *tests; k++)
            found = found || (strlen(tests[k].name) == length && strncmp(tests[k].name, base, length) == 0);
        if (!found) fail_msg("%s has no test", base);
    }
    globfree(&files);
}

TEST_MAIN(tests)
