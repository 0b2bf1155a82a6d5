/* Hopper's own instructions (sm_90a), for kernels that are split into warps that load and warpgroups that multiply:
 * mbarriers, tensor-map copies (TMA), wgmma, register shares, named barriers. Without them: see tiles.cuh.
 *
 * A tile is panels [ROWS, 64] of bf16 with the 128-byte swizzle, each on 1,024 bytes; one panel is one box of a copy. A
 * fragment c[n][4] of a warpgroup: warp w, lane 4 g + t has (row 16 w + g, columns 8 n + 2 t and + 1) in [0], [1] and
 * row 16 w + g + 8 in [2], [3] (PTX ISA, "Register Fragments for wgmma.mma_async.m64nNk16"). */
#pragma once

#include "attention/cuda/tiles.cuh"

#include <cuda.h>

namespace hopper {

using tiles::LANES;
using tiles::LOG2_E;
using tiles::pack;
using tiles::power_of_2;
using tiles::shared_address;

constexpr int PANEL = 64, ROW_BYTES = 2 * PANEL, WARPGROUP = 128;

/* Bytes of a panel of so many rows. */
__host__ __device__ constexpr int panel_bytes(int rows) {
    return rows * ROW_BYTES;
}

/* Byte of 16-byte chunk `chunk` (0 to 7) of a panel's row. */
__device__ __forceinline__ uint32_t chunk_at(int row, int chunk) {
    return (uint32_t)(row * ROW_BYTES + ((chunk ^ row) & 7) * 16);
}

/* ---- barriers ---- */

__device__ __forceinline__ void barrier_init(uint32_t bar, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(arrivals) : "memory");
}
/* Barriers that were made are seen by the copies and, after __syncthreads, by all threads. */
__device__ __forceinline__ void barriers_made() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ __forceinline__ void arrive(uint32_t bar) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(bar) : "memory");
}
/* Arrives; the phase ends once this many bytes were copied, too. */
__device__ __forceinline__ void arrive_and_expect(uint32_t bar, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
/* A warp's arrival: one for all its lanes. compute-sanitizer's racecheck does not see that the lanes' accesses come
 * before it; built with BULKHEAD_RACECHECK each lane arrives for itself. */
#ifdef BULKHEAD_RACECHECK
constexpr int WARP_ARRIVALS = LANES;
#else
constexpr int WARP_ARRIVALS = 1;
#endif
__device__ __forceinline__ void warp_arrive(uint32_t bar, int lane) {
    __syncwarp();
    if (lane < WARP_ARRIVALS) arrive(bar);
}
__device__ __forceinline__ bool has_passed(uint32_t bar, int parity) {
    uint32_t done;
    asm volatile("{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\nselp.b32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(bar), "r"(parity)
                 : "memory");
    return done != 0;
}

/* Waits until the phase of this parity has ended. Without a bound, whose code would cost those who multiply registers.
 */
__device__ __forceinline__ void wait_for(uint32_t bar, int parity) {
    while (!has_passed(bar, parity)) {
    }
}

__device__ __forceinline__ void named_sync(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void named_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/* ---- tensor-map copies: a box at (column, head, token, sample) ---- */

__device__ __forceinline__ void copy_in(uint32_t to, const CUtensorMap *map, int col, int head, int token, int sample,
                                        uint32_t bar) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, "
                 "%5}], [%6];" ::"r"(to),
                 "l"(map), "r"(col), "r"(head), "r"(token), "r"(sample), "r"(bar)
                 : "memory");
}
__device__ __forceinline__ void copy_out(const CUtensorMap *map, int col, int head, int token, int sample,
                                         uint32_t from) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [%0, {%1, %2, %3, %4}], [%5];" ::"l"(map),
                 "r"(col), "r"(head), "r"(token), "r"(sample), "r"(from)
                 : "memory");
}
__device__ __forceinline__ void close_copies() {
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}
/* All but the PENDING last groups have read their shared memory. */
template <int PENDING> __device__ __forceinline__ void copies_have_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}
/* All but the PENDING last groups are written. */
template <int PENDING> __device__ __forceinline__ void copies_are_done() {
    asm volatile("cp.async.bulk.wait_group %0;" ::"n"(PENDING) : "memory");
}
/* `bytes` from global to shared memory, both on 16 bytes. */
__device__ __forceinline__ void copy_in_row(uint32_t to, const void *from, int bytes, uint32_t bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                 "l"(from), "r"(bytes), "r"(bar)
                 : "memory");
}
__device__ __forceinline__ void copy_out_row(void *to, uint32_t from, int bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(from), "r"(bytes)
                 : "memory");
}
/* Adds `bytes` of fp32 from shared to global memory. */
__device__ __forceinline__ void add_out(float *to, uint32_t from, int bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(to), "r"(from),
                 "r"(bytes)
                 : "memory");
}
/* What this thread wrote to shared memory is seen by the copies and products that start after the next barrier. */
__device__ __forceinline__ void publish() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

/* ---- counters in global memory ---- */

__device__ __forceinline__ int look(const int *counter) {
    int value;
    asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
    return value;
}
/* What this thread's copies wrote, and what it knows to be written, is seen by whoever sees the new value. */
__device__ __forceinline__ void count_up(int *counter) {
    asm volatile("fence.proxy.async;" ::: "memory");
    asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(counter) : "memory");
}

template <int REGISTERS> __device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
template <int REGISTERS> __device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

/* ---- products ---- */

/* An operand of 128-byte rows, `offset` bytes (a constant) behind the address `at`. As rows of the inner dimension:
 * eight rows to the next eight are 1,024 bytes. As its outer dimension (transposed): 64 columns to the next 64 are
 * `across` bytes. Shared memory ends before 2^18, so the fields need no mask and offsets are added in one instruction.
 */
__device__ __forceinline__ uint64_t describe(uint32_t at, int offset, int across = 16) {
    uint32_t low = (at >> 4) + ((uint32_t)across >> 4 << 16) + ((uint32_t)offset >> 4);
    return (uint64_t)(8 * ROW_BYTES >> 4 | 1 << 30) << 32 | low;
}

/* c [64, N] = (adds: +=) a b, 16 deep. TA: a is stored transposed, [16, 64]; TB: b is stored [16, N], else [N, 16]. */
template <int N, int TA, int TB> struct product;

#define REGS_8  "%0, %1, %2, %3, %4, %5, %6, %7"
#define REGS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define REGS_32                                                                                                        \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "   \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define REGS_64                                                                                                        \
    REGS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "   \
            "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUM(n)  "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define SUMS_8  SUM(0), SUM(1)
#define SUMS_16 SUM(0), SUM(1), SUM(2), SUM(3)
#define SUMS_32 SUM(0), SUM(1), SUM(2), SUM(3), SUM(4), SUM(5), SUM(6), SUM(7)
#define SUMS_64 SUMS_32, SUM(8), SUM(9), SUM(10), SUM(11), SUM(12), SUM(13), SUM(14), SUM(15)

/* i0 to i6: numbers of the operands after the sums. */
#define PRODUCT(N, REGS, SUMS, i0, i1, i2, i3, i4, i5, i6)                                                             \
    template <int TA, int TB> struct product<N, TA, TB> {                                                              \
        static __device__ __forceinline__ void tiles(float (&c)[N / 8][4], uint64_t a, uint64_t b, int adds) {         \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i2 ", 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, %" #i0 ", %" #i1        \
                         ", p, 1, 1, %" #i3 ", %" #i4 ";\n}"                                                           \
                         : SUMS                                                                                        \
                         : "l"(a), "l"(b), "r"(adds), "n"(TA), "n"(TB));                                               \
        }                                                                                                              \
        static __device__ __forceinline__ void registers(float (&c)[N / 8][4], const uint32_t (&a)[4], uint64_t b,     \
                                                         int adds) {                                                   \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #i5 ", 0;\n"                                             \
                         "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32.bf16.bf16 {" REGS "}, {%" #i0 ", %" #i1       \
                         ", %" #i2 ", %" #i3 "}, %" #i4 ", p, 1, 1, %" #i6 ";\n}"                                      \
                         : SUMS                                                                                        \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(adds), "n"(TB));                    \
        }                                                                                                              \
    };
PRODUCT(16, REGS_8, SUMS_8, 8, 9, 10, 11, 12, 13, 14)
PRODUCT(32, REGS_16, SUMS_16, 16, 17, 18, 19, 20, 21, 22)
PRODUCT(64, REGS_32, SUMS_32, 32, 33, 34, 35, 36, 37, 38)
PRODUCT(128, REGS_64, SUMS_64, 64, 65, 66, 67, 68, 69, 70)

#undef PRODUCT
#undef SUMS_64
#undef SUMS_32
#undef SUMS_16
#undef SUMS_8
#undef SUM
#undef REGS_64
#undef REGS_32
#undef REGS_16
#undef REGS_8

__device__ __forceinline__ void open_products() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void close_products() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
/* All but the PENDING last groups of products are there. */
template <int PENDING> __device__ __forceinline__ void wait_products() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
/* The compiler keeps these registers where they are: the tensor cores still write (read) them. */
template <int N> __device__ __forceinline__ void hold(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}
template <int N> __device__ __forceinline__ void hold(uint32_t (&p)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) asm volatile("" : "+r"(p[n][0]), "+r"(p[n][1]), "+r"(p[n][2]), "+r"(p[n][3])::"memory");
}

/* Columns [FIRST, FIRST + N) of a fragment. */
template <int FIRST, int N, int ALL> __device__ __forceinline__ float (&part(float (&c)[ALL][4]))[N / 8][4] {
    static_assert((FIRST + N) / 8 <= ALL, "the fragment has these columns");
    return *(float(*)[N / 8][4])(c + FIRST / 8);
}

/* ---- arithmetic ---- */

/* A fragment rounded to bf16, as left operands: [k] are columns 16 k to 16 k + 15. */
template <int N> __device__ __forceinline__ void as_left(uint32_t (&p)[N / 2][4], const float (&c)[N][4]) {
#pragma unroll
    for (int k = 0; k < N / 2; k++) {
        p[k][0] = pack(c[2 * k][0], c[2 * k][1]);
        p[k][1] = pack(c[2 * k][2], c[2 * k][3]);
        p[k][2] = pack(c[2 * k + 1][0], c[2 * k + 1][1]);
        p[k][3] = pack(c[2 * k + 1][2], c[2 * k + 1][3]);
    }
}
/* 16 columns of a fragment, times factor, as four 8 x 8 blocks of bf16: rows 0 to 15 of 8 columns, then of 8 more. */
__device__ __forceinline__ void pack_block(uint32_t (&r)[4], const float (&c)[4], const float (&d)[4], float factor) {
    r[0] = pack(c[0] * factor, c[1] * factor);
    r[1] = pack(c[2] * factor, c[3] * factor);
    r[2] = pack(d[0] * factor, d[1] * factor);
    r[3] = pack(d[2] * factor, d[3] * factor);
}
/* The two numbers of a pack. */
__device__ __forceinline__ float low_of(uint32_t both) {
    return __uint_as_float(both << 16);
}
__device__ __forceinline__ float high_of(uint32_t both) {
    return __uint_as_float(both & 0xffff0000u);
}
/* Four 8 x 8 blocks to shared memory, lane l gives the address of row l % 8 of block l / 8; transposed: each block. */
__device__ __forceinline__ void store_blocks(uint32_t at, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}
__device__ __forceinline__ void store_blocks_transposed(uint32_t at, const uint32_t (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(at), "r"(r[0]),
                 "r"(r[1]), "r"(r[2]), "r"(r[3])
                 : "memory");
}

} // namespace hopper
