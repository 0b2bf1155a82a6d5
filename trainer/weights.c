#include "trainer/weights.h"

#include "core/file.h"
#include "trainer/checkpoint.h"
#include "trainer/foreign.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <sys/stat.h>

#define BAD(f, format, ...) status_fail(STATUS_DATA, "%s: " format, (f)->path, ##__VA_ARGS__)

/* The whole tensor of q, checked against the model's shape. */
static status find(const safetensors *f, const param *q, const safetensors_entry **out) {
    const safetensors_entry *e = *out = safetensors_find(f, q->name);
    int64_t rows = q->spec.rows, cols = q->spec.cols;
    if (!e)
        return BAD(f, "there is no tensor %s, which the model has; is it of another variant or number of layers?",
                   q->name);
    if (e->rank != 2)
        return BAD(f, "tensor %s has %d dimensions; the model's is %" PRId64 " x %" PRId64, q->name, e->rank, rows,
                   cols);
    if (e->shape[0] != rows || e->shape[1] != cols)
        return BAD(f, "tensor %s is %" PRId64 " x %" PRId64 ", the model's is %" PRId64 " x %" PRId64, q->name,
                   e->shape[0], e->shape[1], rows, cols);
    return STATUS_OK;
}

static status read_row(void *user, const param *q, int64_t r, float *row) {
    const safetensors *f = user;
    const safetensors_entry *whole;
    TRY(find(f, q, &whole));
    size_t size = safetensors_type_bytes(whole->type);
    safetensors_entry part = *whole;
    part.rank = 1;
    part.shape[0] = q->n_cols;
    part.bytes = (size_t)q->n_cols * size;
    part.data = (const char *)whole->data + (size_t)((q->row + r) * q->spec.cols + q->col) * size;
    TRY(safetensors_f32(&part, row));
    for (int64_t c = 0; c < q->n_cols; c++)
        if (!isfinite(row[c]))
            return BAD(f, "tensor %s: element [%" PRId64 ", %" PRId64 "] is %g; training cannot start from it", q->name,
                       q->row + r, q->col + c, (double)row[c]);
    return STATUS_OK;
}

status weights_load(params *p, ops *o, const safetensors *f) {
    return params_fill(p, o, read_row, (void *)f);
}

static status check_name(const params *p, const char *path, const char *name) {
    if (params_find(p, name) >= 0) return STATUS_OK;
    return status_fail(STATUS_DATA,
                       "%s: the model has no parameter %.200s; what weights come from must hold the model's parameters "
                       "and no others",
                       path, name);
}

static status load_file(params *p, ops *o, const char *path) {
    safetensors f;
    TRY(safetensors_open(&f, path));
    status s = STATUS_OK;
    for (int i = 0; i < f.count && s == STATUS_OK; i++) s = check_name(p, path, f.entries[i].name);
    if (s == STATUS_OK) s = weights_load(p, o, &f);
    safetensors_close(&f);
    return s;
}

static status load_checkpoint(params *p, ops *o, const char *path) {
    checkpoint k;
    status s = checkpoint_read(&k, path);
    for (int i = 0; i < k.box_count && s == STATUS_OK; i++) s = check_name(p, path, k.boxes[i].name);
    if (s == STATUS_OK) s = checkpoint_load_weights(&k, p, o);
    checkpoint_free(&k);
    return s;
}

static status load_foreign(params *p, ops *o, const char *path) {
    foreign f;
    TRY(foreign_open(&f, path, NULL, 0));
    status s = foreign_load(&f, p, o);
    foreign_close(&f);
    return s;
}

bool weights_are_foreign(const char *path) {
    char name[4096];
    snprintf(name, sizeof name, "%s/config.json", path);
    return file_exists(name);
}

status weights_load_path(params *p, ops *o, const char *path) {
    struct stat info;
    bool folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
    if (folder && weights_are_foreign(path)) return load_foreign(p, o, path);
    return folder ? load_checkpoint(p, o, path) : load_file(p, o, path);
}
