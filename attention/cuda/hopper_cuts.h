/* How the Hopper kernels are cut for each size of heads, their limits, and the room that they take: pure functions of
 * shapes, C and C++, which tests/unit/test_attention_hopper.c holds to the limits.
 *
 * A block is one warpgroup of which a thread or two load, and two that multiply. Tiles lie in shared memory as panels
 * of 64 columns of bf16. T does not matter: a tile that reaches beyond it is filled with zeros. */
#pragma once

#include "attention/cuda/hopper_order.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
#define CUT_FUNCTION constexpr
#define CUT_TABLE    static constexpr
#else
#define CUT_FUNCTION static inline
#define CUT_TABLE    static const
#endif

enum {
    HOPPER_SHARED_BYTES = 232448, /* that a block may have */
    HOPPER_REGISTERS = 65536,     /* of a multiprocessor */
    HOPPER_WARPGROUP = 128,       /* threads */
    HOPPER_GROUPS = 2,            /* warpgroups that multiply */
    HOPPER_THREADS = HOPPER_WARPGROUP * (1 + HOPPER_GROUPS),
    HOPPER_AT_START = 168, /* registers of a thread when a block begins; the most that all threads can have */
    HOPPER_KEYS = 128,     /* of a tile, both passes */
    HOPPER_ROWS = 64,      /* queries (forward) or keys (backward) of a warpgroup */
    HOPPER_STAGES = 2,     /* buffers of what passes through */
    HOPPER_BLOCKS = 144,   /* multiprocessors that the order counts on; on more, blocks would wait longer */
    HOPPER_BARRIER_BYTES = 192,
    HOPPER_PIECE_BYTES = 64, /* where pieces are announced */
};

typedef enum hopper_size { HOPPER_64, HOPPER_96, HOPPER_128, HOPPER_192, HOPPER_SIZES, HOPPER_NONE } hopper_size;

typedef struct hopper_cut {
    int nope, rope, value; /* the tiles' columns: D_n and D_v at most; D_r at most, 0: none */
    int query_buffers;     /* forward: of 128 queries; with one the outputs leave from their place */
    int queries;           /* backward: of a tile, 64 or 128 */
    int ds_buffers, dq_buffers;
    bool both; /* backward: dp is multiplied beside s, which takes registers for both */
} hopper_cut;

/* Those that measured best (bench/notes.md). */
CUT_TABLE hopper_cut hopper_cuts[HOPPER_SIZES] = {
    {64, 0, 64, 2, 128, 2, 2, true},
    {64, 32, 64, 2, 64, 2, 2, true},
    {128, 0, 128, 2, 64, 2, 2, true},
    {128, 64, 128, 1, 64, 1, 1, false},
};

/* The first cut for heads of D_n + D_r / D_v, or HOPPER_NONE. */
CUT_FUNCTION hopper_size hopper_size_of(int nope, int rope, int value) {
    if (nope > 0 && value > 0)
        for (int i = 0; i < HOPPER_SIZES; i++) {
            const hopper_cut *c = &hopper_cuts[i];
            if (nope <= c->nope && rope <= c->rope && value <= c->value) return (hopper_size)i;
        }
    return HOPPER_NONE;
}

/* Registers of a thread that multiplies, and of one that loads; crowded: those who multiply take all that they can. */
CUT_FUNCTION int hopper_multiplies(bool crowded) {
    return crowded ? 240 : 232;
}
CUT_FUNCTION int hopper_loads(bool crowded) {
    return crowded ? 24 : 40;
}

/* Bytes of a tile of so many columns in whole panels. */
CUT_FUNCTION int hopper_tile_bytes(int rows, int cols) {
    return (cols + 63) / 64 * 128 * rows;
}

/* Shared memory of a block. */
CUT_FUNCTION int hopper_forward_bytes(hopper_cut c) {
    int queries = HOPPER_GROUPS * HOPPER_ROWS;
    return c.query_buffers * (hopper_tile_bytes(queries, c.nope) + hopper_tile_bytes(queries, c.rope)) +
           HOPPER_STAGES * (hopper_tile_bytes(HOPPER_KEYS, c.nope) + hopper_tile_bytes(HOPPER_KEYS, c.rope) +
                            hopper_tile_bytes(HOPPER_KEYS, c.value)) +
           (c.query_buffers > 1 ? hopper_tile_bytes(queries, c.value) : 0) + HOPPER_BARRIER_BYTES + HOPPER_PIECE_BYTES;
}
CUT_FUNCTION int hopper_backward_bytes(hopper_cut c) {
    return hopper_tile_bytes(HOPPER_KEYS, c.nope) + hopper_tile_bytes(HOPPER_KEYS, c.rope) +
           hopper_tile_bytes(HOPPER_KEYS, c.value) +
           HOPPER_STAGES * (hopper_tile_bytes(c.queries, c.nope) + hopper_tile_bytes(c.queries, c.rope) +
                            hopper_tile_bytes(c.queries, c.value) + 2 * c.queries * 4) +
           c.ds_buffers * hopper_tile_bytes(HOPPER_KEYS, c.queries) + c.dq_buffers * c.queries * (c.nope + c.rope) * 4 +
           HOPPER_BARRIER_BYTES + HOPPER_PIECE_BYTES;
}

/* A tile of queries, its gradient and its sums in global memory. */
CUT_FUNCTION int hopper_passing_bytes(hopper_cut c) {
    return c.queries * (2 * (c.nope + c.rope + c.value) + 4 * (c.nope + c.rope));
}

/* What a backward pass takes of the scratch memory, in bytes from its beginning, each part on 256. */
typedef struct hopper_room {
    size_t stats;    /* [B H, M, 2, queries] fp32: lse in powers of 2, delta */
    size_t counters; /* the next ticket, then [slots, H / G, M] */
    size_t sums;     /* [slots, H / G, M, queries x (D_n + D_r)] fp32, columns as tiles have */
    size_t all;
    int64_t count;   /* of the counters */
    int tiles;       /* M, of queries */
    order_list list; /* whose slots are the kv heads with sums */
} hopper_room;

static inline size_t hopper_padded(int64_t bytes) {
    return (size_t)((bytes + 255) / 256 * 256);
}

static inline hopper_room hopper_room_of(hopper_cut c, int64_t batch, int64_t context, int heads, int kv_heads) {
    hopper_room r;
    r.tiles = (int)((context + c.queries - 1) / c.queries);
    r.list = order_of((int)batch * kv_heads, (int)((context + HOPPER_KEYS - 1) / HOPPER_KEYS), HOPPER_KEYS / c.queries,
                      hopper_passing_bytes(c), HOPPER_BLOCKS);
    int64_t sums = (int64_t)r.list.slots * (heads / kv_heads) * r.tiles;
    r.count = 1 + sums;
    r.stats = 0;
    r.counters = hopper_padded(batch * heads * r.tiles * 2 * c.queries * 4);
    r.sums = r.counters + hopper_padded(r.count * 4);
    r.all = r.sums + hopper_padded(sums * c.queries * (c.nope + c.rope) * 4);
    return r;
}

#undef CUT_FUNCTION
#undef CUT_TABLE
