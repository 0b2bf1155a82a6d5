/* A product goes block by block of b, [K_BLOCK, N_BLOCK]. The threads copy it into panels of PANEL columns, then each
 * takes its own rows of y through all of it, ROWS at a time: ROWS x PANEL elements of y are summed in registers, while
 * for every k a row of the panel meets ROWS elements of a. The next block is copied into a second buffer, so one
 * barrier a block is enough. */
#include "core/ops/cpu/product.h"

#include <cblas.h>
#include <omp.h>
#include <stdbool.h>
#include <string.h>

enum { LANES = 16, PANEL = 2 * LANES, ROWS = 14, K_BLOCK = 256, N_BLOCK = 256 };
enum { FEW_ROWS = 32 }; /* copying the other operand would not pay */
/* Rows so many floats apart, or a multiple, meet in few sets of the first cache and push each other out. */
enum { AWKWARD_LD = 512 };

/* ---------------------------------------------------------------- tiles */

#ifdef __x86_64__
#define AVX512 __attribute__((target("avx512f")))

static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f");
}
#else
#define AVX512 /* never run */

static bool has_avx512(void) {
    return false;
}
#endif

typedef float vector __attribute__((vector_size(LANES * sizeof(float))));
typedef float unaligned_vector __attribute__((vector_size(LANES * sizeof(float)), aligned(sizeof(float))));

/* y [rows, 16 wide] = a [rows, k] panel [k, PANEL] + beta y. */
AVX512 __attribute__((always_inline)) static inline void tile(int rows, int wide, int64_t k, product_operand a,
                                                              const float *panel, float *y, int64_t ld, float beta) {
    vector sum[ROWS][2] = {0};
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) /* needed in the end */
        for (int j = 0; j < wide; j++) __builtin_prefetch(y + i * ld + j * LANES, 1);
    for (int64_t l = 0; l < k; l++) {
        const vector *b = (const vector *)(panel + l * PANEL);
#pragma GCC unroll 14
        for (int i = 0; i < rows; i++)
            for (int j = 0; j < wide; j++) sum[i][j] += a.data[i * a.row + l * a.col] * b[j];
    }
#pragma GCC unroll 14
    for (int i = 0; i < rows; i++) {
        unaligned_vector *out = (unaligned_vector *)(y + i * ld);
        for (int j = 0; j < wide; j++) out[j] = beta == 0 ? sum[i][j] : sum[i][j] + beta * out[j];
    }
}

/* One function a height, so that all sums of each stay in registers. a's elements lie one behind the other in a row of
 * it, or in a column. */
typedef void tile_function(int wide, int64_t k, product_operand a, const float *panel, float *y, int64_t ld,
                           float beta);

#define TILE(rows)                                                                                                     \
    AVX512 static void tile_##rows(int wide, int64_t k, product_operand a, const float *panel, float *y, int64_t ld,   \
                                   float beta) {                                                                       \
        product_operand by_row = {a.data, a.row, 1}, by_column = {a.data, 1, a.col};                                   \
        if (a.col == 1 && wide == 2)                                                                                   \
            tile(rows, 2, k, by_row, panel, y, ld, beta);                                                              \
        else if (a.col == 1)                                                                                           \
            tile(rows, 1, k, by_row, panel, y, ld, beta);                                                              \
        else if (wide == 2)                                                                                            \
            tile(rows, 2, k, by_column, panel, y, ld, beta);                                                           \
        else                                                                                                           \
            tile(rows, 1, k, by_column, panel, y, ld, beta);                                                           \
    }
TILE(1)
TILE(2)
TILE(3)
TILE(4)
TILE(5)
TILE(6)
TILE(7)
TILE(8)
TILE(9)
TILE(10)
TILE(11)
TILE(12)
TILE(13)
TILE(14)

static tile_function *const tiles[ROWS + 1] = {NULL,   tile_1, tile_2,  tile_3,  tile_4,  tile_5,  tile_6, tile_7,
                                               tile_8, tile_9, tile_10, tile_11, tile_12, tile_13, tile_14};

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* y [rows, n] of a whole tile, n at most PANEL. */
static void multiply_tile(int rows, int64_t n, int64_t k, product_operand a, const float *panel, float *y, int64_t ld,
                          float beta) {
    int wide = n > LANES ? 2 : 1, cols = wide * LANES;
    if (n == cols) {
        tiles[rows](wide, k, a, panel, y, ld, beta);
        return;
    }
    float whole[ROWS * PANEL];
    for (int i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) whole[i * cols + j] = j < n ? y[i * ld + j] : 0;
    tiles[rows](wide, k, a, panel, whole, cols, beta);
    for (int i = 0; i < rows; i++) memcpy(y + i * ld, whole + i * cols, (size_t)n * sizeof *y);
}

/* Room for GROUP x ROWS rows of a, k of each: row by row, or as many columns, each group's one behind the other. */
enum { GROUP = 4, ROW_ROOM = K_BLOCK + LANES, ROOM = GROUP * ROWS * ROW_ROOM };

/* a [rows, k] from memory of its own, where its rows or columns are an awkward way apart. */
static void gather(float *room, product_operand a, int64_t rows, int64_t k) {
    if (a.col == 1) {
        for (int64_t i = 0; i < rows; i++) memcpy(room + i * ROW_ROOM, a.data + i * a.row, (size_t)k * sizeof *room);
        return;
    }
    for (int64_t l = 0; l < k; l++) {
        float *out = room + l * ROWS;
        const float *in = a.data + l * a.col;
        int64_t i = 0;
        for (; i + ROWS <= rows; i += ROWS, out += K_BLOCK * ROWS) memcpy(out, in + i, ROWS * sizeof *out);
        memcpy(out, in + i, (size_t)(rows - i) * sizeof *out);
    }
}

/* y [m, n] = a [m, k] times packed panels, stride floats apart, + beta y. k is at most K_BLOCK. */
static void multiply_panels(float *y, int64_t ld, int64_t m, int64_t n, int64_t k, product_operand a,
                            const float *panels, int64_t stride, float beta) {
    float room[ROOM];
    bool awkward = (a.row == 1 ? a.col : a.row) % AWKWARD_LD == 0;
    for (int64_t i = 0; i < m; i += ROWS) {
        int rows = (int)least(ROWS, m - i);
        product_operand at = {a.data + i * a.row, a.row, a.col};
        if (awkward) {
            int64_t group = i / ROWS % GROUP;
            if (group == 0) gather(room, at, least(GROUP * ROWS, m - i), k);
            at = a.col == 1 ? (product_operand){room + group * ROWS * ROW_ROOM, ROW_ROOM, 1}
                            : (product_operand){room + group * ROWS * K_BLOCK, 1, ROWS};
        }
        for (int64_t j = 0; j < n; j += PANEL)
            multiply_tile(rows, least(PANEL, n - j), k, at, panels + j / PANEL * stride, y + i * ld + j, ld, beta);
    }
}

/* ---------------------------------------------------------------- products */

static product_operand part(product_operand x, int64_t i, int64_t j) {
    return (product_operand){x.data + i * x.row + j * x.col, x.row, x.col};
}

/* panel [k, PANEL] = b [k, n], the rest of each row zero. */
static void pack_panel(float *panel, product_operand b, int64_t k, int64_t n) {
    for (int64_t l = 0; l < k; l++) {
        float *out = panel + l * PANEL;
        const float *in = b.data + l * b.row;
        if (n == PANEL && b.col == 1)
            memcpy(out, in, PANEL * sizeof *out);
        else
            for (int64_t j = 0; j < PANEL; j++) out[j] = j < n ? in[j * b.col] : 0;
    }
}

static int64_t most(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* An operand of one column whose elements lie one behind the other passes for one row of them, too. */
static void blas(float *y, int64_t ld, int64_t m, int64_t n, int64_t k, product_operand a, product_operand b,
                 float beta) {
    bool ta = a.col != 1, tb = b.col != 1;
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans, (blasint)m, (blasint)n,
                (blasint)k, 1.0f, a.data, (blasint)(ta ? a.col : most(a.row, k)), b.data,
                (blasint)(tb ? b.col : most(b.row, n)), beta, y, (blasint)ld);
}

void product(float *y, int64_t ld, int64_t m, int64_t n, int64_t k, product_operand a, product_operand b, float beta) {
    if (m < FEW_ROWS || !has_avx512()) {
        blas(y, ld, m, n, k, a, b, beta);
        return;
    }
    float blocks[2][K_BLOCK * N_BLOCK] __attribute__((aligned(sizeof(vector))));
#pragma omp parallel
    {
        int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
        int64_t first = m * thread / threads, count = m * (thread + 1) / threads - first;
        int turn = 0;
        for (int64_t j = 0; j < n; j += N_BLOCK) {
            int64_t cols = least(N_BLOCK, n - j);
            for (int64_t l = 0; l < k; l += K_BLOCK, turn = 1 - turn) {
                int64_t depth = least(K_BLOCK, k - l);
                float *block = blocks[turn];
#pragma omp for schedule(static)
                for (int64_t p = 0; p < cols; p += PANEL)
                    pack_panel(block + p * depth, part(b, l, j + p), depth, least(PANEL, cols - p));
                multiply_panels(y + first * ld + j, ld, count, cols, depth, part(a, first, l), block, depth * PANEL,
                                l == 0 ? beta : 1.0f);
            }
        }
    }
}

size_t product_room(int64_t k, int64_t n) {
    return (size_t)(k * ((n + PANEL - 1) / PANEL * PANEL));
}

product_right product_prepare(float *room, product_operand b, int64_t k, int64_t n) {
    if (!has_avx512()) return (product_right){b, NULL, k};
    for (int64_t p = 0; p < n; p += PANEL) pack_panel(room + p * k, part(b, 0, p), k, least(PANEL, n - p));
    return (product_right){b, room, k};
}

void product_by(float *y, int64_t ld, int64_t m, int64_t n, int64_t k, product_operand a, const product_right *b,
                float beta) {
    if (!b->panels) {
        blas(y, ld, m, n, k, a, b->b, beta);
        return;
    }
    for (int64_t l = 0; l < k; l += K_BLOCK)
        multiply_panels(y, ld, m, n, least(K_BLOCK, k - l), part(a, 0, l), b->panels + l * PANEL, b->k * PANEL,
                        l == 0 ? beta : 1.0f);
}
