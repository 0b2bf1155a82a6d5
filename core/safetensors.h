/* The safetensors format: 8 bytes header length (little-endian), a JSON header with name, type, shape and byte range of
 * each tensor, then the data. The reader trusts nothing: every file that it opens has ranges that lie inside the file,
 * agree with shape and type, and cover the data without overlap or hole. */
#pragma once

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_TYPES(X)                                                                                           \
    X(BOOL, 1)                                                                                                         \
    X(U8, 1) X(I8, 1) X(F8_E5M2, 1) X(F8_E4M3, 1) X(I16, 2) X(U16, 2) X(F16, 2) X(BF16, 2) X(I32, 4) X(U32, 4)         \
        X(F32, 4) X(I64, 8) X(U64, 8) X(F64, 8)

typedef enum safetensors_type {
#define X(name, bytes) SAFETENSORS_##name,
    SAFETENSORS_TYPES(X)
#undef X
} safetensors_type;

enum { SAFETENSORS_MAX_RANK = 8, SAFETENSORS_MAX_HEADER_BYTES = 100000000 };

typedef struct safetensors_entry {
    const char *name;
    safetensors_type type;
    int rank; /* 0: a scalar */
    int64_t shape[SAFETENSORS_MAX_RANK];
    const void *data; /* in a mapped file of any alignment: read it through safetensors_f32 and _i64, or memcpy */
    size_t bytes;
} safetensors_entry;

typedef struct safetensors {
    safetensors_entry *entries; /* by name */
    int count;
    char *path;
    void *map;
    size_t map_bytes;
    void *header; /* owns names and metadata */
} safetensors;

/* Maps the file. NO_INPUT when it cannot be opened, DATA with the reason when it is not well-formed. Close also after
 * use. */
status safetensors_open(safetensors *out, const char *path);
void safetensors_close(safetensors *f);

/* NULL when there is none of that name. */
const safetensors_entry *safetensors_find(const safetensors *f, const char *name);

/* The value of a key of "__metadata__"; NULL when there is none. */
const char *safetensors_metadata(const safetensors *f, const char *key);

/* Product of the shape. */
int64_t safetensors_elements(const safetensors_entry *e);

const char *safetensors_type_name(safetensors_type type);
size_t safetensors_type_bytes(safetensors_type type);

/* All elements as float from F64, F32, F16 or BF16, or as int64 from an integer type or BOOL. DATA for another type,
 * and for a U64 value above INT64_MAX. */
status safetensors_f32(const safetensors_entry *e, float *out);
status safetensors_i64(const safetensors_entry *e, int64_t *out);

/* Rows first to first + count - 1 of a tensor of two dimensions (of its one row, where it has one dimension) as an
 * entry of their own. They must be there. */
safetensors_entry safetensors_rows(const safetensors_entry *e, int64_t first, int64_t count);

/* The entry's pages need no memory until they are read again: what keeps one pass over a large file small. */
void safetensors_let_go(const safetensors *f, const safetensors_entry *e);

/* Writes the entries in their order, the data 8-byte aligned, whole or not at all. metadata: count pairs of key and
 * value. */
status safetensors_write(const char *path, const safetensors_entry *entries, int count,
                         const char *const (*metadata)[2], int metadata_count);
