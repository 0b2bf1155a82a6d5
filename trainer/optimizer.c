#include "trainer/optimizer.h"

#include "core/ops/profile.h"

#include <math.h>

static float *gradient_at(const params *p, int64_t offset) {
    return p->gradient ? p->gradient + offset : NULL;
}

void optimizer_reduce(model *m) {
    const params *p = &m->params;
    int64_t first = p->region_first[REGION_PARTIAL], count = p->region_first[REGION_COMPLETE] - first;
    model_note_own(m, first, params_total(p) - first);
    comm_all_reduce(m->tp, gradient_at(p, first), count, DTYPE_F32, COMM_SUM, "shared weights' gradients", -1);
    for (int b = p->sharded_buckets; b < p->buckets; b++) model_reduce_bucket(m, b, -1);
    comm_finish(m->dp);
}

double optimizer_norm(model *m) {
    const params *p = &m->params;
    double norm_sq = 0;
    profile_phase before = profile_enter(m->ops->profile, PROFILE_OPTIMIZER);
    m->ops->zero(m->ops, m->norm_sq, sizeof norm_sq);
    /* Replicated gradients are the same on every rank of the tensor-parallel group: rank 0 counts them. */
    int buckets = m->tp->rank == 0 ? p->buckets : p->sharded_buckets;
    for (int b = 0; b < buckets; b++) {
        m->ops->sum_squares(m->ops, m->norm_sq, gradient_at(p, p->bucket[b].own), p->bucket[b].piece);
        profile_bytes(m->ops->profile, (double)p->bucket[b].piece * sizeof(float));
    }
    comm_all_reduce(m->tp, m->norm_sq, 1, DTYPE_F64, COMM_SUM, "gradient norm", -1);
    if (p->pieces > 1) comm_all_reduce(m->dp, m->norm_sq, 1, DTYPE_F64, COMM_SUM, "gradient norm", -1);
    m->ops->download(m->ops, &norm_sq, m->norm_sq, sizeof norm_sq);
    profile_enter(m->ops->profile, before);
    return sqrt(norm_sq);
}

/* Updates this rank's part of parameter i and the same part of its compute copy. */
static void update(model *m, int i, adamw_args args) {
    const params *p = &m->params;
    const param *q = &p->list[i];
    param_range own = params_owned(p, i);
    if (own.count == 0) return;
    float *master = p->master + own.at;
    void *copy = params_copy(p, i);
    bool matrix = q->spec.init == PARAM_NORMAL;
    char *at = copy ? (char *)copy + (size_t)own.first * dtype_bytes(matrix ? p->compute_type : DTYPE_F32) : NULL;
    m->ops->adamw(m->ops, master, p->moment1 + own.at, p->moment2 + own.at, gradient_at(p, q->offset + own.first),
                  matrix ? at : NULL, own.count, args);
    /* Weight and moments are read and written, the gradient is read. */
    profile_bytes(m->ops->profile,
                  (double)own.count * (7 * sizeof(float) + (at && matrix ? dtype_bytes(p->compute_type) : 0)));
    if (at && !matrix)
        m->ops->copy(m->ops, tensor_make(at, DTYPE_F32, 1, own.count), tensor_make(master, DTYPE_F32, 1, own.count));
}

/* Starts bringing the other ranks' pieces of bucket b's compute copies. */
static void gather(model *m, int b) {
    const params *p = &m->params;
    const param_bucket *bucket = &p->bucket[b];
    bool gains = bucket->first >= p->gains_first;
    dtype type = gains ? DTYPE_F32 : p->compute_type;
    char *base = gains ? (char *)p->gains : p->compute;
    int64_t first = gains ? bucket->first - p->gains_first : bucket->first;
    comm_all_gather_start(m->dp, base + (size_t)first * dtype_bytes(type), bucket->piece, type, "weights", -1);
}

void optimizer_update(model *m, const config *c, int64_t step, double lr) {
    params *p = &m->params;
    adamw_args args = {
        .lr = (float)lr,
        .beta1 = (float)c->train.beta1,
        .beta2 = (float)c->train.beta2,
        .eps = (float)c->train.eps,
        .step = step,
        .clip = (float)c->train.clip,
        .norm_sq = m->norm_sq,
    };
    profile_phase before = profile_enter(m->ops->profile, PROFILE_OPTIMIZER);
    for (int b = 0; b < p->buckets; b++) {
        for (int i = 0; i < p->count; i++) {
            if (p->list[i].bucket != b) continue;
            bool decays = c->train.decay == DECAY_ALL || p->list[i].spec.init == PARAM_NORMAL;
            args.weight_decay = decays ? (float)c->train.weight_decay : 0.0f;
            update(m, i, args);
        }
        if (p->pieces > 1) gather(m, b);
    }
    comm_finish(m->dp);
    profile_enter(m->ops->profile, before);
}
