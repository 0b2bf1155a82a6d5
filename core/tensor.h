/* A tensor is a view of a row-major matrix that somebody else owns: element (i, j) is at data[i * ld + j].
 * Vectors are one row. Views of column ranges of one buffer stand for the parts of a fused product. C and C++. */
#pragma once

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

typedef enum dtype { DTYPE_F32, DTYPE_BF16, DTYPE_F64 } dtype;

static inline size_t dtype_bytes(dtype type) {
    return type == DTYPE_BF16 ? 2 : type == DTYPE_F64 ? 8 : 4;
}

typedef struct tensor {
    void *data; /* on the device of the operations table that uses it */
    dtype type;
    int64_t rows, cols, ld; /* ld >= cols, in elements */
} tensor;

static inline tensor tensor_make(void *data, dtype type, int64_t rows, int64_t cols) {
    tensor t = {data, type, rows, cols, cols};
    return t;
}

/* Columns [first, first + count) of t. */
static inline tensor tensor_cols(tensor t, int64_t first, int64_t count) {
    assert(first >= 0 && count >= 0 && first + count <= t.cols);
    if (t.data) t.data = (char *)t.data + (size_t)first * dtype_bytes(t.type);
    t.cols = count;
    return t;
}

/* Rows [first, first + count) of t. */
static inline tensor tensor_rows(tensor t, int64_t first, int64_t count) {
    assert(first >= 0 && count >= 0 && first + count <= t.rows);
    if (t.data) t.data = (char *)t.data + (size_t)(first * t.ld) * dtype_bytes(t.type);
    t.rows = count;
    return t;
}

static inline float *tensor_f32(tensor t) {
    assert(t.type == DTYPE_F32);
    return (float *)t.data;
}
