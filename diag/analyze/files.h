/* A model's tensors, wherever they lie: one .safetensors file, or a folder with model.safetensors or with shards that
 * model.safetensors.index.json lists (the layout of Hugging Face's transformers). Nothing in a folder is trusted: an
 * index names files of its folder and no others. Files are mapped; what is read of them is the caller's. */
#pragma once

#include "core/safetensors.h"

#include <jansson.h>
#include <stdbool.h>

typedef struct files {
    char *path; /* as it was given */
    bool folder;
    int count;
    safetensors *file; /* [count] */
    char **name;       /* [count] within the folder */
    json_t *places;    /* tensor to file name; NULL: there is one file */
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

/* NULL when there is none of that name. holder (may be NULL): the file that it is in. */
const safetensors_entry *files_find(const files *f, const char *name, const safetensors **holder);
