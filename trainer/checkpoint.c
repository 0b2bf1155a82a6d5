#include "trainer/checkpoint_private.h"

#include "core/file.h"
#include "core/json.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MANIFEST_LIMIT_BYTES = 1 << 30, LATEST_LIMIT_BYTES = 256, VERSION = 1 };

const char *const checkpoint_kind_names[CHECKPOINT_KINDS] = {"master", "moment1", "moment2"};

#define BAD(path, format, ...) status_fail(STATUS_DATA, "%s: " format, path, ##__VA_ARGS__)

/* ---------------------------------------------------------------- names */

void checkpoint_name(char out[CHECKPOINT_NAME_BYTES], int64_t step) {
    snprintf(out, CHECKPOINT_NAME_BYTES, "step-%08ld", (long)step);
}

int64_t checkpoint_step_of(const char *name) {
    char again[CHECKPOINT_NAME_BYTES];
    long step = -1;
    if (sscanf(name, "step-%ld", &step) != 1 || step < 0) return -1;
    checkpoint_name(again, step);
    return strcmp(name, again) == 0 ? step : -1;
}

void checkpoint_folder(char out[CHECKPOINT_PATH_BYTES], const config *c) {
    snprintf(out, CHECKPOINT_PATH_BYTES, "%s/checkpoints", c->run.dir);
}

void checkpoint_path(char out[CHECKPOINT_PATH_BYTES], const config *c, int64_t step, bool whole) {
    char name[CHECKPOINT_NAME_BYTES];
    checkpoint_name(name, step);
    snprintf(out, CHECKPOINT_PATH_BYTES, "%s/checkpoints/%s%s", c->run.dir, name, whole ? "" : ".partial");
}

void checkpoint_shard_name(char out[CHECKPOINT_NAME_BYTES], int rank) {
    snprintf(out, CHECKPOINT_NAME_BYTES, "rank-%05d.safetensors", rank);
}

static int descending(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

status checkpoint_list(const char *folder, int64_t **steps, int *count) {
    *steps = NULL;
    *count = 0;
    DIR *d = opendir(folder);
    if (!d && errno == ENOENT) return STATUS_OK;
    if (!d) return status_fail(STATUS_IO, "cannot read the folder %s: %s", folder, strerror(errno));
    status s = STATUS_OK;
    for (struct dirent *e; s == STATUS_OK && (e = readdir(d));) {
        int64_t step = checkpoint_step_of(e->d_name);
        if (step < 0) continue;
        int64_t *more = realloc(*steps, ((size_t)*count + 1) * sizeof *more);
        if (!more) s = status_fail(STATUS_INTERNAL, "out of memory");
        if (more) *steps = more;
        if (more) more[(*count)++] = step;
    }
    closedir(d);
    if (*steps) qsort(*steps, (size_t)*count, sizeof **steps, descending);
    return s;
}

int64_t checkpoint_latest(const char *folder) {
    char *path = file_join(folder, "latest"), *text = NULL;
    int64_t step = -1;
    if (path && file_exists(path) && file_read_all(&text, NULL, path, LATEST_LIMIT_BYTES) == STATUS_OK) {
        text[strcspn(text, "\n")] = '\0';
        step = checkpoint_step_of(text);
    }
    status_clear();
    free(text);
    free(path);
    return step;
}

/* ---------------------------------------------------------------- the manifest */

/* The checked content of the manifest, a new reference. */
static status read_content(json_t **out, const char *folder) {
    char path[CHECKPOINT_PATH_BYTES + 32], hash[BOX_HASH_BYTES];
    json_t *root = NULL, *content;
    const char *format = "", *said = "";
    int version = 0;
    snprintf(path, sizeof path, "%s/manifest.json", folder);
    TRY(json_read_file(&root, path, MANIFEST_LIMIT_BYTES));
    if (json_unpack(root, "{s:s, s:i, s:s, s:o}", "format", &format, "version", &version, "xxh3", &said, "content",
                    &content) != 0 ||
        strcmp(format, "bulkhead-checkpoint") != 0) {
        json_decref(root);
        return BAD(path, "this is no checkpoint's manifest");
    }
    status s = version == VERSION ? STATUS_OK : BAD(path, "its version is %d; this program reads %d", version, VERSION);
    char *text = s == STATUS_OK ? json_dumps(content, JSON_COMPACT) : NULL;
    if (s == STATUS_OK && !text) s = status_fail(STATUS_INTERNAL, "%s: out of memory", path);
    if (s == STATUS_OK) {
        box_hash(hash, text, strlen(text));
        if (strcmp(hash, said) != 0) s = BAD(path, "damaged: its content does not have its hash");
    }
    if (s == STATUS_OK) *out = json_incref(content);
    free(text);
    json_decref(root);
    return s;
}

static double number_or_nan(const json_t *v) {
    return json_is_number(v) ? json_number_value(v) : NAN;
}

static bool read_spikes(spikes *s, const json_t *object) {
    json_t *losses = json_object_get(object, "losses");
    s->above = json_is_true(json_object_get(object, "above"));
    s->count = (int)json_array_size(losses);
    if (s->count > SPIKES_WINDOW) return false;
    for (int i = 0; i < s->count; i++) s->losses[i] = number_or_nan(json_array_get(losses, (size_t)i));
    return true;
}

static bool read_files(checkpoint *k, const json_t *files) {
    k->file_count = (int)json_array_size(files);
    size_t room = (size_t)k->file_count + 1;
    k->file_names = calloc(room, sizeof *k->file_names);
    k->file_bytes = calloc(room, sizeof *k->file_bytes);
    k->files = calloc(room, sizeof *k->files);
    if (!k->file_names || !k->file_bytes || !k->files) return false;
    for (int i = 0; i < k->file_count; i++) {
        const char *name;
        json_int_t bytes;
        if (json_unpack(json_array_get(files, (size_t)i), "{s:s, s:I}", "name", &name, "bytes", &bytes) != 0)
            return false;
        if (strchr(name, '/')) return false;
        snprintf(k->file_names[i], sizeof k->file_names[i], "%s", name);
        k->file_bytes[i] = bytes;
    }
    return true;
}

static bool read_box(checkpoint_box *b, json_t *v, int file_count) {
    const char *name, *kind, *hash;
    json_int_t rows, cols, row, col, n_rows, n_cols;
    if (json_unpack(v, "{s:s, s:s, s:i, s:I, s:I, s:I, s:I, s:I, s:I, s:s}", "name", &name, "kind", &kind, "file",
                    &b->file, "rows", &rows, "cols", &cols, "row", &row, "col", &col, "n_rows", &n_rows, "n_cols",
                    &n_cols, "xxh3", &hash) != 0)
        return false;
    int which = 0;
    while (which < CHECKPOINT_KINDS && strcmp(kind, checkpoint_kind_names[which]) != 0) which++;
    if (which == CHECKPOINT_KINDS || b->file < 0 || b->file >= file_count) return false;
    if (row < 0 || col < 0 || n_rows < 1 || n_cols < 1 || n_rows > rows - row || n_cols > cols - col) return false;
    b->kind = (checkpoint_kind)which;
    b->rows = rows;
    b->cols = cols;
    b->row = row;
    b->col = col;
    b->n_rows = n_rows;
    b->n_cols = n_cols;
    return snprintf(b->name, sizeof b->name, "%s", name) < (int)sizeof b->name &&
           snprintf(b->hash, sizeof b->hash, "%s", hash) < (int)sizeof b->hash;
}

static int by_place(const void *a, const void *b) {
    const checkpoint_box *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    if (order != 0) return order;
    if (x->kind != y->kind) return x->kind < y->kind ? -1 : 1;
    if (x->row != y->row) return x->row < y->row ? -1 : 1;
    return (x->col > y->col) - (x->col < y->col);
}

/* Boxes of one tensor have its size together: with no element twice, which reading finds, every one is there. */
static bool make_whole_tensors(const checkpoint *k) {
    int64_t elements = 0;
    for (int i = 0; i < k->box_count; i++) {
        const checkpoint_box *b = &k->boxes[i], *next = i + 1 < k->box_count ? b + 1 : NULL;
        elements += b->n_rows * b->n_cols;
        bool same = next && strcmp(next->name, b->name) == 0 && next->kind == b->kind;
        if (same && (next->rows != b->rows || next->cols != b->cols)) return false;
        if (same) continue;
        if (elements != b->rows * b->cols) return false;
        elements = 0;
    }
    return true;
}

static bool read_boxes(checkpoint *k, const json_t *boxes) {
    k->box_count = (int)json_array_size(boxes);
    k->boxes = calloc((size_t)k->box_count + 1, sizeof *k->boxes);
    if (!k->boxes) return false;
    for (int i = 0; i < k->box_count; i++)
        if (!read_box(&k->boxes[i], json_array_get(boxes, (size_t)i), k->file_count)) return false;
    qsort(k->boxes, (size_t)k->box_count, sizeof *k->boxes, by_place);
    return make_whole_tensors(k);
}

static bool read_manifest(checkpoint *k) {
    json_t *files, *boxes, *losses;
    const char *run;
    json_int_t step, updates, left_out, tokens, windows;
    if (json_unpack(k->content, "{s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:i, s:o, s:o, s:o, s:o}", "run", &run, "step",
                    &step, "updates", &updates, "left_out", &left_out, "tokens", &tokens, "windows", &windows, "tensor",
                    &k->tp, "data", &k->dp, "spikes", &losses, "config", &k->config, "files", &files, "boxes",
                    &boxes) != 0)
        return false;
    snprintf(k->run, sizeof k->run, "%s", run);
    k->state.step = step;
    k->state.updates = updates;
    k->state.left_out = left_out;
    k->state.loss = number_or_nan(json_object_get(k->content, "loss"));
    k->state.validation_loss = number_or_nan(json_object_get(k->content, "validation_loss"));
    k->tokens = tokens;
    k->windows = windows;
    return read_spikes(&k->state.spikes, losses) && read_files(k, files) && read_boxes(k, boxes);
}

static status check_files(const checkpoint *k) {
    for (int i = 0; i < k->file_count; i++) {
        char path[CHECKPOINT_PATH_BYTES + 64];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", k->path, k->file_names[i]);
        if (stat(path, &info) != 0) return BAD(path, "%s", strerror(errno));
        if (info.st_size != k->file_bytes[i])
            return BAD(path, "it has %ld bytes; %ld were written", (long)info.st_size, (long)k->file_bytes[i]);
    }
    return STATUS_OK;
}

status checkpoint_read(checkpoint *out, const char *path) {
    *out = (checkpoint){0};
    snprintf(out->path, sizeof out->path, "%s", path);
    TRY(read_content(&out->content, path));
    if (!read_manifest(out)) return BAD(path, "its manifest is not one that this program writes");
    return check_files(out);
}

void checkpoint_free(checkpoint *k) {
    for (int i = 0; k->files && i < k->file_count; i++)
        if (k->files[i].map) safetensors_close(&k->files[i]);
    free(k->files);
    free(k->file_names);
    free(k->file_bytes);
    free(k->boxes);
    json_decref(k->content);
    *k = (checkpoint){0};
}

status checkpoint_run_of(char out[RUN_ID_BYTES], const char *path) {
    json_t *content = NULL;
    TRY(read_content(&content, path));
    const char *run = json_string_value(json_object_get(content, "run"));
    snprintf(out, RUN_ID_BYTES, "%s", run ? run : "");
    json_decref(content);
    return STATUS_OK;
}
