#include "trainer/perplexity.h"

#include "data/dataset.h"
#include "data/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* ---- shards ---- */

static void read_shard(void *user, int64_t first, int64_t count, int32_t *ids) {
    shard_read(user, first, count, ids);
}

status perplexity_shards(perplexity *out, scorer *s, const char *pattern, int64_t stride) {
    dataset d;
    *out = (perplexity){0};
    TRY(dataset_open(&d, &pattern, 1, 1, s->model->vocab)); /* its own windows are not used */
    status result = STATUS_OK;
    for (int i = 0; i < d.count && result == STATUS_OK; i++) {
        shard *each = &d.shards[i];
        if (each->tokens < 2) continue;
        out->tokens += each->tokens - 1;
        result = scorer_add_sequence(s, read_shard, each, each->tokens, stride, &out->nats);
    }
    if (result == STATUS_OK) result = scorer_flush(s);
    dataset_close(&d);
    return result;
}

/* ---- text ---- */

static void read_ids(void *user, int64_t first, int64_t count, int32_t *ids) {
    const tokenizer_ids *all = user;
    memcpy(ids, all->ids + first, (size_t)count * sizeof *ids);
}

/* The document's ids become those of its start alone. */
static status begin_document(tokenizer_ids *ids, int32_t start) {
    if (ids->room == 0) {
        ids->room = 1024;
        ids->ids = malloc((size_t)ids->room * sizeof *ids->ids);
        if (!ids->ids) return status_fail(STATUS_INTERNAL, "out of memory for a document");
    }
    ids->ids[0] = start;
    ids->count = 1;
    return STATUS_OK;
}

static status end_document(perplexity *p, scorer *s, tokenizer_ids *ids, int32_t start, int64_t stride) {
    p->tokens += ids->count - 1;
    TRY(scorer_add_sequence(s, read_ids, ids, ids->count, stride, &p->nats));
    return begin_document(ids, start);
}

static status add_pieces(perplexity *p, scorer *s, const tokenizer *t, int32_t start, reader *r, int64_t stride,
                         tokenizer_ids *ids) {
    reader_piece piece;
    bool done = false;
    TRY(begin_document(ids, start));
    for (;;) {
        TRY(reader_next(r, &piece, &done));
        if (done) break;
        tokenizer_text text = {piece.text, piece.length};
        p->bytes += (int64_t)piece.length;
        if (piece.length > 0) TRY(tokenizer_encode(t, &text, 1, 1, ids));
        if (piece.ends_document) TRY(end_document(p, s, ids, start, stride));
    }
    return scorer_flush(s);
}

status perplexity_text(perplexity *out, scorer *s, const tokenizer *t, int32_t start, const char *path,
                       int64_t stride) {
    const reader_options options = {.field = "text"};
    reader *r;
    tokenizer_ids ids = {0};
    *out = (perplexity){0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return status_fail(STATUS_NO_INPUT, "cannot open %s: %s", path, strerror(errno));
    TRY(reader_open(&r, fd, path, &options));
    status result = add_pieces(out, s, t, start, r, stride, &ids);
    reader_close(r);
    free(ids.ids);
    if (result == STATUS_OK && out->tokens == 0) result = status_fail(STATUS_DATA, "%s holds no text", path);
    return result;
}
