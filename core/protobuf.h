/* Protocol Buffers' wire format, as far as files of others have it: messages put together in memory, and taken
 * apart. */
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

/* The fields of a message, one after the other: begin with {bytes, bytes + length}. */
typedef struct protobuf_reader {
    const char *at, *end;
} protobuf_reader;

typedef struct protobuf_field {
    int number;
    uint64_t integer;  /* its value, or the bits of a float or double */
    const char *bytes; /* NULL: it is a number */
    size_t length;
} protobuf_field;

/* The next field; false at the end, and where the message is damaged: then at != end. */
bool protobuf_next(protobuf_reader *r, protobuf_field *out);
float protobuf_float(const protobuf_field *f);
