/* What several modules want on top of Jansson. */
#pragma once

#include "core/status.h"

#include <jansson.h>

/* A real, or null where JSON has no number: NaN and infinity. A new reference; NULL: out of memory. */
json_t *json_finite(double value);

/* A string. Text that is no UTF-8 cannot be in JSON: its foreign bytes become "?"; NULL is "". A new reference; NULL:
 * out of memory. */
json_t *json_text(const char *text);

/* The file's value, a new reference. Duplicate keys and anything behind the value are errors: DATA with file, line and
 * reason. NO_INPUT, IO as file_read_all. */
status json_read_file(json_t **out, const char *path, size_t limit_bytes);

/* Writes the value (keys in the order they were added), whole or not at all. */
status json_write_file(const char *path, const json_t *value);
