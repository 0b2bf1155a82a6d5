#include "data/strict_json.h"

#include <string.h>

status strict_check_keys(const json_t *object, const char *where, const char *const *names) {
    const char *key;
    json_t *value;
    if (!json_is_object(object)) return status_fail(STATUS_DATA, "\"%s\" is no object", where);
    json_object_foreach((json_t *)object, key, value) {
        int i = 0;
        while (names[i] && strcmp(names[i], key) != 0) i++;
        if (!names[i]) return status_fail(STATUS_DATA, "\"%s\" has \"%s\", which is not known here", where, key);
    }
    return STATUS_OK;
}

const char *strict_text_at(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

bool strict_is_type(const json_t *object, const char *type) {
    return strcmp(strict_text_at(object, "type"), type) == 0;
}

bool strict_flag_at(const json_t *object, const char *key, bool otherwise) {
    const json_t *value = json_object_get(object, key);
    return json_is_boolean(value) ? json_is_true(value) : otherwise;
}

bool strict_nothing_at(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return !value || json_is_null(value);
}

status strict_unknown_type(const char *where, const json_t *object) {
    return status_fail(STATUS_DATA, "the %s \"%s\" is not known here", where, strict_text_at(object, "type"));
}

size_t strict_parts_of(const json_t *object, const char *list) {
    if (!object || json_is_null(object)) return 0;
    return strict_is_type(object, "Sequence") ? json_array_size(json_object_get(object, list)) : 1;
}

const json_t *strict_part_of(const json_t *object, const char *list, size_t i) {
    return strict_is_type(object, "Sequence") ? json_array_get(json_object_get(object, list), i) : object;
}
