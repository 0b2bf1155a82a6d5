/* The order of the backward pass on Hopper: the list of pieces of work and the turns of the sums of dq. Pure functions,
 * which tests/unit/test_attention_hopper.c runs on the host.
 *
 * A piece is a tile of 128 keys of a kv head and all tiles of queries that see it; a tile of keys is as long as `ratio`
 * tiles of queries. Tile m of queries is seen by the keys 0 to m / ratio, and gets their contributions one by one:
 *
 * - of most heads in descending order. Their pieces are listed head by head, the last keys first, and go through the
 *   queries from the diagonal upwards: pieces that begin together reach a tile in just that order, `ratio` steps apart.
 *   But the longest piece is the last, and at the end of the list the other blocks would wait for it.
 * - of the late heads, at the list's end, in ascending order. Their pieces are listed longest first, those of all late
 *   heads in turn, and go through the queries downwards to the diagonal: a piece follows the one before it in the same
 *   head, which is begun as many steps earlier as other heads' pieces come between them.
 *
 * What a piece waits for comes from pieces before it in the list, so that the first unfinished piece always goes on,
 * whichever blocks run at once. The sums of an early head lie in a slot that later ones use again; each late head has
 * its own. */
#pragma once

#include <stdbool.h>

#ifdef __CUDACC__
#define ORDER_FUNCTION __host__ __device__ static inline
#else
#define ORDER_FUNCTION static inline
#endif

typedef struct order_list {
    int early, late; /* kv heads of all samples: those that come first, and the late ones */
    int keys;        /* tiles of keys of a head */
    int again;       /* slots that the early heads share */
} order_list;

/* For so many blocks that run at once. */
ORDER_FUNCTION order_list order_of(int heads, int keys, int blocks) {
    order_list list = {heads, 0, keys, 0};
    int twice = (2 * blocks + keys - 1) / keys; /* heads whose pieces are two a block */
    /* While the longest piece runs, each other block takes about two; the longest is slower, since it writes dq. */
    int under_way = (3 * blocks + keys - 1) / keys + 2;
    if (heads * keys > blocks) list.late = twice < heads ? twice : heads;
    list.early = heads - list.late;
    list.again = under_way < list.early ? under_way : list.early;
    return list;
}

ORDER_FUNCTION int order_pieces(order_list list) {
    return (list.early + list.late) * list.keys;
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
        piece.keys = inside / list.late;
        piece.head = list.early + inside % list.late;
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

ORDER_FUNCTION int order_slots(order_list list) {
    return list.again + list.late;
}

/* Where the sums of a head lie, and how many heads had the slot before it. */
ORDER_FUNCTION int order_slot(order_list list, int head) {
    return head < list.early ? head % list.again : list.again + head - list.early;
}
ORDER_FUNCTION int order_round(order_list list, int head) {
    return head < list.early ? head / list.again : 0;
}

#undef ORDER_FUNCTION
