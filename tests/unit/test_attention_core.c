/* The fused CPU attention core, forward and backward, against softmax attention written out in double over the whole
 * T x T scores. Beside each exact value stands the sum of the sizes of its terms, from which its tolerance follows.
 *
 * B batch, T context, H heads, G kv heads, D_n / D_r parts of a query without and with rotary, D_v value dim. */
#include "attention/core.h"
#include "inputs.h"

static const double EPS = 0x1p-23; /* fp32: spacing of 1 */

typedef struct shape {
    int batch, context, heads, kv_heads, nope, rope, value;
    bool interleaved; /* k and v are [k_h | v_h] in one matrix, as an up-projection of a latent writes them */
} shape;

typedef struct operands {
    shape s;
    guarded q, k, v, k_rope, o, dout, dq, dk, dv,
        dk_rope; /* interleaved: k and dk hold v and dv too, v and dv are unused */
    float *lse;
    double *want_lse;
    attn_core_args args;
    attn_core_grads grads;
} operands;

/* An exact matrix and the size of the terms that it is the sum of. */
typedef struct exact {
    double *value, *size;
    int64_t cols;
} exact;

static exact exact_new(int64_t rows, int64_t cols) {
    double *block = calloc((size_t)(2 * rows * cols + 1), sizeof *block);
    assert_non_null(block);
    return (exact){block, block + rows * cols, cols};
}

static void exact_add(exact *e, int64_t i, int64_t j, double value, double size) {
    e->value[i * e->cols + j] += value;
    e->size[i * e->cols + j] += size;
}

static float at(tensor t, int64_t i, int64_t j) {
    return tensor_f32(t)[i * t.ld + j];
}

static operands operands_new(shape s) {
    operands p = {.s = s};
    int64_t n = (int64_t)s.batch * s.context, kv_head = s.nope + s.value;
    p.q = guarded_random(n, s.heads * (s.nope + s.rope), 1);
    p.dq = guarded_new(n, s.heads * (s.nope + s.rope));
    p.k = guarded_random(n, s.kv_heads * (s.interleaved ? kv_head : s.nope), 1);
    p.dk = guarded_new(n, p.k.t.cols);
    p.v = guarded_random(n, s.kv_heads * s.value, 1);
    p.dv = guarded_new(n, p.v.t.cols);
    p.o = guarded_new(n, s.heads * s.value);
    p.dout = guarded_random(n, s.heads * s.value, 1);
    p.k_rope = guarded_random(n, s.rope, 1);
    p.dk_rope = guarded_new(n, s.rope);
    p.lse = malloc((size_t)n * (size_t)s.heads * sizeof *p.lse);
    p.want_lse = malloc((size_t)n * (size_t)s.heads * sizeof *p.want_lse);
    p.args = (attn_core_args){
        .batch = s.batch,
        .context = s.context,
        .heads = s.heads,
        .kv_heads = s.kv_heads,
        .nope = s.nope,
        .rope = s.rope,
        .value = s.value,
        .scale = (float)(1 / sqrt(s.nope + s.rope)),
        .q = p.q.t,
        .k = p.k.t,
        .v = s.interleaved ? tensor_cols(p.k.t, s.nope, p.k.t.cols - s.nope) : p.v.t,
        .k_head = s.interleaved ? kv_head : s.nope,
        .v_head = s.interleaved ? kv_head : s.value,
        .k_rope = s.rope ? p.k_rope.t : (tensor){0},
        .o = p.o.t,
        .lse = p.lse,
    };
    p.grads = (attn_core_grads){
        .dout = p.dout.t,
        .dq = p.dq.t,
        .dk = p.dk.t,
        .dv = s.interleaved ? tensor_cols(p.dk.t, s.nope, p.dk.t.cols - s.nope) : p.dv.t,
        .dk_rope = s.rope ? p.dk_rope.t : (tensor){0},
    };
    return p;
}

static void operands_free(operands *p) {
    guarded *all[] = {&p->q, &p->k, &p->v, &p->k_rope, &p->o, &p->dout, &p->dq, &p->dk, &p->dv, &p->dk_rope};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) guarded_free(all[i]);
    free(p->lse);
    free(p->want_lse);
}

/* Counts the scratch that forward and backward need without any memory behind the operands. */
static size_t scratch_bytes(const operands *p, ops *o) {
    attn_core_args args = p->args;
    attn_core_grads grads = p->grads;
    tensor *all[] = {&args.q,     &args.k,   &args.v,   &args.k_rope, &args.o,
                     &grads.dout, &grads.dq, &grads.dk, &grads.dv,    &grads.dk_rope};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) all[i]->data = NULL;
    args.lse = NULL;
    arena count = {0};
    attn_core_cpu.forward(o, &args, &count);
    attn_core_cpu.backward(o, &args, &grads, &count);
    assert_int_equal(count.used_bytes, 0); /* all given back */
    return count.peak_bytes;
}

/* Both passes into poisoned outputs. */
static void run_core(operands *p, int threads) {
    ops o;
    check_status(ops_cpu(&o, threads), STATUS_OK);
    guarded *outputs[] = {&p->o, &p->dq, &p->dk, &p->dv, &p->dk_rope};
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) guarded_poison(outputs[i]);
    for (int64_t i = 0; i < p->o.t.rows * p->s.heads; i++) p->lse[i] = NAN;
    size_t bytes = scratch_bytes(p, &o);
    arena scratch = {.base = aligned_alloc(ARENA_ALIGN_BYTES, bytes + ARENA_ALIGN_BYTES), .size_bytes = bytes};
    assert_non_null(scratch.base);
    memset(scratch.base, 0xff, bytes); /* NaN: what an earlier use left there */
    attn_core_cpu.forward(&o, &p->args, &scratch);
    memset(scratch.base, 0xff, bytes);
    attn_core_cpu.backward(&o, &p->args, &p->grads, &scratch);
    assert_int_equal(scratch.used_bytes, 0);
    free(scratch.base);
    for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) guarded_check(outputs[i]);
}

/* ---------------------------------------------------------------- the exact answer */

typedef struct answer {
    exact o, dq, dk, dv, dk_rope;
    double largest_score; /* bound on the scaled scores' size */
} answer;

/* Row i of one head: p[j] for j <= i, and the log of the sum. Returns the largest sum of the sizes of a score's terms.
 */
static double softmax_row(const operands *p, int64_t first, int64_t i, int head, double *prob, double *lse) {
    const attn_core_args *a = &p->args;
    int64_t g = (int64_t)head * a->kv_heads / a->heads, column = (int64_t)head * (a->nope + a->rope);
    double top = -INFINITY, sum = 0, largest = 0;
    for (int64_t j = 0; j <= i; j++) {
        double score = 0, size = 0;
        for (int c = 0; c < a->nope + a->rope; c++) {
            double key = c < a->nope ? at(a->k, first + j, g * a->k_head + c) : at(a->k_rope, first + j, c - a->nope);
            double term = at(a->q, first + i, column + c) * key * a->scale;
            score += term;
            size += fabs(term);
        }
        prob[j] = score;
        top = fmax(top, score);
        largest = fmax(largest, size);
    }
    for (int64_t j = 0; j <= i; j++) sum += exp(prob[j] - top);
    *lse = top + log(sum);
    for (int64_t j = 0; j <= i; j++) prob[j] = exp(prob[j] - *lse);
    return largest;
}

static void answer_row(const operands *p, answer *w, int64_t sample, int64_t i, int head, double *prob) {
    const attn_core_args *a = &p->args;
    int64_t first = sample * a->context, g = (int64_t)head * a->kv_heads / a->heads;
    int64_t column = (int64_t)head * (a->nope + a->rope);
    double delta = 0, delta_size = 0, *lse = &p->want_lse[(sample * a->heads + head) * a->context + i];
    w->largest_score = fmax(w->largest_score, softmax_row(p, first, i, head, prob, lse));
    double *dprob = prob + a->context, *dprob_size = dprob + a->context;
    for (int64_t j = 0; j <= i; j++) {
        dprob[j] = dprob_size[j] = 0;
        for (int c = 0; c < a->value; c++) {
            double v = at(a->v, first + j, g * a->v_head + c), d = at(p->dout.t, first + i, head * a->value + c);
            exact_add(&w->o, first + i, head * a->value + c, prob[j] * v, fabs(prob[j] * v));
            exact_add(&w->dv, first + j, g * a->v_head + c, prob[j] * d, fabs(prob[j] * d));
            dprob[j] += d * v;
            dprob_size[j] += fabs(d * v);
        }
        delta += prob[j] * dprob[j];
        delta_size += prob[j] * dprob_size[j];
    }
    for (int64_t j = 0; j <= i; j++) {
        double ds = prob[j] * (dprob[j] - delta) * a->scale, size = prob[j] * (dprob_size[j] + delta_size) * a->scale;
        for (int c = 0; c < a->nope + a->rope; c++) {
            bool rotary = c >= a->nope;
            double q = at(a->q, first + i, column + c);
            double key = rotary ? at(a->k_rope, first + j, c - a->nope) : at(a->k, first + j, g * a->k_head + c);
            exact_add(&w->dq, first + i, column + c, ds * key, size * fabs(key));
            exact_add(rotary ? &w->dk_rope : &w->dk, first + j, rotary ? c - a->nope : g * a->k_head + c, ds * q,
                      size * fabs(q));
        }
    }
}

static answer answer_new(const operands *p) {
    int64_t n = p->q.t.rows;
    answer w = {.o = exact_new(n, p->o.t.cols),
                .dq = exact_new(n, p->dq.t.cols),
                .dk = exact_new(n, p->args.k.cols),
                .dv = exact_new(n, p->args.v.cols),
                .dk_rope = exact_new(n, p->s.rope)};
    double *row = malloc((size_t)(3 * p->s.context) * sizeof *row);
    for (int64_t sample = 0; sample < p->s.batch; sample++)
        for (int head = 0; head < p->s.heads; head++)
            for (int64_t i = 0; i < p->s.context; i++) answer_row(p, &w, sample, i, head, row);
    free(row);
    return w;
}

static void answer_free(answer *w) {
    exact *all[] = {&w->o, &w->dq, &w->dk, &w->dv, &w->dk_rope};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free(all[i]->value);
}

/* Columns [0, width) of each block of `stride` columns. */
static void check_exact(const char *name, tensor got, const exact *want, int blocks, int64_t stride, int width,
                        double tolerance) {
    for (int64_t i = 0; i < got.rows; i++)
        for (int b = 0; b < blocks; b++)
            for (int64_t c = b * stride; c < b * stride + width; c++) {
                double value = want->value[i * want->cols + c], size = want->size[i * want->cols + c];
                double error = fabs(at(got, i, c) - value);
                if (!(error <= tolerance * size + 1e-30))
                    fail_msg("%s[%ld][%ld] = %.9g, want %.9g, off by %.3g > %.3g", name, (long)i, (long)c,
                             at(got, i, c), value, error, tolerance * size);
            }
}

/* A score is off by at most EPS (D_qk + 2) times the size of its terms, hence a probability relatively by twice that
 * (its own score and the sum's); sums over keys or queries add EPS T at most. */
static void check_core(operands *p, int threads) {
    const shape s = p->s;
    answer w = answer_new(p);
    run_core(p, threads);
    double score = EPS * (s.nope + s.rope + 2) * w.largest_score,
           tolerance = 2 * score + EPS * (s.context + s.value + 8);
    for (int64_t i = 0; i < p->q.t.rows * s.heads; i++)
        check_near(p->lse[i], p->want_lse[i], score + EPS * (s.context + fabs(p->want_lse[i])));
    check_exact("o", p->args.o, &w.o, s.heads, s.value, s.value, tolerance);
    check_exact("dq", p->grads.dq, &w.dq, s.heads, s.nope + s.rope, s.nope + s.rope, tolerance);
    check_exact("dk", p->grads.dk, &w.dk, s.kv_heads, p->args.k_head, s.nope, tolerance);
    check_exact("dv", p->grads.dv, &w.dv, s.kv_heads, p->args.v_head, s.value, tolerance);
    if (s.rope) check_exact("dk_rope", p->grads.dk_rope, &w.dk_rope, 1, s.rope, s.rope, tolerance);
    answer_free(&w);
}

static void check_shape(shape s) {
    operands p = operands_new(s);
    check_core(&p, 1 + (int)inputs_below(2));
    operands_free(&p);
}

/* ---------------------------------------------------------------- tests */

static const int contexts[] = {1, 2, 31, 64, 65, 127, 128, 130, 200};
enum { CONTEXTS = sizeof contexts / sizeof *contexts };

static void test_no_rotary_part(void **state) {
    for (int t = 0; t < CONTEXTS; t++) {
        check_shape((shape){1, contexts[t], 1, 1, 16, 0, 16, false});
        check_shape((shape){2, contexts[t], 3, 3, 8, 0, 12, false});
    }
}

static void test_shared_rotary_key(void **state) {
    for (int t = 0; t < CONTEXTS; t++) {
        check_shape((shape){1, contexts[t], 4, 4, 16, 8, 16, true});
        check_shape((shape){2, contexts[t], 3, 3, 24, 16, 16, true});
        check_shape((shape){1, contexts[t], 1, 1, 5, 2, 3, false});
    }
}

static void test_grouped_heads(void **state) {
    for (int t = 0; t < CONTEXTS; t++) {
        check_shape((shape){1, contexts[t], 4, 2, 16, 0, 16, false});
        check_shape((shape){2, contexts[t], 4, 1, 16, 0, 8, false});
        check_shape((shape){1, contexts[t], 6, 2, 8, 4, 8, true});
    }
}

static void test_sizes_of_real_heads(void **state) {
    check_shape((shape){1, 65, 2, 2, 32, 16, 32, true});
    check_shape((shape){1, 65, 2, 2, 64, 32, 64, true});
    check_shape((shape){1, 33, 2, 2, 128, 64, 128, true});
    check_shape((shape){1, 65, 2, 2, 64, 0, 64, false});
}

static void test_long_context(void **state) {
    check_shape((shape){1, 1025, 1, 1, 16, 8, 16, true});
}

/* Scores of size 30 and more: exp without the row's maximum would overflow, and some rows attend to one key alone. */
static void test_large_scores(void **state) {
    for (int t = 0; t < CONTEXTS; t++) {
        operands p = operands_new((shape){1, contexts[t], 2, 2, 16, 8, 16, true});
        for (int64_t i = 0; i < p.q.t.rows; i++)
            for (int64_t j = 0; j < p.q.t.cols; j++) tensor_f32(p.q.t)[i * p.q.t.ld + j] *= 30;
        check_core(&p, 2);
        operands_free(&p);
    }
}

/* Equal keys: every row attends evenly, so o is the running mean of v and lse the score plus log(i + 1). */
static void test_equal_keys_give_the_mean(void **state) {
    operands p = operands_new((shape){1, 130, 2, 2, 16, 8, 8, false});
    for (int64_t i = 1; i < 130; i++) {
        memcpy(tensor_f32(p.k.t) + i * p.k.t.ld, p.k.t.data, (size_t)p.k.t.cols * sizeof(float));
        memcpy(tensor_f32(p.k_rope.t) + i * p.k_rope.t.ld, p.k_rope.t.data, (size_t)p.s.rope * sizeof(float));
    }
    check_core(&p, 1);
    for (int c = 0; c < p.o.t.cols; c++) {
        double sum = 0, size = 0;
        for (int64_t i = 0; i < 130; i++) {
            sum += at(p.v.t, i, c);
            size += fabs(at(p.v.t, i, c));
            check_near(at(p.o.t, i, c), sum / (double)(i + 1), 1e-5 * size / (double)(i + 1));
        }
    }
    operands_free(&p);
}

/* What comes later does not change a bit of what was. */
static void test_the_future_is_not_seen(void **state) {
    enum { T = 130, CUT = 67 };
    operands p = operands_new((shape){1, T, 2, 2, 16, 8, 16, true});
    run_core(&p, 1);
    float *o = malloc((size_t)(CUT * p.o.t.cols) * sizeof *o);
    for (int64_t i = 0; i < CUT; i++)
        memcpy(o + i * p.o.t.cols, tensor_f32(p.o.t) + i * p.o.t.ld, (size_t)p.o.t.cols * sizeof *o);
    for (int64_t i = CUT; i < T; i++) {
        inputs_normal(tensor_f32(p.k.t) + i * p.k.t.ld, p.k.t.cols, 50);
        inputs_normal(tensor_f32(p.k_rope.t) + i * p.k_rope.t.ld, p.s.rope, 50);
    }
    run_core(&p, 1);
    for (int64_t i = 0; i < CUT; i++)
        assert_memory_equal(o + i * p.o.t.cols, tensor_f32(p.o.t) + i * p.o.t.ld, (size_t)p.o.t.cols * sizeof *o);
    free(o);
    operands_free(&p);
}

/* Queries from a later position on are the last ones of all. */
static void test_queries_from_a_later_position(void **state) {
    static const shape shapes[] = {
        {2, 130, 3, 3, 16, 8, 16, true}, {1, 65, 4, 2, 24, 0, 16, false}, {2, 300, 2, 1, 8, 4, 12, false}};
    ops o;
    check_status(ops_cpu(&o, 2), STATUS_OK);
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        shape whole = shapes[s];
        operands p = operands_new(whole);
        check_core(&p, 2);
        const int64_t firsts[] = {1, 63, 64, whole.context - 1 - inputs_below(40), whole.context - 1};
        for (size_t k = 0; k < sizeof firsts / sizeof *firsts; k++) {
            int64_t first = firsts[k], left = whole.context - first, rows = whole.batch * left;
            guarded q = guarded_new(rows, p.q.t.cols), out = guarded_new(rows, p.o.t.cols);
            float *lse = malloc((size_t)(rows * whole.heads) * sizeof *lse);
            guarded_poison(&out);
            for (int64_t i = 0; i < rows; i++)
                memcpy(tensor_f32(q.t) + i * q.t.ld,
                       tensor_f32(p.q.t) + (i / left * whole.context + first + i % left) * p.q.t.ld,
                       (size_t)q.t.cols * sizeof(float));
            attn_core_args args = p.args;
            args.first = first;
            args.q = q.t;
            args.o = out.t;
            args.lse = lse;
            size_t bytes = scratch_bytes(&p, &o);
            arena scratch = {.base = aligned_alloc(ARENA_ALIGN_BYTES, bytes), .size_bytes = bytes};
            attn_core_cpu.forward(&o, &args, &scratch);
            guarded_check(&out);
            for (int64_t i = 0; i < rows; i++) {
                int64_t sample = i / left, from = sample * whole.context + first + i % left;
                for (int64_t c = 0; c < out.t.cols; c++) check_near(at(out.t, i, c), at(p.o.t, from, c), 1e-5);
                for (int head = 0; head < whole.heads; head++)
                    check_near(lse[(sample * whole.heads + head) * left + i % left],
                               p.lse[(sample * whole.heads + head) * whole.context + first + i % left], 1e-5);
            }
            free(scratch.base);
            free(lse);
            guarded_free(&q);
            guarded_free(&out);
        }
        operands_free(&p);
    }
}

/* The same bits again, and with 1 and 2 threads. */
static void test_bits_do_not_depend_on_threads(void **state) {
    static const shape shapes[] = {
        {2, 130, 3, 3, 16, 8, 16, true}, {1, 65, 4, 2, 24, 0, 16, false}, {1, 257, 1, 1, 64, 32, 64, true}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        operands p = operands_new(shapes[s]);
        for (int run = 0; run < 4; run++) {
            run_core(&p, 1 + run % 2);
            guarded *outputs[] = {&p.o, &p.dq, &p.dk, &p.dv, &p.dk_rope};
            for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++) guarded_same(outputs[i]);
        }
        operands_free(&p);
    }
}

/* The answer above is itself held against central differences of sum(o dout). */
static void test_the_exact_answer_is_the_derivative(void **state) {
    operands p = operands_new((shape){1, 5, 2, 2, 3, 2, 3, false});
    answer w = answer_new(&p);
    struct {
        tensor in;
        const exact *gradient;
    } checks[] = {{p.q.t, &w.dq}, {p.k.t, &w.dk}, {p.v.t, &w.dv}, {p.k_rope.t, &w.dk_rope}};
    for (size_t k = 0; k < 4; k++)
        for (int64_t i = 0; i < 5; i++)
            for (int64_t j = 0; j < checks[k].in.cols; j++) {
                float *x = tensor_f32(checks[k].in) + i * checks[k].in.ld + j, kept = *x;
                float ends[2] = {kept + 0x1p-10f, kept - 0x1p-10f};
                double objective[2] = {0, 0};
                for (int side = 0; side < 2; side++) {
                    *x = ends[side];
                    answer moved = answer_new(&p);
                    for (int64_t r = 0; r < 5; r++)
                        for (int64_t c = 0; c < p.o.t.cols; c++)
                            objective[side] += moved.o.value[r * moved.o.cols + c] * at(p.dout.t, r, c);
                    answer_free(&moved);
                }
                *x = kept;
                double slope = (objective[0] - objective[1]) / ((double)ends[0] - ends[1]);
                check_near(checks[k].gradient->value[i * checks[k].gradient->cols + j], slope, 1e-4);
            }
    answer_free(&w);
    operands_free(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup(test_no_rotary_part, inputs_start),
    cmocka_unit_test_setup(test_shared_rotary_key, inputs_start),
    cmocka_unit_test_setup(test_grouped_heads, inputs_start),
    cmocka_unit_test_setup(test_sizes_of_real_heads, inputs_start),
    cmocka_unit_test_setup(test_long_context, inputs_start),
    cmocka_unit_test_setup(test_large_scores, inputs_start),
    cmocka_unit_test_setup(test_equal_keys_give_the_mean, inputs_start),
    cmocka_unit_test_setup(test_the_future_is_not_seen, inputs_start),
    cmocka_unit_test_setup(test_queries_from_a_later_position, inputs_start),
    cmocka_unit_test_setup(test_bits_do_not_depend_on_threads, inputs_start),
    cmocka_unit_test_setup(test_the_exact_answer_is_the_derivative, inputs_start),
};
TEST_MAIN(tests)
