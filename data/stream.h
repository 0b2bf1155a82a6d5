/* A file's bytes, decompressed: gzip and zstd (several members or frames too) are known by their first bytes or by the
 * name's ending, all else is taken as it is. Reads front to back in blocks. */
#pragma once

#include "core/status.h"

#include <stddef.h>

typedef struct stream stream;

/* Reads from the open file descriptor, which the stream owns from now on; name is for messages and its ending. */
status stream_open(stream **out, int fd, const char *name);
void stream_close(stream *s);

/* Up to `room` bytes; *got is 0 at the end. DATA, with the place in the file, when compressed data is damaged or
 * truncated, IO when reading fails.
 */
status stream_read(stream *s, char *out, size_t room, size_t *got);
