/* The weights in a checkpoint of a run: a folder with manifest.json and one shard a rank, of which each holds boxes of
 * the global tensors (core/box.h). As with any model's files nothing is trusted: the boxes of a tensor lie in it, do
 * not overlap and cover it, and values that are read have their hash. */
#pragma once

#include "core/box.h"
#include "core/safetensors.h"

typedef struct boxes_item {
    tensor_box place;
    const safetensors_entry *entry;
    const safetensors *holder;
} boxes_item;

typedef struct boxes {
    boxes_item *item; /* [count] by tensor, row, col: fp32 weights */
    int count;
    safetensors_entry *whole; /* [whole_count] by name: the tensors that they make, without data */
    int *first;               /* [whole_count + 1] of a tensor's items */
    int whole_count;
} boxes;

enum { BOXES_MANIFEST_MAX_BYTES = 1 << 30 };

/* The names of the shards that a manifest lists, malloc'ed strings in a malloc'ed array. DATA when it is none of a
 * checkpoint's. */
status boxes_shards(char ***names, int *count, const char *manifest_path);

/* Collects the weights of the shards, which stay the caller's and open. DATA, naming the tensor, when its boxes do not
 * make a whole one. Close in any case. */
status boxes_open(boxes *out, const char *path, const safetensors *shards, int shard_count);
void boxes_close(boxes *b);

/* NULL when there is none of that name. */
const safetensors_entry *boxes_find(const boxes *b, const char *name);

/* All values of a tensor from boxes_find into out [rows, cols]. DATA when a box does not have its hash. */
status boxes_read(const boxes *b, const safetensors_entry *whole, float *out);
