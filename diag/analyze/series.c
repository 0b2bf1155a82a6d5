#include "diag/analyze/series.h"

#include "core/file.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STEP_MOST_DIGITS = 15 };

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the list of checkpoints");
}

/* ---- the step in a name ---- */

static bool ends_with(const char *text, size_t length, const char *word) {
    size_t tail = strlen(word);
    return length >= tail && strncasecmp(text + length - tail, word, tail) == 0;
}

int64_t series_step_of(const char *path) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    if (ends_with(path, end, ".safetensors")) end -= strlen(".safetensors");
    size_t first = end;
    while (first > 0 && isdigit((unsigned char)path[first - 1])) first--;
    size_t word = first;
    if (word > 0 && strchr("-_=", path[word - 1])) word--;
    if (first == end || end - first > STEP_MOST_DIGITS) return -1;
    if (!ends_with(path, word, "step") && !ends_with(path, word, "checkpoint")) return -1;
    return strtoll(path + first, NULL, 10);
}

/* ---- folders of checkpoints ---- */

static bool is_folder(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

static bool holds(const char *folder, const char *name) {
    char *path = file_join(folder, name);
    bool there = path && access(path, F_OK) == 0;
    free(path);
    return there;
}

static bool is_model(const char *path) {
    return !is_folder(path) || holds(path, "model.safetensors") || holds(path, "model.safetensors.index.json") ||
           holds(path, "manifest.json");
}

/* Takes over path. */
static status add(series *s, char *path, int64_t step) {
    series_item *more = path ? realloc(s->item, (size_t)(s->count + 1) * sizeof(*more)) : NULL;
    if (!more) {
        free(path);
        return out_of_memory();
    }
    s->item = more;
    s->item[s->count++] = (series_item){.path = path, .step = step};
    return STATUS_OK;
}

/* Folders in it whose names end with a step. */
static status add_folder(series *s, const char *folder) {
    DIR *d = opendir(folder);
    if (!d) return errno == ENOENT ? STATUS_OK : status_fail(STATUS_IO, "cannot read %s: %s", folder, strerror(errno));
    status result = STATUS_OK;
    for (struct dirent *entry; result == STATUS_OK && (entry = readdir(d));) {
        int64_t step = series_step_of(entry->d_name);
        char *path = step >= 0 ? file_join(folder, entry->d_name) : NULL;
        if (step >= 0 && !path) result = out_of_memory();
        if (path && is_folder(path))
            result = add(s, path, step);
        else
            free(path);
    }
    closedir(d);
    return result;
}

static status add_model(series *s, const char *path) {
    int before = s->count;
    if (access(path, F_OK) != 0) return status_fail(STATUS_NO_INPUT, "there is no %s", path);
    if (is_model(path)) return add(s, strdup(path), series_step_of(path));
    TRY(add_folder(s, path));
    if (s->count > before) return STATUS_OK;
    char *below = file_join(path, "checkpoints");
    status result = below ? add_folder(s, below) : out_of_memory();
    free(below);
    if (result != STATUS_OK || s->count > before) return result;
    return status_fail(
        STATUS_NO_INPUT,
        "%s holds no model (model.safetensors, model.safetensors.index.json or manifest.json) and no folders of "
        "checkpoints (step-1000, checkpoint-1000)",
        path);
}

/* ---- the list ---- */

static int by_step(const void *a, const void *b) {
    int64_t x = ((const series_item *)a)->step, y = ((const series_item *)b)->step;
    return (x > y) - (x < y);
}

static status order(series *s, int64_t step) {
    if (s->count > 1 && step >= 0)
        return status_fail(STATUS_USAGE, "--step says the step of one model, and these are %d", s->count);
    if (s->count == 1 && (step >= 0 || s->item[0].step < 0)) s->item[0].step = step >= 0 ? step : 0;
    qsort(s->item, (size_t)s->count, sizeof(*s->item), by_step);
    if (s->count > 1 && s->item[0].step < 0)
        return status_fail(STATUS_USAGE,
                           "%s: several models are taken for checkpoints of one run, and this name ends with no step "
                           "(step-1000, checkpoint-1000); analyze different models one by one",
                           s->item[0].path);
    for (int i = 1; i < s->count; i++)
        if (s->item[i].step == s->item[i - 1].step)
            return status_fail(STATUS_USAGE, "%s and %s are of the same step, %lld", s->item[i - 1].path,
                               s->item[i].path, (long long)s->item[i].step);
    return STATUS_OK;
}

status series_list(series *out, const char *const *models, int count, int64_t step) {
    *out = (series){0};
    status s = STATUS_OK;
    for (int i = 0; s == STATUS_OK && i < count; i++) s = add_model(out, models[i]);
    if (s == STATUS_OK) s = order(out, step);
    if (s != STATUS_OK) series_free(out);
    return s;
}

void series_free(series *s) {
    for (int i = 0; i < s->count; i++) free(s->item[i].path);
    free(s->item);
    *s = (series){0};
}
