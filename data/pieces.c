#include "data/pieces.h"

#include "core/protobuf.h"

#include <stdlib.h>
#include <string.h>

/* sentencepiece_model.proto */
enum {
    MODEL_PIECE = 1,
    MODEL_TRAINER = 2,
    MODEL_NORMALIZER = 3,
    PIECE_TEXT = 1,
    PIECE_SCORE = 2,
    PIECE_TYPE = 3,
    TRAINER_MODEL_TYPE = 3,
    TRAINER_VOCAB_SIZE = 4,
    TRAINER_SPACE_BEHIND = 24,
    TRAINER_BYTE_FALLBACK = 35,
    TRAINER_BOS_PIECE = 46,
    TRAINER_EOS_PIECE = 47,
    NORMALIZER_NAME = 1,
    NORMALIZER_RULES = 2,
    NORMALIZER_DUMMY_PREFIX = 3,
    NORMALIZER_REMOVES_SPACES = 4,
    NORMALIZER_ESCAPES_SPACES = 5,
};

static status damaged(void) {
    return status_fail(STATUS_DATA, "it is no SentencePiece model");
}

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory");
}

static protobuf_reader inside(const protobuf_field *f) {
    return (protobuf_reader){f->bytes, f->bytes + f->length};
}

static status read_piece(pieces *p, const protobuf_field *message) {
    protobuf_reader r = inside(message);
    protobuf_field f;
    piece one = {.type = PIECE_NORMAL};
    while (protobuf_next(&r, &f)) {
        if (f.number == PIECE_TEXT && f.bytes && !one.text) one.text = strndup(f.bytes, f.length);
        if (f.number == PIECE_SCORE) one.score = protobuf_float(&f);
        if (f.number == PIECE_TYPE) one.type = (piece_type)f.integer;
    }
    if (r.at != r.end || !one.text) {
        free(one.text);
        return damaged();
    }
    if ((p->count & (p->count - 1)) == 0) { /* a power of two: full */
        piece *grown = realloc(p->list, (size_t)(p->count ? 2 * p->count : 1) * sizeof *grown);
        if (!grown) {
            free(one.text);
            return out_of_memory();
        }
        p->list = grown;
    }
    p->list[p->count++] = one;
    return STATUS_OK;
}

static void read_trainer(pieces *p, const protobuf_field *message) {
    protobuf_reader r = inside(message);
    protobuf_field f;
    while (protobuf_next(&r, &f)) {
        if (f.number == TRAINER_MODEL_TYPE) p->model_type = (int)f.integer;
        if (f.number == TRAINER_BYTE_FALLBACK) p->byte_fallback = f.integer != 0;
        if (f.number == TRAINER_SPACE_BEHIND) p->space_behind = f.integer != 0;
    }
}

static void read_normalizer(pieces *p, const protobuf_field *message) {
    protobuf_reader r = inside(message);
    protobuf_field f;
    while (protobuf_next(&r, &f)) {
        if (f.number == NORMALIZER_RULES) p->has_rules = f.length > 0;
        if (f.number == NORMALIZER_DUMMY_PREFIX) p->dummy_prefix = f.integer != 0;
        if (f.number == NORMALIZER_REMOVES_SPACES) p->removes_spaces = f.integer != 0;
        if (f.number == NORMALIZER_ESCAPES_SPACES) p->escapes_spaces = f.integer != 0;
    }
}

static status read_model(pieces *p, protobuf_reader r) {
    protobuf_field f;
    while (protobuf_next(&r, &f)) {
        if (!f.bytes) continue;
        if (f.number == MODEL_PIECE) TRY(read_piece(p, &f));
        if (f.number == MODEL_TRAINER) read_trainer(p, &f);
        if (f.number == MODEL_NORMALIZER) read_normalizer(p, &f);
    }
    return r.at == r.end && p->count > 0 ? STATUS_OK : damaged();
}

status pieces_read(pieces *out, const char *bytes, size_t length) {
    /* What a field is that is not there. */
    *out = (pieces){.model_type = PIECES_UNIGRAM, .dummy_prefix = true, .removes_spaces = true, .escapes_spaces = true};
    status s = read_model(out, (protobuf_reader){bytes, bytes + length});
    if (s != STATUS_OK) pieces_free(out);
    return s;
}

void pieces_free(pieces *p) {
    for (int64_t i = 0; i < p->count; i++) free(p->list[i].text);
    free(p->list);
    *p = (pieces){0};
}

static void put_text(protobuf *to, int field, const char *text) {
    protobuf_put_bytes(to, field, text, strlen(text));
}

/* Appends the message, and frees it. */
static void put_message(protobuf *to, int field, protobuf *message) {
    protobuf_put_bytes(to, field, message->bytes, message->length);
    to->failed = to->failed || message->failed;
    free(message->bytes);
    *message = (protobuf){0};
}

status pieces_write(const pieces *p, char **bytes, size_t *length) {
    protobuf model = {0}, part = {0};
    for (int64_t i = 0; i < p->count; i++) {
        put_text(&part, PIECE_TEXT, p->list[i].text);
        protobuf_put_float(&part, PIECE_SCORE, p->list[i].score);
        protobuf_put_integer(&part, PIECE_TYPE, p->list[i].type);
        put_message(&model, MODEL_PIECE, &part);
    }
    protobuf_put_integer(&part, TRAINER_MODEL_TYPE, p->model_type);
    protobuf_put_integer(&part, TRAINER_VOCAB_SIZE, p->count);
    protobuf_put_integer(&part, TRAINER_BYTE_FALLBACK, p->byte_fallback);
    put_text(&part, TRAINER_BOS_PIECE, p->bos ? p->bos : "");
    put_text(&part, TRAINER_EOS_PIECE, p->eos);
    put_message(&model, MODEL_TRAINER, &part);
    put_text(&part, NORMALIZER_NAME, "identity");
    protobuf_put_integer(&part, NORMALIZER_DUMMY_PREFIX, p->dummy_prefix);
    protobuf_put_integer(&part, NORMALIZER_REMOVES_SPACES, p->removes_spaces);
    protobuf_put_integer(&part, NORMALIZER_ESCAPES_SPACES, p->escapes_spaces);
    put_message(&model, MODEL_NORMALIZER, &part);
    *bytes = model.bytes;
    *length = model.length;
    if (!model.failed) return STATUS_OK;
    free(model.bytes);
    return out_of_memory();
}
