/* Random inputs and guarded matrices for tests of numerical code.
 *
 * Inputs are new in each run; the seed is printed, and BULKHEAD_TEST_SEED=N repeats one. A guarded matrix lies inside a
 * larger block whose other elements are NaN: code that reads them spoils its result, code that writes them is found by
 * guarded_check. */
#pragma once

#include "check.h"
#include "core/rng.h"
#include "core/tensor.h"

#include <stdbool.h>
#include <time.h>

static uint64_t inputs_seed, inputs_next;

static inline int inputs_start(void **state) {
    const char *given = getenv("BULKHEAD_TEST_SEED");
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    inputs_seed =
        given ? strtoull(given, NULL, 0) : ((uint64_t)now.tv_sec * 1000003u + (uint64_t)now.tv_nsec) % 1000000;
    inputs_next = 0;
    print_message("BULKHEAD_TEST_SEED=%llu\n", (unsigned long long)inputs_seed);
    return 0;
}

/* n values of N(0, scale^2). */
static inline void inputs_normal(float *out, int64_t n, double scale) {
    rng_normal(out, inputs_seed, 1, inputs_next, n, scale);
    inputs_next += (uint64_t)n;
}

/* A number in [0, below). */
static inline int64_t inputs_below(int64_t below) {
    return (int64_t)(rng_u64(inputs_seed, 2, inputs_next++) % (uint64_t)below);
}

typedef struct guarded {
    tensor t;
    float *block, *earlier; /* [rows + 2, ld] */
} guarded;

enum { GUARD_LEFT = 3, GUARD_RIGHT = 4 };

static inline size_t guarded_count(const guarded *g) {
    return (size_t)((g->t.rows + 2) * g->t.ld);
}

/* Fills the matrix with NaN: an output that must be written everywhere. */
static inline void guarded_poison(guarded *g) {
    for (int64_t i = 0; i < g->t.rows; i++)
        for (int64_t j = 0; j < g->t.cols; j++) tensor_f32(g->t)[i * g->t.ld + j] = NAN;
}

static inline void guarded_set(guarded *g, const float *values) {
    for (int64_t i = 0; i < g->t.rows; i++)
        memcpy(tensor_f32(g->t) + i * g->t.ld, values + i * g->t.cols, (size_t)g->t.cols * sizeof(float));
}

static inline guarded guarded_new(int64_t rows, int64_t cols) {
    guarded g = {.t = tensor_make(NULL, DTYPE_F32, rows, cols)};
    g.t.ld = cols + GUARD_LEFT + GUARD_RIGHT;
    g.block = malloc(guarded_count(&g) * sizeof(float));
    assert_non_null(g.block);
    for (size_t i = 0; i < guarded_count(&g); i++) g.block[i] = NAN;
    g.t.data = g.block + g.t.ld + GUARD_LEFT;
    return g;
}

static inline guarded guarded_random(int64_t rows, int64_t cols, double scale) {
    guarded g = guarded_new(rows, cols);
    for (int64_t i = 0; i < rows; i++) inputs_normal(tensor_f32(g.t) + i * g.t.ld, cols, scale);
    return g;
}

static inline float guarded_at(const guarded *g, int64_t i, int64_t j) {
    return tensor_f32(g->t)[i * g->t.ld + j];
}

/* Nothing outside the matrix was written. */
static inline void guarded_check(const guarded *g) {
    const float nan = NAN;
    for (size_t k = 0; k < guarded_count(g); k++) {
        int64_t i = (int64_t)k / g->t.ld - 1, j = (int64_t)k % g->t.ld - GUARD_LEFT;
        bool inside = i >= 0 && i < g->t.rows && j >= 0 && j < g->t.cols;
        if (!inside && memcmp(&g->block[k], &nan, sizeof nan) != 0)
            fail_msg("written outside the matrix at row %ld column %ld", (long)i, (long)j);
    }
}

/* The first call keeps the contents; later ones want the same bits. */
static inline void guarded_same(guarded *g) {
    size_t bytes = guarded_count(g) * sizeof(float);
    if (g->earlier) {
        assert_memory_equal(g->block, g->earlier, bytes);
        return;
    }
    g->earlier = malloc(bytes);
    assert_non_null(g->earlier);
    memcpy(g->earlier, g->block, bytes);
}

/* The same contents, bit by bit. */
static inline void assert_same(const guarded *a, const guarded *b) {
    for (int64_t i = 0; i < a->t.rows; i++)
        assert_memory_equal(tensor_f32(a->t) + i * a->t.ld, tensor_f32(b->t) + i * b->t.ld,
                            (size_t)a->t.cols * sizeof(float));
}

static inline void guarded_free(guarded *g) {
    free(g->block);
    free(g->earlier);
}
