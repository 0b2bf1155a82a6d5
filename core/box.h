/* Boxes of global tensors in the shards of a checkpoint: a safetensors entry of two dimensions holds one, its name says
 * where it lies ("layers.0.attention.W_Q/moment1@128:0": from row 128 and column 0 on), and the shard's metadata under
 * that name say the shape of the whole tensor and the box's hash. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { BOX_TENSOR_BYTES = 64, BOX_KIND_BYTES = 16, BOX_HASH_BYTES = 33, BOX_NAME_BYTES = 160, BOX_TEXT_BYTES = 128 };

typedef struct tensor_box {
    char tensor[BOX_TENSOR_BYTES], kind[BOX_KIND_BYTES];
    int64_t row, col;   /* of its first element */
    int64_t rows, cols; /* of the whole tensor */
    char hash[BOX_HASH_BYTES];
} tensor_box;

/* The entry's name, and what the metadata say of it. */
void box_name(char out[BOX_NAME_BYTES], const tensor_box *b);
void box_text(char out[BOX_TEXT_BYTES], const tensor_box *b);

/* Back from the two. text NULL, or either of another form: false. */
bool box_parse(tensor_box *out, const char *name, const char *text);

/* XXH3-128 as hexadecimal digits. */
void box_hash(char out[BOX_HASH_BYTES], const void *data, size_t bytes);
