/* Decompression behind one read call. Memory: one input block and the decompressor's state. */
#include "data/stream.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

enum { BLOCK_BYTES = 1 << 17, GZIP_WINDOW = 15 + 16 /* zlib: a gzip header is required */ };

struct stream {
    int fd;
    char *name;
    char block[BLOCK_BYTES];
    size_t next, end; /* the unused part of block */
    int64_t read;     /* bytes of the file until the block's end */
    bool drained;     /* the file has no more */
    bool between;     /* compressed: at the start of a member or frame, where the file may end */
    z_stream gzip;
    ZSTD_DStream *zstd;
    enum { KIND_PLAIN, KIND_GZIP, KIND_ZSTD } kind;
};

/* Appends one read's bytes to the block, which must have room. */
static status refill(stream *s) {
    if (s->next == s->end) s->next = s->end = 0;
    for (;;) {
        ssize_t got = read(s->fd, s->block + s->end, BLOCK_BYTES - s->end);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EISDIR) return status_fail(STATUS_NO_INPUT, "%s is a folder, not a file", s->name);
        if (got < 0) return status_fail(STATUS_IO, "cannot read %s: %s", s->name, strerror(errno));
        s->drained = got == 0;
        s->end += (size_t)got;
        s->read += got;
        return STATUS_OK;
    }
}

/* Where in the file the unused part begins. */
static long long place(const stream *s) {
    return (long long)(s->read - (int64_t)(s->end - s->next));
}

static bool starts_with(const stream *s, const char *magic, size_t bytes) {
    return s->end - s->next >= bytes && memcmp(s->block + s->next, magic, bytes) == 0;
}

static bool named(const stream *s, const char *ending) {
    size_t length = strlen(s->name), tail = strlen(ending);
    return length > tail && strcmp(s->name + length - tail, ending) == 0;
}

static status start(stream *s) {
    while (s->end < 4 && !s->drained) TRY(refill(s));
    s->between = true;
    if (starts_with(s, "\x1f\x8b", 2) || named(s, ".gz")) {
        if (inflateInit2(&s->gzip, GZIP_WINDOW) != Z_OK) return status_fail(STATUS_INTERNAL, "out of memory");
        s->kind = KIND_GZIP;
    } else if (starts_with(s, "\x28\xb5\x2f\xfd", 4) || named(s, ".zst")) {
        s->zstd = ZSTD_createDStream();
        if (!s->zstd) return status_fail(STATUS_INTERNAL, "out of memory");
        s->kind = KIND_ZSTD;
    }
    if (s->kind != KIND_PLAIN && s->end == 0)
        return status_fail(STATUS_DATA, "%s is truncated: it is empty, not even a compressed file's start", s->name);
    return STATUS_OK;
}

status stream_open(stream **out, int fd, const char *name) {
    stream *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s || !(s->name = strdup(name))) {
        free(s);
        close(fd);
        return status_fail(STATUS_INTERNAL, "out of memory");
    }
    s->fd = fd;
    status result = start(s);
    if (result != STATUS_OK)
        stream_close(s);
    else
        *out = s;
    return result;
}

void stream_close(stream *s) {
    if (!s) return;
    if (s->kind == KIND_GZIP) inflateEnd(&s->gzip);
    ZSTD_freeDStream(s->zstd);
    close(s->fd);
    free(s->name);
    free(s);
}

static status inflate_some(stream *s, char *out, size_t room, size_t *got) {
    if (s->between && inflateReset(&s->gzip) != Z_OK) return status_fail(STATUS_INTERNAL, "zlib lost its state");
    s->gzip.next_in = (unsigned char *)s->block + s->next;
    s->gzip.avail_in = (unsigned)(s->end - s->next);
    s->gzip.next_out = (unsigned char *)out;
    s->gzip.avail_out = (unsigned)room;
    int code = inflate(&s->gzip, Z_NO_FLUSH);
    s->next = s->end - s->gzip.avail_in;
    *got = room - s->gzip.avail_out;
    s->between = code == Z_STREAM_END;
    if (code == Z_OK || code == Z_STREAM_END || code == Z_BUF_ERROR) return STATUS_OK;
    return status_fail(STATUS_DATA, "%s is no gzip file or is damaged at byte %lld: %s", s->name, place(s),
                       s->gzip.msg ? s->gzip.msg : "bad data");
}

static status unzstd_some(stream *s, char *out, size_t room, size_t *got) {
    ZSTD_inBuffer in = {s->block + s->next, s->end - s->next, 0};
    ZSTD_outBuffer to = {out, room, 0};
    size_t code = ZSTD_decompressStream(s->zstd, &to, &in);
    if (ZSTD_isError(code))
        return status_fail(STATUS_DATA, "%s is no zstd file or is damaged at byte %lld: %s", s->name, place(s),
                           ZSTD_getErrorName(code));
    s->next += in.pos;
    *got = to.pos;
    s->between = code == 0;
    return STATUS_OK;
}

static status plain_some(stream *s, char *out, size_t room, size_t *got) {
    *got = s->end - s->next < room ? s->end - s->next : room;
    memcpy(out, s->block + s->next, *got);
    s->next += *got;
    return STATUS_OK;
}

status stream_read(stream *s, char *out, size_t room, size_t *got) {
    static status (*const some[])(stream *, char *, size_t, size_t *) = {
        [KIND_PLAIN] = plain_some, [KIND_GZIP] = inflate_some, [KIND_ZSTD] = unzstd_some};
    enum { ROOM_MAX = 1 << 30 }; /* zlib counts in unsigned */
    if (room > ROOM_MAX) room = ROOM_MAX;
    for (;;) {
        *got = 0;
        /* A decompressor may hold output when its input is used up, so it is asked before the end is believed. */
        if (s->next < s->end || (s->kind != KIND_PLAIN && !s->between)) TRY(some[s->kind](s, out, room, got));
        if (*got > 0) return STATUS_OK;
        if (s->next < s->end) continue;
        if (!s->drained) {
            TRY(refill(s));
            continue;
        }
        if (s->kind == KIND_PLAIN || s->between) return STATUS_OK;
        return status_fail(STATUS_DATA, "%s is truncated: its compressed data stops in the middle, at byte %lld",
                           s->name, place(s));
    }
}
