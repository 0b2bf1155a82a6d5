/* Token embedding. The backward pass sorts the token positions by row of the table (stable), cuts the sorted list into
 * chunks of equal length, and adds each run of equal rows in order: a run inside one chunk goes straight into the
 * table, a run over several leaves one partial sum a chunk, which the second kernel adds in order. So a word that is
 * everywhere costs no more than one that is rare, and the order of every sum depends on the tokens alone. */
#include "core/ops/cuda/device.cuh"
#include "core/ops/cuda/kernels.h"

#include <cub/device/device_radix_sort.cuh>

enum { CHUNK = 32, MOST_POSITIONS = 1 << 16, COLUMN_THREADS = 128, KEY_THREADS = 256, BATCH = 4 };

template <typename T, int W>
static __global__ void __launch_bounds__(ROW_WARPS *WARP)
    gather(view<T> x, view<const T> table, int64_t table_rows, const int32_t *tokens, int64_t first, int64_t rows,
           int cols) {
    int64_t row = warp_row();
    if (row >= rows) return;
    int64_t from = tokens[row] - first;
    bool here = from >= 0 && from < table_rows;
    for (int j = threadIdx.x * W; j < cols; j += WARP * W) {
        float v[W] = {};
        if (here) load(v, table.row(from) + j);
        store(x.row(row) + j, v);
    }
}

/* The table's row of each position, `elsewhere` (larger than all) where it is on another rank. */
static __global__ void __launch_bounds__(KEY_THREADS)
    make_keys(uint32_t *keys, int32_t *positions, const int32_t *tokens, int64_t first, uint32_t elsewhere, int count) {
    int i = blockIdx.x * KEY_THREADS + threadIdx.x;
    if (i >= count) return;
    int64_t row = tokens[i] - first;
    keys[i] = row >= 0 && row < elsewhere ? (uint32_t)row : elsewhere;
    positions[i] = i;
}

/* One sorted piece: keys and positions [count], partial [chunks, 2, cols]: the sum of the run that came in from the
 * chunk before, and of the run that begins here and goes on in the next. */
typedef struct sorted_piece {
    const uint32_t *keys;
    const int32_t *positions;
    float *partial;
    uint32_t elsewhere;
    int count, cols;
} sorted_piece;

static __device__ __forceinline__ float *partial_of(const sorted_piece &p, int chunk, bool goes_on) {
    return p.partial + ((int64_t)chunk * 2 + goes_on) * p.cols;
}

template <int W> static __device__ __forceinline__ void add_to(float *to, const float (&v)[W]) {
    float at[W];
    load(at, to);
#pragma unroll
    for (int i = 0; i < W; i++) at[i] += v[i];
    store(to, at);
}

template <typename T, int W>
static __global__ void __launch_bounds__(COLUMN_THREADS)
    add_chunks(view<float> dtable, view<const T> dx, sorted_piece p) {
    int chunk = blockIdx.x, begin = chunk * CHUNK, length = min(CHUNK, p.count - begin);
    __shared__ uint32_t keys[CHUNK + 2]; /* with both neighbours' */
    __shared__ int32_t positions[CHUNK];
    for (int k = threadIdx.x; k < length + 2; k += COLUMN_THREADS) {
        int at = begin + k - 1;
        keys[k] = at >= 0 && at < p.count ? p.keys[at] : p.elsewhere;
        if (k < length) positions[k] = p.positions[begin + k];
    }
    __syncthreads();
    for (int j = (blockIdx.y * COLUMN_THREADS + threadIdx.x) * W; j < p.cols; j += gridDim.y * COLUMN_THREADS * W) {
        float total[W] = {};
        for (int k = 0; k < length; k += BATCH) {
            float v[BATCH][W];
#pragma unroll
            for (int b = 0; b < BATCH; b++)
                if (k + b < length) load(v[b], dx.row(positions[k + b]) + j);
#pragma unroll
            for (int b = 0; b < BATCH; b++) {
                if (k + b >= length) break;
                uint32_t key = keys[k + b + 1];
#pragma unroll
                for (int i = 0; i < W; i++) total[i] += v[b][i];
                bool last = k + b + 1 == length;
                if (!last && keys[k + b + 2] == key) continue;
                if (key != p.elsewhere) {
                    bool came_in = keys[1] == key && keys[0] == key, goes_on = last && keys[length + 1] == key;
                    if (came_in || goes_on)
                        store(partial_of(p, chunk, !came_in) + j, total);
                    else
                        add_to(dtable.row(key) + j, total);
                }
#pragma unroll
                for (int i = 0; i < W; i++) total[i] = 0;
            }
        }
    }
}

/* A block takes the run that begins in its chunk and goes on, if there is one. */
template <int W>
static __global__ void __launch_bounds__(COLUMN_THREADS) join_chunks(view<float> dtable, sorted_piece p) {
    int begin = blockIdx.x * CHUNK, next = begin + CHUNK;
    if (next >= p.count) return;
    uint32_t key = p.keys[next - 1];
    bool goes_on = key != p.elsewhere && p.keys[next] == key;
    bool came_in = begin > 0 && p.keys[begin] == key && p.keys[begin - 1] == key;
    if (!goes_on || came_in) return;
    for (int j = threadIdx.x * W; j < p.cols; j += COLUMN_THREADS * W) {
        float total[W];
        load(total, partial_of(p, blockIdx.x, true) + j);
        for (int at = next; at < p.count && p.keys[at] == key; at += CHUNK) {
            float v[W];
            load(v, partial_of(p, at / CHUNK, false) + j);
#pragma unroll
            for (int i = 0; i < W; i++) total[i] += v[i];
        }
        add_to(dtable.row(key) + j, total);
    }
}

extern "C" cudaError_t launch_embedding_forward(tensor x, tensor table, const int32_t *tokens, int64_t first,
                                                cudaStream_t stream) {
    return dispatch(x.type, x.rows, wide(x) && wide(table), [&](auto type, auto w) {
        using T = decltype(type);
        gather<T, w.value><<<row_grid(x.rows), row_block(), 0, stream>>>(
            view_of<T>(x), view_of<const T>(table), table.rows, tokens, first, x.rows, (int)x.cols);
    });
}

/* Takes bytes from the front of the scratch, on 256 bytes. */
static void *take(char **scratch, size_t bytes) {
    void *taken = *scratch;
    *scratch += (bytes + 255) / 256 * 256;
    return taken;
}

extern "C" cudaError_t launch_embedding_backward(tensor dtable, tensor dx, const int32_t *tokens, int64_t first,
                                                 void *scratch, size_t scratch_bytes, cudaStream_t stream) {
    bool is_wide = wide(dtable) && wide(dx);
    uint32_t elsewhere = (uint32_t)dtable.rows;
    int bits = 1;
    while (bits < 32 && elsewhere >> bits) bits++;

    char *at = (char *)scratch;
    uint32_t *keys = (uint32_t *)take(&at, MOST_POSITIONS * sizeof *keys);
    uint32_t *sorted_keys = (uint32_t *)take(&at, MOST_POSITIONS * sizeof *keys);
    int32_t *positions = (int32_t *)take(&at, MOST_POSITIONS * sizeof *positions);
    int32_t *sorted = (int32_t *)take(&at, MOST_POSITIONS * sizeof *positions);
    size_t sort_bytes = 0;
    cudaError_t result = cub::DeviceRadixSort::SortPairs(NULL, sort_bytes, keys, sorted_keys, positions, sorted,
                                                         (int)MOST_POSITIONS, 0, bits, stream);
    if (result != cudaSuccess) return result;
    void *sort_space = take(&at, sort_bytes);
    float *partial = (float *)at;

    /* As many positions at a time as there is scratch for their partial sums. */
    size_t used = (size_t)(at - (char *)scratch), chunk_bytes = 2 * (size_t)dx.cols * sizeof *partial;
    int64_t most = used < scratch_bytes ? (int64_t)((scratch_bytes - used) / chunk_bytes) * CHUNK : 0;
    if (most > MOST_POSITIONS) most = MOST_POSITIONS;
    if (most == 0) return cudaErrorInvalidValue;
    for (int64_t begin = 0; begin < dx.rows; begin += most) {
        int count = (int)(dx.rows - begin < most ? dx.rows - begin : most);
        make_keys<<<(count + KEY_THREADS - 1) / KEY_THREADS, KEY_THREADS, 0, stream>>>(keys, positions, tokens + begin,
                                                                                       first, elsewhere, count);
        result = cub::DeviceRadixSort::SortPairs(sort_space, sort_bytes, keys, sorted_keys, positions, sorted, count, 0,
                                                 bits, stream);
        if (result != cudaSuccess) return result;
        sorted_piece piece = {sorted_keys, sorted, partial, elsewhere, count, (int)dx.cols};
        unsigned chunks = (unsigned)((count + CHUNK - 1) / CHUNK);
        result = dispatch(dx.type, count, is_wide, [&](auto type, auto w) {
            using T = decltype(type);
            tensor rows = tensor_rows(dx, begin, count);
            unsigned slabs = (unsigned)((dx.cols + COLUMN_THREADS * w.value - 1) / (COLUMN_THREADS * w.value));
            add_chunks<T, w.value><<<dim3(chunks, slabs), COLUMN_THREADS, 0, stream>>>(view_of<float>(dtable),
                                                                                       view_of<const T>(rows), piece);
            join_chunks<w.value><<<chunks, COLUMN_THREADS, 0, stream>>>(view_of<float>(dtable), piece);
        });
        if (result != cudaSuccess) return result;
    }
    return cudaSuccess;
}
