/* From a model's accumulated gradients to its next weights: reductions by gradient class, the norm, clipping, AdamW,
 * and under ZeRO-1 the gathering of what each data-parallel rank has updated. */
#pragma once

#include "trainer/model.h"

/* Completes the gradients behind the step's last model_train: partial ones summed over the tensor-parallel group, then
 * all over the data-parallel group. Under ZeRO-1 each rank has the sums of its own pieces. */
void optimizer_reduce(model *m);

/* The norm of the whole model's gradient, each parameter counted once: in m->figures. */
void optimizer_norm(model *m);

/* So many updates have been made: of weights and moments that come from a checkpoint. */
void optimizer_start(model *m, int64_t updates);

/* One AdamW update with that gradient, left out where its norm or the loss is not finite. Under ZeRO-1 compute copies
 * are complete behind the next forward pass, or comm_finish(m->dp). */
void optimizer_update(model *m, const config *c, double lr);
