#include "trainer/params.h"

#include "core/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

status params_add(params *p, const char *prefix, const param_spec *spec) {
    if (p->count == p->capacity) {
        int capacity = p->capacity ? 2 * p->capacity : 64;
        param *list = realloc(p->list, (size_t)capacity * sizeof *list);
        if (!list) return status_fail(STATUS_INTERNAL, "out of memory for the parameter table");
        p->list = list;
        p->capacity = capacity;
    }
    if (p->sharded_buckets == 0) params_new_bucket(p);
    param *new = &p->list[p->count++];
    *new = (param){.spec = *spec};
    snprintf(new->name, sizeof new->name, "%s%s", prefix, spec->name);
    new->region = spec->shard != PARAM_REPLICATED ? REGION_SHARDED : spec->partial ? REGION_PARTIAL : REGION_COMPLETE;
    new->bucket = p->sharded_buckets - 1; /* params_layout knows the others' */
    return STATUS_OK;
}

int params_new_bucket(params *p) {
    return p->sharded_buckets++;
}

/* This rank's share of a side of `global` units: equal padded shares, the last ones short or empty. */
static void cut(int64_t global, int rank, int size, int64_t *share, int64_t *first, int64_t *valid) {
    *share = (global + size - 1) / size;
    *first = rank * *share < global ? rank * *share : global;
    *valid = global - *first < *share ? global - *first : *share;
}

static const int64_t ALIGN = ARENA_ALIGN_BYTES / sizeof(float); /* of parameters and pieces, in floats */

static int64_t round_up(int64_t value, int64_t to) {
    return (value + to - 1) / to * to;
}

static bool is_gain(const param *q) {
    return q->spec.init == PARAM_ONES;
}

/* Gives the bucket's parameters of that region places from offset on; returns the end. */
static int64_t place(params *p, int bucket, param_region region, int rank, int size, int64_t offset) {
    for (int i = 0; i < p->count; i++) {
        param *q = &p->list[i];
        if (q->bucket != bucket || q->region != region) continue;
        q->rows = q->n_rows = q->spec.rows;
        q->cols = q->n_cols = q->spec.cols;
        if (q->spec.shard == PARAM_BY_ROWS) cut(q->spec.rows, rank, size, &q->rows, &q->row, &q->n_rows);
        if (q->spec.shard == PARAM_BY_COLS) cut(q->spec.cols, rank, size, &q->cols, &q->col, &q->n_cols);
        if (!q->spec.joined) offset = round_up(offset, ALIGN);
        q->offset = offset;
        offset += q->rows * q->cols;
    }
    return round_up(offset, ALIGN);
}

status params_layout(params *p, int rank, int size, int own_piece, int pieces) {
    const int matrices = p->sharded_buckets, gains = matrices + 1;
    p->buckets = gains + 1;
    p->bucket = calloc((size_t)p->buckets, sizeof *p->bucket);
    if (!p->bucket) return status_fail(STATUS_INTERNAL, "out of memory for the parameter table");
    p->pieces = pieces;
    p->own_piece = own_piece;
    for (int i = 0; i < p->count; i++) {
        param *q = &p->list[i];
        assert(is_gain(q) ? q->region != REGION_SHARDED : q->region != REGION_COMPLETE);
        if (q->region != REGION_SHARDED) q->bucket = is_gain(q) ? gains : matrices;
    }
    int64_t end = 0;
    for (int b = 0; b < p->buckets; b++) {
        param_bucket *bucket = &p->bucket[b];
        bucket->first = end;
        if (b == matrices) p->region_first[REGION_PARTIAL] = end;
        if (b == gains) p->gains_first = end;
        for (int region = 0; region < REGIONS; region++) {
            if (b == gains && region == REGION_COMPLETE) p->region_first[REGION_COMPLETE] = end;
            end = place(p, b, (param_region)region, rank, size, end);
        }
        end = bucket->first + round_up(end - bucket->first, pieces * ALIGN);
        bucket->piece = (end - bucket->first) / pieces;
        bucket->own = bucket->first + own_piece * bucket->piece;
        bucket->at = p->owned;
        p->owned += bucket->piece;
    }
    p->region_first[REGIONS] = end;
    return STATUS_OK;
}

static bool master_computes(const params *p) {
    return p->compute_type == DTYPE_F32 && p->pieces == 1;
}

/* Bytes of the compute copies beside master: of matrices, and of gains, which are fp32 whatever the type. */
static size_t copy_bytes(const params *p) {
    return master_computes(p) ? 0 : (size_t)p->gains_first * dtype_bytes(p->compute_type);
}

static size_t gains_bytes(const params *p) {
    return p->pieces == 1 ? 0 : (size_t)(params_total(p) - p->gains_first) * sizeof(float);
}

void params_reserve(params *p, dtype activation, arena *a) {
    size_t owned = (size_t)p->owned * sizeof(float);
    p->compute_type = activation;
    p->master = arena_push(a, owned);
    p->moment1 = arena_push(a, owned);
    p->moment2 = arena_push(a, owned);
    p->gradient = arena_push(a, (size_t)params_total(p) * sizeof(float));
    void *copies = arena_push(a, copy_bytes(p)), *gains = arena_push(a, gains_bytes(p));
    p->compute = master_computes(p) ? p->master : copies;
    p->gains = p->pieces > 1 ? gains : p->master ? p->master + p->gains_first : NULL;
}

size_t params_bytes(const params *p) {
    return (size_t)(3 * p->owned + params_total(p)) * sizeof(float) + copy_bytes(p) + gains_bytes(p);
}

param_range params_owned(const params *p, int i) {
    const param *q = &p->list[i];
    const param_bucket *b = &p->bucket[q->bucket];
    int64_t first = q->offset > b->own ? q->offset : b->own;
    int64_t end = q->offset + q->rows * q->cols;
    if (end > b->own + b->piece) end = b->own + b->piece;
    return (param_range){
        .first = first - q->offset, .count = end > first ? end - first : 0, .at = b->at + (first - b->own)};
}

/* Where values come from: a source, or with source NULL the seed's random numbers. */
typedef struct values {
    params_source source;
    void *user;
    uint64_t seed;
} values;

/* Row r of the box from the seed's random numbers. */
static void draw_row(uint64_t seed, const param *q, int64_t r, float *row) {
    uint64_t first = (uint64_t)((q->row + r) * q->spec.cols + q->col);
    if (q->spec.init == PARAM_NORMAL)
        rng_normal(row, seed, rng_stream(q->name), first, q->n_cols, q->spec.std);
    else
        for (int64_t c = 0; c < q->n_cols; c++) row[c] = 1.0f;
}

/* Rows [first, end) of parameter i, [rows, cols], into host; what is beyond its box is zero. */
static status read_rows(const param *q, int64_t first, int64_t end, const values *from, float *host) {
    memset(host + first * q->cols, 0, (size_t)((end - first) * q->cols) * sizeof *host);
    if (end > q->n_rows) end = q->n_rows;
    if (from->source) {
        for (int64_t r = first; r < end; r++) TRY(from->source(from->user, q, r, host + r * q->cols));
    } else { /* logarithms and cosines: one thread takes 7 s for 130 million */
#pragma omp parallel for schedule(static)
        for (int64_t r = first; r < end; r++) draw_row(from->seed, q, r, host + r * q->cols);
    }
    return STATUS_OK;
}

/* The compute copy of parameter i from its whole fp32 values. */
static void copy_values(params *p, ops *o, int i, const float *host) {
    const param *q = &p->list[i];
    size_t bytes = (size_t)(q->rows * q->cols) * sizeof *host;
    void *copy = params_copy(p, i);
    if (!copy) return;
    if (is_gain(q)) {
        o->upload(o, copy, host, bytes);
        return;
    }
    float *staging = p->gradient + q->offset;
    o->upload(o, staging, host, bytes);
    o->cast(o, copy, staging, q->rows * q->cols);
    o->zero(o, staging, bytes);
}

/* base: master or one of the moments. */
static status fill(params *p, ops *o, float *base, const values *from) {
    int64_t largest = 0;
    for (int i = 0; i < p->count; i++) {
        int64_t size = p->list[i].rows * p->list[i].cols;
        largest = size > largest ? size : largest;
    }
    float *host = malloc((size_t)largest * sizeof *host);
    if (!host) return status_fail(STATUS_CONFIG, "out of host memory for the initial weights");
    status s = STATUS_OK;
    for (int i = 0; i < p->count && s == STATUS_OK; i++) {
        const param *q = &p->list[i];
        param_range own = params_owned(p, i);
        bool whole = base == p->master && params_copy(p, i);
        int64_t first = whole ? 0 : own.first / q->cols;
        int64_t end = whole ? q->rows : (own.first + own.count + q->cols - 1) / q->cols;
        if (!whole && own.count == 0) continue;
        s = read_rows(q, first, end, from, host);
        if (whole && s == STATUS_OK) copy_values(p, o, i, host);
        if (own.count > 0) o->upload(o, base + own.at, host + own.first, (size_t)own.count * sizeof *host);
    }
    free(host);
    return s == STATUS_OK ? ops_status(o) : s;
}

status params_fill(params *p, ops *o, params_source source, void *user) {
    return fill(p, o, p->master, &(values){.source = source, .user = user});
}

status params_fill_moment(params *p, ops *o, int moment, params_source source, void *user) {
    return fill(p, o, moment == 1 ? p->moment1 : p->moment2, &(values){.source = source, .user = user});
}

status params_init(params *p, ops *o, uint64_t seed) {
    return fill(p, o, p->master, &(values){.seed = seed});
}

static tensor view(const param *q, void *base, int64_t offset, dtype type) {
    void *data = base ? (char *)base + (size_t)offset * dtype_bytes(type) : NULL;
    return tensor_make(data, type, q->rows, q->cols);
}

tensor params_weight(const params *p, int i) {
    const param *q = &p->list[i];
    if (is_gain(q)) return view(q, p->gains, q->offset - p->gains_first, DTYPE_F32);
    return view(q, p->compute, q->offset, p->compute_type);
}

void *params_copy(const params *p, int i) {
    bool separate = is_gain(&p->list[i]) ? p->pieces > 1 : !master_computes(p);
    return separate ? params_weight(p, i).data : NULL;
}

void *params_bucket_copy(const params *p, int b) {
    const param_bucket *bucket = &p->bucket[b];
    if (bucket->first >= p->gains_first) return p->pieces > 1 ? p->gains + (bucket->own - p->gains_first) : NULL;
    return master_computes(p) ? NULL : (char *)p->compute + (size_t)bucket->own * dtype_bytes(p->compute_type);
}

tensor params_gradient(const params *p, int i) {
    return view(&p->list[i], p->gradient, p->list[i].offset, DTYPE_F32);
}

int params_find(const params *p, const char *name) {
    for (int i = 0; i < p->count; i++)
        if (strcmp(p->list[i].name, name) == 0) return i;
    return -1;
}

int64_t params_total(const params *p) {
    return p->region_first[REGIONS];
}

int64_t params_global_count(const params *p) {
    int64_t total = 0;
    for (int i = 0; i < p->count; i++) total += p->list[i].spec.rows * p->list[i].spec.cols;
    return total;
}

void params_free(params *p) {
    free(p->list);
    free(p->bucket);
    *p = (params){0};
}
