#include "core/json.h"

#include "core/file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

json_t *json_finite(double value) {
    return isfinite(value) ? json_real(value) : json_null();
}

json_t *json_text(const char *text) {
    json_t *j = json_string(text ? text : "");
    if (j) return j;
    char *ascii = strdup(text);
    for (char *c = ascii; c && *c; c++)
        if (*c & 0x80) *c = '?';
    j = ascii ? json_string(ascii) : NULL;
    free(ascii);
    return j;
}

status json_read_file(json_t **out, const char *path, size_t limit_bytes) {
    char *text;
    size_t bytes;
    json_error_t error;
    TRY(file_read_all(&text, &bytes, path, limit_bytes));
    *out = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error);
    free(text);
    if (!*out) return status_fail(STATUS_DATA, "%s:%d: this is no JSON: %s", path, error.line, error.text);
    return STATUS_OK;
}

static int put(const char *text, size_t bytes, void *user) {
    return file_put(user, text, bytes) == STATUS_OK ? 0 : -1;
}

status json_write_file(const char *path, const json_t *value) {
    file_writer w;
    TRY(file_begin(&w, path));
    if (json_dump_callback(value, put, &w, JSON_INDENT(2) | JSON_ENCODE_ANY) != 0 ||
        file_put(&w, "\n", 1) != STATUS_OK) {
        file_discard(&w); /* put's own message, where there is one, is the first and stays */
        return status_fail(STATUS_IO, "cannot write %s: its value cannot be put into JSON", path);
    }
    return file_commit(&w);
}
