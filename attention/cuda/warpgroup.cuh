/* Products of a warpgroup (four warps, 64 rows) by wgmma, for compute capability 9.0: operands are read from shared
 * memory by the tensor cores themselves, once for 64 rows.
 *
 * A tile is stored as panels [ROWS, 64] with the 128-byte swizzle (PTX ISA, "Asynchronous Warpgroup Level Matrix
 * Shared Memory Layout"): chunk c of a row of 128 bytes lies at c xor (row mod 8). A panel begins on 1,024 bytes. Such
 * a tile serves both ways round: as rows of a product's inner dimension (a bt) and as its outer one (p b). Columns
 * beyond D in the last panel are never read. */
#pragma once

#include "attention/cuda/tiles.cuh"

namespace tiles {

namespace wgmma {

constexpr int PANEL = 64, ROW_BYTES = PANEL * 2, GROUP_BYTES = 8 * ROW_BYTES; /* of eight rows */

/* A matrix descriptor: start, stride from eight rows to the next eight, 128-byte swizzle. The other stride is not used
 * where an operand is one panel wide. */
__device__ __forceinline__ uint64_t describe(uint32_t at) {
    return (uint64_t)(at >> 4 & 0x3fff) | (uint64_t)1 << 16 | (uint64_t)(GROUP_BYTES >> 4) << 32 | (uint64_t)1 << 62;
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
/* c [64, N] = a [64, 16] bt (adds: +=), b's tile has N rows. */
template <int N> __device__ __forceinline__ void multiply_tiles(float (&c)[N / 8][4], uint64_t a, uint64_t b, int adds);
/* c [64, N] += a b: a in registers, b's tile has 16 rows. */
template <int N>
__device__ __forceinline__ void multiply_registers(float (&c)[N / 8][4], const uint32_t (&a)[4], uint64_t b);

/* The instruction's operands: which registers, and where they are. */
#define REGISTERS_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define REGISTERS_32 REGISTERS_16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define SUM(n)       "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])
#define SUMS_16      SUM(0), SUM(1), SUM(2), SUM(3)
#define SUMS_32      SUMS_16, SUM(4), SUM(5), SUM(6), SUM(7)
#define WGMMA        "wgmma.mma_async.sync.aligned."

template <> __device__ __forceinline__ void multiply_tiles<64>(float (&c)[8][4], uint64_t a, uint64_t b, int adds) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n" WGMMA "m64n64k16.f32.bf16.bf16 {" REGISTERS_32
                 "}, %32, %33, p, 1, 1, 0, 0;\n}"
                 : SUMS_32
                 : "l"(a), "l"(b), "r"(adds));
}

template <> __device__ __forceinline__ void multiply_tiles<32>(float (&c)[4][4], uint64_t a, uint64_t b, int adds) {
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n" WGMMA "m64n32k16.f32.bf16.bf16 {" REGISTERS_16
                 "}, %16, %17, p, 1, 1, 0, 0;\n}"
                 : SUMS_16
                 : "l"(a), "l"(b), "r"(adds));
}

template <>
__device__ __forceinline__ void multiply_registers<64>(float (&c)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n" WGMMA "m64n64k16.f32.bf16.bf16 {" REGISTERS_32
                 "}, {%32, %33, %34, %35}, %36, p, 1, 1, 1;\n}"
                 : SUMS_32
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <>
__device__ __forceinline__ void multiply_registers<32>(float (&c)[4][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile("{\n.reg .pred p;\nsetp.eq.b32 p, 0, 0;\n" WGMMA "m64n32k16.f32.bf16.bf16 {" REGISTERS_16
                 "}, {%16, %17, %18, %19}, %20, p, 1, 1, 1;\n}"
                 : SUMS_16
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef WGMMA
#undef SUMS_32
#undef SUMS_16
#undef SUM
#undef REGISTERS_32
#undef REGISTERS_16

__device__ __forceinline__ void open_group() {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void close_group() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int PENDING> __device__ __forceinline__ void wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}
__device__ __forceinline__ void publish() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
#else /* the same names, for the architectures that never launch these kernels */
template <int N> __device__ __forceinline__ void multiply_tiles(float (&)[N / 8][4], uint64_t, uint64_t, int) {}
template <int N>
__device__ __forceinline__ void multiply_registers(float (&)[N / 8][4], const uint32_t (&)[4], uint64_t) {}
__device__ __forceinline__ void open_group() {}
__device__ __forceinline__ void close_group() {}
template <int PENDING> __device__ __forceinline__ void wait() {}
__device__ __forceinline__ void publish() {}
#endif

/* The compiler keeps these registers where they are: the tensor cores still write them. */
template <int N> __device__ __forceinline__ void hold(float (&c)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++) asm volatile("" : "+f"(c[n][0]), "+f"(c[n][1]), "+f"(c[n][2]), "+f"(c[n][3])::"memory");
}

/* Columns [FIRST, FIRST + N) of a fragment. */
template <int FIRST, int N, int ALL> __device__ __forceinline__ float (&part(float (&c)[ALL][4]))[N / 8][4] {
    static_assert((FIRST + N) / 8 <= ALL, "the fragment has these columns");
    return *(float(*)[N / 8][4])(c + FIRST / 8);
}

} // namespace wgmma

struct by_warpgroup {
    static constexpr int WARPS = 4;

    static constexpr int columns(int d) { return (d + wgmma::PANEL - 1) / wgmma::PANEL * wgmma::PANEL; }

    template <int D, int ROWS> static __device__ __forceinline__ uint32_t chunk_at(int row, int chunk) {
        return (uint32_t)(chunk / 8 * ROWS * wgmma::ROW_BYTES + row * wgmma::ROW_BYTES + (chunk % 8 ^ row % 8) * 16);
    }

    static __device__ __forceinline__ void publish() { wgmma::publish(); }

    template <int D, int ROWS, int MT, int N>
    static __device__ __forceinline__ void start_a_bt(float (&c)[MT][N / 8][4], uint32_t a, int first, uint32_t b) {
        static_assert(MT == 1, "a warpgroup has 64 rows");
        wgmma::hold(c[0]);
        wgmma::open_group();
        a += first / 64 * 64 * wgmma::ROW_BYTES;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t along = k % 4 * 32;
            uint64_t left = wgmma::describe(a + k / 4 * ROWS * wgmma::ROW_BYTES + along);
            uint32_t right = b + k / 4 * N * wgmma::ROW_BYTES + along;
            rows_of_b<0>(c[0], left, right, k > 0);
        }
        wgmma::close_group();
    }

    template <int D, int MT, int K>
    static __device__ __forceinline__ void start_p_b(float (&c)[MT][D / 8][4], uint32_t (&p)[MT][K / 16][4],
                                                     uint32_t b) {
        wgmma::hold(c[0]);
        wgmma::open_group();
#pragma unroll
        for (int k = 0; k < K / 16; k++) panels_of_b<0, K>(c[0], p[0][k], b + k * 16 * wgmma::ROW_BYTES);
        wgmma::close_group();
    }

    template <int PENDING, int MT, int N> static __device__ __forceinline__ void finish(float (&c)[MT][N][4]) {
        wgmma::wait<PENDING>();
        wgmma::hold(c[0]);
    }

  private:
    /* b's rows from FIRST on, 64 or the last 32 in one instruction. */
    template <int FIRST, int ALL>
    static __device__ __forceinline__ void rows_of_b(float (&c)[ALL][4], uint64_t left, uint32_t right, int adds) {
        constexpr int REST = ALL * 8 - FIRST, N = REST < 64 ? REST : 64;
        wgmma::multiply_tiles<N>(wgmma::part<FIRST, N>(c), left, wgmma::describe(right + FIRST * wgmma::ROW_BYTES),
                                 adds);
        if constexpr (REST > N) rows_of_b<FIRST + N>(c, left, right, adds);
    }

    /* b's columns from FIRST on: a panel of 64, or the first 32 of the last. */
    template <int FIRST, int ROWS, int ALL>
    static __device__ __forceinline__ void panels_of_b(float (&c)[ALL][4], const uint32_t (&left)[4], uint32_t right) {
        constexpr int REST = ALL * 8 - FIRST, N = REST < 64 ? REST : 64;
        wgmma::multiply_registers<N>(wgmma::part<FIRST, N>(c), left,
                                     wgmma::describe(right + FIRST / 64 * ROWS * wgmma::ROW_BYTES));
        if constexpr (REST > N) panels_of_b<FIRST + N, ROWS>(c, left, right);
    }
};

} // namespace tiles
