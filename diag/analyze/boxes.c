#include "diag/analyze/boxes.h"

#include "core/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BOXES_OF_A_TENSOR = 1 << 14 };

#define BAD(path, format, ...) status_fail(STATUS_DATA, "%s: " format, path, ##__VA_ARGS__)

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for a checkpoint's boxes");
}

/* ---- the manifest ---- */

status boxes_shards(char ***names, int *count, const char *manifest_path) {
    json_t *root, *files = NULL, *file;
    const char *format = "", *name;
    int version = 0;
    size_t i;
    *names = NULL;
    *count = 0;
    TRY(json_read_file(&root, manifest_path, BOXES_MANIFEST_MAX_BYTES));
    status s = STATUS_OK;
    if (json_unpack(root, "{s:s, s:i, s:{s:o}}", "format", &format, "version", &version, "content", "files", &files) ||
        strcmp(format, "bulkhead-checkpoint") != 0 || version != 1)
        s = BAD(manifest_path, "this is no checkpoint's manifest that this program reads");
    if (s == STATUS_OK && !(*names = calloc(json_array_size(files) + 1, sizeof(**names)))) s = out_of_memory();
    if (s == STATUS_OK) json_array_foreach(files, i, file) {
            name = json_string_value(json_object_get(file, "name"));
            if (!name) s = BAD(manifest_path, "a file has no name");
            if (name && !((*names)[*count] = strdup(name))) s = out_of_memory();
            if (s != STATUS_OK) break;
            ++*count;
        }
    json_decref(root);
    return s;
}

/* ---- collecting ---- */

static int by_place(const void *a, const void *b) {
    const tensor_box *x = &((const boxes_item *)a)->place, *y = &((const boxes_item *)b)->place;
    int order = strcmp(x->tensor, y->tensor);
    if (order != 0) return order;
    if (x->row != y->row) return x->row < y->row ? -1 : 1;
    return (x->col > y->col) - (x->col < y->col);
}

/* A shard's fp32 weights; its moments are passed over. */
static status add_shard(boxes *b, const char *path, const safetensors *f) {
    boxes_item *more = realloc(b->item, (size_t)(b->count + f->count + 1) * sizeof(*more));
    if (!more) return out_of_memory();
    b->item = more;
    for (int i = 0; i < f->count; i++) {
        const safetensors_entry *e = &f->entries[i];
        boxes_item *item = &b->item[b->count];
        *item = (boxes_item){.entry = e, .holder = f};
        if (e->rank != 2 || e->type != SAFETENSORS_F32 ||
            !box_parse(&item->place, e->name, safetensors_metadata(f, e->name)))
            return BAD(path, "%s: %.200s is no box of a tensor", f->path, e->name);
        b->count += strcmp(item->place.kind, "master") == 0;
    }
    return STATUS_OK;
}

static bool lies_inside(const boxes_item *i) {
    const tensor_box *p = &i->place;
    int64_t rows = i->entry->shape[0], cols = i->entry->shape[1];
    return p->row >= 0 && p->col >= 0 && rows > 0 && cols > 0 && rows <= p->rows && cols <= p->cols &&
           p->row <= p->rows - rows && p->col <= p->cols - cols;
}

static bool overlap(const boxes_item *a, const boxes_item *b) {
    const tensor_box *p = &a->place, *q = &b->place;
    return p->row < q->row + b->entry->shape[0] && q->row < p->row + a->entry->shape[0] &&
           p->col < q->col + b->entry->shape[1] && q->col < p->col + a->entry->shape[1];
}

/* Boxes inside a tensor, as large as it together and without a common element, cover it. */
static bool make_a_tensor(const boxes_item *item, int count) {
    int64_t left = INT64_MAX;
    if (count > MOST_BOXES_OF_A_TENSOR || __builtin_mul_overflow(item->place.rows, item->place.cols, &left))
        return false;
    for (int i = 0; i < count; i++) {
        bool same = item[i].place.rows == item->place.rows && item[i].place.cols == item->place.cols;
        if (!same || !lies_inside(&item[i])) return false;
        left -= safetensors_elements(item[i].entry);
        /* by rows: what begins below this box is clear of it */
        for (int k = i + 1; k < count && item[k].place.row < item[i].place.row + item[i].entry->shape[0]; k++)
            if (overlap(&item[i], &item[k])) return false;
    }
    return left == 0;
}

/* Takes the tensor whose first item that is; its last item's index + 1 into *end. */
static status add_tensor(boxes *b, const char *path, int first, int *end) {
    const tensor_box *p = &b->item[first].place;
    for (*end = first; *end < b->count && strcmp(b->item[*end].place.tensor, p->tensor) == 0;) ++*end;
    if (!make_a_tensor(&b->item[first], *end - first))
        return BAD(path, "the boxes of %s do not make a tensor of %" PRId64 " x %" PRId64, p->tensor, p->rows, p->cols);
    b->whole[b->whole_count] = (safetensors_entry){.name = p->tensor,
                                                   .type = SAFETENSORS_F32,
                                                   .rank = 2,
                                                   .shape = {p->rows, p->cols},
                                                   .bytes = (size_t)(p->rows * p->cols) * sizeof(float)};
    b->first[b->whole_count++] = first;
    return STATUS_OK;
}

status boxes_open(boxes *out, const char *path, const safetensors *shards, int shard_count) {
    *out = (boxes){0};
    for (int i = 0; i < shard_count; i++) TRY(add_shard(out, path, &shards[i]));
    if (out->count == 0) return BAD(path, "it holds no weights");
    qsort(out->item, (size_t)out->count, sizeof(*out->item), by_place);
    out->whole = calloc((size_t)out->count, sizeof(*out->whole));
    out->first = calloc((size_t)out->count + 1, sizeof(*out->first));
    if (!out->whole || !out->first) return out_of_memory();
    for (int i = 0; i < out->count;) TRY(add_tensor(out, path, i, &i));
    out->first[out->whole_count] = out->count;
    return STATUS_OK;
}

void boxes_close(boxes *b) {
    free(b->item);
    free(b->whole);
    free(b->first);
    *b = (boxes){0};
}

/* ---- reading ---- */

static int by_name(const void *name, const void *entry) {
    return strcmp(name, ((const safetensors_entry *)entry)->name);
}

const safetensors_entry *boxes_find(const boxes *b, const char *name) {
    return bsearch(name, b->whole, (size_t)b->whole_count, sizeof(*b->whole), by_name);
}

static status read_box(const boxes_item *i, float *out) {
    char hash[BOX_HASH_BYTES];
    const tensor_box *p = &i->place;
    size_t row_bytes = (size_t)i->entry->shape[1] * sizeof(*out);
    box_hash(hash, i->entry->data, i->entry->bytes);
    if (strcmp(hash, p->hash) != 0)
        return BAD(i->holder->path, "damaged: %.200s does not have its hash", i->entry->name);
    for (int64_t r = 0; r < i->entry->shape[0]; r++)
        memcpy(out + (p->row + r) * p->cols + p->col, (const char *)i->entry->data + (size_t)r * row_bytes, row_bytes);
    safetensors_let_go(i->holder, i->entry);
    return STATUS_OK;
}

status boxes_read(const boxes *b, const safetensors_entry *whole, float *out) {
    ptrdiff_t at = whole - b->whole;
    for (int i = b->first[at]; i < b->first[at + 1]; i++) TRY(read_box(&b->item[i], out));
    return STATUS_OK;
}
