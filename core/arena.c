#include "core/arena.h"

#include <stdio.h>
#include <stdlib.h>

void *arena_push(arena *a, size_t bytes) {
    size_t rounded = (bytes + ARENA_ALIGN_BYTES - 1) / ARENA_ALIGN_BYTES * ARENA_ALIGN_BYTES;
    char *data = a->base ? a->base + a->used_bytes : NULL;
    a->used_bytes += rounded;
    if (a->used_bytes > a->peak_bytes) a->peak_bytes = a->used_bytes;
    if (a->base && a->used_bytes > a->size_bytes) {
        fprintf(stderr, "arena: %zu bytes wanted, %zu counted: set-up and use disagree\n", a->used_bytes,
                a->size_bytes);
        abort();
    }
    return data;
}
