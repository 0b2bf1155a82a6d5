#include "core/protobuf.h"

#include <stdlib.h>
#include <string.h>

enum { WIRE_VARINT = 0, WIRE_64 = 1, WIRE_BYTES = 2, WIRE_32 = 5, VARINT_BYTES = 10 };

static void append(protobuf *p, const void *bytes, size_t length) {
    if (p->length + length > p->room) {
        size_t room = 2 * (p->length + length) + 64;
        char *grown = p->failed ? NULL : realloc(p->bytes, room);
        p->failed = !grown;
        if (p->failed) return;
        p->bytes = grown;
        p->room = room;
    }
    if (length > 0) memcpy(p->bytes + p->length, bytes, length);
    p->length += length;
}

static void append_varint(protobuf *p, uint64_t value) {
    unsigned char bytes[VARINT_BYTES];
    size_t count = 0;
    for (; value >= 0x80; value >>= 7) bytes[count++] = (unsigned char)(value | 0x80);
    bytes[count++] = (unsigned char)value;
    append(p, bytes, count);
}

static void append_tag(protobuf *p, int field, int wire) {
    append_varint(p, (uint64_t)field << 3 | (uint64_t)wire);
}

void protobuf_put_integer(protobuf *p, int field, int64_t value) {
    append_tag(p, field, WIRE_VARINT);
    append_varint(p, (uint64_t)value);
}

void protobuf_put_float(protobuf *p, int field, float value) {
    append_tag(p, field, WIRE_32);
    append(p, &value, sizeof value);
}

void protobuf_put_double(protobuf *p, int field, double value) {
    append_tag(p, field, WIRE_64);
    append(p, &value, sizeof value);
}

void protobuf_put_bytes(protobuf *p, int field, const void *bytes, size_t length) {
    append_tag(p, field, WIRE_BYTES);
    append_varint(p, length);
    append(p, bytes, length);
}

static bool read_varint(protobuf_reader *r, uint64_t *out) {
    *out = 0;
    for (int shift = 0; shift < 7 * VARINT_BYTES && r->at < r->end; shift += 7) {
        uint64_t byte = (unsigned char)*r->at++;
        *out |= (byte & 0x7F) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

static bool read_bytes(protobuf_reader *r, protobuf_field *out, uint64_t length) {
    if (length > (uint64_t)(r->end - r->at)) return false;
    out->bytes = r->at;
    out->length = (size_t)length;
    r->at += length;
    return true;
}

static bool read_fixed(protobuf_reader *r, protobuf_field *out, size_t bytes) {
    if (!read_bytes(r, out, bytes)) return false;
    memcpy(&out->integer, out->bytes, bytes);
    out->bytes = NULL;
    out->length = 0;
    return true;
}

static bool read_field(protobuf_reader *r, protobuf_field *out) {
    uint64_t tag, length;
    if (!read_varint(r, &tag)) return false;
    out->number = (int)(tag >> 3);
    switch (tag & 7) {
    case WIRE_VARINT:
        return read_varint(r, &out->integer);
    case WIRE_64:
        return read_fixed(r, out, sizeof(double));
    case WIRE_32:
        return read_fixed(r, out, sizeof(float));
    case WIRE_BYTES:
        return read_varint(r, &length) && read_bytes(r, out, length);
    default:
        return false;
    }
}

bool protobuf_next(protobuf_reader *r, protobuf_field *out) {
    protobuf_reader before = *r;
    *out = (protobuf_field){0};
    if (r->at == r->end) return false;
    if (read_field(r, out)) return true;
    *r = before;
    return false;
}

float protobuf_float(const protobuf_field *f) {
    uint32_t bits = (uint32_t)f->integer;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}
