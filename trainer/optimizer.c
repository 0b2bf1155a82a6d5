#include "trainer/optimizer.h"

#include "core/ops/profile.h"

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

void optimizer_norm(model *m) {
    const params *p = &m->params;
    double *norm_sq = model_norm_sq(m);
    profile_phase before = profile_enter(m->ops->profile, PROFILE_OPTIMIZER);
    m->ops->zero(m->ops, norm_sq, sizeof *norm_sq);
    /* Replicated gradients are the same on every rank of the tensor-parallel group: rank 0 counts them. */
    int buckets = m->tp->rank == 0 ? p->buckets : p->sharded_buckets;
    for (int b = 0; b < buckets; b++) {
        m->ops->sum_squares(m->ops, norm_sq, gradient_at(p, p->bucket[b].own), p->bucket[b].piece);
        profile_bytes(m->ops->profile, (double)p->bucket[b].piece * sizeof(float));
    }
    comm_all_reduce(m->tp, norm_sq, 1, DTYPE_F64, COMM_SUM, "gradient norm", -1);
    if (p->pieces > 1) comm_all_reduce(m->dp, norm_sq, 1, DTYPE_F64, COMM_SUM, "gradient norm", -1);
    profile_enter(m->ops->profile, before);
}

void optimizer_start(model *m, int64_t updates) {
    const adamw_update start = {.count = updates};
    m->ops->upload(m->ops, m->update, &start, sizeof start);
}

/* Updates this rank's piece of bucket b and the same piece of its compute copies. */
static void update(model *m, const config *c, int b) {
    const params *p = &m->params;
    const param_bucket *bucket = &p->bucket[b];
    bool gains = bucket->first >= p->gains_first;
    float decay = !gains || c->train.decay == DECAY_ALL ? (float)c->train.weight_decay : 0.0f;
    float *master = p->master + bucket->at;
    void *copy = params_bucket_copy(p, b);
    m->ops->adamw(m->ops, master, p->moment1 + bucket->at, p->moment2 + bucket->at, gradient_at(p, bucket->own),
                  gains ? NULL : copy, bucket->piece, decay, m->update);
    if (gains && copy)
        m->ops->copy(m->ops, tensor_make(copy, DTYPE_F32, 1, bucket->piece),
                     tensor_make(master, DTYPE_F32, 1, bucket->piece));
    /* Weight and moments are read and written, the gradient is read. */
    profile_bytes(m->ops->profile,
                  (double)bucket->piece * (7 * sizeof(float) + (copy && !gains ? dtype_bytes(p->compute_type) : 0)));
}

/* Starts bringing the other ranks' pieces of bucket b's compute copies. */
static void gather(model *m, int b) {
    const params *p = &m->params;
    param_bucket *bucket = &p->bucket[b];
    dtype type = bucket->first >= p->gains_first ? DTYPE_F32 : p->compute_type;
    char *own = params_bucket_copy(p, b);
    char *whole = own - (size_t)(bucket->own - bucket->first) * dtype_bytes(type);
    bucket->arrival = comm_all_gather_start(m->dp, whole, bucket->piece, type, "weights", -1);
}

/* The k-th bucket that a forward pass reads: embedding, replicated matrices, gains, the layers', head. */
static int bucket_read(const params *p, int k) {
    if (k == 0) return 0;
    return k <= 2 ? p->sharded_buckets + k - 1 : k - 2;
}

void optimizer_update(model *m, const config *c, double lr) {
    const params *p = &m->params;
    profile_phase before = profile_enter(m->ops->profile, PROFILE_OPTIMIZER);
    m->ops->adamw_begin(m->ops, m->update,
                        (adamw_args){
                            .lr = (float)lr,
                            .beta1 = (float)c->train.beta1,
                            .beta2 = (float)c->train.beta2,
                            .eps = (float)c->train.eps,
                            .clip = (float)c->train.clip,
                            .norm_sq = model_norm_sq(m),
                            .losses = m->figures,
                            .loss_count = m->dp->size,
                        });
    for (int k = 0; k < p->buckets; k++) {
        int b = bucket_read(p, k);
        update(m, c, b);
        if (p->pieces > 1) gather(m, b);
    }
    profile_enter(m->ops->profile, before);
}
