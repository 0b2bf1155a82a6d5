/* The forward pass on Hopper by warp specialization (FlashAttention-3, Shah et al. 2024, algorithms 1 and 2): a block
 * on each multiprocessor takes pieces of work one after another by tickets, 128 queries of one head, longest first. One
 * thread loads (TMA), each of two warpgroups multiplies 64 queries with tiles of 128 keys, last tile first: only that
 * one is masked, since 64 divides 128. The scores of a tile are multiplied while the softmax of the one before is
 * taken, and the warpgroups take turns to start products: one multiplies under the other's softmax.
 *
 * Shared memory: queries (QB buffers), keys and values (2 each), outputs (in the queries' place where QB is 1). Heads
 * that hopper_cuts.h has a size for. o and lse are overwritten. */
#include "attention/cuda/hopper.cuh"
#include "attention/cuda/hopper_cuts.h"
#include "attention/cuda/hopper_maps.cuh"

using namespace hopper;

namespace {

constexpr int TILE = HOPPER_KEYS, STAGES = HOPPER_STAGES, WGS = HOPPER_GROUPS, ROWS = WGS * HOPPER_ROWS;
constexpr int WARPS = WGS * WARPGROUP / LANES;                                    /* that multiply */
constexpr int LOADS = hopper_loads(false), MULTIPLIES = hopper_multiplies(false); /* registers */
constexpr float LATE = 8; /* powers of 2 that a row's maximum may lag behind: exp2 of it is far from bf16's limits */

/* NP, VP: panels of 64 columns of k_n and of v; ROPE: columns of k_r. */
template <hopper_size SIZE> struct cut {
    static constexpr hopper_cut SIZES = hopper_cuts[SIZE];
    static constexpr int NP = SIZES.nope / PANEL, ROPE = SIZES.rope, VP = SIZES.value / PANEL, QB = SIZES.query_buffers;
    static constexpr int KP = NP + (ROPE > 0);
    static constexpr int Q_GROUP = KP * panel_bytes(64), Q_BYTES = WGS * Q_GROUP, O_GROUP = VP * panel_bytes(64);
    static constexpr int K_BYTES = KP * panel_bytes(TILE), V_BYTES = VP * panel_bytes(TILE);
    static constexpr int K_AT = QB * Q_BYTES, V_AT = K_AT + STAGES * K_BYTES, O_AT = V_AT + STAGES * V_BYTES;
    static constexpr int BARRIERS_AT = O_AT + (QB == 2 ? WGS * O_GROUP : 0);
    static constexpr int PIECES_AT = BARRIERS_AT + HOPPER_BARRIER_BYTES, SHARED = PIECES_AT + HOPPER_PIECE_BYTES;
    static_assert(SHARED == hopper_forward_bytes(SIZES), "what the choice of the cut counts on");
};

struct work {
    CUtensorMap q, q_rope, k, k_rope, v, o;
    float *lse;
    float scale;
    int *tickets;                            /* the next, blocks that have ended: 0 before and after */
    int context, heads, kv_heads, all_heads; /* all_heads: B H */
    int blocks, together, pieces;            /* blocks of a head; heads whose keys share the cache; blocks B H */
};

struct piece {
    int first, head, kv_head, sample, at, tiles; /* first query; head's number of all; tiles of keys */
};

/* Piece i of the list, or tiles = 0: longest first among heads that stay in the cache together. */
__device__ __forceinline__ piece piece_of(const work &w, int i) {
    piece p;
    p.tiles = 0;
    if (i >= w.pieces) return p;
    int group = i / (w.blocks * w.together), begin = group * w.together;
    int heads = min(w.together, w.all_heads - begin), inside = i - begin * w.blocks;
    p.first = (w.blocks - 1 - inside / heads) * ROWS;
    p.at = begin + inside % heads;
    p.sample = p.at / w.heads;
    p.head = p.at - p.sample * w.heads;
    p.kv_head = p.head * w.kv_heads / w.heads;
    p.tiles = (min(p.first + ROWS, w.context) + TILE - 1) / TILE;
    return p;
}

/* A ring's place: which buffer, and the parity of its use. */
struct place {
    int stage, parity;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
};

/* Addresses of the barriers. */
template <typename C> struct barriers {
    uint32_t at;
    __device__ uint32_t k_full(int s) const { return at + 8 * s; }
    __device__ uint32_t k_empty(int s) const { return at + 8 * (STAGES + s); }
    __device__ uint32_t v_full(int s) const { return at + 8 * (2 * STAGES + s); }
    __device__ uint32_t v_empty(int s) const { return at + 8 * (3 * STAGES + s); }
    __device__ uint32_t q_full(int b, int wg) const { return at + 8 * (4 * STAGES + b * WGS + wg); }
    __device__ uint32_t q_empty(int b, int wg) const { return at + 8 * (4 * STAGES + (C::QB + b) * WGS + wg); }
    __device__ uint32_t piece_full(int i) const { return at + 8 * (4 * STAGES + 2 * C::QB * WGS + i); }
    __device__ uint32_t piece_empty(int i) const { return at + 8 * (4 * STAGES + 2 * C::QB * WGS + 2 + i); }
};

template <typename C>
__device__ __forceinline__ void load_pieces(const work &w, char *memory, uint32_t shared, const barriers<C> &bar) {
    place ring = {0, 0};
    int ticket = atomicAdd(w.tickets, 1);
    for (int round = 0;; round++) {
        wait_for(bar.piece_empty(round % 2), round / 2 % 2 ^ 1);
        ((volatile int *)(memory + C::PIECES_AT))[round % 2] = ticket;
        arrive(bar.piece_full(round % 2));
        piece p = piece_of(w, ticket);
        if (!p.tiles) break;
        int buffer = round % C::QB, use = round / C::QB;
        for (int j = p.tiles - 1; j >= 0; j--, ring.next()) {
            uint32_t k = shared + C::K_AT + ring.stage * C::K_BYTES, v = shared + C::V_AT + ring.stage * C::V_BYTES;
            if (j == 0) ticket = atomicAdd(w.tickets, 1);
            wait_for(bar.k_empty(ring.stage), ring.parity ^ 1);
            arrive_and_expect(bar.k_full(ring.stage), C::K_BYTES);
#pragma unroll
            for (int n = 0; n < C::NP; n++)
                copy_in(k + n * panel_bytes(TILE), &w.k, n * PANEL, p.kv_head, j * TILE, p.sample,
                        bar.k_full(ring.stage));
            if (C::ROPE)
                copy_in(k + C::NP * panel_bytes(TILE), &w.k_rope, 0, 0, j * TILE, p.sample, bar.k_full(ring.stage));
            if (j == p.tiles - 1)
                for (int wg = 0; wg < WGS; wg++) {
                    uint32_t q = shared + buffer * C::Q_BYTES + wg * C::Q_GROUP, full = bar.q_full(buffer, wg);
                    wait_for(bar.q_empty(buffer, wg), use % 2 ^ 1);
                    arrive_and_expect(full, C::Q_GROUP);
#pragma unroll
                    for (int n = 0; n < C::NP; n++)
                        copy_in(q + n * panel_bytes(64), &w.q, n * PANEL, p.head, p.first + wg * 64, p.sample, full);
                    if (C::ROPE)
                        copy_in(q + C::NP * panel_bytes(64), &w.q_rope, 0, p.head, p.first + wg * 64, p.sample, full);
                }
            wait_for(bar.v_empty(ring.stage), ring.parity ^ 1);
            arrive_and_expect(bar.v_full(ring.stage), C::V_BYTES);
#pragma unroll
            for (int n = 0; n < C::VP; n++)
                copy_in(v + n * panel_bytes(TILE), &w.v, n * PANEL, p.kv_head, j * TILE, p.sample,
                        bar.v_full(ring.stage));
        }
    }
    /* Each block has got a ticket beyond the list: the last one sets the counters back. */
    __threadfence();
    if (atomicAdd(w.tickets + 1, 1) == (int)gridDim.x - 1) {
        __threadfence();
        w.tickets[0] = 0, w.tickets[1] = 0;
    }
}

/* s [64, TILE] = q kt. */
template <typename C> __device__ __forceinline__ void start_scores(float (&s)[TILE / 8][4], uint32_t q, uint32_t k) {
    hold(s);
    open_products();
#pragma unroll
    for (int n = 0; n < C::KP; n++)
#pragma unroll
        for (int i = 0; i < (n < C::NP ? 4 : C::ROPE / 16); i++)
            product<TILE, 0, 0>::tiles(s, describe(q, n * panel_bytes(64) + 32 * i),
                                       describe(k, n * panel_bytes(TILE) + 32 * i), n + i > 0);
    close_products();
}

/* o [64, 64 VP] += p v. */
template <typename C>
__device__ __forceinline__ void start_values(float (&o)[8 * C::VP][4], uint32_t (&p)[TILE / 16][4], uint32_t v) {
    hold(o);
    hold(p);
    open_products();
#pragma unroll
    for (int i = 0; i < TILE / 16; i++)
        product<64 * C::VP, 0, 1>::registers(o, p[i], describe(v, 16 * i * ROW_BYTES, panel_bytes(TILE)), 1);
    close_products();
}

/* Scores to probabilities against the row's maximum, which may lag LATE behind; shrink: what is summed so far must be
 * multiplied with. A sum is this lane's share of the row's. */
template <bool FIRST>
__device__ __forceinline__ void softmax(float (&s)[TILE / 8][4], float (&top)[2], float (&sum)[2], float (&shrink)[2],
                                        float factor) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float most = fmaxf(s[0][2 * half], s[0][2 * half + 1]);
#pragma unroll
        for (int n = 1; n < TILE / 8; n++) most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        if (FIRST) {
            top[half] = most;
        } else {
            float next = (most - top[half]) * factor > LATE ? most : top[half];
            shrink[half] = power_of_2((top[half] - next) * factor);
            top[half] = next;
        }
        float offset = top[half] * factor, part[2] = {0, 0};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                s[n][2 * half + i] = power_of_2(s[n][2 * half + i] * factor - offset);
                part[i] += s[n][2 * half + i];
            }
        sum[half] = FIRST ? part[0] + part[1] : sum[half] * shrink[half] + (part[0] + part[1]);
    }
}

template <typename C>
__device__ __forceinline__ void multiply_pieces(const work &w, const char *memory, uint32_t shared,
                                                const barriers<C> &bar) {
    /* The next piece's first products pass under the end of this one, where its queries have a place of their own. */
    constexpr bool EARLY = C::QB == 2;
    enum { ORDER = 1, GROUP = 4 }; /* named barriers, from these on one a warpgroup */
    int wg = (int)threadIdx.x / WARPGROUP - 1, thread = (int)threadIdx.x % WARPGROUP, lane = thread % LANES;
    int row = thread / LANES * 16 + lane / 4, after = (wg + 1) % WGS;
    float factor = w.scale * LOG2_E;
    bool speaks = thread == 0;
    place k_ring = {0, 0}, v_ring = {0, 0};
    auto my_turn = [&] { named_sync(ORDER + wg, 2 * WARPGROUP); };
    auto your_turn = [&] { named_arrive(ORDER + after, 2 * WARPGROUP); };
    if (wg == WGS - 1) your_turn();

    auto key_at = [&] { return shared + C::K_AT + k_ring.stage * C::K_BYTES; };
    auto value_at = [&] { return shared + C::V_AT + v_ring.stage * C::V_BYTES; };
    auto free_key = [&] {
        warp_arrive(bar.k_empty(k_ring.stage), lane);
        k_ring.next();
    };
    auto free_value = [&] {
        warp_arrive(bar.v_empty(v_ring.stage), lane);
        v_ring.next();
    };
    /* The next piece that is announced. */
    auto take = [&](int round) {
        wait_for(bar.piece_full(round % 2), round / 2 % 2);
        int ticket = ((const volatile int *)(memory + C::PIECES_AT))[round % 2];
        piece p = piece_of(w, __shfl_sync(0xffffffffu, ticket, 0));
        warp_arrive(bar.piece_empty(round % 2), lane);
        return p;
    };
    auto query_at = [&](int round) { return shared + round % C::QB * C::Q_BYTES + wg * C::Q_GROUP; };
    float s[TILE / 8][4];
    /* The products of a piece's first tile. */
    auto begin = [&](const piece &p, int round) {
        if (p.tiles) {
            wait_for(bar.q_full(round % C::QB, wg), round / C::QB % 2);
            wait_for(bar.k_full(k_ring.stage), k_ring.parity);
        } /* else nobody reads them: the assembler takes no products that are begun sometimes */
        start_scores<C>(s, query_at(round), key_at());
    };

    piece p = take(0);
    if (EARLY) begin(p, 0);
    /* A loop with a bound, or else the assembler gives too few registers. */
    for (int round = 0; round <= w.pieces && p.tiles; round++) {
        int mine = p.first + 64 * wg; /* the warpgroup's first query */
        float o[8 * C::VP][4], top[2], sum[2], shrink[2];
        uint32_t left[TILE / 16][4];
        if (!EARLY) begin(p, round);
#pragma unroll
        for (int n = 0; n < 8 * C::VP; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[n][i] = 0;
        wait_products<0>();
        hold(s);
        free_key();
        int seen = mine + row - (p.tiles - 1) * TILE; /* the last key of this tile that the lane's first row sees */
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (8 * n + lane % 4 * 2 + i % 2 > seen + i / 2 * 8) s[n][i] = -INFINITY;
        softmax<true>(s, top, sum, shrink, factor);
        as_left(left, s);
        wait_for(bar.v_full(v_ring.stage), v_ring.parity);
        for (int j = p.tiles - 2; j >= 0; j--) {
            wait_for(bar.k_full(k_ring.stage), k_ring.parity);
            my_turn();
            start_scores<C>(s, query_at(round), key_at());
            start_values<C>(o, left, value_at());
            your_turn();
            wait_products<1>();
            hold(s);
            free_key();
            softmax<false>(s, top, sum, shrink, factor);
            hold(s);
            /* A loop between the softmax and the wait: the assembler would move one behind the other. */
            place next = v_ring;
            next.next();
            wait_for(bar.v_full(next.stage), next.parity);
            wait_products<0>();
            hold(o);
            hold(left);
            free_value();
            if (__any_sync(0xffffffffu, shrink[0] != 1 || shrink[1] != 1)) {
#pragma unroll
                for (int n = 0; n < 8 * C::VP; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++) o[n][i] *= shrink[i / 2];
            }
            as_left(left, s);
        }
        start_values<C>(o, left, value_at());
        piece next = take(round + 1);
        if (EARLY) begin(next, round + 1);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 1);
            sum[half] += __shfl_xor_sync(0xffffffffu, sum[half], 2);
            if (lane % 4 == 0 && mine + row + 8 * half < w.context)
                w.lse[(int64_t)p.at * w.context + mine + row + 8 * half] = top[half] * w.scale + logf(sum[half]);
            sum[half] = 1 / sum[half];
        }
        wait_products<EARLY ? 1 : 0>();
        hold(o);
        hold(left);
        free_value();
#pragma unroll
        for (int n = 0; n < 8 * C::VP; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) o[n][i] *= sum[i / 2];
        uint32_t out[4 * C::VP][4], to = C::QB == 2 ? shared + C::O_AT + wg * C::O_GROUP : query_at(round);
        as_left(out, o);
        if (C::QB == 2 && speaks) copies_have_read<0>();
        named_sync(GROUP + wg, WARPGROUP); /* the place is free: the store before, or the queries, are read */
        int store_row = thread / LANES * 16 + lane % 16;
#pragma unroll
        for (int i = 0; i < 4 * C::VP; i++)
            store_blocks(to + i / 4 * panel_bytes(64) + chunk_at(store_row, i % 4 * 2 + lane / 16), out[i]);
        publish();
        named_sync(GROUP + wg, WARPGROUP);
        if (speaks) {
#pragma unroll
            for (int n = 0; n < C::VP; n++) copy_out(&w.o, n * PANEL, p.head, mine, p.sample, to + n * panel_bytes(64));
            close_copies();
            if (C::QB == 1) copies_have_read<0>();
            arrive(bar.q_empty(round % C::QB, wg));
        }
        p = next;
    }
    wait_products<0>();
    if (speaks) copies_have_read<0>();
}

template <typename C>
__global__ void __launch_bounds__(HOPPER_THREADS, 1) hopper_forward_kernel(const __grid_constant__ work w) {
    extern __shared__ __align__(1024) char memory[];
    uint32_t shared = shared_address(memory);
    barriers<C> bar = {shared + C::BARRIERS_AT};
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(bar.k_full(s), 1);
            barrier_init(bar.v_full(s), 1);
            barrier_init(bar.k_empty(s), WARPS * WARP_ARRIVALS);
            barrier_init(bar.v_empty(s), WARPS * WARP_ARRIVALS);
        }
        for (int i = 0; i < C::QB * WGS; i++) {
            barrier_init(bar.q_full(0, i), 1);
            barrier_init(bar.q_empty(0, i), 1);
        }
        for (int i = 0; i < 2; i++) {
            barrier_init(bar.piece_full(i), 1);
            barrier_init(bar.piece_empty(i), WARPS * WARP_ARRIVALS);
        }
        barriers_made();
    }
    __syncthreads();
    if (threadIdx.x < WARPGROUP) {
        give_registers<LOADS>();
        if (threadIdx.x == 0) load_pieces<C>(w, memory, shared, bar);
    } else {
        take_registers<MULTIPLIES>();
        multiply_pieces<C>(w, memory, shared, bar);
    }
}

/* Heads in a group of the list: as few groups as let the keys and values of one fit `bytes` together, all alike. */
int heads_together(const attn_core_args *a, int64_t bytes) {
    int64_t all = a->batch * a->heads, head = a->context * (a->nope + a->rope + a->value) * 2 * a->kv_heads / a->heads;
    int64_t fit = bytes / (head ? head : 1), groups = fit < 1 ? all : (all + fit - 1) / fit;
    return (int)((all + groups - 1) / groups);
}

template <hopper_size SIZE> cudaError_t run(const attn_core_args *a, int *tickets, int sms, cudaStream_t stream) {
    typedef cut<SIZE> C;
    work w = {};
    int cache = 0, device = 0;
    int64_t qk = a->nope + a->rope;
    cudaGetDevice(&device);
    maps::maker with = {*a, cudaDeviceGetAttribute(&cache, cudaDevAttrL2CacheSize, device)};
    with.make(w.q, a->q, 0, a->nope, qk, a->heads, 64);
    with.make(w.k, a->k, 0, a->nope, a->k_head, a->kv_heads, TILE);
    with.make(w.v, a->v, 0, a->value, a->v_head, a->kv_heads, TILE);
    with.make(w.o, a->o, 0, a->value, a->value, a->heads, 64);
    if (C::ROPE) {
        with.make(w.q_rope, a->q, a->nope, a->rope, qk, a->heads, 64);
        with.make(w.k_rope, a->k_rope, 0, a->rope, a->rope, 1, TILE);
    }
    w.lse = a->lse, w.scale = a->scale;
    w.context = (int)a->context, w.heads = a->heads, w.kv_heads = a->kv_heads, w.all_heads = (int)a->batch * a->heads;
    w.blocks = (int)((a->context + ROWS - 1) / ROWS);
    w.together = heads_together(a, cache / 2);
    w.tickets = tickets;
    w.pieces = w.blocks * w.all_heads;
    if (with.code != cudaSuccess) return with.code;
    return tiles::launch(hopper_forward_kernel<C>, w.pieces < sms ? w.pieces : sms, HOPPER_THREADS, C::SHARED, stream,
                         w);
}

} // namespace

cudaError_t hopper_forward(const attn_core_args *a, hopper_size size, int *tickets, int sms, cudaStream_t stream) {
    switch (size) {
    case HOPPER_64:
        return run<HOPPER_64>(a, tickets, sms, stream);
    case HOPPER_96:
        return run<HOPPER_96>(a, tickets, sms, stream);
    case HOPPER_128:
        return run<HOPPER_128>(a, tickets, sms, stream);
    case HOPPER_192:
        return run<HOPPER_192>(a, tickets, sms, stream);
    default:
        return cudaErrorInvalidValue;
    }
}
