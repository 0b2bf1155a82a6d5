/* The backward pass on Hopper in one kernel of five products. A block takes a tile of 128 keys, two warpgroups 64 of
 * them each, and goes through tiles of TQ queries: st = k qt, dpt = v doutt, dv += p dout,
 * dk += ds q in registers, and dq += dst k, which all blocks of a head add to in fp32. One thread loads, one or two add
 * up dq.
 *
 * dq has the same bits every time: each tile gets its contributions in the order of hopper_order.h, by a counter that
 * each waits for. Blocks take pieces (head, tile of keys) of a list by tickets; what a piece waits for comes from
 * pieces before it, so the first unfinished one always goes on, whatever runs where. The sums of a head lie in a slot
 * that later heads use again, so that they stay in the cache. The last contribution is not added there: it takes the
 * sum in and writes dq.
 *
 * p = exp(scale s - lse), dp = dout vt, ds = p (dp - delta), delta = dout . o of a query (Dao 2023, algorithm 2). dq,
 * dk, dv and the rotary key's shares are overwritten. */
#include "attention/cuda/hopper.cuh"
#include "attention/cuda/hopper_cuts.h"
#include "attention/cuda/hopper_maps.cuh"

using namespace hopper;

namespace {

constexpr int KEYS = HOPPER_KEYS, STAGES = HOPPER_STAGES, GROUPS = HOPPER_GROUPS;
constexpr int WARPS = GROUPS * WARPGROUP / LANES; /* that multiply */

/* Panels of k_n and v; columns of k_r; queries of a tile; buffers of ds and of dq; both as in hopper_cut. */
template <hopper_size SIZE> struct cut {
    static constexpr hopper_cut SIZES = hopper_cuts[SIZE];
    static constexpr int NP = SIZES.nope / PANEL, ROPE = SIZES.rope, VP = SIZES.value / PANEL, TQ = SIZES.queries;
    static constexpr int DS = SIZES.ds_buffers, DQ = SIZES.dq_buffers;
    static constexpr bool BOTH = SIZES.both;
    static constexpr int LOADS = hopper_loads(!BOTH), MULTIPLIES = hopper_multiplies(!BOTH); /* registers */
    static constexpr int DP = BOTH ? TQ : 32; /* queries that dp is there of at a time */
    static constexpr int KP = NP + (ROPE > 0), QK = 64 * NP + ROPE, V = 64 * VP, RATIO = KEYS / TQ;
    static constexpr int K_BYTES = KP * panel_bytes(KEYS), V_BYTES = VP * panel_bytes(KEYS);
    static constexpr int Q_BYTES = KP * panel_bytes(TQ), DOUT_BYTES = VP * panel_bytes(TQ);
    static constexpr int STATS_BYTES = 2 * TQ * 4, DS_BYTES = TQ / 64 * panel_bytes(KEYS), DQ_BYTES = TQ * QK * 4;
    static constexpr int K_AT = 0, V_AT = K_BYTES, Q_AT = V_AT + V_BYTES, DOUT_AT = Q_AT + STAGES * Q_BYTES;
    static constexpr int DS_AT = DOUT_AT + STAGES * DOUT_BYTES, DQ_AT = DS_AT + DS * DS_BYTES;
    static constexpr int STATS_AT = DQ_AT + DQ * DQ_BYTES, BARRIERS_AT = STATS_AT + STAGES * STATS_BYTES;
    static constexpr int PIECES_AT = BARRIERS_AT + HOPPER_BARRIER_BYTES, SHARED = PIECES_AT + HOPPER_PIECE_BYTES;
    static_assert(SHARED == hopper_backward_bytes(SIZES), "what the choice of the cut counts on");
    /* Columns of a tile of dq that a warpgroup multiplies: WIDE from `wide` on, and NARROW of the middle from `narrow`
     * on; of 64 queries where a tile has 128. */
    static constexpr int WIDE = QK == 96 || (QK == 64 && TQ == 64) ? 32 : 64, NARROW = QK == 96    ? 16
                                                                                       : QK == 192 ? 32
                                                                                                   : 0;
    static constexpr int DQ_PARTS = (WIDE + NARROW) / 8;
    static __device__ __forceinline__ int wide(int wg) { return TQ == 128 ? 0 : QK == 192 ? 128 * wg : WIDE * wg; }
    static __device__ __forceinline__ int narrow(int wg) { return 64 + NARROW * wg; }
    static_assert((WIDE + NARROW) * (TQ == 128 ? 1 : 2) == QK, "the warpgroups' parts are the tile");
};

struct work {
    CUtensorMap q, q_rope, k, k_rope, v, dout, dk, dv;
    const float *stats; /* [B H, M, 2, TQ]: lse in powers of 2, delta */
    float *sums;        /* [slots, H / G, M, TQ QK] */
    int *counters;      /* the next ticket, then [slots, H / G, M]; from 0 */
    float *shares;      /* [B, H, T, D_r] */
    __nv_bfloat16 *dq;
    int64_t dq_ld;
    float scale;
    int context, heads, kv_heads, nope, rope, value;
    int tiles; /* M */
    order_list list;
};

/* A block's pass over the tiles of queries of one kv head, `first` and on by `way`; steps = 0: there is none left. */
struct pass {
    int head, keys, late; /* the piece */
    int sample, kv_head, first, way, steps;
};
__device__ __forceinline__ pass pass_of(const work &w, int ticket, int ratio) {
    pass p;
    p.steps = 0;
    if (ticket >= order_pieces(w.list)) return p;
    order_piece piece = order_at(w.list, ticket);
    p.head = piece.head, p.keys = piece.keys, p.late = piece.late;
    p.sample = p.head / w.kv_heads;
    p.kv_head = p.head - p.sample * w.kv_heads;
    p.first = order_tile(piece, 0, w.tiles, ratio);
    p.way = order_tile(piece, 1, w.tiles, ratio) - p.first;
    p.steps = (w.tiles - p.keys * ratio) * (w.heads / w.kv_heads);
    return p;
}
/* The tile of queries of a step and its member of the group. */
struct tile {
    int m, member;
};
template <typename P> __device__ __forceinline__ tile tile_of(const P &p, int step, int group) {
    if (group == 1) return {p.first + p.way * step, 0};
    return {p.first + p.way * (step / group), step % group};
}

template <int N> struct place {
    int stage, parity;
    __device__ __forceinline__ void next() {
        if (++stage == N) stage = 0, parity ^= 1;
    }
};

enum { ITEMS = 2, DQ_MOST = 2 };
struct barriers {
    uint32_t at;
    __device__ uint32_t q_full(int s) const { return at + 8 * s; }
    __device__ uint32_t q_empty(int s) const { return at + 8 * (STAGES + s); }
    __device__ uint32_t dout_full(int s) const { return at + 8 * (2 * STAGES + s); }
    __device__ uint32_t dout_empty(int s) const { return at + 8 * (3 * STAGES + s); }
    __device__ uint32_t kv_full() const { return at + 8 * (4 * STAGES); }
    __device__ uint32_t kv_empty() const { return at + 8 * (4 * STAGES + 1); }
    __device__ uint32_t item_full(int i) const { return at + 8 * (4 * STAGES + 2 + i); }
    __device__ uint32_t item_empty(int i) const { return at + 8 * (4 * STAGES + 2 + ITEMS + i); }
    /* A buffer of dq: written by those who multiply, free for them, holds the sum so far. */
    __device__ uint32_t dq_full(int i) const { return at + 8 * (4 * STAGES + 2 + 2 * ITEMS + i); }
    __device__ uint32_t dq_empty(int i) const { return at + 8 * (4 * STAGES + 2 + 2 * ITEMS + DQ_MOST + i); }
    __device__ uint32_t dq_sum(int i) const { return at + 8 * (4 * STAGES + 2 + 2 * ITEMS + 2 * DQ_MOST + i); }
};

/* The pieces that are announced, [ITEMS], in shared memory. */
template <typename C> __device__ __forceinline__ volatile pass *pieces(char *memory) {
    static_assert(sizeof(pass) * ITEMS <= C::SHARED - C::PIECES_AT, "they have room");
    return (volatile pass *)(memory + C::PIECES_AT);
}

/* Calls with(piece in shared memory) for each that the loading thread announces, then done(barrier). */
template <typename C, typename D, typename F>
__device__ __forceinline__ void each_pass(const work &w, char *memory, const barriers &bar, D done, F with) {
    place<ITEMS> item = {0, 0};
    /* A loop with a bound, or else the assembler gives those who multiply too few registers. */
    for (int most = order_pieces(w.list); most >= 0; most--, item.next()) {
        wait_for(bar.item_full(item.stage), item.parity);
        const volatile pass &p = pieces<C>(memory)[item.stage];
        if (!p.steps) break;
        with(p);
        done(bar.item_empty(item.stage));
    }
}

template <typename C>
__device__ __forceinline__ void load(const work &w, char *memory, uint32_t shared, const barriers &bar) {
    place<STAGES> ring = {0, 0};
    int kv_parity = 1, group = w.heads / w.kv_heads;
    for (place<ITEMS> item = {0, 0};; item.next()) {
        wait_for(bar.item_empty(item.stage), item.parity ^ 1);
        pass p = pass_of(w, atomicAdd(w.counters, 1), C::RATIO);
        volatile pass &to = pieces<C>(memory)[item.stage];
        to.head = p.head, to.keys = p.keys, to.late = p.late, to.sample = p.sample, to.kv_head = p.kv_head;
        to.first = p.first, to.way = p.way, to.steps = p.steps;
        arrive(bar.item_full(item.stage));
        if (!p.steps) break;
        wait_for(bar.kv_empty(), kv_parity);
        kv_parity ^= 1;
        arrive_and_expect(bar.kv_full(), C::K_BYTES + C::V_BYTES);
#pragma unroll
        for (int n = 0; n < C::NP; n++)
            copy_in(shared + C::K_AT + n * panel_bytes(KEYS), &w.k, n * PANEL, p.kv_head, p.keys * KEYS, p.sample,
                    bar.kv_full());
        if (C::ROPE)
            copy_in(shared + C::K_AT + C::NP * panel_bytes(KEYS), &w.k_rope, 0, 0, p.keys * KEYS, p.sample,
                    bar.kv_full());
#pragma unroll
        for (int n = 0; n < C::VP; n++)
            copy_in(shared + C::V_AT + n * panel_bytes(KEYS), &w.v, n * PANEL, p.kv_head, p.keys * KEYS, p.sample,
                    bar.kv_full());
        for (int step = 0; step < p.steps; step++, ring.next()) {
            tile t = tile_of(p, step, group);
            int m = t.m, head = p.kv_head * group + t.member;
            uint32_t q = shared + C::Q_AT + ring.stage * C::Q_BYTES, full = bar.q_full(ring.stage);
            wait_for(bar.q_empty(ring.stage), ring.parity ^ 1);
            arrive_and_expect(full, C::Q_BYTES + C::STATS_BYTES);
#pragma unroll
            for (int n = 0; n < C::NP; n++)
                copy_in(q + n * panel_bytes(C::TQ), &w.q, n * PANEL, head, m * C::TQ, p.sample, full);
            if (C::ROPE) copy_in(q + C::NP * panel_bytes(C::TQ), &w.q_rope, 0, head, m * C::TQ, p.sample, full);
            copy_in_row(shared + C::STATS_AT + ring.stage * C::STATS_BYTES,
                        w.stats + ((int64_t)(p.sample * w.heads + head) * w.tiles + m) * (2 * C::TQ), C::STATS_BYTES,
                        full);
            uint32_t dout = shared + C::DOUT_AT + ring.stage * C::DOUT_BYTES;
            full = bar.dout_full(ring.stage);
            wait_for(bar.dout_empty(ring.stage), ring.parity ^ 1);
            arrive_and_expect(full, C::DOUT_BYTES);
#pragma unroll
            for (int n = 0; n < C::VP; n++)
                copy_in(dout + n * panel_bytes(C::TQ), &w.dout, n * PANEL, head, m * C::TQ, p.sample, full);
        }
    }
}

/* Whether the piece's contribution to tile m is the last one: it is not added to the sums, but takes them in. */
template <typename P> __device__ __forceinline__ bool is_last(const P &p, int m, int ratio) {
    return p.late ? m / ratio == p.keys : p.keys == 0;
}

/* One thread for each buffer of dq, so that the hand-over of one tile passes under the next: dq from shared memory to
 * the head's sums, or for the last contribution the sums to shared memory, each tile in its turn. A buffer's uses are
 * counted by dq_full and dq_empty, those with sums by dq_sum. */
template <typename C>
__device__ __forceinline__ void add_up(const work &w, char *memory, uint32_t shared, const barriers &bar, int buffer) {
    int group = w.heads / w.kv_heads, step = buffer, parity = 0;
    uint32_t dq = shared + C::DQ_AT + buffer * C::DQ_BYTES;
    each_pass<C>(w, memory, bar, arrive, [&](const volatile pass &p) {
        order_piece piece = {p.head, p.keys, p.late != 0};
        int slot = order_slot(w.list, piece.head), round = order_round(w.list, piece.head);
        for (; step < p.steps; step += C::DQ, parity ^= 1) {
            tile t = tile_of(p, step, group);
            int at = (slot * group + t.member) * w.tiles + t.m;
            int turn = order_turn(piece, t.m, C::RATIO), before = round * order_turns(t.m, C::RATIO) + turn;
            int *counter = w.counters + 1 + at;
            float *sums = w.sums + (int64_t)at * (C::TQ * C::QK);
            /* Until all contributions before this piece's are there. */
            while (before > 0 && look(counter) != before) {
            }
            asm volatile("fence.proxy.async;" ::: "memory");
            if (is_last(p, t.m, C::RATIO)) {
                if (turn > 0) {
                    arrive_and_expect(bar.dq_sum(buffer), C::DQ_BYTES);
                    copy_in_row(dq, sums, C::DQ_BYTES, bar.dq_sum(buffer));
                } else {
                    arrive(bar.dq_sum(buffer));
                }
                wait_for(bar.dq_full(buffer), parity);
                arrive(bar.dq_empty(buffer));
            } else {
                wait_for(bar.dq_full(buffer), parity);
                if (turn == 0)
                    copy_out_row(sums, dq, C::DQ_BYTES);
                else
                    add_out(sums, dq, C::DQ_BYTES);
                close_copies();
                copies_have_read<0>();
                arrive(bar.dq_empty(buffer));
                copies_are_done<0>();
            }
            count_up(counter);
        }
        step -= p.steps;
    });
}

/* c [64, N] = a bt over the panels' columns, of tiles of ROWS_A and ROWS_B rows; the last panel has REST steps. */
template <int N, int PANELS, int REST, int ROWS_A, int ROWS_B>
__device__ __forceinline__ void start_a_bt(float (&c)[N / 8][4], uint32_t a, uint32_t b) {
    hold(c);
    open_products();
#pragma unroll
    for (int n = 0; n < PANELS; n++)
#pragma unroll
        for (int i = 0; i < (n < PANELS - 1 ? 4 : REST); i++)
            product<N, 0, 0>::tiles(c, describe(a, n * panel_bytes(ROWS_A) + 32 * i),
                                    describe(b, n * panel_bytes(ROWS_B) + 32 * i), n + i > 0);
    close_products();
}

/* One step of 16 of c [64, COLS] += a b from column FIRST on; b is stored [ROWS, ...], `b` its row 0 of the step. */
template <int FIRST, int COLS, int ROWS>
__device__ __forceinline__ void add_columns(float (&c)[COLS / 8][4], const uint32_t (&a)[4], uint32_t b, int offset) {
    constexpr int LEFT = COLS - FIRST, N = LEFT >= 128 ? 128 : LEFT >= 64 ? 64 : 32;
    product<N, 0, 1>::registers(part<FIRST, N>(c), a,
                                describe(b, offset + FIRST / 64 * panel_bytes(ROWS), panel_bytes(ROWS)), 1);
    if constexpr (LEFT > N) add_columns<FIRST + N, COLS, ROWS>(c, a, b, offset);
}
template <int COLS, int ROWS>
__device__ __forceinline__ void start_p_b(float (&c)[COLS / 8][4], uint32_t (&p)[ROWS / 16][4], uint32_t b) {
    hold(c);
    hold(p);
    open_products();
#pragma unroll
    for (int i = 0; i < ROWS / 16; i++) add_columns<0, COLS, ROWS>(c, p[i], b, 16 * i * ROW_BYTES);
    close_products();
}

/* N columns of a tile of dq = dst k: `ds` panel [128 keys, 64 queries], k panel [128, 64] from the first of them on. */
template <int N> __device__ __forceinline__ void start_dq(float (&c)[N / 8][4], uint32_t ds, uint32_t k) {
    hold(c);
    open_products();
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++)
        product<N, 1, 1>::tiles(c, describe(ds, 16 * i * ROW_BYTES), describe(k, 16 * i * ROW_BYTES), i > 0);
    close_products();
}
/* Where column `col` of a tile of keys begins. */
__device__ __forceinline__ uint32_t column_at(uint32_t k, int col) {
    return k + col / PANEL * panel_bytes(KEYS) + col % PANEL * 2;
}

/* A tile of dq lies in shared and global memory as its fragments do: [warpgroup, part, thread] of four numbers; n: the
 * first eight columns' number within the tile. */
template <int N> __device__ __forceinline__ void put_dq(char *dq, const float (&c)[N][4], int n, int thread) {
    float4 *to = (float4 *)dq + n * WARPGROUP + thread;
#pragma unroll
    for (int j = 0; j < N; j++) to[j * WARPGROUP] = make_float4(c[j][0], c[j][1], c[j][2], c[j][3]);
}

/* The fragment's columns `col` and on of dq: out (where the lane's first row begins) = scale (sums + c), rows that are
 * there; adds: there are sums. */
template <typename C, int N>
__device__ __forceinline__ void write_dq(const work &w, const char *dq, const float (&c)[N][4], int n, int thread,
                                         bool adds, __nv_bfloat16 *out, int col, int rows) {
    const float4 *sums = (const float4 *)dq + n * WARPGROUP + thread;
    col += thread % 4 * 2;
#pragma unroll
    for (int j = 0; j < N; j++, col += 8) {
        float4 x = adds ? sums[j * WARPGROUP] : make_float4(0, 0, 0, 0);
        x.x += c[j][0], x.y += c[j][1], x.z += c[j][2], x.w += c[j][3];
        bool rotary = C::ROPE > 0 && col >= 64 * C::NP;
        int to = rotary ? col - 64 * C::NP + w.nope : col;
        if (to >= (rotary ? w.nope + w.rope : w.nope)) continue;
        if (rows > 0) *(uint32_t *)(out + to) = pack(x.x * w.scale, x.y * w.scale);
        if (rows > 8) *(uint32_t *)(out + 8 * w.dq_ld + to) = pack(x.z * w.scale, x.w * w.scale);
    }
}

template <typename C>
__device__ __forceinline__ void multiply(const work &w, char *memory, uint32_t shared, const barriers &bar) {
    enum {
        ALL = GROUPS * WARPGROUP,
        EXCHANGE = 1,
        READ = 2,
        GROUP = 3 /* named barriers, GROUP and on one a warpgroup */
    };
    int wg = __shfl_sync(0xffffffffu, (int)threadIdx.x / WARPGROUP - 1, 0);
    int thread = (int)threadIdx.x % WARPGROUP, lane = thread % LANES;
    int row = 64 * wg + thread / LANES * 16 + lane / 4; /* the lane's first key in the tile */
    int group = w.heads / w.kv_heads, kv_parity = 0, sum_parity = 0;
    float factor = w.scale * LOG2_E;
    int uses = 0; /* steps of all passes: the places in the rings and their parities */
    uint32_t k = shared + C::K_AT, v = shared + C::V_AT;

    auto done = [&](uint32_t barrier) { warp_arrive(barrier, lane); };
    each_pass<C>(w, memory, bar, done, [&](const volatile pass &p) {
        float dk[C::QK / 8][4], dv[C::V / 8][4];
#pragma unroll
        for (int n = 0; n < C::QK / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) dk[n][j] = 0;
#pragma unroll
        for (int n = 0; n < C::V / 8; n++)
#pragma unroll
            for (int j = 0; j < 4; j++) dv[n][j] = 0;
        wait_for(bar.kv_full(), kv_parity);
        kv_parity ^= 1;
        for (int step = 0, steps = p.steps; step < steps; step++, uses++) {
            int stage = uses % STAGES, parity = uses / STAGES % 2, dq_stage = uses % C::DQ,
                dq_parity = uses / C::DQ % 2;
            tile t = tile_of(p, step, group);
            int m = t.m;
            uint32_t q = shared + C::Q_AT + stage * C::Q_BYTES;
            uint32_t dout = shared + C::DOUT_AT + stage * C::DOUT_BYTES;
            const float *lse = (const float *)(memory + C::STATS_AT + stage * C::STATS_BYTES) + lane % 4 * 2;
            float s[C::TQ / 8][4], dp[C::DP / 8][4];
            uint32_t left[C::TQ / 16][4], ds[C::TQ / 16][4];
            wait_for(bar.q_full(stage), parity);
            start_a_bt<C::TQ, C::KP, C::ROPE ? C::ROPE / 16 : 4, KEYS, C::TQ>(s, k + wg * panel_bytes(64), q);
            wait_for(bar.dout_full(stage), parity);
            auto start_dp = [&](int from) {
                start_a_bt<C::DP, C::VP, 4, KEYS, C::TQ>(dp, v + wg * panel_bytes(64), dout + from * ROW_BYTES);
            };
            if (C::BOTH) start_dp(0);
            wait_products<C::BOTH ? 1 : 0>();
            hold(s);
#pragma unroll
            for (int n = 0; n < C::TQ / 8; n++) {
                float2 l = *(const float2 *)(lse + 8 * n);
#pragma unroll
                for (int j = 0; j < 4; j++) s[n][j] = power_of_2(s[n][j] * factor - (j % 2 ? l.y : l.x));
            }
            if (m * C::TQ < p.keys * KEYS + 64 * wg + 63) { /* some keys are later than their query */
                int from = p.keys * KEYS + row - m * C::TQ;
#pragma unroll
                for (int n = 0; n < C::TQ / 8; n++)
#pragma unroll
                    for (int j = 0; j < 4; j++)
                        if (8 * n + lane % 4 * 2 + j % 2 < from + j / 2 * 8) s[n][j] = 0;
            }
            as_left(left, s);
            /* ds from the rounded p, what dv is made of too; without room for both, some queries after the other. */
            if (C::BOTH)
                wait_products<0>();
            else
                start_dp(0);
            start_p_b<C::V, C::TQ>(dv, left, dout);
            if (!C::BOTH) wait_products<1>();
#pragma unroll
            for (int from = 0; from < C::TQ; from += C::DP) {
                if (from > 0) {
                    start_dp(from);
                    wait_products<0>();
                }
                hold(dp);
#pragma unroll
                for (int n = 0; n < C::DP / 8; n++) {
                    float2 d = *(const float2 *)(lse + C::TQ + from + 8 * n);
                    int at = from / 8 + n;
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        uint32_t both = left[at / 2][at % 2 * 2 + half];
                        ds[at / 2][at % 2 * 2 + half] =
                            pack((dp[n][2 * half] - d.x) * low_of(both), (dp[n][2 * half + 1] - d.y) * high_of(both));
                    }
                }
            }
            if (!C::BOTH) { /* dv's left operands make room */
                wait_products<0>();
                hold(dv);
                hold(left);
            }
            if (C::DS == 1) named_sync(READ, ALL); /* the products of the step before have read it */
            uint32_t exchange = shared + C::DS_AT + uses % C::DS * C::DS_BYTES;
#pragma unroll
            for (int n = 0; n < C::TQ / 16; n++)
                store_blocks(exchange + n / 4 * panel_bytes(KEYS) +
                                 chunk_at(64 * wg + thread / LANES * 16 + lane % 16, n % 4 * 2 + lane / 16),
                             ds[n]);
            publish();
            named_sync(EXCHANGE, ALL);

            /* dq goes to shared memory under dk's products, or with the sum that is there to global memory. */
            char *to = memory + C::DQ_AT + dq_stage * C::DQ_BYTES;
            uint32_t rows = exchange + (C::TQ == 128 ? wg * panel_bytes(KEYS) : 0);
            bool last = is_last(p, m, C::RATIO);
            auto wait_buffer = [&] {
                wait_for(bar.dq_empty(dq_stage), dq_parity ^ 1);
                if (last) {
                    wait_for(bar.dq_sum(dq_stage), sum_parity >> dq_stage & 1);
                    sum_parity ^= 1 << dq_stage;
                }
            };
            auto take_dq = [&](auto &c, int n, int col) {
                if (last) {
                    int first = m * C::TQ + (C::TQ == 128 ? row : row - 64 * wg);
                    __nv_bfloat16 *out = w.dq + ((int64_t)p.sample * w.context + first) * w.dq_ld +
                                         (int64_t)(p.kv_head * group + t.member) * (w.nope + w.rope);
                    write_dq<C>(w, to, c, wg * C::DQ_PARTS + n, thread, m >= C::RATIO, out, col, w.context - first);
                } else {
                    put_dq(to, c, wg * C::DQ_PARTS + n, thread);
                }
            };
            if constexpr (C::BOTH) {
                float dq[C::WIDE / 8][4], rest[C::NARROW / 8 + 1][4];
                start_dq<C::WIDE>(dq, rows, column_at(k, C::wide(wg)));
                if constexpr (C::NARROW > 0)
                    start_dq<C::NARROW>(part<0, C::NARROW>(rest), rows, column_at(k, C::narrow(wg)));
                start_p_b<C::QK, C::TQ>(dk, ds, q);
                wait_buffer();
                wait_products<1>();
                hold(dq);
                take_dq(dq, 0, C::wide(wg));
                if constexpr (C::NARROW > 0) {
                    hold(part<0, C::NARROW>(rest));
                    take_dq(part<0, C::NARROW>(rest), C::WIDE / 8, C::narrow(wg));
                }
            } else { /* dk's products before dq's: fewer registers */
                float dq[C::WIDE / 8][4], rest[C::NARROW / 8][4];
                start_p_b<C::QK, C::TQ>(dk, ds, q);
                wait_buffer();
                wait_products<0>();
                hold(dk);
                hold(ds);
                start_dq<C::NARROW>(rest, rows, column_at(k, C::narrow(wg)));
                start_dq<C::WIDE>(dq, rows, column_at(k, C::wide(wg)));
                wait_products<1>();
                hold(rest);
                take_dq(rest, C::WIDE / 8, C::narrow(wg));
                wait_products<0>();
                hold(dq);
                take_dq(dq, 0, C::wide(wg));
            }
            publish();
            warp_arrive(bar.dq_full(dq_stage), lane);
            wait_products<0>();
            hold(dk);
            hold(ds);
            if (C::BOTH) {
                hold(dv);
                hold(left);
            }
            warp_arrive(bar.q_empty(stage), lane);
            warp_arrive(bar.dout_empty(stage), lane);
        }
        /* dk goes where the keys were, which both warpgroups have read, dv where its values were, and from there out.
         */
        named_sync(READ, ALL);
        int store_row = 64 * wg + thread / LANES * 16 + lane % 16;
#pragma unroll
        for (int i = 0; i < 4 * C::NP; i++) {
            uint32_t r[4];
            pack_block(r, dk[2 * i], dk[2 * i + 1], w.scale);
            store_blocks(k + i / 4 * panel_bytes(KEYS) + chunk_at(store_row, i % 4 * 2 + lane / 16), r);
        }
#pragma unroll
        for (int i = 0; i < 4 * C::VP; i++) {
            uint32_t r[4];
            pack_block(r, dv[2 * i], dv[2 * i + 1], 1);
            store_blocks(v + i / 4 * panel_bytes(KEYS) + chunk_at(store_row, i % 4 * 2 + lane / 16), r);
        }
        if constexpr (C::ROPE > 0) {
            int key = p.keys * KEYS + row, col = lane % 4 * 2;
            float *to = w.shares + ((int64_t)p.head * w.context + key) * w.rope + col;
#pragma unroll
            for (int half = 0; half < 2; half++)
#pragma unroll
                for (int n = 0; n < C::ROPE / 8; n++)
                    if (key + 8 * half < w.context && col + 8 * n < w.rope)
                        *(float2 *)(to + 8 * half * w.rope + 8 * n) = make_float2(
                            dk[8 * C::NP + n][2 * half] * w.scale, dk[8 * C::NP + n][2 * half + 1] * w.scale);
        }
        publish();
        named_sync(GROUP + wg, WARPGROUP);
        if (thread == 0) {
            int first = p.keys * KEYS + 64 * wg;
#pragma unroll
            for (int n = 0; n < C::NP; n++)
                copy_out(&w.dk, n * PANEL, p.kv_head, first, p.sample,
                         k + n * panel_bytes(KEYS) + wg * panel_bytes(64));
#pragma unroll
            for (int n = 0; n < C::VP; n++)
                copy_out(&w.dv, n * PANEL, p.kv_head, first, p.sample,
                         v + n * panel_bytes(KEYS) + wg * panel_bytes(64));
            close_copies();
            copies_have_read<0>();
        }
        warp_arrive(bar.kv_empty(), lane);
    });
}

template <typename C>
__global__ void __launch_bounds__(HOPPER_THREADS, 1) hopper_backward_kernel(const __grid_constant__ work w) {
    extern __shared__ __align__(1024) char memory[];
    uint32_t shared = shared_address(memory);
    barriers bar = {shared + C::BARRIERS_AT};
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(bar.q_full(s), 1);
            barrier_init(bar.dout_full(s), 1);
            barrier_init(bar.q_empty(s), WARPS * WARP_ARRIVALS);
            barrier_init(bar.dout_empty(s), WARPS * WARP_ARRIVALS);
        }
        barrier_init(bar.kv_full(), 1);
        barrier_init(bar.kv_empty(), WARPS * WARP_ARRIVALS);
        for (int i = 0; i < ITEMS; i++) {
            barrier_init(bar.item_full(i), 1);
            barrier_init(bar.item_empty(i), WARPS * WARP_ARRIVALS + C::DQ);
        }
        for (int i = 0; i < C::DQ; i++) {
            barrier_init(bar.dq_full(i), WARPS * WARP_ARRIVALS);
            barrier_init(bar.dq_empty(i), 1);
            barrier_init(bar.dq_sum(i), 1);
        }
        barriers_made();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        give_registers<C::LOADS>();
        if (threadIdx.x == 0) load<C>(w, memory, shared, bar);
        int buffer = (int)threadIdx.x / LANES - 1;
        if (threadIdx.x % LANES == 0 && buffer >= 0 && buffer < C::DQ) add_up<C>(w, memory, shared, bar, buffer);
    } else {
        take_registers<C::MULTIPLIES>();
        multiply<C>(w, memory, shared, bar);
    }
}

/* lse in powers of 2 and delta of every query, by tiles of TQ; beyond the context +inf, which makes p = 0, and 0. Eight
 * lanes a query. Counters begin at 0. */
template <int TQ>
__global__ void stats_kernel(attn_core_args a, attn_core_grads g, float *stats, int tiles, int *counters,
                             int64_t all_counters) {
    int64_t at = (int64_t)blockIdx.x * (blockDim.x / 8) + threadIdx.x / 8, all = at / (tiles * TQ);
    int query = (int)(at - all * (tiles * TQ)), sample = (int)(all / a.heads),
        h = (int)(all - (int64_t)sample * a.heads);
    int64_t counter = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (counter < all_counters) counters[counter] = 0;
    if (all >= a.batch * a.heads) return;
    float sum = 0;
    if (query < a.context) {
        int64_t token = sample * a.context + query;
        const uint4 *o = (const uint4 *)((const __nv_bfloat16 *)a.o.data + token * a.o.ld + h * a.value);
        const uint4 *dout = (const uint4 *)((const __nv_bfloat16 *)g.dout.data + token * g.dout.ld + h * a.value);
        for (int chunk = threadIdx.x % 8; chunk < a.value / 8; chunk += 8) {
            uint4 x = o[chunk], y = dout[chunk];
            const __nv_bfloat162 *left = (const __nv_bfloat162 *)&x, *right = (const __nv_bfloat162 *)&y;
#pragma unroll
            for (int c = 0; c < 4; c++) {
                float2 u = __bfloat1622float2(left[c]), v = __bfloat1622float2(right[c]);
                sum += u.x * v.x + u.y * v.y;
            }
        }
    }
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
    if (threadIdx.x % 8) return;
    float *to = stats + (all * tiles + query / TQ) * (2 * TQ) + query % TQ;
    to[0] = query < a.context ? a.lse[all * a.context + query] * LOG2_E : INFINITY;
    to[TQ] = sum;
}

template <hopper_size SIZE>
cudaError_t run(const attn_core_args *a, const attn_core_grads *g, char *scratch, float *shares, int sms,
                cudaStream_t stream) {
    typedef cut<SIZE> C;
    hopper_room r = hopper_room_of(C::SIZES, a->batch, a->context, a->heads, a->kv_heads);
    work w = {};
    int64_t qk = a->nope + a->rope;
    maps::maker with = {*a, cudaSuccess};
    with.make(w.q, a->q, 0, a->nope, qk, a->heads, C::TQ);
    with.make(w.k, a->k, 0, a->nope, a->k_head, a->kv_heads, KEYS);
    with.make(w.v, a->v, 0, a->value, a->v_head, a->kv_heads, KEYS);
    with.make(w.dout, g->dout, 0, a->value, a->value, a->heads, C::TQ);
    with.make(w.dk, g->dk, 0, a->nope, a->k_head, a->kv_heads, 64);
    with.make(w.dv, g->dv, 0, a->value, a->v_head, a->kv_heads, 64);
    if (C::ROPE) {
        with.make(w.q_rope, a->q, a->nope, a->rope, qk, a->heads, C::TQ);
        with.make(w.k_rope, a->k_rope, 0, a->rope, a->rope, 1, KEYS);
    }
    if (with.code != cudaSuccess) return with.code;
    float *stats = (float *)(scratch + r.stats);
    w.stats = stats, w.counters = (int *)(scratch + r.counters), w.sums = (float *)(scratch + r.sums);
    w.tiles = r.tiles, w.list = r.list;
    w.shares = shares, w.scale = a->scale;
    w.dq = (__nv_bfloat16 *)g->dq.data, w.dq_ld = g->dq.ld;
    w.context = (int)a->context, w.heads = a->heads, w.kv_heads = a->kv_heads;
    w.nope = a->nope, w.rope = a->rope, w.value = a->value;

    /* Eight threads a query, and each zeroes a counter: there are fewer of those. */
    enum { THREADS = 256 };
    int64_t threads = (int64_t)r.tiles * C::TQ * a->batch * a->heads * 8;
    stats_kernel<C::TQ><<<(unsigned)((threads + THREADS - 1) / THREADS), THREADS, 0, stream>>>(*a, *g, stats, r.tiles,
                                                                                               w.counters, r.count);
    cudaError_t code = cudaGetLastError();
    if (code != cudaSuccess) return code;
    int pieces = order_pieces(w.list);
    return tiles::launch(hopper_backward_kernel<C>, pieces < sms ? pieces : sms, HOPPER_THREADS, C::SHARED, stream, w);
}

} // namespace

cudaError_t hopper_backward(const attn_core_args *a, const attn_core_grads *g, hopper_size size, void *scratch,
                            float *shares, int sms, cudaStream_t stream) {
    switch (size) {
    case HOPPER_64:
        return run<HOPPER_64>(a, g, (char *)scratch, shares, sms, stream);
    case HOPPER_96:
        return run<HOPPER_96>(a, g, (char *)scratch, shares, sms, stream);
    case HOPPER_128:
        return run<HOPPER_128>(a, g, (char *)scratch, shares, sms, stream);
    case HOPPER_192:
        return run<HOPPER_192>(a, g, (char *)scratch, shares, sms, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
