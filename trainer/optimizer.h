/* From a model's accumulated gradients to its next weights: reductions by gradient class, the norm, clipping, AdamW. */
#pragma once

#include "trainer/model.h"

/* Completes the gradients: partial ones summed over the tensor-parallel group, then all over the data-parallel group.
 */
void optimizer_reduce(model *m, comm_group *dp);

/* The norm of the whole model's gradient, each parameter counted once (waits for the device). */
double optimizer_norm(model *m);

/* One AdamW update with that gradient, step: updates made, this one included. Does nothing where the norm is not finite. */
void optimizer_update(model *m, const config *c, int64_t step, double lr);
