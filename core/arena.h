/* Arena memory: one block, handed out front to back, given back in the opposite order by mark and release.
 *
 * The same set-up code runs twice: first over an arena without a block, which only counts (every pointer it hands out
 * is NULL and must not be followed), then over one of the counted size. So `plan` knows the memory of a run without
 * having it, and nothing is allocated inside a step. */
#pragma once

#include "core/tensor.h"

#include <stdbool.h>

enum { ARENA_ALIGN_BYTES = 256 };

typedef struct arena {
    char *base; /* NULL: counting only */
    size_t size_bytes, used_bytes, peak_bytes;
} arena;

/* bytes from the arena, aligned to ARENA_ALIGN_BYTES; NULL when counting. Running out is a programming error (aborts).
 */
void *arena_push(arena *a, size_t bytes);

/* A dense [rows, cols] tensor from the arena; its contents are undefined. */
static inline tensor arena_tensor(arena *a, dtype type, int64_t rows, int64_t cols) {
    return tensor_make(arena_push(a, (size_t)(rows * cols) * dtype_bytes(type)), type, rows, cols);
}

static inline size_t arena_mark(const arena *a) {
    return a->used_bytes;
}
static inline void arena_release(arena *a, size_t mark) {
    a->used_bytes = mark;
}
