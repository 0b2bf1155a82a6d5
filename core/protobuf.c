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
