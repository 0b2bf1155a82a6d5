/* What the Hopper attention kernels decide on the host: the cut for each size of heads within the device's limits, the
 * scratch memory, and the order of the sums of dq, run with blocks of random speed. */
#include "attention/cuda/hopper_cuts.h"
#include "check.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

static void test_the_smallest_cut_that_holds_the_heads(void **state) {
    static const struct {
        int nope, rope, value;
        hopper_size size;
    } cases[] = {
        {64, 0, 64, HOPPER_64},      {8, 0, 8, HOPPER_64},       {64, 32, 64, HOPPER_96},    {16, 8, 16, HOPPER_96},
        {64, 0, 72, HOPPER_128},     {72, 0, 64, HOPPER_128},    {128, 0, 128, HOPPER_128},  {64, 40, 64, HOPPER_192},
        {72, 8, 64, HOPPER_192},     {64, 32, 72, HOPPER_192},   {128, 64, 128, HOPPER_192}, {136, 0, 64, HOPPER_NONE},
        {128, 72, 128, HOPPER_NONE}, {128, 0, 136, HOPPER_NONE}, {0, 32, 64, HOPPER_NONE},   {64, 32, 0, HOPPER_NONE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(hopper_size_of(cases[i].nope, cases[i].rope, cases[i].value), cases[i].size);
}

static void test_cuts_keep_to_the_limits(void **state) {
    for (int i = 0; i < HOPPER_SIZES; i++) {
        hopper_cut c = hopper_cuts[i];
        assert_in_range(hopper_forward_bytes(c), 1, HOPPER_SHARED_BYTES);
        assert_in_range(hopper_backward_bytes(c), 1, HOPPER_SHARED_BYTES);
        assert_int_equal(HOPPER_KEYS % c.queries, 0);
        for (int crowded = 0; crowded < 2; crowded++) {
            int all = HOPPER_WARPGROUP * (HOPPER_GROUPS * hopper_multiplies(crowded) + hopper_loads(crowded));
            assert_in_range(all, 1, HOPPER_THREADS * HOPPER_AT_START); /* more would wait for ever */
        }
    }
    assert_in_range(HOPPER_THREADS * HOPPER_AT_START, 1, HOPPER_REGISTERS);
}

static void test_scratch_holds_its_parts(void **state) {
    static const int contexts[] = {1, 64, 129, 1024, 16384};
    for (int i = 0; i < HOPPER_SIZES; i++)
        for (int t = 0; t < 5; t++)
            for (int group = 1; group <= 4; group *= 2) {
                hopper_cut c = hopper_cuts[i];
                int64_t context = contexts[t], batch = 3;
                int kv_heads = 6, heads = kv_heads * group;
                hopper_room r = hopper_room_of(c, batch, context, heads, kv_heads);
                assert_in_range(r.tiles * c.queries, context, context + c.queries - 1);
                assert_in_range(r.list.keys * HOPPER_KEYS, context, context + HOPPER_KEYS - 1);
                assert_int_equal(r.list.heads, batch * kv_heads);
                int slots = r.list.slots;
                assert_in_range(slots, 1, batch * kv_heads);
                size_t tile = (size_t)c.queries * sizeof(float), sums = (size_t)(slots * group * r.tiles);
                assert_int_equal(r.count, 1 + sums);
                assert_int_equal(r.stats % 256 + r.counters % 256 + r.sums % 256, 0);
                assert_true(r.counters - r.stats >= (size_t)(batch * heads * r.tiles) * 2 * tile);
                assert_true(r.sums - r.counters >= (size_t)r.count * sizeof(int));
                assert_true(r.all - r.sums >= sums * tile * (size_t)(c.nope + c.rope));
                /* The kernel before it zeroes the counters, eight threads a query. */
                assert_true(r.count <= (int64_t)r.tiles * c.queries * batch * heads * 8);
            }
}

/* A block: its piece, the step of it, and the ticket that it took ahead (or -1). */
typedef struct block {
    int piece, step, ahead;
} block;

enum { CACHED_BYTES = 32 << 20 }; /* of an H100's 50 MiB, about; it has dout, keys and values besides */

/* What a run of the list shows. */
typedef struct course {
    double busy;  /* share of the time that blocks were */
    double stale; /* share of contributions to tiles that others of more than CACHED_BYTES have been used since */
} course;

/* One run of the list by blocks of one speed, or that sleep at random: each turn comes once and in order, each piece
 * once, and some block can always go on. */
static course run_list(int heads, int context, int queries, int tile_bytes, int blocks, bool sleeps) {
    int ratio = HOPPER_KEYS / queries, keys = (context + HOPPER_KEYS - 1) / HOPPER_KEYS;
    int tiles = (context + queries - 1) / queries, all = heads * keys, ticket = 0, ended = 0;
    order_list list = order_of(heads, keys, ratio, tile_bytes, blocks);
    int *counters = calloc((size_t)(list.slots * tiles), sizeof *counters);
    assert_int_equal(order_pieces(list), all);
    char *seen = calloc((size_t)all, 1);
    block *at = malloc((size_t)blocks * sizeof *at);
    assert_non_null(counters);
    assert_non_null(seen);
    assert_non_null(at);
    for (int i = 0; i < blocks; i++) at[i] = (block){-1, 0, -1};
    bool all_awake = !sleeps;
    int rounds = 0, uses = 0, stale = 0, *last_use = calloc((size_t)(heads * tiles), sizeof *last_use);
    assert_non_null(last_use);
    for (; ended < all; rounds++) {
        bool moved = false;
        int first = sleeps ? rand() % blocks : 0;
        for (int i = 0; i < blocks; i++) {
            block *b = at + (first + i) % blocks;
            if (!all_awake && rand() % 4 == 0) continue;
            if (b->piece < 0) {
                b->piece = b->ahead >= 0 ? b->ahead : ticket++;
                b->ahead = -1, b->step = 0, moved = true;
            }
            if (b->piece >= all) continue;
            order_piece p = order_at(list, b->piece);
            int steps = tiles - p.keys * ratio, m = order_tile(p, b->step, tiles, ratio);
            assert_in_range(m, p.keys * ratio, tiles - 1);
            if (b->step == 0) seen[p.head * keys + p.keys]++;
            if (b->ahead < 0 && b->step + 2 >= steps) b->ahead = ticket++;
            int turns = order_turns(m, ratio), turn = order_turn(p, m, ratio);
            assert_in_range(turn, 0, turns - 1);
            /* As the kernel, which writes dq there, knows the last one. */
            assert_int_equal(turn == turns - 1, p.late ? m / ratio == p.keys : p.keys == 0);
            int *counter = counters + order_slot(list, p.head) * tiles + m;
            int mine = order_round(list, p.head) * turns + turn;
            assert_true(*counter <= mine);
            if (*counter < mine) {
                if (b->step == 0) seen[p.head * keys + p.keys]--;
                continue;
            }
            ++*counter, moved = true;
            int *mine_last = last_use + p.head * tiles + m;
            stale += turn > 0 && (long long)(uses - *mine_last) * tile_bytes > CACHED_BYTES;
            *mine_last = uses++;
            if (++b->step == steps) b->piece = -1, ended++;
        }
        if (all_awake && !moved)
            fail_msg("nobody goes on: %d heads, T %d, tiles of %d, %d blocks", heads, context, queries, blocks);
        all_awake = !sleeps || !moved;
    }
    for (int i = 0; i < all; i++) assert_int_equal(seen[i], 1);
    int contributions = 0;
    for (int i = 0; i < list.slots * tiles; i++) contributions += counters[i];
    int once = 0;
    for (int m = 0; m < tiles; m++) once += order_turns(m, ratio);
    assert_int_equal(contributions, heads * once);
    free(counters);
    free(seen);
    free(at);
    free(last_use);
    return (course){(double)contributions / blocks / rounds, (double)stale / contributions};
}

static void test_every_turn_comes_once_and_in_order(void **state) {
    static const int contexts[] = {1, 64, 65, 128, 129, 257, 1024, 1025, 5000}, heads[] = {1, 2, 7, 40};
    static const int blocks[] = {1, 2, 5, 13, 132};
    unsigned seed = (unsigned)time(NULL);
    print_message("seed %u\n", seed);
    srand(seed);
    for (int t = 0; t < 9; t++)
        for (int h = 0; h < 4; h++)
            for (int b = 0; b < 5; b++)
                for (int queries = 64; queries <= 128; queries *= 2)
                    for (int fills = 0; fills < 2; fills++) /* the cache */
                        if (contexts[t] * heads[h] <= 50000)
                            run_list(heads[h], contexts[t], queries, fills ? ORDER_CACHE_BYTES : 0, blocks[b], true);
}

typedef struct run {
    int heads, context;
    hopper_size size;
} run;

static const run cases[] = {{192, 1024, HOPPER_64},
                            {128, 2048, HOPPER_96},
                            {64, 4096, HOPPER_192},
                            {16, 16384, HOPPER_128},
                            {16, 16384, HOPPER_192}};

static course run_case(const run *r) {
    hopper_cut c = hopper_cuts[r->size];
    course x = run_list(r->heads, r->context, c.queries, hopper_passing_bytes(c), 132, false);
    print_message("%d heads of %d: busy %.3f of the time, %.1f%% stale\n", r->heads, r->context, x.busy, 100 * x.stale);
    return x;
}

/* Blocks wait for the last ones less than 2% of the time: with the longest pieces at the end of the list 2 to 5%, where
 * a piece begins and a sum is handed over in no time as here. */
static void test_blocks_end_together(void **state) {
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_true(run_case(&cases[i]).busy > 0.98);
}

/* With early heads half of all uses would be stale at 192/128-16k, nearly all at T = 32,768. */
static void test_tiles_of_long_heads_stay_in_the_cache(void **state) {
    const run longest = {8, 32768, HOPPER_128};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) assert_true(run_case(&cases[i]).stale < 0.25);
    assert_true(run_case(&longest).stale < 0.05);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(test_the_smallest_cut_that_holds_the_heads),
    cmocka_unit_test(test_cuts_keep_to_the_limits),
    cmocka_unit_test(test_scratch_holds_its_parts),
    cmocka_unit_test(test_every_turn_comes_once_and_in_order),
    cmocka_unit_test(test_blocks_end_together),
    cmocka_unit_test(test_tiles_of_long_heads_stay_in_the_cache),
};
TEST_MAIN(tests)
