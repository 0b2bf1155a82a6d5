/* Private to model.c and layers.c: what lies between the embedding and the head, and what both use. */
#pragma once

#include "trainer/model.h"

/* The layers, part by part, from the embedding's output (layer 0's input, whose sums are under way: model_part.sum) to
 * final_in. */
void layers_forward(model *m);

/* From dx, the gradient of the last layer's output, to that of the first one's input. adds: to the gradients of their
 * matrices. last: as in model_train. */
void layers_backward(model *m, bool adds, bool last);

/* Of part p the rows of a tensor and of a vector of all tokens. */
tensor layers_rows(const model *m, int p, tensor all);

/* Starts the sum over the tensor-parallel ranks of part p's rows, or makes it, where nothing goes on beside it. */
void layers_sum(model *m, int p, tensor all, const char *place, int layer);

/* Whether the forward pass of a whole layer is run again from its input. */
static inline bool model_recomputes_all(const model *m) {
    return m->attention.dims.recompute == RECOMPUTE_FULL;
}

/* middle is a sum over the ranks: where there are several it is kept, so that nothing is communicated twice. */
static inline bool model_keeps_middle(const model *m) {
    return !model_recomputes_all(m) || m->tp->size > 1;
}

static inline const float *model_gain(const model *m, int i) {
    return params_weight(&m->params, i).data;
}

static inline float *model_gain_gradient(const model *m, int i) {
    return params_gradient(&m->params, i).data;
}

/* Bucket b's weights are read from here on. */
static inline void model_need_bucket(model *m, int b) {
    comm_wait(m->dp, m->params.bucket[b].arrival);
}

/* Bucket b of sharded parameters is complete on this rank: starts its reduction. */
void model_complete_bucket(model *m, int b, int layer);
