#include "trainer/optimizer.h"

#include <math.h>

static float *region(const params *p, param_region r) {
    return p->gradient ? p->gradient + p->region_first[r] : NULL;
}

static int64_t region_size(const params *p, param_region r) {
    return p->region_first[r + 1] - p->region_first[r];
}

void optimizer_reduce(model *m, comm_group *dp) {
    const params *p = &m->params;
    int64_t partial = region_size(p, REGION_PARTIAL);
    if (partial)
        comm_all_reduce(m->tp, region(p, REGION_PARTIAL), partial, DTYPE_F32, COMM_SUM, "shared weights' gradients",
                        -1);
    comm_all_reduce(dp, p->gradient, params_total(p), DTYPE_F32, COMM_SUM, "gradients", -1);
}

double optimizer_norm(model *m) {
    const params *p = &m->params;
    double norm_sq = 0;
    m->ops->zero(m->ops, m->norm_sq, sizeof norm_sq);
    /* Replicated gradients are the same on every rank of the group: rank 0 counts them. */
    m->ops->sum_squares(m->ops, m->norm_sq, region(p, REGION_SHARDED), region_size(p, REGION_SHARDED));
    if (m->tp->rank == 0)
        m->ops->sum_squares(m->ops, m->norm_sq, region(p, REGION_COMPLETE),
                            region_size(p, REGION_COMPLETE) + region_size(p, REGION_PARTIAL));
    comm_all_reduce(m->tp, m->norm_sq, 1, DTYPE_F64, COMM_SUM, "gradient norm", -1);
    m->ops->download(m->ops, &norm_sq, m->norm_sq, sizeof norm_sq);
    return sqrt(norm_sq);
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
    for (int i = 0; i < p->count; i++) {
        const param *q = &p->list[i];
        bool decays = c->train.decay == DECAY_ALL || q->spec.init == PARAM_NORMAL;
        args.weight_decay = decays ? (float)c->train.weight_decay : 0.0f;
        m->ops->adamw(m->ops, p->master + q->offset, p->moment1 + q->offset, p->moment2 + q->offset,
                      p->gradient + q->offset, params_copy(p, i), q->rows * q->cols, args);
    }
}
