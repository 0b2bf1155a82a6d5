/* The order of the backward pass on Hopper: the list of pieces of work and the turns of the sums of dq. Pure functions,
 * which tests/unit/test_attention_hopper.c runs on the host.
 *
 * A piece is a tile of 128 keys of a kv head and all tiles of queries that see it; a tile of keys is as long as `ratio`
 * tiles of queries. Tile m of queries is seen by the keys 0 to m / ratio, and gets their contributions one by one:
 *
 * - of early heads in descending order. Their pieces are listed head by head, the last keys first, and go through the
 *   queries from the diagonal upwards: pieces that begin together reach a tile in just that order, `ratio` steps apart.
 *   But the longest piece is the last, and at the end of the list the other blocks would wait for it.
 * - of late heads, at the list's end, in ascending order. Their pieces are listed longest first, those of a group of
 *   heads in turn, and go through the queries downwards to the diagonal: a piece follows the one before it in the same
 *   head, which is begun as many steps earlier as other heads' pieces come between them.
 *
 * Early heads keep all their tiles of queries in use as long as they run, late ones just the tiles between the first
 * and the last of the pieces that follow each other. So where a head's tiles fill much of the cache all heads are late.
 *
 * What a piece waits for comes from pieces before it in the list, so that the first unfinished piece always goes on,
 * whichever blocks run at once. The sums of a head lie in a slot that later heads use again. */
#pragma once

#include <stdbool.h>

#ifdef __CUDACC__
#define ORDER_FUNCTION __host__ __device__ static inline
#else
#define ORDER_FUNCTION static inline
#endif

typedef struct order_list {
    int heads, early; /* kv heads of all samples, and how many of them are early */
    int groups;       /* of the others */
    int keys;         /* tiles of keys of a head */
    int slots;        /* for sums */
} order_list;

/* What a head's tiles of queries, their gradients and sums may take while early heads are the faster ones: with 16 MiB
 * they are on an H100, with 22 late ones (bench/notes.md). */
enum { ORDER_CACHE_BYTES = 20 << 20 };

/* For so many blocks that run at once; tile_bytes: of a tile of queries, its gradient and its sums. */
ORDER_FUNCTION order_list order_of(int heads, int keys, int ratio, int tile_bytes, int blocks) {
    order_list list = {heads, heads, 1, keys, heads};
    if (heads * keys <= blocks) return list;
    int twice = (2 * blocks + keys - 1) / keys; /* heads whose pieces are two a block */
    int late = twice, group = twice;
    /* While the longest piece runs, each other block takes about two; the longest is slower, since it writes dq. */
    int under_way = (3 * blocks + keys - 1) / keys + 2 + late;
    if ((long long)keys * ratio * tile_bytes > ORDER_CACHE_BYTES) {
        /* A block takes a piece each keys ratio / 2 steps, so pieces of a head follow each other two steps apart. */
        late = heads;
        group = (4 * blocks + keys * ratio - 1) / (keys * ratio);
        under_way = 2 * group + 2;
    }
    list.early = late < heads ? heads - late : 0;
    list.groups = (heads - list.early) / group > 0 ? (heads - list.early) / group : 1;
    list.slots = under_way < heads ? under_way : heads;
    return list;
}

ORDER_FUNCTION int order_pieces(order_list list) {
    return list.heads * list.keys;
}

typedef struct order_piece {
    int head, keys; /* of the kv heads of all samples; of a head's tiles of keys */
    bool late;
} order_piece;

/* Piece i of the list. */
ORDER_FUNCTION order_piece order_at(order_list list, int i) {
    order_piece piece;
    int inside = i - list.early * list.keys;
    piece.late = inside >= 0;
    if (piece.late) {
        int late = list.heads - list.early, g = ((inside / list.keys + 1) * list.groups - 1) / late;
        int first = g * late / list.groups, members = (g + 1) * late / list.groups - first;
        inside -= first * list.keys;
        piece.keys = inside / members;
        piece.head = list.early + first + inside % members;
    } else {
        piece.head = i / list.keys;
        piece.keys = list.keys - 1 - i % list.keys;
    }
    return piece;
}

/* The tile of queries of a piece's step, of `tiles` in all. */
ORDER_FUNCTION int order_tile(order_piece piece, int step, int tiles, int ratio) {
    return piece.late ? tiles - 1 - step : piece.keys * ratio + step;
}

/* Contributions to tile m. */
ORDER_FUNCTION int order_turns(int m, int ratio) {
    return m / ratio + 1;
}

/* Contributions to tile m before the piece's. */
ORDER_FUNCTION int order_turn(order_piece piece, int m, int ratio) {
    return piece.late ? piece.keys : m / ratio - piece.keys;
}

/* Where the sums of a head lie, and how many heads had the slot before it. */
ORDER_FUNCTION int order_slot(order_list list, int head) {
    return head % list.slots;
}
ORDER_FUNCTION int order_round(order_list list, int head) {
    return head / list.slots;
}

#undef ORDER_FUNCTION
