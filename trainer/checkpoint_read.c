/* A checkpoint's values in a model's storage: row by row of what this rank holds, from whichever boxes have a part of
 * it. A box is held against its hash, whole, before its first value is used. */
#include "trainer/checkpoint_private.h"

#include <stdio.h>
#include <string.h>

#define BAD(k, format, ...) status_fail(STATUS_DATA, "%s: " format, (k)->path, ##__VA_ARGS__)

/* The rows of one kind of values, for params_fill. */
typedef struct source {
    checkpoint *checkpoint;
    checkpoint_kind kind;
} source;

static status open_file(checkpoint *k, int i) {
    char path[CHECKPOINT_PATH_BYTES + 64];
    if (k->files[i].map) return STATUS_OK;
    snprintf(path, sizeof path, "%s/%s", k->path, k->file_names[i]);
    return safetensors_open(&k->files[i], path);
}

/* Where the box's values are. */
static status find_values(checkpoint *k, checkpoint_box *b, const char **values) {
    char name[BOX_NAME_BYTES], hash[BOX_HASH_BYTES];
    tensor_box in_file = {.row = b->row, .col = b->col};
    TRY(open_file(k, b->file));
    snprintf(in_file.tensor, sizeof in_file.tensor, "%s", b->name);
    snprintf(in_file.kind, sizeof in_file.kind, "%s", checkpoint_kind_names[b->kind]);
    box_name(name, &in_file);
    const safetensors_entry *e = safetensors_find(&k->files[b->file], name);
    if (!e || e->type != SAFETENSORS_F32 || e->bytes != (size_t)(b->n_rows * b->n_cols) * sizeof(float))
        return BAD(k, "%s does not hold %s as the manifest says", k->file_names[b->file], name);
    *values = e->data;
    if (b->checked) return STATUS_OK;
    box_hash(hash, e->data, e->bytes);
    if (strcmp(hash, b->hash) != 0)
        return BAD(k, "damaged: %s in %s does not have its hash", name, k->file_names[b->file]);
    b->checked = true;
    return STATUS_OK;
}

/* The first box of that tensor and kind, or where it would stand. */
static int first_box(const checkpoint *k, const char *name, checkpoint_kind kind) {
    int low = 0, high = k->box_count;
    while (low < high) {
        int middle = (low + high) / 2, order = strcmp(k->boxes[middle].name, name);
        if (order == 0) order = k->boxes[middle].kind < kind ? -1 : 0;
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Copies what box b has of the n columns from `col` on of a global row; *found counts. */
static status copy_part(checkpoint *k, checkpoint_box *b, int64_t row, int64_t col, int64_t n, float *out,
                        int64_t *found) {
    const char *values = NULL;
    int64_t first = col > b->col ? col : b->col;
    int64_t end = col + n < b->col + b->n_cols ? col + n : b->col + b->n_cols;
    if (row < b->row || row >= b->row + b->n_rows || first >= end) return STATUS_OK;
    TRY(find_values(k, b, &values));
    size_t at = (size_t)((row - b->row) * b->n_cols + first - b->col) * sizeof(float);
    memcpy(out + (first - col), values + at, (size_t)(end - first) * sizeof(float));
    *found += end - first;
    return STATUS_OK;
}

static status read_row(void *user, const param *q, int64_t r, float *row) {
    source *s = user;
    checkpoint *k = s->checkpoint;
    int64_t found = 0;
    for (int i = first_box(k, q->name, s->kind); i < k->box_count; i++) {
        checkpoint_box *b = &k->boxes[i];
        if (strcmp(b->name, q->name) != 0 || b->kind != s->kind) break;
        if (b->rows != q->spec.rows || b->cols != q->spec.cols)
            return BAD(k, "%s is %ld x %ld, the model's is %ld x %ld", q->name, (long)b->rows, (long)b->cols,
                       (long)q->spec.rows, (long)q->spec.cols);
        TRY(copy_part(k, b, q->row + r, q->col, q->n_cols, row, &found));
    }
    if (found == q->n_cols) return STATUS_OK;
    return BAD(k, "of %ld values of %s (%s) in row %ld it holds %ld", (long)q->n_cols, q->name,
               checkpoint_kind_names[s->kind], (long)(q->row + r), (long)found);
}

status checkpoint_load_weights(checkpoint *k, params *p, ops *o) {
    source from = {.checkpoint = k, .kind = CHECKPOINT_MASTER};
    return params_fill(p, o, read_row, &from);
}

status checkpoint_load(checkpoint *k, params *p, ops *o) {
    source from = {.checkpoint = k, .kind = CHECKPOINT_MOMENT1};
    TRY(checkpoint_load_weights(k, p, o));
    TRY(params_fill_moment(p, o, 1, read_row, &from));
    from.kind = CHECKPOINT_MOMENT2;
    return params_fill_moment(p, o, 2, read_row, &from);
}
