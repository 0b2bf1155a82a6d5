/* Token shards: mapping and writing them. A shard's tokens are mapped read-only and widened on reading; nothing is
 * copied before that. A writer streams through a temporary file beside the shard, which appears under its name only
 * when whole. */
#include "data/shard.h"

#include "core/file.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    HEADER_INTS = 256,
    HEADER_BYTES = HEADER_INTS * 4,
    MAGIC_16 = 20240520,
    VERSION_16 = 1,
    MAGIC_32 = 20240801,
    VERSION_32 = 7,
};

int shard_token_bytes(const void *start, size_t bytes) {
    int32_t words[2];
    if (bytes < sizeof words) return 0;
    memcpy(words, start, sizeof words);
    if (words[0] == MAGIC_16 && words[1] == VERSION_16) return 2;
    return words[0] == MAGIC_32 && words[1] == VERSION_32 ? 4 : 0;
}

static status read_header(shard *s, int64_t size_bytes) {
    const int32_t *header = s->map;
    const char *path = s->path;
    s->token_bytes = shard_token_bytes(header, HEADER_BYTES);
    if (s->token_bytes == 0)
        return status_fail(STATUS_DATA,
                           "%s is no token shard: it starts with %" PRId32 ", version %" PRId32
                           "; make shards with bulkhead prepare",
                           path, header[0], header[1]);

    int64_t body_bytes = size_bytes - HEADER_BYTES;
    if (body_bytes % s->token_bytes != 0)
        return status_fail(STATUS_DATA, "%s is damaged: its %" PRId64 " bytes of tokens are no multiple of %d", path,
                           body_bytes, s->token_bytes);
    s->tokens = body_bytes / s->token_bytes;
    /* A count past int32 cannot stand in the header: there the size alone decides. */
    if (s->tokens <= INT32_MAX && header[2] != s->tokens)
        return status_fail(STATUS_DATA,
                           "%s is truncated or foreign: its header says %" PRId32 " tokens, its size says %" PRId64,
                           path, header[2], s->tokens);
    s->data = (const char *)s->map + HEADER_BYTES;
    return STATUS_OK;
}

static status map_file(shard *s, int fd) {
    struct stat st;
    if (fstat(fd, &st) != 0) return status_fail(STATUS_IO, "cannot read %s: %s", s->path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return status_fail(STATUS_DATA, "%s is no token shard: it is not a file", s->path);
    if (st.st_size < HEADER_BYTES)
        return status_fail(STATUS_DATA, "%s is no token shard: it has %lld bytes, fewer than a header's %d", s->path,
                           (long long)st.st_size, HEADER_BYTES);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return status_fail(STATUS_IO, "cannot map %s: %s", s->path, strerror(errno));
    s->map = map;
    s->map_bytes = (size_t)st.st_size;
    return read_header(s, st.st_size);
}

status shard_open(shard *out, const char *path) {
    *out = (shard){.path = strdup(path)};
    if (!out->path) return status_fail(STATUS_INTERNAL, "out of memory");
    status result;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        result = status_fail(STATUS_NO_INPUT, "cannot open the shard %s: %s", path, strerror(errno));
    else {
        result = map_file(out, fd);
        close(fd);
    }
    if (result != STATUS_OK) shard_close(out);
    return result;
}

void shard_close(shard *s) {
    if (s->map) munmap(s->map, s->map_bytes);
    free(s->path);
    *s = (shard){0};
}

void shard_read(const shard *s, int64_t first, int64_t count, int32_t *out) {
    assert(first >= 0 && count >= 0 && first + count <= s->tokens);
    if (s->token_bytes == 2) {
        const uint16_t *tokens = (const uint16_t *)s->data + first;
        for (int64_t i = 0; i < count; i++) out[i] = tokens[i];
    } else
        memcpy(out, (const uint32_t *)s->data + first, (size_t)count * 4);
}

struct shard_writer {
    file_writer file;
    int token_bytes;
    int64_t count, largest_id;
    uint16_t narrow[32768];
};

static void make_header(const shard_writer *w, int32_t header[HEADER_INTS]) {
    memset(header, 0, HEADER_BYTES);
    header[0] = w->token_bytes == 2 ? MAGIC_16 : MAGIC_32;
    header[1] = w->token_bytes == 2 ? VERSION_16 : VERSION_32;
    header[2] = (int32_t)(uint32_t)w->count;
}

status shard_writer_open(shard_writer **out, const char *path, int64_t largest_id) {
    *out = NULL;
    if (largest_id < 0 || largest_id > INT32_MAX)
        return status_fail(STATUS_DATA, "%s: token ids up to %" PRId64 " do not fit a shard", path, largest_id);
    shard_writer *w = calloc(1, sizeof *w);
    if (!w) return status_fail(STATUS_INTERNAL, "out of memory");
    w->largest_id = largest_id;
    w->token_bytes = largest_id <= UINT16_MAX ? 2 : 4;
    status result = file_begin(&w->file, path);
    if (result != STATUS_OK) {
        free(w);
        return result;
    }
    int32_t header[HEADER_INTS];
    make_header(w, header); /* holds the place: the count is known at the end */
    result = file_put(&w->file, header, sizeof header);
    if (result != STATUS_OK)
        shard_writer_discard(w);
    else
        *out = w;
    return result;
}

status shard_writer_add(shard_writer *w, const int32_t *tokens, int64_t count) {
    const int64_t room = sizeof w->narrow / sizeof w->narrow[0];
    for (int64_t done = 0; done < count;) {
        int64_t part = count - done < room ? count - done : room;
        for (int64_t i = 0; i < part; i++) {
            int32_t id = tokens[done + i];
            if (id < 0 || id > w->largest_id)
                return status_fail(STATUS_DATA, "%s: token %" PRId64 " is id %" PRId32 ", outside 0 to %" PRId64,
                                   w->file.path, w->count + i, id, w->largest_id);
            w->narrow[i] = (uint16_t)id;
        }
        const void *bytes = w->token_bytes == 2 ? (const void *)w->narrow : tokens + done;
        TRY(file_put(&w->file, bytes, (size_t)part * (size_t)w->token_bytes));
        done += part;
        w->count += part;
    }
    return STATUS_OK;
}

status shard_writer_finish(shard_writer *w) {
    int32_t header[HEADER_INTS];
    make_header(w, header);
    status result = STATUS_OK;
    if (pwrite(w->file.fd, header, sizeof header, 0) != sizeof header)
        result = status_fail(STATUS_IO, "cannot write %s: %s", w->file.path, strerror(errno));
    if (result != STATUS_OK)
        file_discard(&w->file);
    else
        result = file_commit(&w->file);
    free(w);
    return result;
}

void shard_writer_discard(shard_writer *w) {
    if (!w) return;
    file_discard(&w->file);
    free(w);
}
