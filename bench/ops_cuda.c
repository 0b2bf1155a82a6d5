/* bench_ops_cuda: every operation of the CUDA table at the shapes of the 130m model (bf16), one JSON line each.
 *
 * usage: bench_ops_cuda [N [d [F [V]]]]     default 32768 768 2048 32000
 * Bytes are the fewest that the operation must move: each input and output once. The first line is a large copy, the
 * bandwidth that the others are held against. Results are checked against the CPU table by test_ops_cuda; here only
 * that no call failed and that the sum of squares of what was written is finite. */
#include "bench/times.h"
#include "core/clock.h"
#include "core/ops/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { WARM_UP = 3, REPEATS = 20, ROUNDS = 5, LOGIT_ROWS = 4096, CONTEXT = 1024, HEAD = 64 };

typedef struct bench {
    ops o;
    int64_t n, d, f, v;
    tensor x, y, dx, gate_up, h, dgate_up, table, dtable, logits, w, dw;
    float *gain, *dgain, *rstd, *angles, *row_max, *sums, *picked, *master, *m, *moment, *gradient;
    int32_t *tokens;
    double *scalar;
    adamw_update *update;
} bench;

typedef struct operation {
    const char *name;
    void (*call)(bench *b);
    double bytes, flops;
} operation;

static void run_copy(bench *b) {
    b->o.copy(&b->o, b->dgate_up, b->gate_up);
}
static void run_rmsnorm_forward(bench *b) {
    b->o.rmsnorm_forward(&b->o, b->y, b->rstd, b->x, b->gain, 1e-5f);
}
static void run_add_rmsnorm_forward(bench *b) {
    b->o.add_rmsnorm_forward(&b->o, b->x, b->y, b->rstd, b->x, b->y, b->gain, 1e-5f);
}
static void run_rmsnorm_backward(bench *b) {
    b->o.rmsnorm_backward(&b->o, b->dx, false, b->dgain, b->y, b->x, b->gain, b->rstd);
}
static void run_rmsnorm_backward_adds(bench *b) {
    b->o.rmsnorm_backward(&b->o, b->dx, true, b->dgain, b->y, b->x, b->gain, b->rstd);
}
static void run_rope(bench *b) {
    b->o.rope(&b->o, b->x, (rope_args){(int)(b->d / HEAD), HEAD, 0, HEAD, CONTEXT, b->angles, false});
}
static void run_swiglu_forward(bench *b) {
    b->o.swiglu_forward(&b->o, b->h, b->gate_up);
}
static void run_swiglu_backward(bench *b) {
    b->o.swiglu_backward(&b->o, b->dgate_up, b->h, b->gate_up);
}
static void run_add(bench *b) {
    b->o.add(&b->o, b->y, b->x, b->dx);
}
static void run_embedding_forward(bench *b) {
    b->o.embedding_forward(&b->o, b->y, b->table, b->tokens, 0);
}
static void run_embedding_backward(bench *b) {
    b->o.embedding_backward(&b->o, b->dtable, b->x, b->tokens, 0);
}
static void run_ce_max(bench *b) {
    b->o.ce_max(&b->o, b->row_max, b->logits, b->v);
}
static void run_ce_sums(bench *b) {
    b->o.ce_sums(&b->o, b->sums, b->picked, b->logits, b->v, b->row_max, b->tokens, 0);
}
static void run_ce_loss(bench *b) {
    b->o.ce_loss(&b->o, b->scalar, b->sums, b->picked, b->row_max, LOGIT_ROWS);
}
static void run_ce_whole(bench *b) {
    b->o.ce_whole(&b->o, b->row_max, b->sums, b->picked, b->logits, b->v, b->tokens, 1.0f / LOGIT_ROWS);
}
static void run_ce_backward(bench *b) {
    b->o.ce_backward(&b->o, b->logits, b->v, b->row_max, b->sums, b->tokens, 0, 1.0f / LOGIT_ROWS);
}
static void run_sum_squares(bench *b) {
    b->o.sum_squares(&b->o, b->scalar, b->gradient, b->v * b->d);
}
static void run_adamw(bench *b) {
    b->o.adamw_begin(&b->o, b->update, (adamw_args){1e-3f, 0.9f, 0.95f, 1e-8f, 1, b->scalar, b->scalar, 1});
    b->o.adamw(&b->o, b->master, b->m, b->moment, b->gradient, b->table.data, b->v * b->d, 0.1f, b->update);
}
static void run_cast(bench *b) {
    b->o.cast(&b->o, b->table.data, b->master, b->v * b->d);
}
static void run_linear(bench *b) {
    ops_linear(&b->o, b->gate_up, b->x, b->w, false);
}
static void run_linear_dx(bench *b) {
    ops_linear_dx(&b->o, b->dx, b->gate_up, b->w, false);
}
static void run_linear_dw(bench *b) {
    ops_linear_dw(&b->o, b->dw, b->gate_up, b->x, true);
}
static void run_head(bench *b) {
    ops_linear(&b->o, b->logits, tensor_rows(b->x, 0, LOGIT_ROWS), b->table, false);
}
static void run_head_dx(bench *b) {
    ops_linear_dx(&b->o, tensor_rows(b->dx, 0, LOGIT_ROWS), b->logits, b->table, false);
}
static void run_head_dw(bench *b) {
    ops_linear_dw(&b->o, b->dtable, b->logits, tensor_rows(b->x, 0, LOGIT_ROWS), true);
}

static void *space(bench *b, double elements, dtype type) {
    return b->o.alloc(&b->o, (size_t)elements * dtype_bytes(type));
}

static tensor matrix(bench *b, dtype type, int64_t rows, int64_t cols) {
    return tensor_make(space(b, (double)rows * (double)cols, type), type, rows, cols);
}

/* count values in (-1, 1) times scale; one block of them again and again. */
static void fill(bench *b, void *data, dtype type, int64_t count, float scale) {
    enum { BLOCK = 1 << 20 };
    static float values[BLOCK];
    static uint16_t halves[BLOCK];
    uint32_t state = 12345;
    for (int i = 0; i < BLOCK; i++) {
        state = state * 1664525u + 1013904223u;
        values[i] = scale * ((float)(state >> 8) * 0x1p-23f - 1);
        uint32_t bits;
        __builtin_memcpy(&bits, &values[i], sizeof bits);
        halves[i] = (uint16_t)(bits >> 16);
    }
    size_t size = dtype_bytes(type);
    for (int64_t at = 0; at < count; at += BLOCK)
        b->o.upload(&b->o, (char *)data + (size_t)at * size, type == DTYPE_BF16 ? (void *)halves : (void *)values,
                    (size_t)(count - at < BLOCK ? count - at : BLOCK) * size);
    b->o.sync(&b->o);
}

static status create(bench *b) {
    TRY(ops_cuda(&b->o, 0, false));
    const dtype half = DTYPE_BF16, single = DTYPE_F32;
    int64_t n = b->n, d = b->d, f = b->f, v = b->v, weights = v * d;
    tensor *halves[] = {&b->x, &b->y, &b->dx, &b->gate_up, &b->dgate_up, &b->h, &b->w, &b->table, &b->logits};
    const int64_t shapes[][2] = {{n, d}, {n, d},     {n, d}, {n, 2 * f},     {n, 2 * f},
                                 {n, f}, {2 * f, d}, {v, d}, {LOGIT_ROWS, v}};
    for (size_t i = 0; i < sizeof halves / sizeof *halves; i++) {
        *halves[i] = matrix(b, half, shapes[i][0], shapes[i][1]);
        if (!halves[i]->data) return status_fail(STATUS_CONFIG, "the GPU's memory is too small");
        fill(b, halves[i]->data, half, shapes[i][0] * shapes[i][1], i == 6 || i == 7 ? 0.02f : 1);
    }
    b->dw = matrix(b, single, 2 * f, d);
    b->dtable = matrix(b, single, v, d);
    float **singles[] = {&b->gain,   &b->dgain,  &b->rstd, &b->angles, &b->row_max, &b->sums,
                         &b->picked, &b->master, &b->m,    &b->moment, &b->gradient};
    const int64_t counts[] = {
        d, d, n, (int64_t)CONTEXT * HEAD, LOGIT_ROWS, LOGIT_ROWS, LOGIT_ROWS, weights, weights, weights, weights};
    for (size_t i = 0; i < sizeof singles / sizeof *singles; i++) {
        *singles[i] = space(b, (double)counts[i], single);
        if (!*singles[i]) return status_fail(STATUS_CONFIG, "the GPU's memory is too small");
        if (singles[i] != &b->moment && singles[i] != &b->dgain) fill(b, *singles[i], single, counts[i], 1);
    }
    b->scalar = space(b, 1, DTYPE_F64);
    b->update = space(b, (int64_t)(sizeof *b->update / sizeof(double)), DTYPE_F64);
    int32_t *tokens = malloc((size_t)n * sizeof *tokens);
    b->tokens = space(b, (double)n, single);
    if (!tokens || !b->tokens || !b->scalar || !b->update || !b->dw.data || !b->dtable.data)
        return status_fail(STATUS_CONFIG, "out of memory");
    uint32_t state = 99;
    for (int64_t i = 0; i < n; i++) { /* Zipf-like: equal weight to each octave of the vocabulary */
        state = state * 1664525u + 1013904223u;
        tokens[i] = (int32_t)(pow((double)v, (double)(state >> 8) * 0x1p-24)) - 1;
    }
    b->o.upload(&b->o, b->tokens, tokens, (size_t)n * sizeof *tokens);
    b->o.sync(&b->o);
    free(tokens);
    return ops_status(&b->o);
}

/* Median over rounds of the mean time of a call. */
static double time_s(bench *b, const operation *op) {
    double rounds[ROUNDS];
    for (int i = 0; i < WARM_UP; i++) op->call(b);
    b->o.sync(&b->o);
    for (int round = 0; round < ROUNDS; round++) {
        double start = clock_now_s();
        for (int i = 0; i < REPEATS; i++) op->call(b);
        b->o.sync(&b->o);
        rounds[round] = (clock_now_s() - start) / REPEATS;
    }
    times_sort(rounds, ROUNDS);
    return rounds[ROUNDS / 2];
}

static status run(bench *b) {
    TRY(create(b));
    double n = (double)b->n, d = (double)b->d, f = (double)b->f, v = (double)b->v, rows = LOGIT_ROWS, w = v * d;
    double gate_up = 2 * n * 2 * f * d, head = 2 * rows * v * d;
    const operation list[] = {
        {"copy", run_copy, 8 * n * f, 0},
        {"rmsnorm_forward", run_rmsnorm_forward, 4 * n * d, 0},
        {"add_rmsnorm_forward", run_add_rmsnorm_forward, 8 * n * d, 0},
        {"rmsnorm_backward", run_rmsnorm_backward, 6 * n * d, 0},
        {"rmsnorm_backward_adds", run_rmsnorm_backward_adds, 8 * n * d, 0},
        {"rope", run_rope, 4 * n * d, 0},
        {"swiglu_forward", run_swiglu_forward, 6 * n * f, 0},
        {"swiglu_backward", run_swiglu_backward, 10 * n * f, 0},
        {"add", run_add, 6 * n * d, 0},
        {"embedding_forward", run_embedding_forward, 4 * n * d, 0},
        {"embedding_backward", run_embedding_backward, 10 * n * d, 0},
        {"ce_max", run_ce_max, 2 * rows * v, 0},
        {"ce_sums", run_ce_sums, 2 * rows * v, 0},
        {"ce_loss", run_ce_loss, 12 * rows, 0},
        {"ce_backward", run_ce_backward, 4 * rows * v, 0},
        {"ce_whole", run_ce_whole, 4 * rows * v, 0},
        {"sum_squares", run_sum_squares, 4 * w, 0},
        {"adamw", run_adamw, 30 * w, 0},
        {"cast", run_cast, 6 * w, 0},
        {"gate_up", run_linear, 0, gate_up},
        {"gate_up_dx", run_linear_dx, 0, gate_up},
        {"gate_up_dw", run_linear_dw, 0, gate_up},
        {"lm_head", run_head, 0, head},
        {"lm_head_dx", run_head_dx, 0, head},
        {"lm_head_dw", run_head_dw, 0, head},
    };
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        double s = time_s(b, &list[i]);
        TRY(ops_status(&b->o));
        printf("{\"bench\": \"ops_cuda\", \"operation\": \"%s\", \"N\": %ld, \"d\": %ld, \"F\": %ld, \"V\": %ld, "
               "\"ms\": %.4f, \"%s\": %.1f}\n",
               list[i].name, (long)b->n, (long)b->d, (long)b->f, (long)b->v, 1e3 * s,
               list[i].flops > 0 ? "tflops" : "gb_per_s",
               list[i].flops > 0 ? list[i].flops / s / 1e12 : list[i].bytes / s / 1e9);
        fflush(stdout);
    }
    double total = 0;
    b->o.zero(&b->o, b->scalar, sizeof total);
    b->o.sum_squares(&b->o, b->scalar, b->master, b->v * b->d);
    b->o.sum_squares(&b->o, b->scalar, b->dw.data, 2 * b->f * b->d);
    b->o.download(&b->o, &total, b->scalar, sizeof total);
    TRY(ops_status(&b->o));
    return isfinite(total) && total > 0 ? STATUS_OK : status_fail(STATUS_INTERNAL, "wrong result: %g", total);
}

int main(int argc, char **argv) {
    static bench b;
    b.n = argc > 1 ? atoll(argv[1]) : 32768;
    b.d = argc > 2 ? atoll(argv[2]) : 768;
    b.f = argc > 3 ? atoll(argv[3]) : 2048;
    b.v = argc > 4 ? atoll(argv[4]) : 32000;
    if (b.n < LOGIT_ROWS || b.d < HEAD || b.d % HEAD || b.f < 1 || b.v < 2) {
        fprintf(stderr, "usage: bench_ops_cuda [N [d [F [V]]]]: N at least %d, d a multiple of %d\n", LOGIT_ROWS, HEAD);
        return STATUS_USAGE;
    }
    status s = run(&b);
    if (s != STATUS_OK) fprintf(stderr, "bench_ops_cuda: %s\n", status_message());
    if (b.o.close) b.o.close(&b.o); /* the device's memory goes with the process */
    return s;
}
