/* Reading takes the file apart strictly: an unknown key or type ends it. Encoding: added tokens are cut out, what is
 * between them gets U+2581 for its spaces where the file says so, is split into words, and those go to bpe. */
#include "data/tokenizer_json.h"

#include "data/strict_json.h"
#include "data/tokenizer_json_private.h"

#include <stdlib.h>
#include <string.h>

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory");
}

static status read_all(tokenizer_json *t, const json_t *root) {
    TRY(strict_check_keys(root, "tokenizer.json",
                          STRICT_KEYS("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                                      "post_processor", "decoder", "model")));
    for (int i = 0; i < 2; i++)
        if (!strict_nothing_at(root, STRICT_KEYS("truncation", "padding")[i]))
            return status_fail(STATUS_DATA, "it has a \"%s\", which is not known here",
                               STRICT_KEYS("truncation", "padding")[i]);
    TRY(tokenizer_json_read_steps(t, root));
    return tokenizer_json_read_tokens(t, root);
}

status tokenizer_json_load(tokenizer_json **out, const json_t *root) {
    tokenizer_json *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t) return out_of_memory();
    status s = read_all(t, root);
    if (s == STATUS_OK)
        *out = t;
    else
        tokenizer_json_free(t);
    return s;
}

void tokenizer_json_free(tokenizer_json *t) {
    if (!t) return;
    for (int64_t i = 0; i < t->count && t->tokens; i++) {
        free(t->tokens[i].text);
        free(t->tokens[i].bytes);
    }
    free(t->tokens);
    bpe_free(&t->bpe);
    token_table_free(&t->by_text);
    splitter_free(&t->added[0]);
    splitter_free(&t->added[1]);
    splitter_free(&t->words);
    free(t);
}

int64_t tokenizer_json_vocab(const tokenizer_json *t) {
    return t->count;
}
int32_t tokenizer_json_eos(const tokenizer_json *t) {
    return t->eos;
}
int32_t tokenizer_json_bos(const tokenizer_json *t) {
    return t->bos;
}
const char *tokenizer_json_piece(const tokenizer_json *t, int32_t id) {
    return id >= 0 && id < t->count ? t->tokens[id].text : NULL;
}

/* ---- encoding ---- */

struct tokenizer_json_scratch {
    splitter_scratch *match;
    bpe_scratch bpe;
    char *text; /* normalized */
    size_t room;
};

tokenizer_json_scratch *tokenizer_json_scratch_make(void) {
    tokenizer_json_scratch *s = calloc(1, sizeof *s);
    if (s && (s->match = splitter_scratch_make())) return s;
    free(s);
    return NULL;
}

void tokenizer_json_scratch_free(tokenizer_json_scratch *s) {
    if (!s) return;
    splitter_scratch_free(s->match);
    bpe_scratch_free(&s->bpe);
    free(s->text);
    free(s);
}

typedef struct encoding {
    const tokenizer_json *tokenizer;
    tokenizer_json_scratch *scratch;
    tokenizer_ids *out;
    const char *start; /* of the whole text */
} encoding;

static status encode_word(void *user, const char *word, size_t length) {
    encoding *e = user;
    return bpe_encode(&e->tokenizer->bpe, &e->scratch->bpe, word, length, e->out);
}

/* Does the prefix belong in front of this text? */
static bool wants_prefix(const encoding *e, const char *text, size_t length) {
    const tokenizer_json *t = e->tokenizer;
    bool there = text[0] == ' ' ||
                 (!t->byte_level && length >= SPACE_MARK_BYTES && memcmp(text, SPACE_MARK, SPACE_MARK_BYTES) == 0);
    switch (t->prefix) {
    case PREFIX_NEVER:
        return false;
    case PREFIX_ALWAYS:
        return true;
    case PREFIX_UNLESS_THERE:
        return !there;
    case PREFIX_FIRST_UNLESS_THERE:
        return !there && text == e->start;
    }
    return false;
}

/* The text as the words are to see it, in scratch; its length. */
static status normalize(encoding *e, const char *text, size_t length, size_t *normal_length) {
    const tokenizer_json *t = e->tokenizer;
    tokenizer_json_scratch *s = e->scratch;
    size_t room = SPACE_MARK_BYTES * (length + 1);
    if (s->room < room) {
        char *grown = realloc(s->text, room);
        if (!grown) return out_of_memory();
        s->text = grown;
        s->room = room;
    }
    char *to = s->text;
    if (wants_prefix(e, text, length)) to = stpcpy(to, t->byte_level ? " " : SPACE_MARK);
    for (size_t i = 0; i < length; i++)
        if (t->marks_spaces && text[i] == ' ')
            to = memcpy(to, SPACE_MARK, SPACE_MARK_BYTES), to += SPACE_MARK_BYTES;
        else
            *to++ = text[i];
    *normal_length = (size_t)(to - s->text);
    return STATUS_OK;
}

/* A token's own text, or text between such. */
static status encode_segment(void *user, const char *text, size_t length) {
    encoding *e = user;
    const tokenizer_json *t = e->tokenizer;
    int32_t id = token_table_find(&t->by_text, text, length);
    if (id >= 0) return tokenizer_append(e->out, &id, 1);
    if (!t->marks_spaces && !wants_prefix(e, text, length))
        return splitter_run(&t->words, e->scratch->match, text, length, encode_word, e);
    TRY(normalize(e, text, length, &length));
    return splitter_run(&t->words, e->scratch->match, e->scratch->text, length, encode_word, e);
}

static status encode_unless_added(void *user, const char *text, size_t length) {
    encoding *e = user;
    if (token_table_find(&e->tokenizer->by_text, text, length) >= 0) return encode_segment(e, text, length);
    return e->tokenizer->added[1].count == 0
               ? encode_segment(e, text, length)
               : splitter_run(&e->tokenizer->added[1], e->scratch->match, text, length, encode_segment, e);
}

status tokenizer_json_encode(const tokenizer_json *t, tokenizer_json_scratch *s, const char *text, size_t length,
                             tokenizer_ids *out) {
    encoding e = {t, s, out, text};
    if (length == 0) return STATUS_OK;
    return t->added[0].count == 0 ? encode_unless_added(&e, text, length)
                                  : splitter_run(&t->added[0], s->match, text, length, encode_unless_added, &e);
}

/* ---- decoding ---- */

static void put_token(const tokenizer_json *t, const token *k, bool first, FILE *out) {
    const char *at = k->bytes, *end = at + k->length;
    while (!t->byte_level && at < end) {
        const char *mark = memmem(at, (size_t)(end - at), SPACE_MARK, SPACE_MARK_BYTES);
        if (!mark || !t->marks_spaces) break;
        fwrite(at, 1, (size_t)(mark - at), out);
        if (!first || !t->strips_marks) fputc(' ', out);
        at = mark + SPACE_MARK_BYTES;
    }
    fwrite(at, 1, (size_t)(end - at), out);
}

status tokenizer_json_decode(const tokenizer_json *t, const int32_t *ids, int64_t count, char **out, size_t *length) {
    FILE *text = open_memstream(out, length);
    if (!text) return out_of_memory();
    bool first = true;
    for (int64_t i = 0; i < count; i++) {
        if (t->tokens[ids[i]].special) continue;
        put_token(t, &t->tokens[ids[i]], first, text);
        first = false;
    }
    if (fclose(text) != 0) return out_of_memory();
    if (t->strips_space && *length > 0 && (*out)[0] == ' ') memmove(*out, *out + 1, (*length)--);
    return STATUS_OK;
}
