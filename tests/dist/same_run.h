/* The same model over P tensor-parallel and Q data-parallel ranks as on one, for test programs that compare the two:
 * initial weights bit for bit, loss, every parameter's gradient, the gradient's norm and Adam's first moment; rotary
 * and content rows, keys and values apart.
 *
 * Each rank also computes the whole model alone (the reference), with the same weights: larger than initial ones, so
 * that attention is far from uniform. Three layers, so that the rank that owns the rotary key changes; feed-forward
 * units and a vocabulary that no P divides, and a batch that 1 to 4 ranks do. With BULKHEAD_TEST_DEVICE=cuda each rank
 * computes on a GPU of its own, over NCCL, the reference on the same GPU. */
#pragma once

#include "core/rng.h"
#include "device.h"
#include "dist.h"
#include "trainer/device.h"
#include "trainer/model.h"
#include "trainer/optimizer.h"

enum { LAYERS = 3, BATCH = 12, CONTEXT = 17, VOCAB = 509, MOST_SETTINGS = 24 };
static const double TOLERANCE = 1e-5;
/* Of weights that steps have changed: products add in another order for another number of rows, on a GPU and in some
 * kernels of OpenBLAS, and Adam divides a gradient by its own size, so that the rounding of small ones stays (1.2e-5
 * seen after twenty steps on a GPU, 1.3e-5 with AVX-512). */
static const double WEIGHTS_TOLERANCE = 1e-4;

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
    MPI_Comm data; /* the ranks of dp */
    model model;
    int64_t micro_batch, micro_batches; /* samples at a time, and how often, on this rank */
} run;

/* ---------------------------------------------------------------- two runs of one configuration */

static inline void split_world(run *r, int tp) {
    MPI_Comm across_tensor;
    MPI_Comm_split(MPI_COMM_WORLD, world_rank() / tp, world_rank(), &across_tensor);
    MPI_Comm_split(MPI_COMM_WORLD, world_rank() % tp, world_rank(), &r->data);
    check_status(comm_over_device(&r->tp, across_tensor, &r->ops), STATUS_OK);
    check_status(comm_over_device(&r->dp, r->data, &r->ops), STATUS_OK);
    MPI_Comm_free(&across_tensor);
}

static inline void load_config(config *out, const char *const *more, int count) {
    const char *settings[MOST_SETTINGS];
    assert_true(COMMON + count <= MOST_SETTINGS);
    status_clear();
    memcpy(settings, common, sizeof common);
    for (int i = 0; i < count; i++) settings[COMMON + i] = more[i];
    check_status(config_load(out, NULL, settings, COMMON + count), STATUS_OK);
}

/* tp = 0: alone. micro_batches: into how many this rank's samples are cut. */
static inline void open_run(run *r, const char *const *settings, int count, int tp, int micro_batches) {
    *r = (run){.micro_batches = micro_batches, .data = MPI_COMM_NULL};
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

static inline void close_run(run *r) {
    comm_close(&r->tp); /* before the memory that weights arrive in */
    comm_close(&r->dp);
    model_free(&r->model);
    if (r->data != MPI_COMM_NULL) MPI_Comm_free(&r->data);
    device_close(&r->ops);
    config_free(&r->config);
}

static inline bool is_gain(const param *q) {
    return q->spec.init == PARAM_ONES;
}

/* Weights that are a function of name and global index, as the initial ones are, but larger; gains around 1. */
static inline status large_row(void *user, const param *q, int64_t r, float *row) {
    double scale = is_gain(q) ? 0.25 : strcmp(q->name, "embedding") == 0 ? 0.7 : 0.8 / sqrt((double)q->spec.cols);
    rng_normal(row, 99, rng_stream(q->name), (uint64_t)((q->row + r) * q->spec.cols + q->col), q->n_cols, scale);
    if (is_gain(q))
        for (int64_t c = 0; c < q->n_cols; c++) row[c] += 1;
    return STATUS_OK;
}

static inline void set_weights(run *r) {
    check_status(params_fill(&r->model.params, &r->ops, large_row, NULL), STATUS_OK);
}

/* ---------------------------------------------------------------- what the data-parallel ranks hold together */

typedef enum held { GRADIENT, MASTER, MOMENT1, MOMENT2 } held;
static const char *const held_names[] = {"gradient", "master", "first moment", "second moment"};

/* Flat storage on the host, [total], each rank's pieces from that rank. */
static inline float *gathered(run *r, held what) {
    const params *p = &r->model.params;
    const float *const owned[] = {NULL, p->master, p->moment1, p->moment2};
    size_t count = (size_t)params_total(p);
    float *all = calloc(count, sizeof *all);
    assert_non_null(all);
    for (int b = 0; b < p->buckets; b++) {
        const param_bucket *bucket = &p->bucket[b];
        const float *from = what == GRADIENT ? p->gradient + bucket->own : owned[what] + bucket->at;
        r->ops.download(&r->ops, all + bucket->own, from, (size_t)bucket->piece * sizeof *all);
    }
    if (p->pieces > 1) MPI_Allreduce(MPI_IN_PLACE, all, (int)count, MPI_FLOAT, MPI_SUM, r->data);
    return all;
}

static inline tensor in_flat(const params *p, int i, float *flat) {
    return tensor_make(flat + p->list[i].offset, DTYPE_F32, p->list[i].rows, p->list[i].cols);
}

/* ---------------------------------------------------------------- comparison */

/* Rows [first, first + count) of each `period` global rows of a parameter: a part of each head. */
typedef struct rows_of {
    const char *what;
    int64_t period, first, count;
} rows_of;

static inline void check_rows(const char *kind, const param *q, tensor got, tensor want, rows_of part) {
    double difference = 0, norm = 0;
    double limit = strcmp(kind, "master") == 0 ? WEIGHTS_TOLERANCE : TOLERANCE;
    for (int64_t i = 0; i < q->n_rows; i++) {
        int64_t at = (q->row + i) % part.period - part.first;
        if (at < 0 || at >= part.count) continue;
        for (int64_t j = 0; j < q->n_cols; j++) {
            double a = tensor_f32(got)[i * got.ld + j], b = tensor_f32(want)[(q->row + i) * want.ld + q->col + j];
            difference += (a - b) * (a - b);
            norm += b * b;
        }
    }
    if (!(sqrt(difference) <= limit * sqrt(norm)))
        fail_msg("rank %d of %d: %s of %s, %s: off by %.3g of its norm %.3g", world_rank(), world_size(), kind, q->name,
                 part.what, sqrt(difference / norm), sqrt(norm));
}

static inline bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), k = strlen(end);
    return n >= k && strcmp(name + n - k, end) == 0;
}

static inline void check_parameter(const run *r, const char *kind, int i, tensor got, tensor want) {
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

static inline void check_parameters(run *r, run *alone, held what) {
    const params *p = &r->model.params, *whole = &alone->model.params;
    float *got = gathered(r, what), *want = gathered(alone, what);
    assert_int_equal(p->count, whole->count);
    for (int i = 0; i < p->count; i++) {
        assert_string_equal(p->list[i].name, whole->list[i].name);
        check_parameter(r, held_names[what], i, in_flat(p, i, got), in_flat(whole, i, want));
    }
    free(got);
    free(want);
}

/* The same bytes on every rank of c. */
static inline void check_same(MPI_Comm c, const void *data, size_t bytes) {
    char *first = malloc(bytes);
    assert_non_null(first);
    memcpy(first, data, bytes);
    MPI_Bcast(first, (int)bytes, MPI_BYTE, 0, c);
    assert_memory_equal(first, data, bytes);
    free(first);
}

/* What every rank of the tensor-parallel group holds is the same bits on all ranks of the world. */
static inline void check_replicas(run *r, held what) {
    const params *p = &r->model.params;
    float *flat = gathered(r, what);
    for (int i = 0; i < p->count; i++)
        if (p->list[i].region != REGION_SHARDED)
            check_same(MPI_COMM_WORLD, flat + p->list[i].offset,
                       (size_t)(p->list[i].rows * p->list[i].cols) * sizeof *flat);
    free(flat);
}

/* What the next forward pass reads is the master weights of whoever has them, on every rank. */
static inline void check_copies(run *r) {
    const params *p = &r->model.params;
    float *flat = gathered(r, MASTER);
    comm_finish(&r->dp);
    for (int i = 0; i < p->count; i++) {
        tensor copy = test_to_host(&r->ops, params_weight(p, i)), master = in_flat(p, i, flat);
        for (int64_t k = 0; k < copy.rows * copy.cols; k++)
            if (tensor_f32(copy)[k] != tensor_f32(master)[k])
                fail_msg("rank %d of %d: %s: element %ld of the copy is %g, of the master %g", world_rank(),
                         world_size(), p->list[i].name, (long)k, tensor_f32(copy)[k], tensor_f32(master)[k]);
        free(copy.data);
    }
    free(flat);
}

/* ---------------------------------------------------------------- what is compared */

static inline void draw_tokens(int32_t *tokens, uint64_t stream) {
    for (int i = 0; i < BATCH * CONTEXT; i++) tokens[i] = (int32_t)(rng_u64(5, stream, (uint64_t)i) % VOCAB);
    tokens[0] = VOCAB - 1;
}

static inline void check_initial_weights(run *r, run *alone) {
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

static inline double gradient_norm(model *m) {
    double norm_sq = 0;
    optimizer_norm(m);
    m->ops->download(m->ops, &norm_sq, model_norm_sq(m), sizeof norm_sq);
    return sqrt(norm_sq);
}

/* This rank's samples, micro-batch by micro-batch. */
static inline double train_pass(run *r, const int32_t *input, const int32_t *target) {
    model *m = &r->model;
    int64_t micro = r->micro_batch * m->context, first = r->dp.rank * r->micro_batches * micro;
    for (int i = 0; i < r->micro_batches; i++) {
        int64_t at = first + i * micro;
        model_train(m, input + at, target + at, 1.0f / (float)(BATCH * m->context), i == 0, i == r->micro_batches - 1);
    }
    optimizer_reduce(m);
    model_reduce_loss(m);
    return model_take_loss(m) / (double)(BATCH * m->context);
}

static inline void check_step(run *r, run *alone) {
    int32_t input[BATCH * CONTEXT], target[BATCH * CONTEXT];
    draw_tokens(input, 3);
    draw_tokens(target, 4);
    double want = train_pass(alone, input, target);
    check_near(train_pass(r, input, target), want, 1e-6 * want);
    check_parameters(r, alone, GRADIENT);
    check_replicas(r, GRADIENT);
    double norm = gradient_norm(&alone->model);
    check_near(gradient_norm(&r->model), norm, 1e-6 * norm);
    optimizer_update(&alone->model, &alone->config, 1e-3);
    optimizer_update(&r->model, &r->config, 1e-3);
    check_parameters(r, alone, MOMENT1);
    check_replicas(r, MASTER);
    check_copies(r);
    check_status(model_status(&r->model), STATUS_OK);
}

#define KEY_VALUES "attention.variant=mla-prerope", "attention.kv_lora_rank=24"
#define DECOUPLED                                                                                                      \
    "attention.variant=mla-decoupled", "attention.kv_lora_rank=24", "attention.qk_nope_head_dim=16",                   \
        "attention.qk_rope_head_dim=8", "attention.v_head_dim=12"
