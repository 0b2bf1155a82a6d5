/* Open addressing, one probe after the other. */
#include "data/token_table.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/* The entry of those bytes, or the free place where it would stand. */
static token_entry *place_of(const token_table *t, const char *bytes, size_t length) {
    size_t place = XXH3_64bits(bytes, length) & (t->places - 1);
    while (t->entries[place].bytes &&
           (t->entries[place].length != length || memcmp(t->entries[place].bytes, bytes, length) != 0))
        place = (place + 1) & (t->places - 1);
    return &t->entries[place];
}

static status grow(token_table *t) {
    token_table larger = {.places = t->places ? 2 * t->places : 64, .taken = t->taken};
    larger.entries = calloc(larger.places, sizeof *larger.entries);
    if (!larger.entries) return status_fail(STATUS_INTERNAL, "out of memory");
    for (size_t i = 0; i < t->places; i++)
        if (t->entries[i].bytes) *place_of(&larger, t->entries[i].bytes, t->entries[i].length) = t->entries[i];
    free(t->entries);
    *t = larger;
    return STATUS_OK;
}

status token_table_add(token_table *t, const char *bytes, size_t length, int32_t id) {
    if (2 * (t->taken + 1) > t->places) TRY(grow(t));
    token_entry *e = place_of(t, bytes, length);
    if (e->bytes) return status_fail(STATUS_DATA, "two tokens have the text \"%.*s\"", (int)length, bytes);
    char *copy = malloc(length + 1);
    if (!copy) return status_fail(STATUS_INTERNAL, "out of memory");
    memcpy(copy, bytes, length);
    copy[length] = 0;
    *e = (token_entry){copy, length, id};
    t->taken++;
    return STATUS_OK;
}

int32_t token_table_find(const token_table *t, const char *bytes, size_t length) {
    if (t->places == 0) return -1;
    const token_entry *e = place_of(t, bytes, length);
    return e->bytes ? e->id : -1;
}

void token_table_free(token_table *t) {
    for (size_t i = 0; i < t->places; i++) free(t->entries[i].bytes);
    free(t->entries);
    *t = (token_table){0};
}
