/* The operations that attention/ and trainer/ are written against: one table a device, filled in cpu/ and cuda/.
 *
 * All data pointers are device memory. Calls are queued in order; nothing is complete before sync (the CPU table
 * computes at once). Memory of the host that upload reads must stay as it is until the queue has passed a mark made
 * behind it where it is from host_alloc; of any other the call takes a copy. A call does not return a status: the first
 * failure is kept in the table and read by ops_status(), once a step. Outputs overwrite unless the comment says "adds".
 * No call allocates.
 *
 * N rows (tokens), d width, F feed-forward width, V vocabulary rows on this rank, T context length. */
#pragma once

#include "core/status.h"
#include "core/tensor.h"

#include <stdbool.h>

typedef struct ops ops;

/* Hyper-parameters of one AdamW update (Loshchilov & Hutter 2019), and on what it depends. */
typedef struct adamw_args {
    float lr, beta1, beta2, eps;
    float clip;            /* gradients are scaled by min(1, clip / norm); 0: never */
    const double *norm_sq; /* device scalar: squared norm of the whole gradient */
    const double *losses;  /* device, [loss_count] */
    int64_t loss_count;
} adamw_args;

/* One update as the device works it out, in its memory: the host need not know first whether there is one. */
typedef struct adamw_update {
    int64_t count; /* of updates so far, this one included: bias corrections go by it */
    int64_t is_left_out;
    float lr, beta1, beta2, eps;
    float scale; /* of gradients */
    float correct1, correct2;
} adamw_update;

/* Where the rotary part lies in each row: heads blocks of `stride` columns, `dim` of them rotated from column `first`
 * on. */
typedef struct rope_args {
    int heads;
    int64_t stride, first;
    int dim;            /* even; the half-rotation layout of Hugging Face's Llama: pairs (j, j + dim/2) */
    int64_t context;    /* T: row i is position i % T */
    const float *table; /* [T, dim]: cos of the dim/2 angles, then their sines */
    bool inverse;       /* rotate back: the backward pass */
} rope_args;

/* A run of device memory that an offload carries. */
typedef struct offload_part {
    const void *device;
    size_t bytes;
} offload_part;

/* A moment of the table's queue: one that was marked is marked again, and released in the end. All zero at first. */
typedef struct ops_mark {
    double s;    /* of the CPU table */
    void *event; /* of the CUDA table */
} ops_mark;

enum { OFFLOAD_SLOTS = 3 }; /* offloads under way at most, one a slot */

enum { OPS_CPU_LOGITS = 4 << 20, OPS_CUDA_LOGITS = 128 << 20 };

struct ops {
    const char *name;
    char device[64];        /* what the device itself is called, for records */
    dtype activation;       /* type of activations and of the weights' compute copy */
    int64_t logit_elements; /* of logits to compute at a time: enough for efficient products, little beside the rest */
    bool queues;            /* calls may return before their work is done */
    status first_error;     /* STATUS_OK, or the first failure's code; its message is in status_message() */
    double flops;           /* of matrix products so far: 2 m n k each */
    double attention_flops; /* of attention's fused cores so far (attention/attention.c) */
    double gemm_seconds;    /* time inside matrix products so far, on the calling thread */

    struct profile *profile; /* core/ops/profile.h; NULL: nobody looks */

    void *context;         /* what the device's own files keep here: core/ops/cuda/context.h */
    void (*close)(ops *o); /* frees context; NULL where there is none */

    /* memory */
    void *(*alloc)(ops *o, size_t bytes); /* zeroed; NULL when there is none */
    void (*release)(ops *o, void *data);
    /* The same for what groups of ranks reduce: their library may put an allocator of its own here (comm/nccl.c). */
    void *(*alloc_shared)(ops *o, size_t bytes);
    void (*release_shared)(ops *o, void *data);
    void (*zero)(ops *o, void *data, size_t bytes);
    void (*upload)(ops *o, void *device, const void *host, size_t bytes);
    void (*download)(ops *o, void *host, const void *device, size_t bytes); /* complete on return */
    /* A download into memory from host_alloc that is complete when the queue has passed a mark made behind it. */
    void (*fetch)(ops *o, void *host, const void *device, size_t bytes);
    void (*sync)(ops *o);
    /* What the device's memory in use has grown by since the table was opened, by whatever process; NULL where the
     * device has no memory of its own. */
    size_t (*used_bytes)(ops *o);

    /* Offloads: device memory on its way to the host while the queue and the caller go on. The parts arrive one behind
     * the other in host, memory from host_alloc or locked, as they are at this place of the queue, whatever is written
     * there later. offload_wait, on any thread, returns when the slot's last offload has arrived, or with its error;
     * until then neither the slot nor its host memory may be used again. */
    bool (*offload_open)(ops *o, size_t bytes); /* room on the device for offloads of that size; false: there is none */
    void *(*host_alloc)(ops *o, size_t bytes);  /* zeroed, page-locked where that matters; NULL when there is none */
    void (*host_release)(ops *o, void *host);
    /* Makes memory that is somebody else's as good as host_alloc's until host_unlock; false: it stays as it was. */
    bool (*host_lock)(ops *o, void *host, size_t bytes);
    void (*host_unlock)(ops *o, void *host);
    void (*offload)(ops *o, int slot, void *host, const offload_part *parts, int count);
    status (*offload_wait)(ops *o, int slot);

    /* A save: more than there is room to gather on the device, so the parts go straight to the host, one behind the
     * other, in memory from host_alloc or any other, while the queue goes on. Until they have arrived nothing may write
     * them: what does is queued behind a save_fence. save_wait, on any thread, returns when the last save has arrived,
     * or with its error. One save at a time. */
    void (*save)(ops *o, void *host, const offload_part *parts, int count);
    void (*save_fence)(ops *o);
    status (*save_wait)(ops *o);

    /* Marks this place of the queue. name: of what begins here, for the device's own profiler (a range of NVTX from
     * here to the next mark); NULL: of nothing. mark_span_s: seconds between the moments at which the queue came to the
     * two places; waits until it has. */
    void (*mark)(ops *o, ops_mark *m, const char *name);
    void (*mark_wait)(ops *o, const ops_mark *m); /* until the queue has passed it; at once if it was never marked */
    double (*mark_span_s)(ops *o, const ops_mark *from, const ops_mark *to);
    void (*mark_release)(ops *o, ops_mark *m);

    /* y = op(a) op(b) + beta y, op = transpose where the flag is set. Any view with unit column stride. */
    void (*matmul)(ops *o, tensor y, tensor a, bool transpose_a, tensor b, bool transpose_b, float beta);

    /* y = x * rstd * gain, rstd[N] = 1/sqrt(mean(x^2) + eps). */
    void (*rmsnorm_forward)(ops *o, tensor y, float *rstd, tensor x, const float *gain, float eps);
    /* The residual connection before a norm, in one pass: sum = x + branch (sum may be x), the rest of its norm. */
    void (*add_rmsnorm_forward)(ops *o, tensor sum, tensor y, float *rstd, tensor x, tensor branch, const float *gain,
                                float eps);
    /* dx (adds when accumulate) and dgain[d] (adds, fp32) from dy, the input x and its rstd. */
    void (*rmsnorm_backward)(ops *o, tensor dx, bool accumulate, float *dgain, tensor dy, tensor x, const float *gain,
                             const float *rstd);

    /* In place. */
    void (*rope)(ops *o, tensor x, rope_args args);

    /* h = silu(gate) * up, gate_up [N, 2F]: gate in the first F columns, up in the last. */
    void (*swiglu_forward)(ops *o, tensor h, tensor gate_up);
    /* dgate_up, which may be gate_up; dh becomes h again. */
    void (*swiglu_backward)(ops *o, tensor dgate_up, tensor dh, tensor gate_up);

    /* x[i] = table[tokens[i] - first], 0 where that row is not on this rank. */
    void (*embedding_forward)(ops *o, tensor x, tensor table, const int32_t *tokens, int64_t first);
    /* dtable (adds, fp32). */
    void (*embedding_backward)(ops *o, tensor dtable, tensor dx, const int32_t *tokens, int64_t first);

    /* Cross-entropy over logits [n, V] whose columns are the vocabulary rows first .. first + valid (the rest is
     * padding). row_max[n]; then sums[n] = sum exp(logit - row_max), picked[n] = the target's logit where it is here,
     * else 0; then logits become their gradient scale * (softmax - onehot), padding 0. Between them the caller reduces
     * over TP. */
    void (*ce_max)(ops *o, float *row_max, tensor logits, int64_t valid);
    void (*ce_sums)(ops *o, float *sums, float *picked, tensor logits, int64_t valid, const float *row_max,
                    const int32_t *targets, int64_t first);
    /* loss (adds, device scalar) += sum_i log(sums) + row_max - picked, in row order. */
    void (*ce_loss)(ops *o, double *loss, const float *sums, const float *picked, const float *row_max, int64_t n);
    void (*ce_backward)(ops *o, tensor logits, int64_t valid, const float *row_max, const float *sums,
                        const int32_t *targets, int64_t first, float scale);
    /* All but the loss where the whole vocabulary is on this rank (first = 0): row_max, sums and picked, and the logits
     * become their gradient. Each logit is read and written once. */
    void (*ce_whole)(ops *o, float *row_max, float *sums, float *picked, tensor logits, int64_t valid,
                     const int32_t *targets, float scale);

    /* y = a + b; y may be a or b. */
    void (*add)(ops *o, tensor y, tensor a, tensor b);
    /* y = x. */
    void (*copy)(ops *o, tensor y, tensor x);

    /* out (adds, device scalar) += sum x^2, in an order that depends on count alone. */
    void (*sum_squares)(ops *o, double *out, const float *x, int64_t count);
    /* Counts an update and works it out; it is left out, and not counted, where the norm or a loss is not finite. */
    void (*adamw_begin)(ops *o, adamw_update *u, adamw_args args);
    /* That update of count fp32 master weights in place; copy[count], of the activation type, gets the new weights too
     * (NULL: there is none). */
    void (*adamw)(ops *o, float *weight, float *m, float *v, const float *gradient, void *copy, int64_t count,
                  float weight_decay, const adamw_update *u);
    /* out[count], of the activation type, = x. */
    void (*cast)(ops *o, void *out, const float *x, int64_t count);
};

/* The CPU table (OpenBLAS, OpenMP); threads > 0 are used for every operation. Sets the process's BLAS and OpenMP
 * threads. */
status ops_cpu(ops *out, int threads);

/* The table of NVIDIA GPU `device` (an index among those this process sees), of compute capability 8.0 or more: bf16
 * activations with fp32 accumulation, or fp32 throughout (TF32 off). CONFIG, naming the reason, when there is none or
 * the program was built without CUDA. The caller ends it with out->close. */
status ops_cuda(ops *out, int device, bool fp32);

/* GPUs that this process sees; 0 without a driver or built without CUDA. */
int ops_cuda_devices(void);

/* A GPU that this process sees, and the CUDA versions of `bulkhead version`. */
typedef struct ops_gpu {
    char name[64];
    int major, minor; /* compute capability */
    size_t memory_bytes;
} ops_gpu;

/* False when GPU `device` cannot be asked. */
bool ops_cuda_gpu(ops_gpu *out, int device);

/* CUDA versions as 1000 major + 10 minor: what the program was built with, and the newest that the driver runs; 0 for
 * none. */
int ops_cuda_built(void);
int ops_cuda_driver(void);

/* First in a program's main: where OpenBLAS does not know this processor and fell back to its oldest kernels, begins the
 * program anew with OPENBLAS_CORETYPE naming better ones; does not return then. A variable that is set already is left. */
void ops_cpu_begin(char **argv);

/* What the CPU table's products come from, for `bulkhead version`; ends with the kernels that were taken. */
const char *ops_cpu_blas(void);

/* A table that computes nothing and touches no memory, but counts flops: set-up code runs over it to find out what a
 * step needs. */
void ops_count(ops *out, dtype activation, int64_t logit_elements);

static inline status ops_status(const ops *o) {
    return o->first_error;
}

/* All that has been counted so far. */
static inline double ops_flops(const ops *o) {
    return o->flops + o->attention_flops;
}

/* y = x Wt (+ y when accumulate): x [N, in], w [out, in], y [N, out]. */
static inline void ops_linear(ops *o, tensor y, tensor x, tensor w, bool accumulate) {
    o->matmul(o, y, x, false, w, true, accumulate ? 1.0f : 0.0f);
}

/* dx = dy W (+ dx when accumulate). */
static inline void ops_linear_dx(ops *o, tensor dx, tensor dy, tensor w, bool accumulate) {
    o->matmul(o, dx, dy, false, w, false, accumulate ? 1.0f : 0.0f);
}

/* dW = dyt x (+ dW when accumulate), fp32. */
static inline void ops_linear_dw(ops *o, tensor dw, tensor dy, tensor x, bool accumulate) {
    o->matmul(o, dw, dy, true, x, false, accumulate ? 1.0f : 0.0f);
}
