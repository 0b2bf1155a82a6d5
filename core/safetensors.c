#include "core/safetensors.h"

#include "core/file.h"
#include "core/json.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "the format is little-endian, and so is what this is built for");

static const struct {
    const char *name;
    size_t bytes;
} types[] = {
#define X(name, bytes) {#name, bytes},
    SAFETENSORS_TYPES(X)
#undef X
};

enum { TYPE_COUNT = sizeof types / sizeof types[0], LENGTH_BYTES = 8 };

const char *safetensors_type_name(safetensors_type type) {
    return types[type].name;
}
size_t safetensors_type_bytes(safetensors_type type) {
    return types[type].bytes;
}

int64_t safetensors_elements(const safetensors_entry *e) {
    int64_t product = 1;
    for (int i = 0; i < e->rank; i++) product *= e->shape[i];
    return product;
}

/* ---- reading ---- */

#define BAD(f, format, ...) status_fail(STATUS_DATA, "%s: " format, (f)->path, ##__VA_ARGS__)

static status read_type(const safetensors *f, safetensors_entry *e, const json_t *value) {
    const char *name = json_string_value(value);
    for (int i = 0; name && i < TYPE_COUNT; i++)
        if (strcmp(name, types[i].name) == 0) {
            e->type = (safetensors_type)i;
            return STATUS_OK;
        }
    return BAD(f, "tensor %.200s has the unknown dtype %.40s", e->name, name ? name : "(none)");
}

/* Shape, and the bytes that it needs. */
static status read_shape(const safetensors *f, safetensors_entry *e, const json_t *value, int64_t *bytes) {
    if (!json_is_array(value)) return BAD(f, "tensor %.200s has no shape", e->name);
    if (json_array_size(value) > SAFETENSORS_MAX_RANK)
        return BAD(f, "tensor %.200s has %zu dimensions, more than %d", e->name, json_array_size(value),
                   SAFETENSORS_MAX_RANK);
    e->rank = (int)json_array_size(value);
    *bytes = (int64_t)types[e->type].bytes;
    for (int i = 0; i < e->rank; i++) {
        const json_t *dimension = json_array_get(value, (size_t)i);
        e->shape[i] = json_integer_value(dimension);
        if (!json_is_integer(dimension) || e->shape[i] < 0)
            return BAD(f, "tensor %.200s: dimension %d is not a count", e->name, i);
        if (__builtin_mul_overflow(*bytes, e->shape[i], bytes))
            return BAD(f, "tensor %.200s: its shape overflows 64 bits", e->name);
    }
    return STATUS_OK;
}

static status read_range(const safetensors *f, safetensors_entry *e, const json_t *value, int64_t needed,
                         const char *data, size_t data_bytes) {
    const json_t *first = json_array_get(value, 0), *last = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_integer(first) || !json_is_integer(last))
        return BAD(f, "tensor %.200s: data_offsets are not two whole numbers", e->name);
    int64_t begin = json_integer_value(first), end = json_integer_value(last);
    if (begin < 0 || end < begin)
        return BAD(f, "tensor %.200s: data_offsets %lld to %lld are no range", e->name, (long long)begin,
                   (long long)end);
    if ((uint64_t)end > data_bytes)
        return BAD(f, "tensor %.200s ends at byte %lld, the data at %zu: the file is cut off", e->name, (long long)end,
                   data_bytes);
    if (end - begin != needed)
        return BAD(f, "tensor %.200s has %lld bytes, its shape and dtype need %lld", e->name, (long long)(end - begin),
                   (long long)needed);
    e->data = data + begin;
    e->bytes = (size_t)needed;
    return STATUS_OK;
}

static int by_place(const void *a, const void *b) {
    const safetensors_entry *x = a, *y = b;
    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* an empty one comes before what begins where it is */
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const safetensors_entry *)a)->name, ((const safetensors_entry *)b)->name);
}

/* The ranges follow each other from the first byte of the data to the last. */
static status check_cover(const safetensors *f, const char *data, size_t data_bytes) {
    const char *next = data;
    for (int i = 0; i < f->count; i++) {
        const safetensors_entry *e = &f->entries[i];
        if ((const char *)e->data < next) return BAD(f, "tensor %.200s overlaps the one before it", e->name);
        if ((const char *)e->data > next)
            return BAD(f, "there is a hole of %td bytes before tensor %.200s", (const char *)e->data - next, e->name);
        next += e->bytes;
    }
    if (next != data + data_bytes) return BAD(f, "%td bytes follow the last tensor", data + data_bytes - next);
    return STATUS_OK;
}

static status read_metadata(const safetensors *f, json_t *metadata) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata)) return BAD(f, "__metadata__ is no object");
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value)) return BAD(f, "__metadata__: %.200s is no string", key);
    }
    return STATUS_OK;
}

static status read_entries(safetensors *f, const char *data, size_t data_bytes) {
    const char *name;
    json_t *value;
    f->entries = calloc(json_object_size(f->header) + 1, sizeof *f->entries);
    if (!f->entries) return status_fail(STATUS_INTERNAL, "out of memory reading %s", f->path);
    json_object_foreach((json_t *)f->header, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            TRY(read_metadata(f, value));
            continue;
        }
        safetensors_entry *e = &f->entries[f->count++];
        int64_t needed = 0;
        e->name = name;
        TRY(read_type(f, e, json_object_get(value, "dtype")));
        TRY(read_shape(f, e, json_object_get(value, "shape"), &needed));
        TRY(read_range(f, e, json_object_get(value, "data_offsets"), needed, data, data_bytes));
    }
    qsort(f->entries, (size_t)f->count, sizeof *f->entries, by_place);
    TRY(check_cover(f, data, data_bytes));
    qsort(f->entries, (size_t)f->count, sizeof *f->entries, by_name);
    return STATUS_OK;
}

static status map_file(safetensors *f) {
    struct stat info;
    int fd = open(f->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return status_fail(STATUS_NO_INPUT, "cannot open %s: %s", f->path, strerror(errno));
    status result = STATUS_OK;
    if (fstat(fd, &info) != 0)
        result = status_fail(STATUS_IO, "cannot read %s: %s", f->path, strerror(errno));
    else if (!S_ISREG(info.st_mode))
        result = status_fail(STATUS_NO_INPUT, "%s is no file", f->path);
    else if (info.st_size < LENGTH_BYTES)
        result = BAD(f, "%lld bytes are too few for a safetensors file", (long long)info.st_size);
    else {
        void *map = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            result = status_fail(STATUS_IO, "cannot map %s: %s", f->path, strerror(errno));
        else
            f->map = map, f->map_bytes = (size_t)info.st_size;
    }
    close(fd);
    return result;
}

/* Whether the text, if it is JSON, can be a header of this format. A tensor is an object of two arrays, and takes at
 * least LEAST_TENSOR_BYTES; a header of brackets alone would cost 40 times its bytes as JSON. */
static bool is_like_header(const char *text, size_t length) {
    enum { LEAST_TENSOR_BYTES = 48, LEAST_VALUE_BYTES = 4, SLACK_BYTES = 256, SLACK_ARRAYS = 64 };
    size_t objects = 0, arrays = 0, commas = 0;
    bool in_string = false;
    for (size_t i = 0; i < length; i++) {
        char c = text[i];
        if (in_string && c == '\\') i++;
        if (c == '"') in_string = !in_string;
        if (in_string) continue;
        objects += c == '{';
        arrays += c == '[';
        commas += c == ',';
    }
    return arrays <= 2 * objects + SLACK_ARRAYS && objects * LEAST_TENSOR_BYTES <= length + SLACK_BYTES &&
           commas * LEAST_VALUE_BYTES <= length + SLACK_BYTES;
}

static status read_header(safetensors *f) {
    uint64_t length;
    memcpy(&length, f->map, LENGTH_BYTES);
    const char *text = (const char *)f->map + LENGTH_BYTES;
    if (length > f->map_bytes - LENGTH_BYTES)
        return BAD(f, "the header's length, %llu, goes past the end of the file", (unsigned long long)length);
    if (length > SAFETENSORS_MAX_HEADER_BYTES)
        return BAD(f, "the header's length, %llu, is over %d", (unsigned long long)length,
                   SAFETENSORS_MAX_HEADER_BYTES);
    json_error_t error;
    if (!is_like_header(text, length)) return BAD(f, "the header is no list of tensors");
    f->header = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!f->header) return BAD(f, "the header is no JSON: %s", error.text);
    if (!json_is_object((json_t *)f->header)) return BAD(f, "the header is no JSON object");
    return read_entries(f, text + length, f->map_bytes - LENGTH_BYTES - length);
}

status safetensors_open(safetensors *out, const char *path) {
    *out = (safetensors){.path = strdup(path)};
    if (!out->path) return status_fail(STATUS_INTERNAL, "out of memory");
    status result = map_file(out);
    if (result == STATUS_OK) result = read_header(out);
    if (result != STATUS_OK) safetensors_close(out);
    return result;
}

void safetensors_close(safetensors *f) {
    if (f->map) munmap(f->map, f->map_bytes);
    if (f->header) json_decref(f->header);
    free(f->entries);
    free(f->path);
    *f = (safetensors){0};
}

const safetensors_entry *safetensors_find(const safetensors *f, const char *name) {
    const safetensors_entry wanted = {.name = name};
    if (f->count == 0) return NULL;
    return bsearch(&wanted, f->entries, (size_t)f->count, sizeof wanted, by_name);
}

const char *safetensors_metadata(const safetensors *f, const char *key) {
    return json_string_value(json_object_get(json_object_get(f->header, "__metadata__"), key));
}

/* ---- values ---- */

#define READ(ctype)                                                                                                    \
    ({                                                                                                                 \
        ctype value_;                                                                                                  \
        memcpy(&value_, from, sizeof value_);                                                                          \
        value_;                                                                                                        \
    })

static float from_bf16(const char *from) {
    uint32_t bits = (uint32_t)READ(uint16_t) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* As a float, a half's bits stand for 2^-112 times its value, but for infinities and NaN. */
static float from_f16(const char *from) {
    uint32_t half = READ(uint16_t), bits = (half & 0x7fff) << 13;
    float value;
    if (bits >= 0x7c00 << 13) bits |= 0x7f800000;
    memcpy(&value, &bits, sizeof value);
    if (bits < 0x7f800000) value *= 0x1p112f;
    return half & 0x8000 ? -value : value;
}

status safetensors_f32(const safetensors_entry *e, float *out) {
    const char *from = e->data;
    size_t step = types[e->type].bytes;
    int64_t count = safetensors_elements(e);
    for (int64_t i = 0; i < count; i++, from += step) switch (e->type) {
        case SAFETENSORS_F32:
            out[i] = READ(float);
            break;
        case SAFETENSORS_F64:
            out[i] = (float)READ(double);
            break;
        case SAFETENSORS_F16:
            out[i] = from_f16(from);
            break;
        case SAFETENSORS_BF16:
            out[i] = from_bf16(from);
            break;
        default:
            return status_fail(STATUS_DATA, "tensor %.200s is %s, not a float type", e->name, types[e->type].name);
        }
    return STATUS_OK;
}

status safetensors_i64(const safetensors_entry *e, int64_t *out) {
    const char *from = e->data;
    size_t step = types[e->type].bytes;
    int64_t count = safetensors_elements(e);
    for (int64_t i = 0; i < count; i++, from += step) switch (e->type) {
        case SAFETENSORS_BOOL:
        case SAFETENSORS_U8:
            out[i] = READ(uint8_t);
            break;
        case SAFETENSORS_I8:
            out[i] = READ(int8_t);
            break;
        case SAFETENSORS_I16:
            out[i] = READ(int16_t);
            break;
        case SAFETENSORS_U16:
            out[i] = READ(uint16_t);
            break;
        case SAFETENSORS_I32:
            out[i] = READ(int32_t);
            break;
        case SAFETENSORS_U32:
            out[i] = READ(uint32_t);
            break;
        case SAFETENSORS_I64:
            out[i] = READ(int64_t);
            break;
        case SAFETENSORS_U64: {
            uint64_t value = READ(uint64_t);
            if (value > INT64_MAX)
                return status_fail(STATUS_DATA, "tensor %.200s: %llu is too large", e->name, (unsigned long long)value);
            out[i] = (int64_t)value;
            break;
        }
        default:
            return status_fail(STATUS_DATA, "tensor %.200s is %s, not an integer type", e->name, types[e->type].name);
        }
    return STATUS_OK;
}

safetensors_entry safetensors_rows(const safetensors_entry *e, int64_t first, int64_t count) {
    safetensors_entry part = *e;
    size_t row_bytes = e->bytes;
    if (e->rank == 2) {
        row_bytes = (size_t)e->shape[1] * types[e->type].bytes;
        part.shape[0] = count;
    }
    part.data = (const char *)e->data + (size_t)first * row_bytes;
    part.bytes = (size_t)count * row_bytes;
    return part;
}

void safetensors_let_go(const safetensors *f, const safetensors_entry *e) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), first = (uintptr_t)e->data / page * page;
    if (e->bytes > 0) madvise((void *)first, (uintptr_t)e->data + e->bytes - first, MADV_DONTNEED);
}

/* ---- writing ---- */

static json_t *describe(const safetensors_entry *e, size_t begin) {
    json_t *shape = json_array();
    for (int i = 0; shape && i < e->rank; i++) json_array_append_new(shape, json_integer(e->shape[i]));
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", types[e->type].name, "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)(begin + e->bytes));
}

/* The header's text, padded with spaces so that the data behind it is aligned. malloc'ed; NULL with a message. */
static char *make_header(const safetensors_entry *entries, int count, const char *const (*metadata)[2],
                         int metadata_count, const char *path) {
    json_t *header = json_object(), *pairs = json_object();
    bool ok = header && pairs;
    for (int i = 0; ok && i < metadata_count; i++)
        ok = json_object_set_new(pairs, metadata[i][0], json_string(metadata[i][1])) == 0;
    if (ok && metadata_count > 0) ok = json_object_set(header, "__metadata__", pairs) == 0;
    size_t begin = 0;
    for (int i = 0; ok && i < count; i++) {
        const safetensors_entry *e = &entries[i];
        ok = (size_t)safetensors_elements(e) * types[e->type].bytes == e->bytes && !json_object_get(header, e->name) &&
             json_object_set_new(header, e->name, describe(e, begin)) == 0;
        if (!ok) status_fail(STATUS_INTERNAL, "%s: tensor %s is there twice or not what its shape says", path, e->name);
        begin += e->bytes;
    }
    char *text = ok ? json_dumps(header, JSON_COMPACT) : NULL;
    json_decref(header);
    json_decref(pairs);
    size_t length = text ? strlen(text) : 0, padded = (length + 7) / 8 * 8;
    char *wider = text ? realloc(text, padded + 1) : NULL;
    if (!wider) {
        free(text);
        status_fail(STATUS_INTERNAL, "%s: its header cannot be made", path);
        return NULL;
    }
    memset(wider + length, ' ', padded - length);
    wider[padded] = '\0';
    return wider;
}

status safetensors_write(const char *path, const safetensors_entry *entries, int count,
                         const char *const (*metadata)[2], int metadata_count) {
    char *header = make_header(entries, count, metadata, metadata_count, path);
    if (!header) return STATUS_INTERNAL;
    uint64_t length = strlen(header);
    file_writer w;
    status result = file_begin(&w, path);
    if (result != STATUS_OK) {
        free(header);
        return result;
    }
    result = file_put(&w, &length, sizeof length);
    if (result == STATUS_OK) result = file_put(&w, header, length);
    for (int i = 0; result == STATUS_OK && i < count; i++) result = file_put(&w, entries[i].data, entries[i].bytes);
    free(header);
    if (result == STATUS_OK) return file_commit(&w);
    file_discard(&w);
    return result;
}
