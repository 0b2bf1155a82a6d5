/* Ids by the bytes of their tokens. */
#pragma once

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>

typedef struct token_entry {
    char *bytes; /* NULL: a free place */
    size_t length;
    int32_t id;
} token_entry;

typedef struct token_table {
    token_entry *entries; /* [places], a power of two, at most half of them taken */
    size_t places, taken;
} token_table;

/* Starts with {0}; copies the bytes. DATA when they are there already. */
status token_table_add(token_table *t, const char *bytes, size_t length, int32_t id);

/* -1: there is none. */
int32_t token_table_find(const token_table *t, const char *bytes, size_t length);

void token_table_free(token_table *t);
