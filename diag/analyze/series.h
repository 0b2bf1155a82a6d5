/* Which checkpoints are meant, and which step each is of. */
#pragma once

#include "core/status.h"

#include <stdint.h>

typedef struct series_item {
    char *path;
    int64_t step;
} series_item;

typedef struct series {
    series_item *item; /* [count] by step */
    int count;
} series;

/* The step that a checkpoint's name ends with: step-00001000, checkpoint-1000, global_step1000, with or without
 * .safetensors; -1: it ends with none. */
int64_t series_step_of(const char *path);

/* The models themselves; a folder of checkpoints (no model itself, but with folders whose names end with a step, in it
 * or in its checkpoints/) stands for all of them. A single model without a step in its name is of step `step`, or 0
 * where that is -1. NO_INPUT when one is missing; USAGE when two are of one step, when several have none in their name,
 * or when step is given for several. */
status series_list(series *out, const char *const *models, int count, int64_t step);
void series_free(series *s);
