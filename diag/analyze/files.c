#include "diag/analyze/files.h"

#include "core/file.h"
#include "core/json.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char SINGLE[] = "model.safetensors", INDEX[] = "model.safetensors.index.json",
                  MANIFEST[] = "manifest.json";

enum { INDEX_MAX_BYTES = 1 << 25, MOST_FILES = 4096 };

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for a model's list of files");
}

/* ---- paths ---- */

static bool is_plain_name(const char *name) {
    for (const char *p = name; *p; p++)
        if (*p == '/' || (unsigned char)*p < ' ' || *p == 127) return false;
    return name[0] && strcmp(name, ".") != 0 && strcmp(name, "..") != 0 && strlen(name) <= NAME_MAX;
}

/* Whether the real path lies in the real folder. */
static bool lies_in(const char *path, const char *folder) {
    size_t length = strlen(folder);
    return strncmp(path, folder, length) == 0 && path[length] == '/';
}

/* .../snapshots/REVISION keeps its files in .../blobs. */
static bool lies_in_cache(const char *path, const char *folder) {
    static const char snapshots[] = "/snapshots";
    char blobs[PATH_MAX + 8];
    const char *revision = strrchr(folder, '/');
    size_t above = revision ? (size_t)(revision - folder) : 0, tail = strlen(snapshots);
    if (above < tail || strncmp(folder + above - tail, snapshots, tail) != 0) return false;
    snprintf(blobs, sizeof(blobs), "%.*s/blobs", (int)(above - tail), folder);
    return lies_in(path, blobs);
}

status files_inside(char **out, const char *folder, const char *name) {
    *out = NULL;
    if (!is_plain_name(name))
        return status_fail(STATUS_DATA, "%s: \"%.200s\" is no name of a file in this folder", folder, name);
    char *path = file_join(folder, name);
    if (!path) return out_of_memory();
    char *root = realpath(folder, NULL), *real = realpath(path, NULL);
    status s = STATUS_OK;
    if (!root || !real)
        s = status_fail(STATUS_NO_INPUT, "there is no %s", path);
    else if (!lies_in(real, root) && !lies_in_cache(real, root))
        s = status_fail(STATUS_DATA, "%s is a link to a file outside of its folder", path);
    if (s == STATUS_OK) {
        *out = real;
        real = NULL;
    }
    free(path);
    free(root);
    free(real);
    return s;
}

/* ---- opening ---- */

/* What is missing although the index names it makes the model bad. */
static status missing_is_bad(status s) {
    if (s != STATUS_NO_INPUT) return s;
    char why[512];
    snprintf(why, sizeof(why), "%s", status_message());
    status_clear();
    return status_fail(STATUS_DATA, "%s, which the index names", why);
}

static status add_file(files *f, const char *path, const char *name) {
    safetensors *more = realloc(f->file, (size_t)(f->count + 1) * sizeof(*more));
    if (!more) return out_of_memory();
    f->file = more;
    char **names = realloc(f->name, (size_t)(f->count + 1) * sizeof(*names));
    if (!names) return out_of_memory();
    f->name = names;
    TRY(safetensors_open(&f->file[f->count], path));
    f->name[f->count] = strdup(name);
    if (!f->name[f->count++]) return out_of_memory();
    return STATUS_OK;
}

static int file_of_name(const files *f, const char *name) {
    for (int i = 0; i < f->count; i++)
        if (strcmp(f->name[i], name) == 0) return i;
    return -1;
}

static status add_shard(files *f, const char *name) {
    char *path;
    if (f->count == MOST_FILES)
        return status_fail(STATUS_DATA, "%s: the index names more than %d files", f->path, MOST_FILES);
    TRY(missing_is_bad(files_inside(&path, f->path, name)));
    status s = missing_is_bad(add_file(f, path, name));
    free(path);
    return s;
}

static status open_shards(files *f) {
    const char *tensor, *name;
    json_t *value;
    json_object_foreach(f->places, tensor, value) {
        name = json_string_value(value);
        if (!name) return status_fail(STATUS_DATA, "%s/%s: %.200s has no file's name", f->path, INDEX, tensor);
        if (file_of_name(f, name) < 0) TRY(add_shard(f, name));
        if (!files_find(f, tensor))
            return status_fail(STATUS_DATA, "%s/%s: %.200s is not in %s", f->path, INDEX, tensor, name);
    }
    if (f->count == 0) return status_fail(STATUS_DATA, "%s/%s names no tensor", f->path, INDEX);
    return STATUS_OK;
}

static status open_index(files *f, const char *path) {
    json_t *index;
    TRY(json_read_file(&index, path, INDEX_MAX_BYTES));
    f->places = json_incref(json_object_get(index, "weight_map"));
    json_decref(index);
    if (!json_is_object(f->places))
        return status_fail(STATUS_DATA, "%s/%s has no weight_map, from tensors to files", f->path, INDEX);
    return open_shards(f);
}

static status open_single(files *f, const char *path) {
    return add_file(f, path, SINGLE);
}

/* A run's checkpoint. */
static status open_manifest(files *f, const char *path) {
    char **names;
    int count;
    status s = boxes_shards(&names, &count, path);
    for (int i = 0; i < count; i++) {
        if (s == STATUS_OK) s = add_shard(f, names[i]);
        free(names[i]);
    }
    free(names);
    return s == STATUS_OK ? boxes_open(&f->boxes, f->path, f->file, f->count) : s;
}

static status open_folder(files *f) {
    static const struct {
        const char *name;
        status (*open)(files *f, const char *path);
    } layouts[] = {{SINGLE, open_single}, {INDEX, open_index}, {MANIFEST, open_manifest}};
    for (size_t i = 0; i < sizeof layouts / sizeof *layouts; i++) {
        char *path;
        status s = files_inside(&path, f->path, layouts[i].name);
        if (s == STATUS_OK) s = layouts[i].open(f, path);
        free(path);
        if (path || s != STATUS_NO_INPUT) return s;
        status_clear();
    }
    return status_fail(STATUS_NO_INPUT, "%s holds neither %s nor %s, nor a checkpoint's %s", f->path, SINGLE, INDEX,
                       MANIFEST);
}

status files_open(files *out, const char *path) {
    struct stat info;
    *out = (files){.path = strdup(path)};
    if (!out->path) return out_of_memory();
    status s = STATUS_OK;
    if (stat(path, &info) != 0)
        s = status_fail(STATUS_NO_INPUT, "there is no %s", path);
    else if ((out->folder = S_ISDIR(info.st_mode)))
        s = open_folder(out);
    else
        s = add_file(out, path, "");
    if (s != STATUS_OK) files_close(out);
    return s;
}

void files_close(files *f) {
    boxes_close(&f->boxes);
    for (int i = 0; i < f->count; i++) {
        safetensors_close(&f->file[i]);
        free(f->name[i]);
    }
    json_decref(f->places);
    free(f->file);
    free(f->name);
    free(f->path);
    *f = (files){0};
}

const safetensors_entry *files_find(const files *f, const char *name) {
    int i = 0;
    if (f->boxes.item) return boxes_find(&f->boxes, name);
    if (f->places) {
        const char *place = json_string_value(json_object_get(f->places, name));
        i = place ? file_of_name(f, place) : -1;
        if (i < 0) return NULL;
    }
    return safetensors_find(&f->file[i], name);
}

/* The file that an entry is of. */
static const safetensors *holder_of(const files *f, const safetensors_entry *e) {
    int i = 0;
    while (i < f->count - 1 && (e < f->file[i].entries || e >= f->file[i].entries + f->file[i].count)) i++;
    return &f->file[i];
}

status files_read(const files *f, const safetensors_entry *e, int64_t first, int64_t rows, float *out) {
    if (f->boxes.item) return boxes_read(&f->boxes, e, out);
    const safetensors_entry part = safetensors_rows(e, first, rows);
    status s = safetensors_f32(&part, out);
    safetensors_let_go(holder_of(f, e), &part);
    return s;
}
