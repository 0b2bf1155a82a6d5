/* Taking a tokenizer.json apart so that nothing in it is passed over: unknown keys and types are failures that name
 * them. */
#pragma once

#include "core/status.h"

#include <jansson.h>
#include <stdbool.h>

#define STRICT_KEYS(...) ((const char *const[]){__VA_ARGS__, NULL})

/* DATA unless `object`, called `where`, is one and every key is among the names, which end with NULL. */
status strict_check_keys(const json_t *object, const char *where, const char *const *names);

/* The member of that name; what it is taken for where it is missing or of another type: "", false, `otherwise`. */
const char *strict_text_at(const json_t *object, const char *key);
bool strict_flag_at(const json_t *object, const char *key, bool otherwise);

/* It is missing or null. */
bool strict_nothing_at(const json_t *object, const char *key);

/* Its "type" is that. */
bool strict_is_type(const json_t *object, const char *type);

/* DATA, naming the type of the object, which is a `where`. */
status strict_unknown_type(const char *where, const json_t *object);

/* How many parts a Sequence has, in the member `list`; anything else is its own only part, null has none. */
size_t strict_parts_of(const json_t *object, const char *list);
const json_t *strict_part_of(const json_t *object, const char *list, size_t i);
