/* The door of the maps: which matrices are recorded, the workers' memory, and a snapshot's way through factors.c and
 * cores.c. What a layer's heads share is made first; then workers take tasks, a head's maps or a layer's own, of as
 * many layers at once as there is memory for. Each has its own memory, allocated once; nothing writes what another
 * worker reads. With a device they leave square cores to it (diag/solver.h), and take matrices when it has the singular
 * values.
 */
#include "core/log.h"
#include "diag/maps_private.h"

#include <cblas.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define X(name) #name,
const char *const maps_form_names[] = {MAPS_FORMS(X)};
const char *const maps_part_names[] = {MAPS_PARTS(X)};
const char *const maps_scope_names[] = {MAPS_SCOPES(X)};
#undef X

enum { LAPACK_BLOCK = 32 };

static int least(int a, int b) {
    return a < b ? a : b;
}
static int greatest(int a, int b) {
    return a > b ? a : b;
}

/* ---------------------------------------------------------------- which matrices */

/* r: the smallest dimension of the chain (docs/design.md section 6.4 lists the chains). */
static int map_rank(const maps *m, int part, int scope) {
    const family *f = &m->family[part == MAPS_ov ? FAMILY_OV : FAMILY_QK];
    int content = scope == MAPS_layer ? f->layer_content : f->content, rope = f->rope;
    if (scope == MAPS_layer && m->latent) content = least(m->heads * f->content, m->latent);
    if (m->latent) content = least(content, m->latent);
    int rank = part == MAPS_rope ? rope : part == MAPS_full ? content + rope : content;
    rank = least(rank, m->width);
    return m->q_latent && !f->values ? least(rank, m->q_latent) : rank;
}

static status add_matrix(maps *m, maps_matrix matrix) {
    if (m->count == m->capacity) {
        int capacity = greatest(2 * m->capacity, 256);
        maps_matrix *more = realloc(m->matrices, (size_t)capacity * sizeof(*more));
        if (!more) return status_fail(STATUS_INTERNAL, "out of memory for the list of %d matrices", capacity);
        m->matrices = more;
        m->capacity = capacity;
    }
    matrix.first_value = m->value_count;
    m->value_count += matrix.rank;
    matrix.first_pair = m->pair_count;
    m->pair_count += matrix.left + matrix.right;
    m->matrices[m->count++] = matrix;
    return STATUS_OK;
}

/* Rows of a head's factors in that part. */
static int part_side(const maps *m, int part) {
    const family *f = &m->family[part == MAPS_ov ? FAMILY_OV : FAMILY_QK];
    return part == MAPS_full ? f->content + f->rope : part == MAPS_rope ? f->rope : f->content;
}

static status add_maps(maps *m, int form, int part, int scope) {
    int r = map_rank(m, part, scope), heads = scope == MAPS_layer ? 1 : m->heads;
    int side = form == MAPS_channel ? part_side(m, part) : m->width;
    m->first[form][part][scope] = m->count;
    for (int layer = 0; layer < m->layers; layer++)
        for (int h = 0; h < heads; h++)
            TRY(add_matrix(m, (maps_matrix){.form = form,
                                            .part = part,
                                            .scope = scope,
                                            .layer = layer,
                                            .head = scope == MAPS_layer ? -1 : h,
                                            .tensor = "",
                                            .rows = r,
                                            .cols = r,
                                            .rank = r,
                                            .left = side,
                                            .right = side}));
    return STATUS_OK;
}

/* The weights of one part and scope, layer by layer, head by head (shared ones: head -1), in the order of the slots. */
static status add_weights(maps *m, int part, int scope) {
    for (int layer = 0; layer < m->layers; layer++)
        for (int h = 0; h < (scope == MAPS_layer ? 1 : m->heads); h++)
            for (int i = 0; i < CHAIN_SLOTS; i++) {
                const chain_tensor *t = &m->chain.slot[i];
                if (!t->weight || t->part != part || (t->heads == 0) != (scope == MAPS_layer) ||
                    h >= greatest(t->heads, 1))
                    continue;
                int rows = chain_rows(t), cols = chain_cols(t);
                TRY(add_matrix(m, (maps_matrix){.form = MAPS_weight,
                                                .part = part,
                                                .scope = scope,
                                                .layer = layer,
                                                .head = scope == MAPS_layer ? -1 : h,
                                                .tensor = t->weight,
                                                .rows = rows,
                                                .cols = cols,
                                                .rank = least(rows, cols),
                                                .left = rows,
                                                .right = cols}));
            }
    return STATUS_OK;
}

/* Whether a map of that kind exists in this variant. */
static bool map_exists(const maps *m, int form, int part, int scope) {
    bool has_part = part == MAPS_full || part == MAPS_ov || m->chain.rope > 0;
    return has_part && !(form == MAPS_channel && scope == MAPS_layer);
}

static status list_matrices(maps *m) {
    memset(m->first, -1, sizeof(m->first));
    for (int form = 0; form < MAPS_weight; form++)
        for (int part = 0; part < MAPS_PART_COUNT; part++)
            for (int scope = 0; scope < MAPS_SCOPE_COUNT; scope++)
                if (m->form[form] && m->part[part] && m->scope[scope] && map_exists(m, form, part, scope))
                    TRY(add_maps(m, form, part, scope));
    /* Weights have no parts but the family that they belong to: those of queries and keys count as full. */
    for (int part = 0; part < MAPS_PART_COUNT; part++)
        for (int scope = 0; scope < MAPS_SCOPE_COUNT; scope++)
            if (m->form[MAPS_weight] && m->scope[scope] && (part == MAPS_full || (part == MAPS_ov && m->part[part])))
                TRY(add_weights(m, part, scope));
    return STATUS_OK;
}

static status choose(const char *key, config_list chosen, const char *const *names, int count, bool *on) {
    for (int i = 0; i < chosen.count; i++) {
        int k = 0;
        while (k < count && strcmp(names[k], chosen.items[i]) != 0) k++;
        if (k == count) return status_fail(STATUS_CONFIG, "diagnostics.%s: there is no \"%s\"", key, chosen.items[i]);
        on[k] = true;
    }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- memory */

static double *numbers(arena *a, int64_t n) {
    return arena_push(a, (size_t)n * sizeof(double));
}

/* Rows of the tallest factors of any family, of heads and of layers. */
static void tallest(const maps *m, int64_t *head, int64_t *layer) {
    *head = *layer = 0;
    for (int i = 0; i < FAMILIES; i++) {
        const family *f = &m->family[i];
        int64_t h = f->content + f->rope, l = f->layer_content + f->rope;
        *head = *head > h ? *head : h;
        *layer = *layer > l ? *layer : l;
    }
}

/* Called twice: to count, and to hand out. */
static void lay_out(const maps *m, worker *w, arena *a) {
    const chain_tensor *t = m->chain.slot;
    int64_t d = m->width, head, layer;
    tallest(m, &head, &layer);
    int64_t most = head > layer ? head : layer, below = most < d ? most : d, core = below * below;
    for (int i = 0; i < m->count; i++) {
        int64_t size = (int64_t)m->matrices[i].rows * m->matrices[i].cols;
        core = core > size ? core : size;
    }
    if (core < head * head) core = head * head;
    int64_t left = head * m->q_latent, right = 0, value = d * m->chain.value;
    if (t[CHAIN_DOWN_K].name) {
        left = t[CHAIN_DOWN_K].rows * t[CHAIN_DOWN_K].cols;
        right = t[CHAIN_KEY].rows * t[CHAIN_KEY].cols;
    }
    if (left < value) left = value;
    w->left = numbers(a, left);
    w->right = numbers(a, right);
    w->up = numbers(a, head * m->latent);
    w->A = numbers(a, head * d);
    w->B = numbers(a, head * d);
    w->layer_A = numbers(a, layer * d);
    w->layer_B = numbers(a, layer * d);
    w->factor = numbers(a, most * d);
    w->tau = numbers(a, most);
    w->RA = numbers(a, below > head ? below * below : head * head);
    w->RB = numbers(a, below > head ? below * below : head * head);
    w->core = numbers(a, core);
    w->spare = numbers(a, core);
    w->top = numbers(a, most);
    w->lapack = numbers(a, m->lapack_size);
}

static void lay_out_layer(const maps *m, layer_factors *l, arena *a) {
    int64_t d = m->width, side = m->triangles ? m->latent + m->chain.rope : 0;
    l->gain = numbers(a, d);
    l->q_down = numbers(a, m->q_latent * d);
    l->down = numbers(a, m->latent * d);
    l->key_rope = numbers(a, m->chain.rope * d);
    l->triangle = numbers(a, side * side);
}

/* An arena that has been counted out gets its memory. */
static status allocate(arena *a) {
    size_t bytes = a->peak_bytes;
    *a = (arena){.base = malloc(bytes), .size_bytes = bytes};
    return a->base ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory: the diagnostics need %zu bytes", bytes);
}

static status layer_open(const maps *m, layer_factors *l) {
    lay_out_layer(m, l, &l->memory);
    TRY(allocate(&l->memory));
    lay_out_layer(m, l, &l->memory);
    return STATUS_OK;
}

static status worker_open(const maps *m, worker *w) {
    lay_out(m, w, &w->memory);
    TRY(allocate(&w->memory));
    lay_out(m, w, &w->memory);
    int64_t head, layer;
    tallest(m, &head, &layer);
    int small = greatest((int)head, least((int)layer, m->width)), large = small;
    for (int i = 0; i < m->count; i++) {
        const maps_matrix *x = &m->matrices[i];
        small = greatest(small, least(x->rows, x->cols));
        large = greatest(large, greatest(x->rows, x->cols));
    }
    TRY(pair_work_open(&w->pair, large));
    return spectrum_work_open(&w->spectrum, small, large);
}

/* What follows from the configuration alone. */
static status set_up(maps *m, const config *c) {
    m->chain = chain_of(c);
    m->variant = c->attention.variant;
    m->sigma2 = c->diagnostics.sigma2;
    m->latent_norm = c->attention.latent_norm;
    m->layers = (int)c->model.layers;
    m->shares = 1;
    m->width = (int)c->model.width;
    m->heads = (int)c->model.heads;
    m->kv_heads = m->variant == VARIANT_MHA ? (int)c->model.kv_heads : m->heads;
    m->latent = m->variant == VARIANT_MHA ? 0 : (int)c->attention.kv_lora_rank;
    m->q_latent = m->variant == VARIANT_MLA_DECOUPLED ? (int)c->attention.q_lora_rank : 0;
    m->family[FAMILY_QK] = (family){.content = m->chain.content,
                                    .rope = m->chain.rope,
                                    .layer_content = m->latent ? m->latent : m->kv_heads * m->chain.content};
    m->family[FAMILY_OV] = (family){.content = m->chain.value,
                                    .layer_content = m->latent ? m->latent : m->kv_heads * m->chain.value,
                                    .values = true};
    TRY(choose("forms", c->diagnostics.forms, maps_form_names, MAPS_FORM_COUNT, m->form));
    TRY(choose("parts", c->diagnostics.parts, maps_part_names, MAPS_PART_COUNT, m->part));
    TRY(choose("scopes", c->diagnostics.scopes, maps_scope_names, MAPS_SCOPE_COUNT, m->scope));
    return list_matrices(m);
}

static int parts_of(const maps *m, const family *f, int form, int scope) {
    part_rows parts[MAPS_PART_COUNT];
    return cores_list_parts(m, f, form, scope, 0, 0, 1, parts);
}

static void add_task(maps *m, const family *f, int head) {
    m->tasks[m->task_count++] = (task){f, head};
    m->loads |= f != NULL;
}

/* A layer's own maps, its weights, its heads. */
static status list_tasks(maps *m) {
    m->tasks = malloc((size_t)(FAMILIES * (m->heads + 1) + 1) * sizeof(*m->tasks));
    if (!m->tasks) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    for (int i = 0; i < FAMILIES; i++)
        if (parts_of(m, &m->family[i], MAPS_score, MAPS_layer)) add_task(m, &m->family[i], -1);
    if (m->form[MAPS_weight]) add_task(m, NULL, -1);
    for (int i = 0; i < FAMILIES; i++) {
        const family *f = &m->family[i];
        bool scores = parts_of(m, f, MAPS_score, MAPS_head), channels = parts_of(m, f, MAPS_channel, MAPS_head);
        for (int h = 0; (scores || channels) && h < m->heads; h++) add_task(m, f, h);
        m->triangles |= scores && !channels && cores_shares(m, f);
    }
    return STATUS_OK;
}

static status open_workers(maps *m, int threads) {
    int64_t head, layer;
    tallest(m, &head, &layer);
    m->lapack_size = LAPACK_BLOCK * greatest((int)head, (int)layer);
    TRY(list_tasks(m));
    m->layers_at_once = greatest(least(threads, m->layers), 1);
    m->workers = greatest(least(threads, m->layers_at_once * m->task_count), 1);
    m->layer = calloc((size_t)m->layers_at_once, sizeof(*m->layer));
    m->worker = calloc((size_t)m->workers, sizeof(*m->worker));
    m->tensors = calloc((size_t)m->layers * CHAIN_SLOTS, sizeof(*m->tensors));
    if (!m->layer || !m->worker || !m->tensors)
        return status_fail(STATUS_INTERNAL, "out of memory for %d diagnostics workers", m->workers);
    for (int i = 0; i < m->layers_at_once; i++) TRY(layer_open(m, &m->layer[i]));
    for (int i = 0; i < m->workers; i++) TRY(worker_open(m, &m->worker[i]));
    return STATUS_OK;
}

status maps_open(maps **out, const config *c, int threads) {
    maps *m = calloc(1, sizeof(*m));
    *out = NULL;
    if (!m) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    status s = set_up(m, c);
    if (s == STATUS_OK) s = open_workers(m, threads);
    if (s == STATUS_OK) {
        *out = m;
    } else {
        maps_close(m);
    }
    return s;
}

status maps_measure(const config *c, maps_size *out) {
    maps m = {0};
    status s = set_up(&m, c);
    *out = (maps_size){.rows = m.count, .values = m.value_count, .pairs = m.pair_count};
    free(m.matrices);
    return s;
}

void maps_close(maps *m) {
    if (!m) return;
    solver_close(m->solver);
    for (int i = 0; m->worker && i < m->workers; i++) {
        spectrum_work_close(&m->worker[i].spectrum);
        pair_work_close(&m->worker[i].pair);
        free(m->worker[i].memory.base);
    }
    for (int i = 0; m->layer && i < m->layers_at_once; i++) free(m->layer[i].memory.base);
    free(m->worker);
    free(m->layer);
    free(m->tasks);
    free(m->tensors);
    free(m->matrices);
    free(m);
}

int maps_count(const maps *m) {
    return m->count;
}
const maps_matrix *maps_matrices(const maps *m) {
    return m->matrices;
}
int64_t maps_value_count(const maps *m) {
    return m->value_count;
}
int64_t maps_pair_count(const maps *m) {
    return m->pair_count;
}

void maps_share(maps *m, int share, int shares) {
    m->share = share;
    m->shares = shares;
}

void maps_tell(maps *m, void (*told)(void *user), void *user) {
    m->told = told;
    m->told_user = user;
}

/* ---------------------------------------------------------------- a layer, a snapshot */

/* The family's maps of head h. */
static void compute_head(const job *j, worker *w, const family *f, int h) {
    const maps *m = j->m;
    int rows = f->content + f->rope, matrix = j->layer * m->heads + h;
    part_rows score[MAPS_PART_COUNT], channel[MAPS_PART_COUNT];
    double c_rms = w->layer->c_rms;
    int channels = cores_list_parts(m, f, MAPS_channel, MAPS_head, matrix, f->content, c_rms, channel);
    int scores = cores_list_parts(m, f, MAPS_score, MAPS_head, matrix, f->content, c_rms, score);
    factors_load_left(j, w, f, h);
    factors_load_right(j, w, f, h / (m->heads / m->kv_heads));
    if (!channels && cores_shares(m, f) && cores_score_shared(j, w, f, score, scores)) return;
    if (m->latent) factors_form_right(m, w, f);
    if (channels) cores_channel(j, w, rows, channel, channels);
    if (scores) cores_score(j, w, w->A, w->B, rows, score, scores);
}

/* The family's maps of the layer as a whole. */
static void compute_whole(const job *j, worker *w, const family *f) {
    const maps *m = j->m;
    int per_kv = m->heads / m->kv_heads;
    part_rows parts[MAPS_PART_COUNT];
    int count = cores_list_parts(m, f, MAPS_score, MAPS_layer, j->layer, f->layer_content, w->layer->c_rms, parts);
    factors_start_layer(m, w, f);
    for (int h = 0; h < m->heads; h++) {
        factors_load_left(j, w, f, h);
        if (h % per_kv == 0) factors_load_right(j, w, f, h / per_kv);
        factors_add_head(m, w, f, h / per_kv);
    }
    factors_finish_layer(m, w, f);
    cores_score(j, w, w->layer_A, w->layer_B, f->layer_content + f->rope, parts, count);
}

static int slot_of_weight(const chain *k, const char *weight) {
    int slot = 0;
    while (!k->slot[slot].weight || strcmp(k->slot[slot].weight, weight) != 0) slot++;
    return slot;
}

static void compute_weights(const job *j, worker *w) {
    const maps *m = j->m;
    for (int i = m->count - 1; i >= 0 && m->matrices[i].form == MAPS_weight; i--) {
        const maps_matrix *x = &m->matrices[i];
        if (x->layer != j->layer) continue;
        int slot = slot_of_weight(&m->chain, x->tensor);
        chain_block(w->core, &m->chain.slot[slot], j->tensor[slot], greatest(x->head, 0));
        cores_weight(j, w, i);
    }
}

static status find_tensors(maps *m, const snapshot *s) {
    for (int layer = m->share; layer < m->layers; layer += m->shares)
        for (int i = 0; i < CHAIN_SLOTS; i++) {
            const chain_tensor *want = &m->chain.slot[i];
            m->tensors[layer * CHAIN_SLOTS + i] = NULL;
            if (!want->name) continue;
            char name[64];
            snprintf(name, sizeof(name), "layers.%d.%s", layer, want->name);
            const snapshot_tensor *got = snapshot_find(s, name);
            if (!got) return status_fail(STATUS_DATA, "the snapshot of step %lld lacks %s", (long long)s->step, name);
            if (got->rows != want->rows || got->cols != want->cols)
                return status_fail(STATUS_DATA, "%s is %lld x %lld in the snapshot of step %lld, not %lld x %lld", name,
                                   (long long)got->rows, (long long)got->cols, (long long)s->step,
                                   (long long)want->rows, (long long)want->cols);
            m->tensors[layer * CHAIN_SLOTS + i] = got->data;
        }
    return STATUS_OK;
}

/* ---------------------------------------------------------------- with a device */

status maps_use_device(maps *m, svd_device *device) {
    int *sides = malloc((size_t)(m->count + 1) * sizeof(*sides));
    if (!sides) return status_fail(STATUS_INTERNAL, "out of memory for the diagnostics");
    for (int i = 0; i < m->count; i++) sides[i] = cores_side(m, &m->matrices[i]);
    status s = solver_open(&m->solver, device, sides, m->count);
    m->solver_works = s == STATUS_OK;
    free(sides);
    return s;
}

const char *maps_device_fault(const maps *m) {
    return m->solver && !m->solver_works ? m->solver_fault : NULL;
}

/* A device that fails is not asked again: what it was to solve is solved here. */
static void run_device(maps *m) {
    if (solver_run(m->solver) == STATUS_OK) return;
    snprintf(m->solver_fault, sizeof(m->solver_fault), "%s", status_message());
    log_warn("from now on the CPU computes the spectra: %s", m->solver_fault);
    m->solver_works = false;
    status_clear();
}

static void take_from_device(const job *j, worker *w, int index) {
    const solver *s = j->m->solver;
    if (!solver_has(s, index)) return;
    if (solver_values(s, index, w->spectrum.values)) {
        cores_record_values(j, w, index);
        return;
    }
    int side = cores_side(j->m, &j->m->matrices[index]);
    solver_core(s, index, w->core);
    cores_solve(j, w, index, side, side);
}

static void compute_task(const job *j, worker *w, const task *t) {
    if (!t->family) {
        compute_weights(j, w);
    } else if (t->head < 0) {
        compute_whole(j, w, t->family);
    } else {
        compute_head(j, w, t->family, t->head);
    }
}

static job job_of(const job *j, int layer) {
    job mine = *j;
    mine.layer = layer;
    mine.tensor = j->m->tensors + (size_t)layer * CHAIN_SLOTS;
    return mine;
}

/* Of layers first, first + shares, ... */
static void load_layers(maps *m, const job *j, int first, int count) {
    if (!m->loads) return;
#pragma omp parallel for num_threads(m->workers) schedule(dynamic)
    for (int i = 0; i < count; i++) {
        const job mine = job_of(j, first + i * m->shares);
        worker *w = &m->worker[omp_get_thread_num()];
        factors_load_layer(&mine, w, &m->layer[i]);
        if (m->triangles) cores_find_triangle(m, w, &m->layer[i]);
    }
}

static void compute_layers(maps *m, const job *j) {
    int left = (m->layers - m->share + m->shares - 1) / m->shares;
    for (int first = m->share, count; left > 0; left -= count, first += count * m->shares) {
        count = least(left, m->layers_at_once);
        load_layers(m, j, first, count);
        /* Each task of all layers, then the next: the longest first. */
#pragma omp parallel for num_threads(m->workers) schedule(dynamic)
        for (int i = 0; i < count * m->task_count; i++) {
            const job mine = job_of(j, first + i % count * m->shares);
            const task *t = &m->tasks[i / count];
            worker *w = &m->worker[omp_get_thread_num()];
            w->layer = &m->layer[i % count];
            compute_task(&mine, w, t);
            if (m->told && t->head <= 0) m->told(m->told_user);
        }
    }
}

status maps_compute(maps *m, const snapshot *s, spectrum *out, double *values) {
    return maps_compute_pairs(m, s, out, values, NULL);
}

status maps_compute_pairs(maps *m, const snapshot *s, spectrum *out, double *values, const maps_pairs *top) {
    TRY(find_tensors(m, s));
    const job j = {.m = m, .out = out, .values = values, .top = top};
    bool device = m->solver_works;
    int blas_threads = openblas_get_num_threads();
    openblas_set_num_threads(1); /* the workers are the parallelism */
    if (device) solver_start(m->solver);
    compute_layers(m, &j);
    if (device) {
        run_device(m);
#pragma omp parallel for num_threads(m->workers) schedule(dynamic)
        for (int i = 0; i < m->count; i++) take_from_device(&j, &m->worker[omp_get_thread_num()], i);
    }
    openblas_set_num_threads(blas_threads);
    return STATUS_OK;
}
