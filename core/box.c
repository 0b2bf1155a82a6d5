#include "core/box.h"

#include <inttypes.h>
#include <stdio.h>
#include <xxhash.h>

void box_name(char out[BOX_NAME_BYTES], const tensor_box *b) {
    snprintf(out, BOX_NAME_BYTES, "%s/%s@%" PRId64 ":%" PRId64, b->tensor, b->kind, b->row, b->col);
}

void box_text(char out[BOX_TEXT_BYTES], const tensor_box *b) {
    snprintf(out, BOX_TEXT_BYTES, "xxh3 %s of %" PRId64 " x %" PRId64, b->hash, b->rows, b->cols);
}

bool box_parse(tensor_box *out, const char *name, const char *text) {
    *out = (tensor_box){0};
    return text && sscanf(text, "xxh3 %32s of %" SCNd64 " x %" SCNd64, out->hash, &out->rows, &out->cols) == 3 &&
           sscanf(name, "%63[^/]/%15[^@]@%" SCNd64 ":%" SCNd64, out->tensor, out->kind, &out->row, &out->col) == 4;
}

void box_hash(char out[BOX_HASH_BYTES], const void *data, size_t bytes) {
    XXH128_hash_t h = XXH3_128bits(data, bytes);
    snprintf(out, BOX_HASH_BYTES, "%016llx%016llx", (unsigned long long)h.high64, (unsigned long long)h.low64);
}
