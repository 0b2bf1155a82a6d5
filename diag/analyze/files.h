/* A model's tensors, wherever they lie: one .safetensors file, or a folder with model.safetensors or with shards that
 * model.safetensors.index.json lists (the layout of Hugging Face's transformers), or a checkpoint's folder of a run
 * (boxes.h). Nothing in a folder is trusted: an index names files of its folder and no others. Files are mapped; what
 * is read of them is the caller's. */
#pragma once

#include "diag/analyze/boxes.h"

#include <jansson.h>
#include <stdbool.h>

typedef struct files {
    char *path; /* as it was given */
    bool folder;
    int count;
    safetensors *file; /* [count] */
    char **name;       /* [count] within the folder */
    json_t *places;    /* tensor to file name; NULL: there is one file, or a checkpoint's shards */
    boxes boxes;       /* of a checkpoint; item NULL: it is none */
} files;

/* The real path of a folder's file, malloc'ed; a link may lead to another file of the folder, or to the blobs/ beside
 * snapshots/ that a download cache keeps its files in. NO_INPUT when there is none of that name, DATA when the name is
 * no plain file name or the file lies elsewhere. */
status files_inside(char **out, const char *folder, const char *name);

/* NO_INPUT when path or a folder's weights are missing; DATA, naming the file and what is wrong, when one is not
 * well-formed, or when the index names a file or a tensor that is not there. After a failure there is nothing to close.
 */
status files_open(files *out, const char *path);
void files_close(files *f);

/* NULL when there is none of that name. What it holds is read by files_read. */
const safetensors_entry *files_find(const files *f, const char *name);

/* Rows first to first + rows - 1 of an entry from files_find as float (of a checkpoint: all of them); DATA as
 * safetensors_f32 and boxes_read. Pages that were read are let go. */
status files_read(const files *f, const safetensors_entry *e, int64_t first, int64_t rows, float *out);
