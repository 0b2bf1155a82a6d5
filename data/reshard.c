#include "data/reshard.h"

#include "core/file.h"
#include "core/new_folder.h"
#include "data/output.h"
#include "data/shard.h"
#include "data/tokenizer.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { BLOCK = 1 << 16, SHARD_TOKENS = 100000000, MODEL_BYTES_MOST = 1 << 30 };

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory");
}

static const char *base_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

typedef status (*take_block)(void *user, const int32_t *tokens, int64_t count);

static status check_ids(const shard *s, int64_t first, const int32_t *tokens, int64_t count, int64_t ids,
                        const char *of_what) {
    for (int64_t i = 0; i < count; i++)
        if ((uint32_t)tokens[i] >= ids)
            return status_fail(STATUS_DATA, "%s: token %" PRId64 " is id %" PRIu32 ", but %s has only 0 to %" PRId64,
                               s->path, first + i, (uint32_t)tokens[i], of_what, ids - 1);
    return STATUS_OK;
}

static status each_block(const shard *s, int64_t ids, const char *of_what, take_block take, void *user) {
    int32_t *tokens = malloc(BLOCK * sizeof *tokens);
    status result = tokens ? STATUS_OK : out_of_memory();
    for (int64_t first = 0; result == STATUS_OK && first < s->tokens; first += BLOCK) {
        int64_t count = s->tokens - first < BLOCK ? s->tokens - first : BLOCK;
        shard_read(s, first, count, tokens);
        result = check_ids(s, first, tokens, count, ids, of_what);
        if (result == STATUS_OK) result = take(user, tokens, count);
    }
    free(tokens);
    return result;
}

/* ---- width ---- */

static status add_to_shard(void *user, const int32_t *tokens, int64_t count) {
    return shard_writer_add(user, tokens, count);
}

static status rewrite(const shard *s, const char *path_out, int token_bytes) {
    int64_t ids = token_bytes == 2 ? (int64_t)UINT16_MAX + 1 : (int64_t)INT32_MAX + 1;
    shard_writer *w;
    TRY(shard_writer_open(&w, path_out, ids - 1));
    status result = each_block(s, ids, token_bytes == 2 ? "a shard of uint16" : "a shard", add_to_shard, w);
    if (result == STATUS_OK) return shard_writer_finish(w);
    shard_writer_discard(w);
    return result;
}

static status convert_one(const char *path, const char *path_out, int token_bytes, int64_t *tokens) {
    shard s;
    TRY(shard_open(&s, path));
    *tokens += s.tokens;
    status result = rewrite(&s, path_out, token_bytes);
    shard_close(&s);
    return result;
}

static status convert_into(const char *folder, const char *path, int token_bytes, int64_t *tokens) {
    char *path_out = file_join(folder, base_name(path));
    if (!path_out) return out_of_memory();
    status result = file_exists(path_out) ? status_fail(STATUS_USAGE, "two shards are called %s", base_name(path))
                                          : convert_one(path, path_out, token_bytes, tokens);
    free(path_out);
    return result;
}

status reshard_width(const char *const *shards, int count, const char *path_out, int token_bytes, int64_t *tokens) {
    char *partial;
    *tokens = 0;
    if (count == 1) return convert_one(shards[0], path_out, token_bytes, tokens);
    TRY(new_folder_check(path_out));
    TRY(new_folder_make(&partial, path_out));
    status result = STATUS_OK;
    for (int i = 0; i < count && result == STATUS_OK; i++)
        result = convert_into(partial, shards[i], token_bytes, tokens);
    if (result == STATUS_OK) return new_folder_publish(partial, path_out);
    new_folder_discard(partial);
    return result;
}

/* ---- a dataset ---- */

typedef struct reading {
    tokenizer *tokenizer;
    const char *folder;
    output outputs[2]; /* train, validation */
    output *to;        /* of them the one that the open shard goes to */
    json_t *sources;
    bool leads; /* documents begin with their end token, as the first training shard does */
} reading;

static status add_to_output(void *user, const int32_t *tokens, int64_t count) {
    reading *r = user;
    char *text;
    size_t length;
    TRY(tokenizer_decode(r->tokenizer, tokens, count, &text, &length));
    free(text);
    r->to->counts.bytes += (int64_t)length;
    for (int64_t i = 0; i < count; i++) r->to->counts.documents += tokens[i] == tokenizer_eos(r->tokenizer);
    return output_add(r->to, tokens, count);
}

static status add_shard(reading *r, const char *path) {
    shard s;
    TRY(shard_open(&s, path));
    bool validation = strstr(base_name(path), "val") != NULL;
    r->to = &r->outputs[validation];
    int32_t first = -1;
    if (s.tokens > 0) shard_read(&s, 0, 1, &first);
    if (!validation && r->to->counts.tokens == 0) r->leads = first == tokenizer_eos(r->tokenizer);
    status result = each_block(&s, tokenizer_vocab(r->tokenizer), "the tokenizer", add_to_output, r);
    json_array_append_new(r->sources, json_pack("{s:s, s:I}", "name", base_name(path), "tokens", (json_int_t)s.tokens));
    shard_close(&s);
    return result;
}

static status copy_tokenizer(const reading *r, const char *file) {
    char *bytes, *path = file_join(r->folder, tokenizer_file_name(r->tokenizer));
    size_t count;
    status result = path ? file_read_all(&bytes, &count, file, MODEL_BYTES_MOST) : out_of_memory();
    if (result == STATUS_OK) {
        result = file_write_atomic(path, bytes, count);
        free(bytes);
    }
    free(path);
    return result;
}

static status write_dataset(reading *r, const char *const *shards, int count, const char *tokenizer_file,
                            dataset_info *out) {
    int64_t vocab = tokenizer_vocab(r->tokenizer);
    TRY(copy_tokenizer(r, tokenizer_file));
    TRY(output_open(&r->outputs[0], r->folder, "train", vocab, SHARD_TOKENS));
    TRY(output_open(&r->outputs[1], r->folder, "val", vocab, SHARD_TOKENS));
    for (int i = 0; i < count; i++) TRY(add_shard(r, shards[i]));
    for (int i = 0; i < 2; i++) TRY(output_finish(&r->outputs[i]));
    *out = (dataset_info){.vocab = vocab,
                          .eos_id = tokenizer_eos(r->tokenizer),
                          .document_token_ends = !r->leads,
                          .train = r->outputs[0].counts,
                          .validation = r->outputs[1].counts};
    strcpy(out->tokenizer, tokenizer_file_name(r->tokenizer));
    strcpy(out->tokenizer_hash, tokenizer_hash(r->tokenizer));
    return dataset_info_write(out, json_pack("{s:O}", "sources", r->sources), r->folder);
}

status reshard_dataset(const char *const *shards, int count, const char *folder, const char *tokenizer_file,
                       dataset_info *out) {
    reading r = {.sources = json_array()};
    char *partial;
    TRY(new_folder_check(folder));
    TRY(tokenizer_load(&r.tokenizer, tokenizer_file));
    status result = new_folder_make(&partial, folder);
    if (result == STATUS_OK) {
        r.folder = partial;
        result = write_dataset(&r, shards, count, tokenizer_file, out);
        if (result == STATUS_OK)
            result = new_folder_publish(partial, folder);
        else
            new_folder_discard(partial);
    }
    for (int i = 0; i < 2; i++) output_close(&r.outputs[i]);
    json_decref(r.sources);
    tokenizer_free(r.tokenizer);
    return result;
}
