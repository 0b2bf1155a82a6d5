/* The order of the backward pass on Hopper: the list of pieces of work and the turns of the sums of dq. Pure functions,
 * which tests/unit/test_attention_hopper.c runs on the host.
 *
 * A piece is a tile of 128 keys of a kv head and all tiles of queries that see it, from the diagonal upwards; a tile of
 * keys is as long as `ratio` tiles of queries. Tile m of queries is seen by the keys 0 to m / ratio, and gets their
 * contributions in descending order: the diagonal first, which starts the sum, keys 0 last. Pieces that begin together
 * reach a tile in just that order, `ratio` steps apart.
 *
 * The list goes head by head with descending keys: what a piece waits for comes from pieces before it, so that the
 * first unfinished piece of the list always goes on, whichever blocks run at once. */
#pragma once

#ifdef __CUDACC__
#define ORDER_FUNCTION __host__ __device__ static inline
#else
#define ORDER_FUNCTION static inline
#endif

/* Contributions to tile m. */
ORDER_FUNCTION int order_turns(int m, int ratio) {
    return m / ratio + 1;
}

/* Contributions to tile m before that of the keys. */
ORDER_FUNCTION int order_turn(int keys, int m, int ratio) {
    return m / ratio - keys;
}

typedef struct order_piece {
    int head, keys; /* of the kv heads of all samples; of a head's tiles of keys */
} order_piece;

/* Piece i of the list; keys: tiles of keys of a head. */
ORDER_FUNCTION order_piece order_at(int keys, int i) {
    order_piece piece;
    piece.head = i / keys;
    piece.keys = keys - 1 - (i - piece.head * keys);
    return piece;
}

/* Heads that sums are kept of, a later one in the place of an earlier: while the longest piece runs, each other block
 * takes about 2 pieces. */
ORDER_FUNCTION int order_slots(int heads, int keys, int blocks) {
    int slots = (2 * blocks + keys - 1) / keys + 2;
    return slots < heads ? slots : heads;
}

#undef ORDER_FUNCTION
