/* Singular values of many matrices, from the eigenvalues of their Gram matrices in float64: Householder's reduction to
 * tridiagonal form with updates that wait (Dongarra, Sorensen & Hammarling 1989), then bisection by Sturm's counts
 * (Barth, Martin & Wilkinson 1967). Outputs are overwritten. All sides from 1 on; the reduction is a cooperative
 * launch.
 *
 * Squaring costs digits, and float64 has them: an eigenvalue is off by some 2^-53 of the largest, so a singular value
 * at a share q of the largest is off by some 2^-54 / q^2 of itself, 1e-4 at q = 1e-6. A solver that works in fp32 is
 * off by 2^-24 / q, which is more for all q over 1e-9.
 *
 * A reduction reads the trailing matrix once a column: 8 side^3 / 3 bytes, and this is its time. So a group of blocks
 * shares a matrix, as many as the device holds, and whatever needs O(side) operations is done by each of them again:
 * they meet once a column. A column's update of rank two waits until there are several, then the matrix is updated
 * while it is multiplied. Rows are whole and belong to a warp: the bits do not depend on how many blocks share a
 * matrix. */
#include "diag/cuda/kernels.h"

#include <cuda/atomic>
#include <float.h>
#include <math_constants.h>
#include <stdint.h>

namespace {

constexpr int WARP = 32;
constexpr int MOST_WARPS = 16;
constexpr int ROWS = 2;        /* that a warp takes at once */
constexpr int BATCH = 4;       /* loads of a row that a lane has under way */
constexpr int LEAST_ROWS = 32; /* of the whole matrix, that a block is worth */
constexpr int ELEMENT_THREADS = 256;
constexpr int USUAL_PAIRS = 8;
constexpr int BISECT_THREADS = 64;
constexpr int BISECTIONS = 54; /* float64 has no more digits */

/* The sum over a warp, the same bits in each lane. */
__device__ double sum_of_warp(double x) {
    for (int step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

/* The sum over a block, the same bits in each thread. parts [MOST_WARPS], shared; another call may use them again only
 * after a barrier. What threads wrote before is seen after it. */
__device__ double sum_of_block(double x, double *parts) {
    x = sum_of_warp(x);
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = x;
    __syncthreads();
    double sum = 0;
    for (unsigned i = 0; i < blockDim.x / WARP; i++) sum += parts[i];
    return sum;
}

/* Waits until all blocks of the group are here for the round-th time, from 1 on; what each wrote before, the others see
 * after it. arrivals: 0 at the start. */
__device__ void meet(unsigned *arrivals, unsigned members, unsigned round) {
    __syncthreads();
    if (members > 1 && threadIdx.x == 0) {
        cuda::atomic_ref<unsigned, cuda::thread_scope_device> here(*arrivals);
        here.fetch_add(1, cuda::memory_order_acq_rel);
        while (here.load(cuda::memory_order_acquire) < members * round) {
        }
    }
    __syncthreads();
}

/* What a block knows while it reduces a matrix A. Rows and vectors have `stride` entries, those from side on are 0. */
struct reduction {
    double *a; /* [side, stride], symmetric, without the pending updates */
    int side, stride;
    double *v;     /* [stride] the present column's Householder vector; 0 up to the column */
    double *pairs; /* [most pairs, 2, stride] pending: A - sum of v wt + w vt */
    int pending;
    double *dots; /* [most pairs, 2] of v with the pending ones */
};

/* v = row k of A, updated, from k on; the sum of squares behind k + 1. The row's owner may be another block: past L1.
 */
__device__ double take_row(const reduction &r, int k) {
    const double *row = r.a + (size_t)k * r.stride;
    double squares = 0;
    for (int c = threadIdx.x; c < r.side; c += blockDim.x) {
        if (c < k) continue;
        double x = __ldcg(row + c);
        for (int i = 0; i < r.pending; i++) {
            const double *v = r.pairs + 2 * i * r.stride, *w = v + r.stride;
            x -= v[c] * w[k] + w[c] * v[k];
        }
        r.v[c] = x;
        if (c > k + 1) squares += x * x;
    }
    return squares;
}

/* H = 1 - tau v vt takes (alpha, tail) to (beta, 0), where squares is the tail's; scale: of the tail, for v = (1, ...).
 */
struct householder {
    double beta, tau, scale;
};

__device__ householder reflect(double alpha, double squares) {
    if (squares == 0) return {alpha, 0, 0};
    double beta = -copysign(sqrt(alpha * alpha + squares), alpha);
    return {beta, (beta - alpha) / beta, 1 / (alpha - beta)};
}

/* dots = the pending vectors times v, a warp each. */
__device__ void take_dots(const reduction &r, int k) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP;
    for (int q = warp; q < 2 * r.pending; q += warps) {
        const double *x = r.pairs + q * r.stride;
        double sum = 0;
        for (int c = k + 1 + lane; c < r.side; c += WARP) sum += x[c] * r.v[c];
        sum = sum_of_warp(sum);
        if (lane == 0) r.dots[q] = sum;
    }
}

__device__ void subtract(double2 &x, double a, double2 b, double c, double2 d) {
    x.x -= a * b.x + c * d.x;
    x.y -= a * b.y + c * d.y;
}

/* The pending updates of BATCH pairs of entries in each of ROWS rows, at columns c, c + 2 WARP, .... */
__device__ void update(double2 (&x)[ROWS][BATCH], const reduction &r, const int (&row)[ROWS], int c) {
    for (int i = 0; i < r.pending; i++) {
        const double *v = r.pairs + 2 * i * r.stride, *w = v + r.stride;
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int at = c + 2 * WARP * b;
            if (at >= r.stride) continue;
            double2 vs = *(const double2 *)(v + at), ws = *(const double2 *)(w + at);
#pragma unroll
            for (int j = 0; j < ROWS; j++) subtract(x[j][b], v[row[j]], ws, w[row[j]], vs);
        }
    }
}

/* product [side] = A v in this block's rows under k; UPDATE: of A with the pending updates, which it gets. */
template <bool UPDATE> __device__ void multiply(const reduction &r, double *product, int k, int member, int members) {
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, warps = blockDim.x / WARP, first = (k + 1) / 2 * 2;
    for (int top = k + 1 + ROWS * (member + members * warp); top < r.side; top += ROWS * members * warps) {
        int row[ROWS];
        double *of_row[ROWS], sum[ROWS] = {};
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            row[j] = min(top + j, r.side - 1);
            of_row[j] = r.a + (size_t)row[j] * r.stride;
        }
        for (int c = first + 2 * lane; c < r.stride; c += 2 * WARP * BATCH) {
            double2 x[ROWS][BATCH];
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                int at = c + 2 * WARP * b;
#pragma unroll
                for (int j = 0; j < ROWS; j++)
                    x[j][b] = at < r.stride ? __ldcg((const double2 *)(of_row[j] + at)) : make_double2(0, 0);
            }
            if (UPDATE) update(x, r, row, c);
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                int at = c + 2 * WARP * b;
                if (at >= r.stride) continue;
                double2 v = *(const double2 *)(r.v + at);
#pragma unroll
                for (int j = 0; j < ROWS; j++) {
                    if (UPDATE) __stcg((double2 *)(of_row[j] + at), x[j][b]);
                    sum[j] += x[j][b].x * v.x;
                    sum[j] += x[j][b].y * v.y;
                }
            }
        }
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            sum[j] = sum_of_warp(sum[j]);
            if (lane == 0) __stcg(product + row[j], sum[j]);
        }
    }
}

/* w = the product, less the pending updates' share where A has not got them, into the slot-th pair; this thread's part
 * of its product with v. */
__device__ double take_product(const reduction &r, const double *product, int k, int slot, bool updated) {
    double *to = r.pairs + (2 * slot + 1) * r.stride, sum = 0;
    for (int c = threadIdx.x; c < r.side; c += blockDim.x) {
        if (c <= k) continue;
        double x = __ldcg(product + c);
        for (int i = 0; i < r.pending && !updated; i++) {
            const double *v = r.pairs + 2 * i * r.stride, *w = v + r.stride;
            x -= v[c] * r.dots[2 * i + 1] + w[c] * r.dots[2 * i];
        }
        to[c] = x;
        sum += x * r.v[c];
    }
    return sum;
}

/* The slot-th pair: v, and w = tau x - tau^2 (x v) / 2 v, where it holds x. */
__device__ void keep_pair(const reduction &r, int k, int slot, double tau, double dot) {
    double *v = r.pairs + 2 * slot * r.stride, *w = v + r.stride, share = tau * tau * dot / 2;
    for (int c = threadIdx.x; c < r.stride; c += blockDim.x) {
        bool within = c > k && c < r.side;
        v[c] = within ? r.v[c] : 0;
        w[c] = within ? tau * w[c] - share * r.v[c] : 0;
    }
}

struct task {
    double *matrices;          /* [count, stride, stride] */
    double *diagonal, *beside; /* [count, stride] */
    double *products;          /* [groups, 2, stride] */
    unsigned *arrivals;        /* [groups] */
    double *panels;            /* [groups * members, 1 + 2 most pairs, stride], NULL: in shared memory */
    int side, stride, count, groups, members, most_pairs;
};

/* One matrix; rounds: how often the group has met. */
__device__ void reduce(reduction r, const task &t, int matrix, int group, int member, unsigned *rounds) {
    __shared__ double norm_parts[MOST_WARPS], dot_parts[MOST_WARPS], head;
    double *diagonal = t.diagonal + (size_t)matrix * t.stride, *beside = t.beside + (size_t)matrix * t.stride;
    bool first = member == 0 && threadIdx.x == 0;
    r.a = t.matrices + (size_t)matrix * t.stride * t.stride;
    for (int c = threadIdx.x; c < r.stride; c += blockDim.x) r.v[c] = 0;
    for (int k = 0; k < r.side; k++) {
        __syncthreads();
        double squares = take_row(r, k);
        for (int c = threadIdx.x; c < r.side; c += blockDim.x) { /* the same thread's as in take_row */
            if (c == k && member == 0) diagonal[k] = r.v[c];
            if (c == k + 1) head = r.v[c];
        }
        squares = sum_of_block(squares, norm_parts);
        if (k == r.side - 1) return;
        householder h = reflect(head, squares);
        if (first) beside[k] = h.beta;
        for (int c = threadIdx.x; c < r.side; c += blockDim.x)
            if (c >= k) r.v[c] = c == k ? 0 : c == k + 1 ? 1 : h.scale * r.v[c];
        __syncthreads();

        double *product = t.products + ((size_t)2 * group + *rounds % 2) * t.stride;
        bool full = r.pending == t.most_pairs;
        if (full) {
            multiply<true>(r, product, k, member, t.members);
        } else {
            take_dots(r, k);
            multiply<false>(r, product, k, member, t.members);
        }
        meet(t.arrivals + group, t.members, ++*rounds);
        int slot = full ? 0 : r.pending;
        double dot = sum_of_block(take_product(r, product, k, slot, full), dot_parts);
        keep_pair(r, k, slot, h.tau, dot);
        r.pending = slot + 1;
    }
}

/* diagonal and beside it: the tridiagonal form of matrices, which are lost. Group g takes matrices g, g + groups, ....
 */
__global__ void __launch_bounds__(MOST_WARPS *WARP) tridiagonalize(task t) {
    extern __shared__ double2 shared_panel[];
    __shared__ double dots[2 * TRIDIAGONAL_MOST_PAIRS];
    int group = blockIdx.x / t.members, member = blockIdx.x % t.members;
    double *panel =
        t.panels ? t.panels + (size_t)blockIdx.x * (1 + 2 * t.most_pairs) * t.stride : (double *)shared_panel;
    reduction r = {NULL, t.side, t.stride, panel, panel + t.stride, 0, dots};
    unsigned rounds = 0;
    for (int matrix = group; matrix < t.count; matrix += t.groups) reduce(r, t, matrix, group, member, &rounds);
}

/* How many eigenvalues of the tridiagonal matrix lie under x: the negative pivots of T - x (Sturm). */
__device__ int count_below(const double *diagonal, const double *beside, int side, double x, double least) {
    double pivot = 1;
    int below = 0;
    for (int i = 0; i < side; i++) {
        double before = i > 0 ? beside[i - 1] : 0;
        pivot = diagonal[i] - x - before * before / pivot;
        if (fabs(pivot) < least) pivot = -least;
        below += pivot < 0;
    }
    return below;
}

__host__ __device__ int bisect_blocks(int side) {
    return (side + BISECT_THREADS - 1) / BISECT_THREADS;
}

/* values [count, side], descending: roots of the eigenvalues, a thread each, found between 0 and Gershgorin's bound. */
__global__ void __launch_bounds__(BISECT_THREADS)
    bisect(float *values, const double *diagonals, const double *besides, int side, int stride) {
    int blocks = bisect_blocks(side), matrix = blockIdx.x / blocks,
        place = blockIdx.x % blocks * blockDim.x + threadIdx.x;
    if (place >= side) return;
    const double *diagonal = diagonals + (size_t)matrix * stride, *beside = besides + (size_t)matrix * stride;
    double low = 0, high = 0, most = 1, before = 0;
    bool finite = true;
    for (int i = 0; i < side; i++) {
        double after = i < side - 1 ? fabs(beside[i]) : 0, bound = diagonal[i] + before + after;
        finite = finite && isfinite(bound);
        high = fmax(high, bound);
        most = fmax(most, after * after);
        before = after;
    }
    for (int i = 0; i < BISECTIONS && finite; i++) {
        double middle = (low + high) / 2;
        if (count_below(diagonal, beside, side, middle, DBL_MIN * most) > side - 1 - place) {
            high = middle;
        } else {
            low = middle;
        }
    }
    values[(size_t)matrix * side + place] = finite ? (float)sqrt(low) : CUDART_NAN_F;
}

__global__ void widen(double *out, const float *in, int side, int stride, int64_t total) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= total) return;
    int column = (int)(at % stride);
    out[at] = column < side ? in[at / stride * side + column] : 0;
}

} // namespace

int tridiagonal_stride(int side) {
    return (side + 3) / 4 * 4;
}

static size_t panel_bytes(int side, int pairs) {
    return (size_t)(1 + 2 * pairs) * (size_t)tridiagonal_stride(side) * sizeof(double);
}

void tridiagonal_shape(tridiagonal_plan *p, int side, size_t shared_bytes) {
    p->side = side;
    p->stride = tridiagonal_stride(side);
    p->threads = side <= 192 ? 128 : side <= 256 ? 256 : MOST_WARPS * WARP;
    p->pairs = USUAL_PAIRS;
    while (p->pairs > 1 && panel_bytes(side, p->pairs) > shared_bytes) p->pairs--;
    p->shared_bytes = panel_bytes(side, p->pairs);
    if (p->shared_bytes <= shared_bytes) return;
    p->pairs = USUAL_PAIRS;
    p->shared_bytes = 0;
}

void tridiagonal_share(tridiagonal_plan *p, int count, int blocks) {
    int most = (p->side + LEAST_ROWS - 1) / LEAST_ROWS;
    p->count = count;
    p->blocks = blocks;
    p->groups = count < blocks ? count : blocks;
    p->members = blocks / p->groups < most ? blocks / p->groups : most;
}

cudaError_t tridiagonal_plan_for(tridiagonal_plan *out, int side, int count, int device) {
    int shared = 0, processors = 0, blocks = 0;
    cudaFuncAttributes kernel;
    cudaError_t code = cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (code == cudaSuccess) code = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    if (code == cudaSuccess) code = cudaFuncGetAttributes(&kernel, tridiagonalize);
    if (code != cudaSuccess) return code;
    tridiagonal_shape(out, side, (size_t)shared - kernel.sharedSizeBytes);
    code = cudaFuncSetAttribute(tridiagonalize, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                (int)((size_t)shared - kernel.sharedSizeBytes));
    if (code == cudaSuccess)
        code = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, tridiagonalize, out->threads, out->shared_bytes);
    if (code != cudaSuccess) return code;
    tridiagonal_share(out, count, blocks * processors);
    return cudaSuccess;
}

size_t tridiagonal_vector_bytes(const tridiagonal_plan *p) {
    size_t panels = p->shared_bytes ? 0 : (size_t)p->blocks * panel_bytes(p->side, p->pairs);
    return (size_t)4 * p->count * p->stride * sizeof(double) + panels;
}

cudaError_t launch_widen(double *out, const float *matrices, int side, int count, cudaStream_t stream) {
    int64_t total = (int64_t)count * side * tridiagonal_stride(side);
    widen<<<(unsigned)((total + ELEMENT_THREADS - 1) / ELEMENT_THREADS), ELEMENT_THREADS, 0, stream>>>(
        out, matrices, side, tridiagonal_stride(side), total);
    return cudaGetLastError();
}

cudaError_t launch_tridiagonal_values(float *values, double *grams, double *vectors, unsigned *arrivals,
                                      const tridiagonal_plan *p, cudaStream_t stream) {
    size_t all = (size_t)p->count * p->stride;
    double *diagonal = vectors, *beside = diagonal + all, *products = beside + all;
    double *panels = p->shared_bytes ? NULL : products + 2 * all;
    task t = {grams,   diagonal,  beside,   products,  arrivals,   panels,
              p->side, p->stride, p->count, p->groups, p->members, p->pairs};
    void *arguments[] = {&t};
    cudaError_t code = cudaMemsetAsync(arrivals, 0, (size_t)p->groups * sizeof *arrivals, stream);
    if (code == cudaSuccess) /* at once, as a group's blocks wait for each other */
        code = cudaLaunchCooperativeKernel((const void *)tridiagonalize, dim3(p->groups * p->members), dim3(p->threads),
                                           arguments, p->shared_bytes, stream);
    if (code != cudaSuccess) return code;
    bisect<<<(unsigned)(p->count * bisect_blocks(p->side)), BISECT_THREADS, 0, stream>>>(values, diagonal, beside,
                                                                                         p->side, p->stride);
    return cudaGetLastError();
}
