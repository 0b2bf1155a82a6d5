#include "trainer/convert.h"

#include "core/file.h"
#include "data/recast.h"
#include "data/reshard.h"
#include "data/shard.h"
#include "diag/formats.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- what the inputs are ---- */

typedef enum kind { KIND_DATABASE, KIND_SHARD, KIND_PIECES, KIND_JSON, KIND_MODEL } kind;
static const char *const kind_names[] = {"a run's database", "a token shard", "a SentencePiece model",
                                         "a tokenizer.json", "a model"};

static bool holds(const char *folder, const char *name) {
    char *path = file_join(folder, name);
    bool there = path && file_exists(path);
    free(path);
    return there;
}

static bool is_model(const char *folder) {
    static const char *const names[] = {"manifest.json", "config.json", "model.safetensors"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (holds(folder, names[i])) return true;
    return false;
}

static status unknown(const char *path) {
    return status_fail(STATUS_DATA, "%s is nothing that this converts; `bulkhead convert --help` says what it does",
                       path);
}

static status kind_of_folder(const char *path, kind *out) {
    if (!holds(path, "run.db") && !is_model(path)) return unknown(path);
    *out = holds(path, "run.db") ? KIND_DATABASE : KIND_MODEL;
    return STATUS_OK;
}

/* By a file's first bytes. */
static status kind_of_file(const char *path, kind *out) {
    static const char database[] = "SQLite format 3";
    char start[sizeof database] = {0};
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? -1 : read(fd, start, sizeof start);
    if (fd >= 0) close(fd);
    if (got < 0) return status_fail(STATUS_NO_INPUT, "cannot read %s: %s", path, strerror(errno));
    if (shard_token_bytes(start, (size_t)got) > 0)
        *out = KIND_SHARD;
    else if (memcmp(start, database, sizeof database) == 0)
        *out = KIND_DATABASE;
    else if (start[0] == '{')
        *out = KIND_JSON;
    else if (start[0] == '\n' && (start[2] == '\n' || start[3] == '\n')) /* a piece, and in it its text */
        *out = KIND_PIECES;
    else
        return unknown(path);
    return STATUS_OK;
}

static status kind_of(const char *path, kind *out) {
    struct stat st;
    if (stat(path, &st) != 0) return status_fail(STATUS_NO_INPUT, "cannot read %s: %s", path, strerror(errno));
    return S_ISDIR(st.st_mode) ? kind_of_folder(path, out) : kind_of_file(path, out);
}

static status kind_of_all(const convert_request *r, kind *out) {
    TRY(kind_of(r->inputs[0], out));
    for (int i = 1; i < r->count; i++) {
        kind other;
        TRY(kind_of(r->inputs[i], &other));
        if (other != *out)
            return status_fail(STATUS_USAGE, "%s is %s, %s is %s; convert one kind at a time", r->inputs[0],
                               kind_names[*out], r->inputs[i], kind_names[other]);
    }
    if (*out != KIND_MODEL) return STATUS_OK;
    return status_fail(STATUS_USAGE,
                       "%s is a model: `bulkhead export` writes Hugging Face's format, `bulkhead import` reads it",
                       r->inputs[0]);
}

/* ---- what they become ---- */

static status to_formats(const convert_request *r, formats_kind to, FILE *out) {
    formats_counts counts;
    TRY(formats_write(r->inputs, r->count, to, r->output, &counts));
    fprintf(out, "%s: %d run%s, %" PRId64 " %s in %" PRId64 " file%s\n", r->output, counts.runs,
            counts.runs == 1 ? "" : "s", counts.values, to == FORMATS_CSV ? "rows" : "points", counts.files,
            counts.files == 1 ? "" : "s");
    return STATUS_OK;
}

static status to_csv(const convert_request *r, FILE *out) {
    return to_formats(r, FORMATS_CSV, out);
}
static status to_tensorboard(const convert_request *r, FILE *out) {
    return to_formats(r, FORMATS_TENSORBOARD, out);
}
static status to_mlflow(const convert_request *r, FILE *out) {
    return to_formats(r, FORMATS_MLFLOW, out);
}

static status to_width(const convert_request *r, int token_bytes, FILE *out) {
    int64_t tokens;
    TRY(reshard_width(r->inputs, r->count, r->output, token_bytes, &tokens));
    fprintf(out, "%s: %" PRId64 " tokens of uint%d\n", r->output, tokens, 8 * token_bytes);
    return STATUS_OK;
}

static status to_uint16(const convert_request *r, FILE *out) {
    return to_width(r, 2, out);
}
static status to_uint32(const convert_request *r, FILE *out) {
    return to_width(r, 4, out);
}

static status to_dataset(const convert_request *r, FILE *out) {
    dataset_info info;
    if (!r->tokenizer)
        return status_fail(STATUS_USAGE,
                           "a dataset needs the tokenizer that the shards were made with: --tokenizer FILE");
    TRY(reshard_dataset(r->inputs, r->count, r->output, r->tokenizer, &info));
    fprintf(out, "%s: vocabulary of %" PRId64 ", train %" PRId64 " tokens, validation %" PRId64 "\n", r->output,
            info.vocab, info.train.tokens, info.validation.tokens);
    return STATUS_OK;
}

static status to_tokenizer(const convert_request *r, status (*recast)(const char *in, const char *out), FILE *out) {
    if (r->count > 1) return status_fail(STATUS_USAGE, "one tokenizer at a time, not %d", r->count);
    TRY(recast(r->inputs[0], r->output));
    fprintf(out, "%s: the same ids in a trial of random texts\n", r->output);
    return STATUS_OK;
}

static status to_json(const convert_request *r, FILE *out) {
    return to_tokenizer(r, recast_to_json, out);
}
static status to_pieces(const convert_request *r, FILE *out) {
    return to_tokenizer(r, recast_to_model, out);
}

static const struct conversion {
    kind from;
    const char *to;
    status (*run)(const convert_request *r, FILE *out);
} conversions[] = {
    {KIND_DATABASE, "csv", to_csv},           {KIND_DATABASE, "tensorboard", to_tensorboard},
    {KIND_DATABASE, "mlflow", to_mlflow},     {KIND_SHARD, "uint16", to_uint16},
    {KIND_SHARD, "uint32", to_uint32},        {KIND_SHARD, "dataset", to_dataset},
    {KIND_PIECES, "tokenizer.json", to_json}, {KIND_JSON, "tokenizer.model", to_pieces},
};
enum { CONVERSIONS = sizeof conversions / sizeof *conversions };

static status no_conversion(const convert_request *r, kind from) {
    char known[256] = "";
    for (int i = 0; i < CONVERSIONS; i++) {
        if (conversions[i].from != from) continue;
        if (known[0]) strcat(known, ", ");
        strcat(known, conversions[i].to);
    }
    return status_fail(STATUS_USAGE, "--to %s: %s is %s, which becomes %s", r->to, r->inputs[0], kind_names[from],
                       known);
}

status convert_run(const convert_request *r, FILE *out) {
    kind from;
    TRY(kind_of_all(r, &from));
    if (r->tokenizer && from != KIND_SHARD)
        return status_fail(STATUS_USAGE, "--tokenizer is for token shards; %s is %s", r->inputs[0], kind_names[from]);
    for (int i = 0; i < CONVERSIONS; i++)
        if (conversions[i].from == from && strcmp(r->to, conversions[i].to) == 0) return conversions[i].run(r, out);
    return no_conversion(r, from);
}
