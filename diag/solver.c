/* Cores wait in page-locked memory, those of one side in one block, and go to the device in pieces. The device's memory
 * holds one piece; all is allocated at the start. */
#include "diag/solver.h"

#include <math.h>
#include <stdlib.h>

/* All cores of one side. */
typedef struct batch {
    int side, count, piece; /* piece: how many go to the device at once */
    float *cores;           /* [count, side, side] */
    float *values;          /* [count, side] */
} batch;

typedef struct place {
    batch *in; /* NULL: the core does not come here */
    int at;
    double scale; /* the core over what is kept */
    bool put;
} place;

struct solver {
    svd_device *device;
    int count, batches;
    place *places;
    batch *batch;
    float *cores, *values; /* on the device: a piece */
    bool solved;
};

static size_t core_size(const batch *b) {
    return (size_t)b->side * (size_t)b->side;
}

static batch *find_batch(solver *s, int side) {
    for (int i = 0; i < s->batches; i++)
        if (s->batch[i].side == side) return &s->batch[i];
    batch *b = &s->batch[s->batches++];
    b->side = side;
    return b;
}

static void find_places(solver *s, const int *sides) {
    for (int i = 0; i < s->count; i++) {
        if (sides[i] == 0) continue;
        batch *b = find_batch(s, sides[i]);
        s->places[i] = (place){.in = b, .at = b->count++, .scale = 1};
    }
}

static status reserve_batch(solver *s, batch *b, size_t *most_cores, size_t *most_values) {
    ops *o = &s->device->ops;
    size_t core = core_size(b), fit = s->device->piece_bytes / sizeof(float) / core, side = (size_t)b->side;
    b->piece = fit < 1 ? 1 : fit < (size_t)b->count ? (int)fit : b->count;
    b->cores = o->host_alloc(o, (size_t)b->count * core * sizeof(float));
    b->values = o->host_alloc(o, (size_t)b->count * side * sizeof(float));
    if (!b->cores || !b->values)
        return status_fail(STATUS_CONFIG,
                           "host memory for %d cores of %d x %d cannot be had; set diagnostics.device: cpu", b->count,
                           b->side, b->side);
    if (*most_cores < (size_t)b->piece * core) *most_cores = (size_t)b->piece * core;
    if (*most_values < (size_t)b->piece * side) *most_values = (size_t)b->piece * side;
    return s->device->reserve(s->device, b->side, b->piece);
}

static status reserve(solver *s) {
    ops *o = &s->device->ops;
    size_t cores = 0, values = 0;
    for (int i = 0; i < s->batches; i++) TRY(reserve_batch(s, &s->batch[i], &cores, &values));
    s->cores = o->alloc(o, cores * sizeof(float));
    s->values = o->alloc(o, values * sizeof(float));
    if (s->cores && s->values) return STATUS_OK;
    return status_fail(STATUS_CONFIG, "%zu MiB for the spectra cannot be had on the %s; set diagnostics.device: cpu",
                       (cores + values) * sizeof(float) >> 20, o->name);
}

status solver_open(solver **out, svd_device *device, const int *sides, int count) {
    solver *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s) return status_fail(STATUS_INTERNAL, "out of memory for the solver");
    s->device = device;
    s->count = count;
    s->places = calloc((size_t)count + 1, sizeof *s->places);
    s->batch = calloc((size_t)count + 1, sizeof *s->batch);
    status result = STATUS_OK;
    if (s->places && s->batch) {
        find_places(s, sides);
        result = reserve(s);
    } else {
        result = status_fail(STATUS_INTERNAL, "out of memory for the solver of %d cores", count);
    }
    if (result != STATUS_OK) {
        solver_close(s);
        return result;
    }
    *out = s;
    return STATUS_OK;
}

void solver_close(solver *s) {
    if (!s) return;
    ops *o = &s->device->ops;
    for (int i = 0; i < s->batches; i++) {
        if (s->batch[i].cores) o->host_release(o, s->batch[i].cores);
        if (s->batch[i].values) o->host_release(o, s->batch[i].values);
    }
    if (s->cores) o->release(o, s->cores);
    if (s->values) o->release(o, s->values);
    free(s->batch);
    free(s->places);
    free(s);
}

bool solver_takes(const solver *s, int i) {
    return s->places[i].in != NULL;
}

void solver_start(solver *s) {
    for (int i = 0; i < s->count; i++) s->places[i].put = false;
    s->solved = false;
}

static float *core_of(const place *p) {
    return p->in->cores + (size_t)p->at * core_size(p->in);
}

/* The power of two of x's exponent, 1 for 0. */
static double magnitude(const double *x, size_t n) {
    double most = 0;
    for (size_t i = 0; i < n; i++) most = fmax(most, fabs(x[i]));
    return most > 0 ? ldexp(1, ilogb(most)) : 1;
}

void solver_put(solver *s, int i, const double *core) {
    place *p = &s->places[i];
    size_t n = core_size(p->in);
    float *to = core_of(p);
    p->scale = magnitude(core, n);
    for (size_t k = 0; k < n; k++) to[k] = (float)(core[k] / p->scale);
    p->put = true;
}

static void run_piece(solver *s, const batch *b, int first) {
    ops *o = &s->device->ops;
    int count = b->count - first < b->piece ? b->count - first : b->piece;
    size_t core = core_size(b), side = (size_t)b->side;
    o->upload(o, s->cores, b->cores + (size_t)first * core, (size_t)count * core * sizeof(float));
    s->device->solve(s->device, s->values, s->cores, b->side, count);
    o->download(o, b->values + (size_t)first * side, s->values, (size_t)count * side * sizeof(float));
}

status solver_run(solver *s) {
    for (int i = 0; i < s->batches; i++)
        for (int first = 0; first < s->batch[i].count; first += s->batch[i].piece) run_piece(s, &s->batch[i], first);
    TRY(ops_status(&s->device->ops));
    s->solved = true;
    return STATUS_OK;
}

bool solver_has(const solver *s, int i) {
    return s->places[i].in && s->places[i].put;
}

bool solver_values(const solver *s, int i, double *values) {
    const place *p = &s->places[i];
    const float *from = p->in->values + (size_t)p->at * (size_t)p->in->side;
    if (!s->solved) return false;
    for (int k = 0; k < p->in->side; k++) {
        if (!isfinite(from[k])) return false;
        values[k] = p->scale * from[k];
    }
    return true;
}

void solver_core(const solver *s, int i, double *core) {
    const place *p = &s->places[i];
    const float *from = core_of(p);
    for (size_t k = 0; k < core_size(p->in); k++) core[k] = p->scale * from[k];
}
