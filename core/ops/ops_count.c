/* The counting table: every operation does nothing, products add their flops. */
#include "core/ops/ops.h"

static void *no_alloc(ops *o, size_t bytes) {
    return NULL;
}
static void no_release(ops *o, void *data) {}
static void no_zero(ops *o, void *data, size_t bytes) {}
static void no_upload(ops *o, void *device, const void *host, size_t bytes) {}
static void no_download(ops *o, void *host, const void *device, size_t bytes) {}
static void no_sync(ops *o) {}
static void no_mark(ops *o, ops_mark *m, const char *name) {}
static void no_mark_wait(ops *o, const ops_mark *m) {}
static bool no_offload_open(ops *o, size_t bytes) {
    return true;
}
static bool no_host_lock(ops *o, void *host, size_t bytes) {
    return false;
}
static void no_offload(ops *o, int slot, void *host, const offload_part *parts, int count) {}
static status no_offload_wait(ops *o, int slot) {
    return STATUS_OK;
}
static void no_save(ops *o, void *host, const offload_part *parts, int count) {}
static void no_save_fence(ops *o) {}
static status no_save_wait(ops *o) {
    return STATUS_OK;
}

static void count_matmul(ops *o, tensor y, tensor a, bool transpose_a, tensor b, bool transpose_b, float beta) {
    o->flops += 2.0 * (double)y.rows * (double)y.cols * (double)(transpose_a ? a.rows : a.cols);
}

static void no_norm(ops *o, tensor y, float *rstd, tensor x, const float *gain, float eps) {}
static void no_add_norm(ops *o, tensor sum, tensor y, float *rstd, tensor x, tensor branch, const float *gain,
                        float eps) {}
static void no_norm_backward(ops *o, tensor dx, bool accumulate, float *dgain, tensor dy, tensor x, const float *gain,
                             const float *rstd) {}
static void no_rope(ops *o, tensor x, rope_args args) {}
static void no_two(ops *o, tensor y, tensor x) {}
static void no_three(ops *o, tensor y, tensor a, tensor b) {}
static void no_embedding(ops *o, tensor x, tensor table, const int32_t *tokens, int64_t first) {}
static void no_ce_max(ops *o, float *row_max, tensor logits, int64_t valid) {}
static void no_ce_sums(ops *o, float *sums, float *picked, tensor logits, int64_t valid, const float *row_max,
                       const int32_t *targets, int64_t first) {}
static void no_ce_loss(ops *o, double *loss, const float *sums, const float *picked, const float *row_max, int64_t n) {}
static void no_ce_backward(ops *o, tensor logits, int64_t valid, const float *row_max, const float *sums,
                           const int32_t *targets, int64_t first, float scale) {}
static void no_ce_whole(ops *o, float *row_max, float *sums, float *picked, tensor logits, int64_t valid,
                        const int32_t *targets, float scale) {}
static void no_sum_squares(ops *o, double *out, const float *x, int64_t count) {}
static void no_cast(ops *o, void *out, const float *x, int64_t count) {}
static void no_adamw_begin(ops *o, adamw_update *u, adamw_args args) {}
static void no_adamw(ops *o, float *weight, float *m, float *v, const float *gradient, void *copy, int64_t count,
                     float weight_decay, const adamw_update *u) {}

void ops_count(ops *out, dtype activation, int64_t logit_elements) {
    *out = (ops){
        .name = "count",
        .activation = activation,
        .logit_elements = logit_elements,
        .alloc = no_alloc,
        .release = no_release,
        .alloc_shared = no_alloc,
        .release_shared = no_release,
        .zero = no_zero,
        .upload = no_upload,
        .download = no_download,
        .fetch = no_download,
        .sync = no_sync,
        .mark = no_mark,
        .mark_wait = no_mark_wait,
        .offload_open = no_offload_open,
        .host_alloc = no_alloc,
        .host_release = no_release,
        .host_lock = no_host_lock,
        .host_unlock = no_release,
        .offload = no_offload,
        .offload_wait = no_offload_wait,
        .save = no_save,
        .save_fence = no_save_fence,
        .save_wait = no_save_wait,
        .matmul = count_matmul,
        .rmsnorm_forward = no_norm,
        .add_rmsnorm_forward = no_add_norm,
        .rmsnorm_backward = no_norm_backward,
        .rope = no_rope,
        .swiglu_forward = no_two,
        .swiglu_backward = no_three,
        .embedding_forward = no_embedding,
        .embedding_backward = no_embedding,
        .ce_max = no_ce_max,
        .ce_sums = no_ce_sums,
        .ce_loss = no_ce_loss,
        .ce_backward = no_ce_backward,
        .ce_whole = no_ce_whole,
        .add = no_three,
        .copy = no_two,
        .sum_squares = no_sum_squares,
        .adamw_begin = no_adamw_begin,
        .adamw = no_adamw,
        .cast = no_cast,
    };
}
