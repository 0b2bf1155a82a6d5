#include "trainer/decoder.h"

#include <stdlib.h>

static int64_t cache_cols(const model *m) {
    return m->variant->cache_cols(&m->attention.dims);
}

/* The scratch of the longest step: all of the context at once, as a counting pass finds it. */
static size_t scratch_bytes(const model *m) {
    ops o;
    arena count = {0};
    attn_env env = m->attention;
    const attn_dims *d = &env.dims;
    tensor x = tensor_make(NULL, m->ops->activation, m->context, m->width);
    tensor cache = tensor_make(NULL, m->ops->activation, m->context, m->variant->cache_cols(d));
    ops_count(&o, m->ops->activation, m->ops->logit_elements);
    env.ops = &o;
    env.rotary_table = NULL;
    m->variant->extend(&env, 0, &m->layer[0].weights, cache, 0, x, x, &count);
    return count.peak_bytes;
}

status decoder_open(decoder *out, model *m) {
    *out = (decoder){.model = m};
    int64_t cols = cache_cols(m), elements = m->context * cols;
    size_t bytes = (size_t)(m->layers * elements) * dtype_bytes(m->ops->activation), room = scratch_bytes(m);
    out->cache.layer = calloc((size_t)m->layers, sizeof *out->cache.layer);
    out->memory = m->ops->alloc(m->ops, bytes);
    out->scratch = (arena){.base = m->ops->alloc(m->ops, room), .size_bytes = room};
    out->cache.scratch = &out->scratch;
    if (!out->cache.layer || !out->memory || !out->scratch.base)
        return status_fail(STATUS_CONFIG, "%.2f GiB of memory for the cache cannot be had on the %s",
                           (double)(bytes + room) / 0x1p30, m->ops->name);
    for (int i = 0; i < m->layers; i++) {
        char *at = (char *)out->memory + (size_t)(i * elements) * dtype_bytes(m->ops->activation);
        out->cache.layer[i] = tensor_make(at, m->ops->activation, m->context, cols);
    }
    return STATUS_OK;
}

void decoder_close(decoder *d) {
    if (d->memory) d->model->ops->release(d->model->ops, d->memory);
    if (d->scratch.base) d->model->ops->release(d->model->ops, d->scratch.base);
    free(d->cache.layer);
    *d = (decoder){0};
}

void decoder_add(decoder *d, const int32_t *tokens, int64_t n) {
    d->cache.scratch = &d->scratch;
    model_extend(d->model, tokens, n, &d->cache);
    d->cache.first += n;
    d->last = n - 1;
}

void decoder_logits(decoder *d, float *logits) {
    model_logits(d->model, d->last, 1, logits);
}

decoder_bytes decoder_cache_bytes(const model *m, const config *c) {
    int64_t bytes = (int64_t)dtype_bytes(m->ops->activation) * m->layers;
    int64_t columns = c->model.heads * (c->model.head_dim + c->attention.v_head_dim);
    return (decoder_bytes){.token = bytes * cache_cols(m), .mha_token = bytes * columns};
}
