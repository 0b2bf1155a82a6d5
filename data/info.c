#include "data/info.h"

#include "core/file.h"
#include "data/output.h"

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

static json_t *split_json(const dataset_split *split, const char *prefix) {
    json_t *shards = json_array();
    for (int64_t i = 0; i < split->shards; i++) {
        char name[64];
        output_shard_name(prefix, i, name, sizeof name);
        json_array_append_new(shards, json_string(name));
    }
    return json_pack("{s:o,s:I,s:I,s:I,s:f}", "shards", shards, "documents", (json_int_t)split->documents, "tokens",
                     (json_int_t)split->tokens, "bytes", (json_int_t)split->bytes, "unigram_entropy_nats",
                     split->unigram_entropy_nats);
}

status dataset_info_write(const dataset_info *info, json_t *more, const char *folder) {
    enum { MOST_OF_TWO_BYTES = 65536 };
    json_t *root =
        json_pack("{s:s,s:i,s:s,s:s,s:I,s:I,s:s,s:i,s:o,s:o}", "format", "bulkhead dataset", "version", 1, "tokenizer",
                  info->tokenizer, "tokenizer_xxh3_128", info->tokenizer_hash, "vocab", (json_int_t)info->vocab,
                  "eos_id", (json_int_t)info->eos_id, "document_token", info->document_token_ends ? "ends" : "leads",
                  "token_bytes", info->vocab <= MOST_OF_TWO_BYTES ? 2 : 4, "train", split_json(&info->train, "train"),
                  "validation", split_json(&info->validation, "val"));
    bool whole = root && more && json_object_update(root, more) == 0;
    char *text = whole ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(15)) : NULL, *path = NULL;
    json_decref(root);
    json_decref(more);
    if (text) path = file_join(folder, "dataset.json");
    status result = path ? file_write_atomic(path, text, strlen(text))
                         : status_fail(STATUS_INTERNAL, "cannot describe the dataset as JSON");
    free(path);
    free(text);
    return result;
}
