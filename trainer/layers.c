/* The layers of a model, forward and backward, part by part. With several tensor-parallel ranks the samples of a
 * micro-batch are two parts (parallel.halves): each stage below is run for one after the other and ends in the sum of a
 * part's rows over the ranks, which is under way while the stage is run for the other part, and is waited for when the
 * part's next stage begins. Without halves there is one part, and its sums are waited for at once.
 *
 * The order of stages and parts alone decides in which order collectives are started, the same on all ranks, and in
 * which order the parts' gradients of a weight are added. */
#include "trainer/model_private.h"

#include "core/ops/profile.h"

tensor layers_rows(const model *m, int p, tensor all) {
    return tensor_rows(all, m->part[p].first * m->context, m->part[p].count * m->context);
}

static float *values(const model *m, int p, float *all) {
    return all ? all + m->part[p].first * m->context : NULL;
}

void layers_sum(model *m, int p, tensor all, const char *place, int layer) {
    tensor t = layers_rows(m, p, all);
    m->part[p].sum = comm_sum(m->tp, m->parts > 1, t.data, t.rows * t.cols, t.type, place, layer);
}

static void wait_sum(model *m, int p) {
    comm_wait(m->tp, m->part[p].sum);
}

/* What part p has of a layer and of the model's buffers: views. */
typedef struct view {
    attn_env env;
    model_layer layer;
    tensor branch, dx, dbranch;
} view;

static view view_of(const model *m, int index, int p) {
    const model_part *part = &m->part[p];
    view v = {
        .env = m->attention,
        .layer = m->layer[index],
        .branch = layers_rows(m, p, m->branch),
        .dx = layers_rows(m, p, m->dx),
        .dbranch = layers_rows(m, p, m->dbranch),
    };
    model_layer *l = &v.layer;
    tensor *const all[] = {&l->input, &l->attention_in, &l->middle, &l->mlp_in, &l->gate_up};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i] = layers_rows(m, p, *all[i]);
    l->saved = attn_saved_of(m->variant, &m->attention.dims, &l->saved, part->first, part->count);
    l->rstd1 = values(m, p, l->rstd1);
    l->rstd2 = values(m, p, l->rstd2);
    v.env.dims.batch = part->count;
    return v;
}

/* W_gate and W_up are stored one behind the other. */
static tensor gate_up(tensor gate) {
    gate.rows *= 2;
    return gate;
}

/* ---------------------------------------------------------------- forward */

/* A point of a part's residual stream and the norm that reads it. */
typedef struct stream_point {
    tensor x, normed;
    float *rstd;
    int norm; /* parameter */
} stream_point;

static stream_point entry(const model_layer *l) {
    return (stream_point){l->input, l->attention_in, l->rstd1, l->attention_norm};
}

static stream_point middle(const model_layer *l) {
    return (stream_point){l->middle, l->mlp_in, l->rstd2, l->mlp_norm};
}

/* Where the stream leaves the last layer. */
static stream_point end(const model *m, int p) {
    return (stream_point){layers_rows(m, p, m->output), layers_rows(m, p, m->final_in), values(m, p, m->rstd),
                          m->final_norm};
}

/* The branch joins the stream, which is then normed. */
static void join(model *m, stream_point to, tensor from, tensor branch) {
    m->ops->add_rmsnorm_forward(m->ops, to.x, to.normed, to.rstd, from, branch, model_gain(m, to.norm), m->norm_eps);
}

/* The norm of a point where the stream already is. */
static void norm(model *m, stream_point at) {
    m->ops->rmsnorm_forward(m->ops, at.normed, at.rstd, at.x, model_gain(m, at.norm), m->norm_eps);
}

static void forward_gate_up(model *m, model_layer *l) {
    ops_linear(m->ops, l->gate_up, l->mlp_in, gate_up(params_weight(&m->params, l->gate)), false);
}

/* Room for SwiGLU's result, or its gradient, until the arena is released. */
static tensor hidden_room(model *m, const model_layer *l) {
    return arena_tensor(&m->memory, l->gate_up.type, l->gate_up.rows, l->gate_up.cols / 2);
}

/* What the layer before, or the embedding, has made of a part's rows becomes its attention_in. */
static void enter(model *m, int index, int p, const view *v) {
    wait_sum(m, p);
    if (index == 0) {
        profile_enter(m->ops->profile, PROFILE_PROJECTIONS);
        norm(m, entry(&v->layer));
    } else {
        profile_enter(m->ops->profile, PROFILE_MLP);
        join(m, entry(&v->layer), layers_rows(m, p, m->layer[index - 1].middle), v->branch);
        profile_enter(m->ops->profile, PROFILE_PROJECTIONS);
    }
}

static void forward_attention(model *m, int index) {
    const attn_variant *variant = m->variant;
    model_layer *whole = &m->layer[index];
    attn_pending pending[MODEL_PARTS] = {0};
    comm_ticket shared = 0;
    for (int p = 0; p < m->parts; p++) {
        view v = view_of(m, index, p);
        model_layer *l = &v.layer;
        enter(m, index, p, &v);
        if (variant->share && p == m->parts - 1)
            shared = variant->share(&m->attention, index, &whole->weights, &whole->saved, whole->attention_in);
        variant->forward(&v.env, index, &l->weights, &l->saved, l->attention_in, &v.branch, false, &pending[p],
                         &m->memory);
        if (!variant->forward_rest) layers_sum(m, p, m->branch, "attention output", index);
    }
    for (int p = 0; variant->forward_rest && p < m->parts; p++) {
        view v = view_of(m, index, p);
        if (shared) pending[p].started = shared;
        variant->forward_rest(&v.env, &v.layer.weights, &v.layer.saved, &v.branch, false, &pending[p], &m->memory);
        layers_sum(m, p, m->branch, "attention output", index);
    }
}

static void forward_mlp(model *m, int index) {
    profile_enter(m->ops->profile, PROFILE_MLP);
    for (int p = 0; p < m->parts; p++) {
        view v = view_of(m, index, p);
        model_layer *l = &v.layer;
        wait_sum(m, p);
        join(m, middle(l), l->input, v.branch);
        size_t mark = arena_mark(&m->memory);
        tensor hidden = hidden_room(m, l);
        forward_gate_up(m, l);
        m->ops->swiglu_forward(m->ops, hidden, l->gate_up);
        ops_linear(m->ops, v.branch, hidden, params_weight(&m->params, l->down), false);
        arena_release(&m->memory, mark);
        layers_sum(m, p, m->branch, "mlp output", index);
    }
}

/* Of further tokens of the one sample. */
static void extend_attention(model *m, int index) {
    const model_cache *cache = m->cache;
    view v = view_of(m, index, 0);
    enter(m, index, 0, &v);
    m->variant->extend(&v.env, index, &v.layer.weights, cache->layer[index], cache->first, v.layer.attention_in,
                       v.branch, cache->scratch);
    layers_sum(m, 0, m->branch, "attention output", index);
}

void layers_forward(model *m) {
    for (int i = 0; i < m->layers; i++) {
        model_need_bucket(m, m->first_layer_bucket + i);
        if (m->cache)
            extend_attention(m, i);
        else
            forward_attention(m, i);
        forward_mlp(m, i);
    }
    for (int p = 0; p < m->parts; p++) {
        view v = view_of(m, m->layers - 1, p);
        wait_sum(m, p);
        join(m, end(m, p), v.layer.middle, v.branch);
    }
}

/* ---------------------------------------------------------------- backward */

/* The last layer's activations are still in their room when its backward pass begins. */
static bool recomputes(const model *m, int index) {
    return m->attention.dims.recompute != RECOMPUTE_NONE && index < m->layers - 1;
}

/* What the forward pass did not keep, by the same operations. */
static void forward_again(model *m, int index, view *v) {
    const attn_variant *variant = m->variant;
    model_layer *l = &v->layer;
    attn_pending pending = {0};
    bool all = model_recomputes_all(m), joins = !model_keeps_middle(m);
    const tensor *out = joins ? &v->branch : NULL;
    profile_enter(m->ops->profile, PROFILE_PROJECTIONS);
    if (all) norm(m, entry(l));
    variant->forward(&v->env, index, &l->weights, &l->saved, l->attention_in, out, true, &pending, &m->memory);
    if (variant->forward_rest) variant->forward_rest(&v->env, &l->weights, &l->saved, out, true, &pending, &m->memory);
    profile_enter(m->ops->profile, PROFILE_MLP);
    if (joins)
        join(m, middle(l), l->input, v->branch);
    else if (all)
        norm(m, middle(l));
    if (all) forward_gate_up(m, l);
}

/* dx of a part's rows becomes that of the point, whose norm's gradient is the sum in dbranch. */
static void leave(model *m, int p, stream_point at, const view *v) {
    wait_sum(m, p);
    m->ops->rmsnorm_backward(m->ops, v->dx, true, model_gain_gradient(m, at.norm), v->dbranch, at.x,
                             model_gain(m, at.norm), at.rstd);
}

/* dx: gradient of the layer's input. */
static void leave_layer(model *m, int index, int p) {
    view v = view_of(m, index, p);
    profile_enter(m->ops->profile, PROFILE_PROJECTIONS);
    leave(m, p, entry(&v.layer), &v);
}

static void backward_mlp(model *m, int index, bool adds) {
    ops *o = m->ops;
    for (int p = 0; p < m->parts; p++) {
        view v = view_of(m, index, p);
        model_layer *l = &v.layer;
        if (recomputes(m, index)) forward_again(m, index, &v);
        if (index + 1 < m->layers) leave_layer(m, index + 1, p);
        profile_enter(o->profile, PROFILE_MLP);
        size_t mark = arena_mark(&m->memory);
        tensor hidden = hidden_room(m, l); /* its gradient first */
        ops_linear_dx(o, hidden, v.dx, params_weight(&m->params, l->down), false);
        o->swiglu_backward(o, l->gate_up, hidden, l->gate_up);
        ops_linear_dw(o, params_gradient(&m->params, l->down), v.dx, hidden, adds || p > 0);
        ops_linear_dw(o, gate_up(params_gradient(&m->params, l->gate)), l->gate_up, l->mlp_in, adds || p > 0);
        ops_linear_dx(o, v.dbranch, l->gate_up, gate_up(params_weight(&m->params, l->gate)), false);
        arena_release(&m->memory, mark);
        layers_sum(m, p, m->dbranch, "mlp gradient", index);
        comm_progress(m->dp); /* of the layers above */
    }
}

static void backward_attention(model *m, int index, bool adds) {
    const attn_variant *variant = m->variant;
    attn_pending pending[MODEL_PARTS] = {0};
    size_t mark = arena_mark(&m->memory);
    for (int p = 0; p < m->parts; p++) {
        view v = view_of(m, index, p);
        model_layer *l = &v.layer;
        profile_enter(m->ops->profile, PROFILE_MLP);
        leave(m, p, middle(l), &v);
        profile_enter(m->ops->profile, PROFILE_PROJECTIONS);
        l->weights.adds = adds || p > 0;
        variant->backward(&v.env, index, &l->weights, &l->saved, l->attention_in, v.dx, v.dbranch, &pending[p],
                          &m->memory);
        if (!variant->backward_rest) layers_sum(m, p, m->dbranch, "attention gradient", index);
    }
    for (int p = 0; variant->backward_rest && p < m->parts; p++) {
        view v = view_of(m, index, p);
        model_layer *l = &v.layer;
        l->weights.adds = adds || p > 0;
        variant->backward_rest(&v.env, &l->weights, &l->saved, l->attention_in, v.dbranch, &pending[p], &m->memory);
        layers_sum(m, p, m->dbranch, "attention gradient", index);
    }
    arena_release(&m->memory, mark);
}

void layers_backward(model *m, bool adds, bool last) {
    for (int i = m->layers - 1; i >= 0; i--) {
        backward_mlp(m, i, adds);
        backward_attention(m, i, adds);
        if (last) model_complete_bucket(m, m->first_layer_bucket + i, i);
    }
    for (int p = 0; p < m->parts; p++) leave_layer(m, 0, p);
}
