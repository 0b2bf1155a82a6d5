/* One layer's attention over all samples of a micro-batch at once, which trainer/layers.c runs part by part. */
#pragma once

#include "trainer/model.h"

/* out [N, d] = this rank's share. */
static inline void attention_forward(model *m, int layer, tensor x, tensor out) {
    const attn_variant *v = m->variant;
    model_layer *l = &m->layer[layer];
    attn_pending pending = {0};
    if (v->share) pending.started = v->share(&m->attention, layer, &l->weights, &l->saved, x);
    v->forward(&m->attention, layer, &l->weights, &l->saved, x, &out, false, &pending, &m->memory);
    if (v->forward_rest) v->forward_rest(&m->attention, &l->weights, &l->saved, &out, false, &pending, &m->memory);
}

/* dx [N, d] = this rank's share. */
static inline void attention_backward(model *m, int layer, tensor x, tensor dout, tensor dx) {
    const attn_variant *v = m->variant;
    model_layer *l = &m->layer[layer];
    attn_pending pending = {0};
    size_t mark = arena_mark(&m->memory);
    v->backward(&m->attention, layer, &l->weights, &l->saved, x, dout, dx, &pending, &m->memory);
    if (v->backward_rest) v->backward_rest(&m->attention, &l->weights, &l->saved, x, dx, &pending, &m->memory);
    arena_release(&m->memory, mark);
}
