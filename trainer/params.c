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
    param *new = &p->list[p->count++];
    *new = (param){.spec = *spec};
    snprintf(new->name, sizeof new->name, "%s%s", prefix, spec->name);
    new->region = spec->shard != PARAM_REPLICATED ? REGION_SHARDED : spec->partial ? REGION_PARTIAL : REGION_COMPLETE;
    return STATUS_OK;
}

/* This rank's share of a side of `global` units: equal padded shares, the last ones short or empty. */
static void cut(int64_t global, int rank, int size, int64_t *share, int64_t *first, int64_t *valid) {
    *share = (global + size - 1) / size;
    *first = rank * *share < global ? rank * *share : global;
    *valid = global - *first < *share ? global - *first : *share;
}

void params_layout(params *p, int rank, int size) {
    int64_t offset = 0;
    for (int region = 0; region < REGIONS; region++) {
        p->region_first[region] = offset;
        for (int i = 0; i < p->count; i++) {
            param *q = &p->list[i];
            if (q->region != (param_region)region) continue;
            q->rows = q->n_rows = q->spec.rows;
            q->cols = q->n_cols = q->spec.cols;
            if (q->spec.shard == PARAM_BY_ROWS) cut(q->spec.rows, rank, size, &q->rows, &q->row, &q->n_rows);
            if (q->spec.shard == PARAM_BY_COLS) cut(q->spec.cols, rank, size, &q->cols, &q->col, &q->n_cols);
            const int64_t align = ARENA_ALIGN_BYTES / sizeof(float);
            if (!q->spec.joined) offset = (offset + align - 1) / align * align;
            q->offset = offset;
            offset += q->rows * q->cols;
        }
    }
    p->region_first[REGIONS] = offset;
}

void params_reserve(params *p, dtype activation, arena *a) {
    size_t bytes = (size_t)params_total(p) * sizeof(float);
    p->master = arena_push(a, bytes);
    p->gradient = arena_push(a, bytes);
    p->moment1 = arena_push(a, bytes);
    p->moment2 = arena_push(a, bytes);
    p->compute_type = activation;
    p->compute = activation == DTYPE_F32 ? p->master : arena_push(a, bytes / sizeof(float) * dtype_bytes(activation));
}

/* base: master or one of the moments. */
static status fill(const params *p, ops *o, float *base, params_source source, void *user) {
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
        memset(host, 0, (size_t)(q->rows * q->cols) * sizeof *host);
        for (int64_t r = 0; r < q->n_rows && s == STATUS_OK; r++) s = source(user, q, r, host + r * q->cols);
        o->upload(o, base + q->offset, host, (size_t)(q->rows * q->cols) * sizeof *host);
        if (base == p->master && params_copy(p, i))
            o->cast(o, params_copy(p, i), base + q->offset, q->rows * q->cols);
    }
    free(host);
    return s == STATUS_OK ? ops_status(o) : s;
}

status params_fill(params *p, ops *o, params_source source, void *user) {
    return fill(p, o, p->master, source, user);
}

status params_fill_moment(params *p, ops *o, int moment, params_source source, void *user) {
    return fill(p, o, moment == 1 ? p->moment1 : p->moment2, source, user);
}

/* Row r of the box from the seed's random numbers. */
static status draw_row(void *seed, const param *q, int64_t r, float *row) {
    uint64_t first = (uint64_t)((q->row + r) * q->spec.cols + q->col);
    if (q->spec.init == PARAM_NORMAL)
        rng_normal(row, *(uint64_t *)seed, rng_stream(q->name), first, q->n_cols, q->spec.std);
    else
        for (int64_t c = 0; c < q->n_cols; c++) row[c] = 1.0f;
    return STATUS_OK;
}

status params_init(params *p, ops *o, uint64_t seed) {
    return params_fill(p, o, draw_row, &seed);
}

static tensor view(const params *p, int i, void *base, dtype type) {
    const param *q = &p->list[i];
    void *data = base ? (char *)base + (size_t)q->offset * dtype_bytes(type) : NULL;
    return tensor_make(data, type, q->rows, q->cols);
}

tensor params_weight(const params *p, int i) {
    if (p->list[i].spec.init == PARAM_ONES) return view(p, i, p->master, DTYPE_F32);
    return view(p, i, p->compute, p->compute_type);
}

void *params_copy(const params *p, int i) {
    return p->compute == p->master ? NULL : view(p, i, p->compute, p->compute_type).data;
}

tensor params_gradient(const params *p, int i) {
    return view(p, i, p->gradient, DTYPE_F32);
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
    *p = (params){0};
}
