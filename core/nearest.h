/* The valid name that a mistyped one was probably meant to be. */
#pragma once

/* Edits (insert, delete, replace) that turn a into b; INT_MAX where that is no typing mistake any more. */
int nearest_distance(const char *a, const char *b);

/* Of words, which end with NULL and are at least one, the first of the least distance. */
const char *nearest_word(const char *const *words, const char *word);
