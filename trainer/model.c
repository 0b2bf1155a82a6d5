#include "trainer/model_private.h"

#include "comm/count.h"
#include "core/ops/profile.h"
#include "trainer/weights.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Rows of logits at a time are a multiple of it, which suits the tiles of products. */
enum { CHUNK_ROWS = 128 };

/* ---------------------------------------------------------------- set-up */

static status add_layer(model *m, const config *c, int index) {
    const int64_t d = m->width, f = m->ffn;
    const float std = m->attention.dims.init_std, residual_std = m->attention.dims.residual_std;
    const param_spec attention_norm = {.name = "attention_norm", .rows = 1, .cols = d, .init = PARAM_ONES};
    const param_spec mlp_norm = {.name = "mlp_norm", .rows = 1, .cols = d, .init = PARAM_ONES};
    const param_spec gate = {
        .name = "mlp.W_gate", .rows = f, .cols = d, .shard = PARAM_BY_ROWS, .init = PARAM_NORMAL, .std = std};
    const param_spec up = {.name = "mlp.W_up",
                           .rows = f,
                           .cols = d,
                           .shard = PARAM_BY_ROWS,
                           .joined = true,
                           .init = PARAM_NORMAL,
                           .std = std};
    const param_spec down = {
        .name = "mlp.W_down", .rows = d, .cols = f, .shard = PARAM_BY_COLS, .init = PARAM_NORMAL, .std = residual_std};
    model_layer *layer = &m->layer[index];
    param_spec specs[ATTN_MAX_PARAMS] = {0};
    char prefix[32];
    snprintf(prefix, sizeof prefix, "layers.%d.", index);

    layer->attention_norm = m->params.count;
    TRY(params_add(&m->params, prefix, &attention_norm));
    layer->attention_first = m->params.count;
    layer->attention_count = m->variant->params(&m->attention.dims, specs);
    for (int i = 0; i < layer->attention_count; i++) TRY(params_add(&m->params, prefix, &specs[i]));
    layer->mlp_norm = m->params.count;
    TRY(params_add(&m->params, prefix, &mlp_norm));
    layer->gate = m->params.count;
    TRY(params_add(&m->params, prefix, &gate));
    layer->up = m->params.count;
    TRY(params_add(&m->params, prefix, &up));
    layer->down = m->params.count;
    TRY(params_add(&m->params, prefix, &down));
    return STATUS_OK;
}

static status add_params(model *m, const config *c) {
    const float std = m->attention.dims.init_std;
    const param_spec embedding = {.name = "embedding",
                                  .rows = m->vocab,
                                  .cols = m->width,
                                  .shard = PARAM_BY_ROWS,
                                  .init = PARAM_NORMAL,
                                  .std = std};
    const param_spec norm = {.name = "norm", .rows = 1, .cols = m->width, .init = PARAM_ONES};
    param_spec head = embedding;
    head.name = "lm_head";

    params_new_bucket(&m->params);
    m->embedding = m->head = m->params.count;
    TRY(params_add(&m->params, "", &embedding));
    for (int i = 0; i < m->layers; i++) {
        int bucket = params_new_bucket(&m->params);
        if (i == 0) m->first_layer_bucket = bucket;
        TRY(add_layer(m, c, i));
    }
    m->final_norm = m->params.count;
    TRY(params_add(&m->params, "", &norm));
    if (!m->tied) {
        params_new_bucket(&m->params);
        m->head = m->params.count;
        TRY(params_add(&m->params, "", &head));
    }
    bool cut = c->parallel.zero != 0;
    return params_layout(&m->params, m->tp->rank, m->tp->size, cut ? m->dp->rank : 0, cut ? m->dp->size : 1);
}

static float *floats(arena *a, int64_t count) {
    return arena_push(a, (size_t)count * sizeof(float));
}

/* Of the layer's activations those that are kept until the backward pass, or the others. */
static void reserve_activations(model *m, model_layer *layer, dtype type, bool kept, arena *a) {
    int64_t d = m->width, f = m->params.list[layer->gate].rows;
    bool keeps = !model_recomputes_all(m);
    const struct {
        tensor *at;
        int64_t cols;
        bool kept;
    } parts[] = {
        {&layer->input, d, true},   {&layer->attention_in, d, keeps}, {&layer->middle, d, model_keeps_middle(m)},
        {&layer->mlp_in, d, keeps}, {&layer->gate_up, 2 * f, keeps},
    };
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (parts[i].kept == kept) *parts[i].at = arena_tensor(a, type, m->tokens, parts[i].cols);
    attn_reserve(m->variant, &m->attention.dims, type, kept, a, &layer->saved);
}

static void reserve_layer(model *m, model_layer *layer, dtype type, arena *a) {
    reserve_activations(m, layer, type, true, a);
    layer->rstd1 = floats(a, m->tokens);
    layer->rstd2 = floats(a, m->tokens);
    for (int i = 0; i < layer->attention_count; i++) {
        layer->weights.weight[i] = params_weight(&m->params, layer->attention_first + i);
        layer->weights.gradient[i] = params_gradient(&m->params, layer->attention_first + i);
    }
}

static int figures_count(const model *m) {
    return m->dp->size + 2;
}

/* Squared norms lie behind the losses. */
static double *own_sq(const model *m) {
    return m->figures ? m->figures + m->dp->size : NULL;
}

double *model_norm_sq(const model *m) {
    return m->figures ? m->figures + m->dp->size + 1 : NULL;
}

/* Takes everything from the arena; over a counting arena all pointers come out NULL. */
static void reserve(model *m, arena *a) {
    dtype type = m->ops->activation;
    params_reserve(&m->params, type, a);
    for (int i = 0; i < m->layers; i++) reserve_layer(m, &m->layer[i], type, a);
    size_t room = arena_mark(a);
    for (int i = 0; i < m->layers; i++) {
        arena_release(a, room);
        reserve_activations(m, &m->layer[i], type, false, a);
    }
    tensor *const wide[] = {&m->output, &m->final_in, &m->branch, &m->dx, &m->dbranch};
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) *wide[i] = arena_tensor(a, type, m->tokens, m->width);
    m->rstd = floats(a, m->tokens);
    m->ce = floats(a, 3 * m->chunk);
    m->figures = arena_push(a, (size_t)figures_count(m) * sizeof *m->figures);
    m->update = arena_push(a, sizeof *m->update);
    m->input = arena_push(a, (size_t)m->tokens * sizeof *m->input);
    m->target = arena_push(a, (size_t)m->tokens * sizeof *m->target);
    m->rotary_table = floats(a, m->context * m->attention.dims.rotary);
    m->attention.rotary_table = m->rotary_table;
}

static status describe(model *m, const config *c, ops *o, const attn_core *core, comm_group *tp, comm_group *dp,
                       int64_t batch) {
    *m = (model){
        .ops = o,
        .tp = tp,
        .dp = dp,
        .variant = attn_find(c->attention.variant),
        .layers = (int)c->model.layers,
        .width = c->model.width,
        .ffn = c->model.ffn,
        .vocab = c->model.vocab,
        .batch = batch,
        .context = c->model.context,
        .tokens = batch * c->model.context,
        .norm_eps = (float)c->model.norm_eps,
        .tied = c->model.tie_embeddings,
    };
    m->parts = tp->size > 1 && batch > 1 && c->parallel.halves == HALVES_ON ? 2 : 1;
    for (int p = 0; p < m->parts; p++) {
        int64_t first = batch * p / m->parts;
        m->part[p] = (model_part){.first = first, .count = batch * (p + 1) / m->parts - first};
    }
    m->attention = (attn_env){.ops = o, .core = core, .tp = tp, .overlaps = m->parts > 1};
    TRY(attn_dims_from_config(&m->attention.dims, c, tp->size, batch, m->context));
    m->chunk = o->logit_elements / m->vocab;
    m->chunk = m->chunk < CHUNK_ROWS ? CHUNK_ROWS : m->chunk - m->chunk % CHUNK_ROWS;
    if (m->chunk > m->tokens) m->chunk = m->tokens;
    m->layer = calloc((size_t)m->layers, sizeof *m->layer);
    if (!m->layer) return status_fail(STATUS_INTERNAL, "out of memory for %d layers", m->layers);
    return add_params(m, c);
}

/* Which rank of how many. */
typedef struct member {
    int rank, size;
} member;

/* Runs one micro-batch over counting tables: what that rank needs. */
static status measure(model *m, const config *c, dtype activation, int64_t logit_elements, const attn_core *core,
                      member tp, member dp, int64_t batch, model_needs *needs) {
    ops o;
    comm_counter counter = {0}, data_counter = {0};
    comm_group group, data_group;
    ops_count(&o, activation, logit_elements);
    comm_count(&group, &counter, tp.rank, tp.size);
    comm_count(&data_group, &data_counter, dp.rank, dp.size);
    status s = describe(m, c, &o, core, &group, &data_group, batch);
    if (s != STATUS_OK) return s;
    reserve(m, &m->memory);
    model_train(m, NULL, NULL, 1.0f, true, false);
    *needs = (model_needs){
        .bytes = m->memory.peak_bytes,
        .parameter_bytes = params_bytes(&m->params),
        .parameters = params_global_count(&m->params),
        .train_flops = ops_flops(&o),
        .tp_bytes = counter.bytes,
        .tp_collectives = counter.collectives,
    };
    m->ops = m->attention.ops = NULL; /* o and the groups end here */
    m->tp = m->attention.tp = m->dp = NULL;
    return STATUS_OK;
}

status model_describe(model *m, const config *c, dtype activation, int64_t logit_elements, const attn_core *core,
                      int tp, int dp, int64_t batch, model_needs *needs) {
    return measure(m, c, activation, logit_elements, core, (member){0, tp}, (member){0, dp}, batch, needs);
}

status model_create(model *m, const config *c, ops *o, const attn_core *core, comm_group *tp, comm_group *dp,
                    int64_t batch) {
    model_needs needs;
    status s = measure(m, c, o->activation, o->logit_elements, core, (member){tp->rank, tp->size},
                       (member){dp->rank, dp->size}, batch, &needs);
    model_free(m);
    if (s != STATUS_OK) return s;
    TRY(describe(m, c, o, core, tp, dp, batch));
    m->memory = (arena){.base = o->alloc_shared(o, needs.bytes), .size_bytes = needs.bytes};
    if (!m->memory.base)
        return status_fail(STATUS_CONFIG,
                           "%.2f GiB of memory cannot be had on the %s; set train.recompute, lower train.micro_batch "
                           "or raise parallel.tensor",
                           (double)needs.bytes / 0x1p30, o->name);
    reserve(m, &m->memory);
    for (int i = 0; i < MODEL_REPORTS; i++) {
        m->reported[i] = o->host_alloc(o, (size_t)figures_count(m) * sizeof *m->figures);
        if (!m->reported[i]) return status_fail(STATUS_CONFIG, "out of host memory for a step's figures");
    }

    size_t table_floats = (size_t)(m->context * m->attention.dims.rotary);
    float *table = malloc(table_floats * sizeof *table);
    if (!table) return status_fail(STATUS_CONFIG, "out of host memory for the rotary table");
    attn_rotary_table(table, m->context, m->attention.dims.rotary, c->model.rope_theta);
    o->upload(o, m->rotary_table, table, table_floats * sizeof *table);
    free(table);
    if (c->train.init_from[0]) return weights_load_path(&m->params, o, c->train.init_from);
    return params_init(&m->params, o, (uint64_t)c->run.seed);
}

void model_free(model *m) {
    for (int i = 0; i < MODEL_REPORTS && m->memory.base; i++) {
        m->ops->mark_release(m->ops, &m->arrived[i]);
        if (m->reported[i]) m->ops->host_release(m->ops, m->reported[i]);
    }
    if (m->memory.base) m->ops->release_shared(m->ops, m->memory.base);
    free(m->layer);
    params_free(&m->params);
    *m = (model){0};
}

/* ---------------------------------------------------------------- forward */

/* What a pass of the embedding reads and writes: activations, and where the row is this rank's so many bytes of it. */
static double embedding_bytes(const model *m, size_t of_row) {
    size_t activation = dtype_bytes(m->ops->activation);
    return (double)(m->tokens * m->width) * ((double)activation + (double)of_row / m->tp->size);
}

static void embed(model *m, int p) {
    ops *o = m->ops;
    tensor x = m->layer[0].input;
    const int32_t *tokens = m->input ? m->input + m->part[p].first * m->context : NULL;
    o->embedding_forward(o, layers_rows(m, p, x), params_weight(&m->params, m->embedding), tokens,
                         m->params.list[m->embedding].row);
    layers_sum(m, p, x, "embedding", -1);
}

/* From tokens to final_in, the normed output. target NULL: nobody asks for the loss. */
static void forward(model *m, const int32_t *input, const int32_t *target) {
    ops *o = m->ops;
    size_t bytes = (size_t)m->tokens * sizeof *input;
    profile_enter(o->profile, PROFILE_EMBEDDING);
    profile_bytes(o->profile, embedding_bytes(m, dtype_bytes(o->activation)));
    o->upload(o, m->input, input, bytes);
    if (target) o->upload(o, m->target, target, bytes);
    model_need_bucket(m, m->params.list[m->embedding].bucket);
    for (int p = 0; p < m->parts; p++) embed(m, p);
    for (int b = m->params.sharded_buckets; b < m->params.buckets; b++) model_need_bucket(m, b);
    layers_forward(m);
    model_need_bucket(m, m->params.list[m->head].bucket);
}

/* Some rows of the output on their way through the head. */
typedef struct head_chunk {
    int64_t n;
    tensor in, logits; /* [n, d], [n, V_local] */
    const int32_t *target;
    float *row_max, *sums, *picked;
} head_chunk;

/* Room for a chunk's logits, until the arena is released. */
static tensor logits_room(model *m) {
    return arena_tensor(&m->memory, m->ops->activation, m->chunk, m->params.list[m->head].rows);
}

/* That of rows [first, end) which starts at `first`. */
static head_chunk chunk_at(const model *m, tensor logits, int64_t first, int64_t end) {
    int64_t n = end - first < m->chunk ? end - first : m->chunk;
    float *sums = m->ce ? m->ce + m->chunk : NULL;
    return (head_chunk){
        .n = n,
        .in = tensor_rows(m->final_in, first, n),
        .logits = tensor_rows(logits, 0, n),
        .target = m->target ? m->target + first : NULL,
        .row_max = m->ce,
        .sums = sums,
        .picked = sums ? sums + n : NULL,
    };
}

/* The chunk's logits, or with a scale their gradient, and its loss added. */
static void head_forward(model *m, const head_chunk *c, float scale) {
    ops *o = m->ops;
    const param *head = &m->params.list[m->head];
    bool is_whole = m->tp->size == 1;
    ops_linear(o, c->logits, c->in, params_weight(&m->params, m->head), false);
    if (is_whole && scale != 0) {
        o->ce_whole(o, c->row_max, c->sums, c->picked, c->logits, head->n_rows, c->target, scale);
    } else {
        o->ce_max(o, c->row_max, c->logits, head->n_rows);
        comm_all_reduce(m->tp, c->row_max, c->n, DTYPE_F32, COMM_MAX, "loss maximum", -1);
        o->ce_sums(o, c->sums, c->picked, c->logits, head->n_rows, c->row_max, c->target, head->row);
        comm_all_reduce(m->tp, c->sums, 2 * c->n, DTYPE_F32, COMM_SUM, "loss sums", -1);
        if (scale != 0) o->ce_backward(o, c->logits, head->n_rows, c->row_max, c->sums, c->target, head->row, scale);
    }
    o->ce_loss(o, m->figures ? m->figures + m->dp->rank : NULL, c->sums, c->picked, c->row_max, c->n);
}

/* Of the chunk's tokens, from what head_forward has left. */
static void token_losses(model *m, const head_chunk *c, float *losses) {
    enum { BLOCK = 512 };
    float row_max[BLOCK], sums[BLOCK], picked[BLOCK];
    ops *o = m->ops;
    for (int64_t first = 0; first < c->n; first += BLOCK) {
        int64_t n = c->n - first < BLOCK ? c->n - first : BLOCK;
        o->download(o, row_max, c->row_max + first, (size_t)n * sizeof *row_max);
        o->download(o, sums, c->sums + first, (size_t)n * sizeof *sums);
        o->download(o, picked, c->picked + first, (size_t)n * sizeof *picked);
        for (int64_t i = 0; i < n; i++)
            losses[first + i] = (float)(log((double)sums[i]) + (double)row_max[i] - (double)picked[i]);
    }
}

/* losses: of each token, NULL: nobody asks. */
static void evaluate(model *m, const int32_t *input, const int32_t *target, int64_t samples, float *losses) {
    forward(m, input, target);
    int64_t rows = samples * m->context;
    size_t mark = arena_mark(&m->memory);
    tensor logits = logits_room(m);
    for (int64_t first = 0; first < rows; first += m->chunk) {
        head_chunk c = chunk_at(m, logits, first, rows);
        head_forward(m, &c, 0);
        if (losses) token_losses(m, &c, losses + first);
    }
    arena_release(&m->memory, mark);
}

void model_evaluate(model *m, const int32_t *input, const int32_t *target, int64_t samples) {
    evaluate(m, input, target, samples, NULL);
}

void model_token_losses(model *m, const int32_t *input, const int32_t *target, int64_t samples, float *losses) {
    evaluate(m, input, target, samples, losses);
}

void model_extend(model *m, const int32_t *tokens, int64_t n, const model_cache *cache) {
    assert(m->batch == 1 && n >= 1 && n <= m->context - cache->first);
    int64_t context = m->context;
    m->context = m->tokens = n; /* rows of activations; attention has its own dimensions */
    m->cache = cache;
    forward(m, tokens, NULL);
    m->cache = NULL;
    m->context = m->tokens = context;
}

/* bf16 is the upper half of fp32: widened in place, from the last on. */
static void widen(float *values, int64_t count) {
    for (int64_t i = count; i-- > 0;) {
        uint16_t half;
        memcpy(&half, (char *)values + (size_t)i * sizeof half, sizeof half);
        uint32_t bits = (uint32_t)half << 16;
        memcpy(&values[i], &bits, sizeof bits);
    }
}

void model_logits(model *m, int64_t first, int64_t n, float *logits) {
    ops *o = m->ops;
    size_t mark = arena_mark(&m->memory);
    tensor room = logits_room(m);
    for (int64_t done = 0; done < n; done += m->chunk) {
        head_chunk c = chunk_at(m, room, first + done, first + n);
        float *out = logits + done * m->vocab;
        ops_linear(o, c.logits, c.in, params_weight(&m->params, m->head), false);
        o->download(o, out, c.logits.data, (size_t)(c.n * m->vocab) * dtype_bytes(room.type));
        if (room.type == DTYPE_BF16) widen(out, c.n * m->vocab);
    }
    arena_release(&m->memory, mark);
}

/* ---------------------------------------------------------------- backward */

/* Loss and gradient of the head, chunk by chunk; adds: to the gradients of its weights; dbranch = gradient of final_in.
 */
static void head_train(model *m, float scale, bool adds) {
    ops *o = m->ops;
    profile_enter(o->profile, PROFILE_HEAD);
    size_t mark = arena_mark(&m->memory);
    tensor logits = logits_room(m);
    for (int64_t first = 0; first < m->tokens; first += m->chunk) {
        head_chunk c = chunk_at(m, logits, first, m->tokens);
        head_forward(m, &c, scale);
        ops_linear_dw(o, params_gradient(&m->params, m->head), c.logits, c.in, adds || first > 0);
        ops_linear_dx(o, tensor_rows(m->dbranch, first, c.n), c.logits, params_weight(&m->params, m->head), false);
    }
    arena_release(&m->memory, mark);
    comm_all_reduce(m->tp, m->dbranch.data, m->tokens * m->width, m->dbranch.type, COMM_SUM, "head gradient", -1);
}

void model_reduce_bucket(model *m, int b, int layer) {
    static const char place[] = "gradients";
    const params *p = &m->params;
    const param_bucket *bucket = &p->bucket[b];
    float *gradient = p->gradient ? p->gradient + bucket->first : NULL;
    if (p->pieces > 1)
        comm_reduce_scatter_start(m->dp, gradient, bucket->piece, DTYPE_F32, place, layer);
    else
        comm_sum_start(m->dp, gradient, bucket->piece, DTYPE_F32, place, layer);
}

void model_note_own(model *m, int64_t first, int64_t count) {
    if (m->tp->size * m->dp->size == 1) return; /* nobody asks which rank it was */
    profile_phase before = profile_enter(m->ops->profile, PROFILE_OPTIMIZER);
    m->ops->sum_squares(m->ops, own_sq(m), m->params.gradient ? m->params.gradient + first : NULL, count);
    profile_bytes(m->ops->profile, (double)count * sizeof(float));
    profile_enter(m->ops->profile, before);
}

void model_complete_bucket(model *m, int b, int layer) {
    const param_bucket *bucket = &m->params.bucket[b];
    model_note_own(m, bucket->first, m->params.pieces * bucket->piece);
    model_reduce_bucket(m, b, layer);
}

/* Those that every micro-batch adds to: products overwrite the matrices' in the first, but not the embedding's. */
static void zero_gradients(model *m) {
    ops *o = m->ops;
    const params *p = &m->params;
    const param *embedding = &p->list[m->embedding];
    size_t gains = (size_t)(params_total(p) - p->gains_first) * sizeof(float);
    size_t table = m->tied ? 0 : (size_t)(embedding->rows * embedding->cols) * sizeof(float);
    profile_phase before = profile_enter(o->profile, PROFILE_OPTIMIZER);
    o->zero(o, own_sq(m), sizeof(double));
    o->zero(o, p->gradient ? p->gradient + p->gains_first : NULL, gains);
    if (table) o->zero(o, params_gradient(p, m->embedding).data, table);
    profile_bytes(o->profile, (double)(gains + table));
    profile_enter(o->profile, before);
}

void model_train(model *m, const int32_t *input, const int32_t *target, float scale, bool first, bool last) {
    ops *o = m->ops;
    if (first) zero_gradients(m);
    forward(m, input, target);
    head_train(m, scale, !first);
    if (last && !m->tied) model_complete_bucket(m, m->params.list[m->head].bucket, -1);
    o->rmsnorm_backward(o, m->dx, false, model_gain_gradient(m, m->final_norm), m->dbranch, m->output,
                        model_gain(m, m->final_norm), m->rstd);
    layers_backward(m, !first, last);
    profile_enter(o->profile, PROFILE_EMBEDDING);
    o->embedding_backward(o, params_gradient(&m->params, m->embedding), m->dx, m->input,
                          m->params.list[m->embedding].row);
    profile_bytes(o->profile, embedding_bytes(m, 2 * sizeof(float)));
    if (last) model_complete_bucket(m, m->params.list[m->embedding].bucket, -1);
    profile_enter(o->profile, PROFILE_IDLE);
}

/* ---------------------------------------------------------------- the rest */

void model_reduce_loss(model *m) {
    comm_all_reduce(m->dp, m->figures, m->dp->size, DTYPE_F64, COMM_SUM, "loss", -1);
}

void model_report_start(model *m, int slot) {
    ops *o = m->ops;
    o->fetch(o, m->reported[slot], m->figures, (size_t)figures_count(m) * sizeof *m->figures);
    o->mark(o, &m->arrived[slot], NULL);
    o->zero(o, m->figures, (size_t)m->dp->size * sizeof *m->figures);
}

model_report model_report_take(model *m, int slot) {
    const double *loss = m->reported[slot], *own_sq = loss + m->dp->size, *norm_sq = own_sq + 1;
    model_report r = {0};
    m->ops->mark_wait(m->ops, &m->arrived[slot]);
    for (int i = 0; i < m->dp->size; i++) r.loss += loss[i];
    r.grad_norm = sqrt(*norm_sq);
    r.own_is_finite = m->tp->size * m->dp->size > 1 && isfinite(loss[m->dp->rank]) && isfinite(*own_sq);
    return r;
}

double model_take_loss(model *m) {
    model_report_start(m, 0);
    return model_report_take(m, 0).loss;
}

status model_status(const model *m) {
    TRY(ops_status(m->ops));
    TRY(comm_status(m->tp));
    return comm_status(m->dp);
}
