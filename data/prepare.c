#include "data/prepare.h"

#include "core/file.h"
#include "core/log.h"
#include "core/new_folder.h"
#include "data/lines.h"
#include "data/output.h"
#include "data/split.h"
#include "data/tokenizer.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    SAMPLE_LINES = 200000,
    SAMPLE_BYTES = 16 << 20,
    BATCH_BYTES = 8 << 20, /* of text that is encoded at once */
    MODEL_BYTES_MOST = 1 << 30,
    PROGRESS_SECONDS = 5,
};

typedef struct source {
    const char *name;
    int spool; /* a copy of what cannot be read twice; -1: read the file again */
    reader_counts counts;
} source;

/* Text that waits to be encoded, in parts; each goes to one split. */
typedef struct part {
    size_t start, length;
    bool validation, ends_document;
} part;

typedef struct batch {
    char *text;
    size_t length, room;
    part *parts;
    tokenizer_text *texts;
    tokenizer_ids *ids;
    int64_t count, parts_room;
} batch;

typedef struct job {
    const prepare_options *options;
    char *folder; /* where everything is written until it is whole */
    source *sources;
    tokenizer *model;
    split plan;
    int64_t position;  /* in the plan's unit */
    output outputs[2]; /* train, validation */
    int unended;       /* the output that holds a document without its end; -1: none */
    batch batch;
    bool lossless;
    int64_t documents, bytes, done_bytes;
    time_t told;
} job;

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory");
}

static status join(char **out, const char *folder, const char *name) {
    *out = file_join(folder, name);
    return *out ? STATUS_OK : out_of_memory();
}

/* ---- sources ---- */

/* Copies what fd gives to a file without a name, so that it can be read twice. */
static status spool(job *j, int fd, source *s) {
    char *path, block[1 << 16];
    file_writer copy;
    TRY(join(&path, j->folder, "input"));
    status result = file_begin(&copy, path);
    free(path);
    if (result != STATUS_OK) return result;
    ssize_t got;
    while (result == STATUS_OK && (got = read(fd, block, sizeof block)) != 0)
        if (got > 0)
            result = file_put(&copy, block, (size_t)got);
        else if (errno != EINTR)
            result = status_fail(STATUS_IO, "cannot read %s: %s", s->name, strerror(errno));
    if (result == STATUS_OK && (s->spool = open(copy.temporary, O_RDONLY | O_CLOEXEC)) < 0)
        result = status_fail(STATUS_IO, "cannot read %s: %s", copy.temporary, strerror(errno));
    file_discard(&copy);
    return result;
}

static bool is_standard(const source *s) {
    return strcmp(s->name, "-") == 0;
}

static const char *shown_name(const source *s) {
    return is_standard(s) ? "standard input" : s->name;
}

/* Fills s->spool when the open input cannot be read twice. */
static status keep_if_needed(job *j, int fd, source *s) {
    struct stat st;
    bool again = !is_standard(s) && fstat(fd, &st) == 0 && (S_ISREG(st.st_mode) || S_ISDIR(st.st_mode));
    return again ? STATUS_OK : spool(j, fd, s);
}

static status open_source(job *j, source *s, reader **out) {
    int fd = s->spool >= 0 ? dup(s->spool) : is_standard(s) ? dup(STDIN_FILENO) : open(s->name, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return status_fail(STATUS_NO_INPUT, "cannot open %s: %s", shown_name(s), strerror(errno));
    if (s->spool < 0) {
        status result = keep_if_needed(j, fd, s);
        if (result != STATUS_OK) {
            close(fd);
            return result;
        }
        if (s->spool >= 0) dup2(s->spool, fd); /* from here on the copy is the input */
    }
    if (s->spool >= 0 && lseek(fd, 0, SEEK_SET) < 0) {
        status result = status_fail(STATUS_IO, "cannot read %s again: %s", shown_name(s), strerror(errno));
        close(fd);
        return result;
    }
    return reader_open(out, fd, shown_name(s), &j->options->reading);
}

/* Before anything is made: all inputs are there. */
static status check_source(const source *s) {
    if (is_standard(s) || access(s->name, R_OK) == 0) return STATUS_OK;
    return status_fail(STATUS_NO_INPUT, "cannot open %s: %s", s->name, strerror(errno));
}

static void tell(job *j, const char *doing, bool percent) {
    time_t now = time(NULL);
    if (now - j->told < PROGRESS_SECONDS) return;
    j->told = now;
    if (percent && j->bytes > 0)
        log_info("%s: %.0f%% of %.1f MB", doing, 100.0 * (double)j->done_bytes / (double)j->bytes,
                 (double)j->bytes / 1e6);
    else
        log_info("%s: %.1f MB", doing, (double)j->done_bytes / 1e6);
}

typedef status (*take_piece)(job *j, void *user, const reader_piece *piece);

/* Hands every piece of a source to take; counts receives what the reader counted. */
static status read_source(job *j, source *s, take_piece take, void *user, reader_counts *counts) {
    reader *r;
    TRY(open_source(j, s, &r));
    reader_piece piece;
    bool done;
    status result;
    while ((result = reader_next(r, &piece, &done)) == STATUS_OK && !done) {
        j->done_bytes += (int64_t)piece.length;
        if ((result = take(j, user, &piece)) != STATUS_OK) break;
    }
    *counts = *reader_count(r);
    reader_close(r);
    return result;
}

/* ---- first reading: count, check, sample ---- */

static status sample_piece(job *j, void *user, const reader_piece *piece) {
    tell(j, "reading", false);
    return user ? lines_add(user, piece->text, piece->length) : STATUS_OK;
}

static void report_invalid(const source *s) {
    const reader_counts *c = &s->counts;
    for (int64_t i = 0; i < c->invalid_lines && i < READER_PLACES; i++)
        log_warn("%s: line %" PRId64 " is not UTF-8 at byte %" PRId64, shown_name(s), c->places[i].line,
                 c->places[i].offset);
    if (c->invalid_lines > READER_PLACES)
        log_warn("%s: %" PRId64 " more lines are not UTF-8", shown_name(s), c->invalid_lines - READER_PLACES);
}

static status first_reading(job *j, lines *sample) {
    for (int i = 0; i < j->options->input_count; i++) {
        source *s = &j->sources[i];
        status result = read_source(j, s, sample_piece, sample, &s->counts);
        report_invalid(s);
        if (result != STATUS_OK) return result;
        j->documents += s->counts.documents;
        j->bytes += s->counts.bytes;
        log_info("%s: %" PRId64 " document%s, %.1f MB of text", shown_name(s), s->counts.documents,
                 s->counts.documents == 1 ? "" : "s", (double)s->counts.bytes / 1e6);
    }
    if (j->bytes == 0) return status_fail(STATUS_DATA, "the input holds no text");
    return STATUS_OK;
}

/* ---- the tokenizer ---- */

static status train_model(job *j, lines *sample, const char *path) {
    int64_t count, bytes;
    const tokenizer_text *texts = lines_kept(sample, &count, &bytes);
    log_info("training a tokenizer of %" PRId64 " ids on %" PRId64 " lines (%.1f MB)", j->options->vocab, count,
             (double)bytes / 1e6);
    return tokenizer_train(path, texts, count, j->options->vocab);
}

static status copy_model(const char *from, const char *to) {
    char *model;
    size_t bytes;
    TRY(file_read_all(&model, &bytes, from, MODEL_BYTES_MOST));
    status result = file_write_atomic(to, model, bytes);
    free(model);
    return result;
}

static status bring_model(job *j) {
    char *path;
    TRY(tokenizer_load(&j->model, j->options->tokenizer)); /* before a long text is read */
    TRY(join(&path, j->folder, tokenizer_file_name(j->model)));
    status result = copy_model(j->options->tokenizer, path);
    free(path);
    return result == STATUS_OK ? first_reading(j, NULL) : result;
}

static status learn_model(job *j, const char *path) {
    lines *sample;
    TRY(lines_open(&sample, SAMPLE_LINES, SAMPLE_BYTES, j->options->seed));
    status result = first_reading(j, sample);
    if (result == STATUS_OK) result = train_model(j, sample, path);
    if (result == STATUS_OK) result = tokenizer_load(&j->model, path);
    lines_close(sample);
    return result;
}

static status make_model(job *j) {
    char *path;
    TRY(join(&path, j->folder, "tokenizer.model"));
    status result = learn_model(j, path);
    free(path);
    return result;
}

/* ---- second reading: split, encode, write ---- */

static status grow_parts(batch *b) {
    if (b->count < b->parts_room) return STATUS_OK;
    int64_t room = b->parts_room ? 2 * b->parts_room : 256;
    part *parts = realloc(b->parts, (size_t)room * sizeof *parts);
    if (parts) b->parts = parts;
    tokenizer_text *texts = realloc(b->texts, (size_t)room * sizeof *texts);
    if (texts) b->texts = texts;
    tokenizer_ids *ids = realloc(b->ids, (size_t)room * sizeof *ids);
    if (ids) b->ids = ids;
    if (!parts || !texts || !ids) return out_of_memory();
    memset(ids + b->parts_room, 0, (size_t)(room - b->parts_room) * sizeof *ids);
    b->parts_room = room;
    return STATUS_OK;
}

static status end_document(job *j, int side) {
    int32_t eos = tokenizer_eos(j->model);
    j->unended = -1;
    j->outputs[side].counts.documents++;
    return output_add(&j->outputs[side], &eos, 1);
}

/* What a model does to the text is told once, from its first part: a normalizing one cannot give it back. */
static status check_lossless(job *j) {
    const batch *b = &j->batch;
    char *back;
    size_t length;
    TRY(tokenizer_decode(j->model, b->ids[0].ids, b->ids[0].count, &back, &length));
    size_t same = 0;
    while (same < length && same < b->texts[0].length && back[same] == b->texts[0].bytes[same]) same++;
    j->lossless = same == length && same == b->texts[0].length;
    free(back);
    if (!j->lossless)
        log_warn("the tokenizer does not keep the text as it is: decoding gives other text from byte %zu on", same);
    return STATUS_OK;
}

static status flush(job *j) {
    batch *b = &j->batch;
    for (int64_t i = 0; i < b->count; i++)
        b->texts[i] = (tokenizer_text){b->text + b->parts[i].start, b->parts[i].length};
    TRY(tokenizer_encode(j->model, b->texts, b->count, j->options->threads, b->ids));
    if (b->count > 0 && j->outputs[0].counts.tokens + j->outputs[1].counts.tokens == 0) TRY(check_lossless(j));
    for (int64_t i = 0; i < b->count; i++) {
        int side = b->parts[i].validation;
        /* Where the text changes sides inside a document, what went before ends: nothing there follows it. */
        if (j->unended >= 0 && j->unended != side) TRY(end_document(j, j->unended));
        TRY(output_add(&j->outputs[side], b->ids[i].ids, b->ids[i].count));
        j->outputs[side].counts.bytes += (int64_t)b->parts[i].length;
        if (b->ids[i].count > 0) j->unended = side;
        if (b->parts[i].ends_document && j->unended >= 0) TRY(end_document(j, side));
        b->ids[i].count = 0;
    }
    b->count = 0;
    b->length = 0;
    tell(j, "encoding", true);
    return STATUS_OK;
}

static status add_part(job *j, const char *text, size_t length, bool validation, bool ends) {
    batch *b = &j->batch;
    TRY(grow_parts(b));
    if (b->length + length > b->room) {
        size_t room = b->length + length > BATCH_BYTES ? 2 * (b->length + length) : BATCH_BYTES;
        char *larger = realloc(b->text, room);
        if (!larger) return out_of_memory();
        b->text = larger;
        b->room = room;
    }
    if (length > 0) memcpy(b->text + b->length, text, length);
    b->parts[b->count++] = (part){b->length, length, validation, ends};
    b->length += length;
    return b->length >= BATCH_BYTES / 2 ? flush(j) : STATUS_OK;
}

/* Where to cut text at `limit`: behind the line that runs over it if that ends soon, else at a character's start. */
static size_t cut_behind(const char *text, size_t length, size_t limit, size_t patience) {
    if (limit >= length) return length;
    size_t most = limit + patience < length ? limit + patience : length;
    const char *newline = limit > 0 ? memchr(text + limit - 1, '\n', most - limit + 1) : NULL;
    if (newline) return (size_t)(newline - text) + 1;
    while (limit < length && (text[limit] & 0xC0) == 0x80) limit++;
    return limit;
}

static status encode_piece(job *j, void *user, const reader_piece *piece) {
    if (j->plan.by_documents) {
        bool validation = split_validation(&j->plan, j->position, NULL);
        j->position += piece->ends_document;
        return add_part(j, piece->text, piece->length, validation, piece->ends_document);
    }
    enum { PATIENCE_BYTES = 4096 };
    size_t patience = j->plan.length / 2 < PATIENCE_BYTES ? (size_t)(j->plan.length / 2) : PATIENCE_BYTES, done = 0;
    do {
        int64_t until;
        bool validation = split_validation(&j->plan, j->position, &until);
        size_t left = piece->length - done;
        size_t cut = cut_behind(piece->text + done, left, (size_t)(until - j->position), patience);
        TRY(add_part(j, piece->text + done, cut, validation, piece->ends_document && cut == left));
        done += cut;
        j->position += (int64_t)cut;
    } while (done < piece->length);
    return STATUS_OK;
}

static status second_reading(job *j) {
    for (int i = 0; i < j->options->input_count; i++) {
        reader_counts counts;
        source *s = &j->sources[i];
        TRY(read_source(j, s, encode_piece, NULL, &counts));
        if (counts.bytes != s->counts.bytes || counts.documents != s->counts.documents)
            return status_fail(STATUS_DATA, "%s changed while it was read; start again", shown_name(s));
    }
    return flush(j);
}

static status encode(job *j) {
    const prepare_options *o = j->options;
    int64_t vocab = tokenizer_vocab(j->model);
    j->plan = split_plan(j->documents, j->bytes, o->val_fraction, o->seed);
    j->done_bytes = 0;
    j->unended = -1;
    TRY(output_open(&j->outputs[0], j->folder, "train", vocab, o->shard_tokens));
    TRY(output_open(&j->outputs[1], j->folder, "val", vocab, o->shard_tokens));
    log_info("encoding %.1f MB with %d thread%s", (double)j->bytes / 1e6, o->threads, o->threads == 1 ? "" : "s");
    TRY(second_reading(j));
    TRY(output_finish(&j->outputs[0]));
    return output_finish(&j->outputs[1]);
}

/* ---- dataset.json ---- */

static json_t *sources_json(const job *j) {
    json_t *list = json_array();
    for (int i = 0; i < j->options->input_count; i++) {
        const source *s = &j->sources[i];
        json_t *name = json_string(s->name);
        if (!name) name = json_string("a name that is not UTF-8");
        json_array_append_new(list, json_pack("{s:o,s:I,s:I,s:I,s:I}", "name", name, "documents",
                                              (json_int_t)s->counts.documents, "bytes", (json_int_t)s->counts.bytes,
                                              "lines", (json_int_t)s->counts.lines, "invalid_lines",
                                              (json_int_t)s->counts.invalid_lines));
    }
    return list;
}

static json_t *options_json(const job *j) {
    static const char *const encodings[] = {"utf8", "latin1"}, *const invalids[] = {"stop", "latin1", "skip"};
    static const char *const documents[] = {"files", "blank-lines", "lines"};
    const prepare_options *o = j->options;
    return json_pack("{s:b,s:s,s:s,s:s,s:s,s:f,s:s,s:I,s:I}", "tokenizer_trained", !o->tokenizer, "field",
                     o->reading.field, "documents", documents[o->reading.documents], "encoding",
                     encodings[o->reading.encoding], "invalid", invalids[o->reading.invalid], "val_fraction",
                     o->val_fraction, "validation_by", j->plan.by_documents ? "documents" : "bytes", "seed",
                     (json_int_t)o->seed, "shard_tokens", (json_int_t)o->shard_tokens);
}

static status write_info(const job *j) {
    dataset_info info = {.vocab = tokenizer_vocab(j->model),
                         .eos_id = tokenizer_eos(j->model),
                         .document_token_ends = true,
                         .train = j->outputs[0].counts,
                         .validation = j->outputs[1].counts};
    strcpy(info.tokenizer, tokenizer_file_name(j->model));
    strcpy(info.tokenizer_hash, tokenizer_hash(j->model));
    return dataset_info_write(
        &info,
        json_pack("{s:b,s:o,s:o}", "lossless", j->lossless, "sources", sources_json(j), "options", options_json(j)),
        j->folder);
}

static status run(job *j, dataset_info *out) {
    const prepare_options *o = j->options;
    TRY(new_folder_check(o->out_dir));
    j->sources = calloc((size_t)o->input_count, sizeof *j->sources);
    if (!j->sources) return out_of_memory();
    for (int i = 0; i < o->input_count; i++) {
        j->sources[i] = (source){.name = o->inputs[i], .spool = -1};
        TRY(check_source(&j->sources[i]));
    }
    TRY(new_folder_make(&j->folder, o->out_dir));
    TRY(o->tokenizer ? bring_model(j) : make_model(j));
    TRY(encode(j));
    TRY(write_info(j));
    char *info;
    TRY(join(&info, j->folder, "dataset.json"));
    status result = dataset_info_load(out, info);
    free(info);
    if (result != STATUS_OK) return result;
    char *whole = j->folder;
    j->folder = NULL;
    return new_folder_publish(whole, o->out_dir);
}

static void job_free(job *j) {
    for (int i = 0; i < j->options->input_count && j->sources; i++)
        if (j->sources[i].spool >= 0) close(j->sources[i].spool);
    for (int64_t i = 0; i < j->batch.parts_room; i++) free(j->batch.ids[i].ids);
    output_close(&j->outputs[0]);
    output_close(&j->outputs[1]);
    tokenizer_free(j->model);
    free(j->batch.text);
    free(j->batch.parts);
    free(j->batch.texts);
    free(j->batch.ids);
    free(j->sources);
    new_folder_discard(j->folder);
}

status prepare(const prepare_options *options, dataset_info *out) {
    job j = {.options = options, .told = time(NULL)};
    status result = run(&j, out);
    job_free(&j);
    return result;
}
