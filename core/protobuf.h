/* Protocol Buffers' wire format, as far as files of others have it: messages put together in memory. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A message; starts with {0}, ends with free(bytes). */
typedef struct protobuf {
    char *bytes;
    size_t length, room;
    bool failed; /* out of memory: bytes is not whole */
} protobuf;

/* Each appends a field with its number. */
void protobuf_put_integer(protobuf *p, int field, int64_t value); /* int32, int64, bool, enum */
void protobuf_put_float(protobuf *p, int field, float value);
void protobuf_put_double(protobuf *p, int field, double value);
void protobuf_put_bytes(protobuf *p, int field, const void *bytes, size_t length); /* string, bytes, packed, message */
