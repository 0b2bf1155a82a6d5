#include "data/output.h"

#include "core/file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

status output_open(output *o, const char *folder, const char *name, int64_t vocab, int64_t shard_tokens) {
    *o = (output){.folder = folder, .name = name, .vocab = vocab, .shard_tokens = shard_tokens};
    o->unigrams = calloc((size_t)vocab, sizeof *o->unigrams);
    return o->unigrams ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory");
}

void output_close(output *o) {
    shard_writer_discard(o->writer);
    free(o->unigrams);
    *o = (output){0};
}

void output_shard_name(const char *split, int64_t number, char *name, size_t room) {
    snprintf(name, room, "%s-%05" PRId64 ".bin", split, number);
}

static status next_shard(output *o) {
    char name[64];
    output_shard_name(o->name, o->counts.shards, name, sizeof name);
    char *path = file_join(o->folder, name);
    if (!path) return status_fail(STATUS_INTERNAL, "out of memory");
    status result = shard_writer_open(&o->writer, path, o->vocab - 1);
    free(path);
    o->counts.shards += result == STATUS_OK;
    o->in_shard = 0;
    return result;
}

static status finish_shard(output *o) {
    shard_writer *w = o->writer;
    o->writer = NULL;
    return w ? shard_writer_finish(w) : STATUS_OK;
}

status output_add(output *o, const int32_t *ids, int64_t count) {
    while (count > 0) {
        if (!o->writer) TRY(next_shard(o));
        int64_t part = o->shard_tokens - o->in_shard < count ? o->shard_tokens - o->in_shard : count;
        TRY(shard_writer_add(o->writer, ids, part)); /* checks the ids */
        for (int64_t i = 0; i < part; i++) o->unigrams[ids[i]]++;
        ids += part;
        count -= part;
        o->in_shard += part;
        o->counts.tokens += part;
        if (o->in_shard == o->shard_tokens) TRY(finish_shard(o));
    }
    return STATUS_OK;
}

status output_finish(output *o) {
    double entropy = 0, tokens = (double)o->counts.tokens;
    for (int64_t id = 0; id < o->vocab; id++)
        if (o->unigrams[id] > 0) entropy -= (double)o->unigrams[id] / tokens * log((double)o->unigrams[id] / tokens);
    o->counts.unigram_entropy_nats = entropy;
    return finish_shard(o);
}
