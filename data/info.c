#include "data/info.h"

#include "core/file.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>

enum { LIMIT_BYTES = 64 << 20 };

static status read_split(dataset_split *out, const json_t *root, const char *name, const char *path) {
    json_int_t documents, tokens, bytes;
    json_t *shards;
    if (json_unpack((json_t *)root, "{s:{s:o,s:I,s:I,s:I,s:F}}", name, "shards", &shards, "documents", &documents,
                    "tokens", &tokens, "bytes", &bytes, "unigram_entropy_nats", &out->unigram_entropy_nats) != 0)
        return status_fail(STATUS_DATA, "%s: \"%s\" is missing or incomplete", path, name);
    out->shards = (int64_t)json_array_size(shards);
    out->documents = documents;
    out->tokens = tokens;
    out->bytes = bytes;
    return STATUS_OK;
}

static status read_info(dataset_info *out, const json_t *root, const char *path) {
    const char *tokenizer, *hash, *token;
    json_int_t vocab, eos;
    if (json_unpack((json_t *)root, "{s:s,s:s,s:I,s:I,s:s}", "tokenizer", &tokenizer, "tokenizer_xxh3_128", &hash,
                    "vocab", &vocab, "eos_id", &eos, "document_token", &token) != 0)
        return status_fail(STATUS_DATA, "%s is no dataset.json of bulkhead prepare", path);
    if (strlen(tokenizer) >= sizeof out->tokenizer || strlen(hash) >= sizeof out->tokenizer_hash || vocab < 1)
        return status_fail(STATUS_DATA, "%s is damaged", path);
    strcpy(out->tokenizer, tokenizer);
    strcpy(out->tokenizer_hash, hash);
    out->vocab = vocab;
    out->eos_id = eos;
    out->document_token_ends = strcmp(token, "ends") == 0;
    TRY(read_split(&out->train, root, "train", path));
    return read_split(&out->validation, root, "validation", path);
}

status dataset_info_load(dataset_info *out, const char *shard_path) {
    static const char name[] = "dataset.json";
    *out = (dataset_info){.vocab = 0};
    const char *slash = strrchr(shard_path, '/');
    size_t folder = slash ? (size_t)(slash - shard_path) + 1 : 0, bytes;
    char *text = NULL, *path = malloc(folder + sizeof name);
    if (!path) return status_fail(STATUS_INTERNAL, "out of memory");
    memcpy(path, shard_path, folder);
    memcpy(path + folder, name, sizeof name);
    status result = file_read_all(&text, &bytes, path, LIMIT_BYTES);
    if (result == STATUS_OK) {
        json_error_t error;
        json_t *root = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
        result = root ? read_info(out, root, path)
                      : status_fail(STATUS_DATA, "%s:%d: no JSON: %s", path, error.line, error.text);
        json_decref(root);
    }
    free(text);
    free(path);
    return result;
}
