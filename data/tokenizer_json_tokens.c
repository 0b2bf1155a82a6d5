/* Vocabulary, merges and added tokens of a tokenizer.json. */
#include "data/strict_json.h"
#include "data/tokenizer_json_private.h"

#include <stdlib.h>
#include <string.h>

enum { LARGEST_ID = 1 << 24 };

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory");
}

/* ---- bytes as characters ---- */

/* GPT-2 writes a byte as a printable character: itself where it is one in Latin-1, else the next from U+0100 on. */
static void make_byte_characters(tokenizer_json *t) {
    int next = 0x100;
    for (int c = 0; c < 0x144; c++) t->byte_of[c] = -1;
    for (int byte = 0; byte < 256; byte++) {
        bool itself = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        t->byte_of[itself ? byte : next++] = byte;
    }
}

/* The bytes that the characters stand for; *length is -1 where one stands for none. out has room for the text. */
static void bytes_of(const tokenizer_json *t, const char *text, char *out, int64_t *length) {
    *length = 0;
    for (const unsigned char *at = (const unsigned char *)text; *at; at++) {
        int c = *at;
        if (c >= 0xC0 && c < 0xE0 && at[1]) c = (c & 31) << 6 | (*++at & 63);
        int byte = c < 0x144 ? t->byte_of[c] : -1;
        if (byte < 0) {
            *length = -1;
            return;
        }
        out[(*length)++] = (char)byte;
    }
}

/* The byte that "<0x0A>" is; -1: it is another text. */
static int spelled_byte(const char *text) {
    static const char digits[] = "0123456789ABCDEF";
    if (strncmp(text, "<0x", 3) != 0 || strlen(text) != 6 || text[5] != '>') return -1;
    const char *high = strchr(digits, text[3]), *low = strchr(digits, text[4]);
    return high && low ? (int)(high - digits) << 4 | (int)(low - digits) : -1;
}

/* ---- tokens ---- */

static status check_id(const json_t *value, const char *text, int64_t *id) {
    *id = json_is_integer(value) ? json_integer_value(value) : -1;
    if (*id >= 0 && *id < LARGEST_ID) return STATUS_OK;
    return status_fail(STATUS_DATA, "the token \"%s\" has no id from 0 to %d", text, LARGEST_ID - 1);
}

static status make_tokens(tokenizer_json *t, const json_t *vocab, const json_t *added) {
    const char *text;
    json_t *value;
    size_t i;
    int64_t id;
    json_object_foreach((json_t *)vocab, text, value) {
        TRY(check_id(value, text, &id));
        if (id >= t->count) t->count = id + 1;
    }
    json_array_foreach(added, i, value) {
        TRY(check_id(json_object_get(value, "id"), strict_text_at(value, "content"), &id));
        if (id >= t->count) t->count = id + 1;
    }
    t->tokens = calloc((size_t)t->count + 1, sizeof *t->tokens);
    return t->tokens ? STATUS_OK : out_of_memory();
}

/* The token of that id is this text and stands for itself. */
static status set_token(tokenizer_json *t, int64_t id, const char *text) {
    token *k = &t->tokens[id];
    if (k->text && strcmp(k->text, text) != 0)
        return status_fail(STATUS_DATA, "the tokens \"%s\" and \"%s\" have the same id", k->text, text);
    if (k->text) return STATUS_OK;
    k->text = strdup(text);
    k->bytes = strdup(text);
    k->length = strlen(text);
    return k->text && k->bytes ? STATUS_OK : out_of_memory();
}

/* With byte_level a token is found by its bytes; one whose characters are none, an added one, by no text. */
static status add_token(tokenizer_json *t, const char *text, int64_t id) {
    token *k = &t->tokens[id];
    if (k->text) return status_fail(STATUS_DATA, "the tokens \"%s\" and \"%s\" have the same id", k->text, text);
    TRY(set_token(t, id, text));
    int byte = t->byte_level ? -1 : spelled_byte(text);
    if (byte >= 0) {
        k->bytes[0] = (char)byte;
        k->length = 1;
        return token_table_add(&t->bpe.tokens, text, strlen(text), (int32_t)id);
    }
    int64_t length = (int64_t)k->length;
    if (t->byte_level) bytes_of(t, text, k->bytes, &length);
    if (length < 0) {
        strcpy(k->bytes, text);
        return STATUS_OK;
    }
    k->length = (size_t)length;
    k->bytes[length] = 0;
    return token_table_add(&t->bpe.tokens, k->bytes, k->length, (int32_t)id);
}

/* With byte_level the text's characters stand for bytes here too. */
static status merge_side(const tokenizer_json *t, const char *text, size_t length, tokenizer_text *out, char **owned) {
    int64_t bytes = (int64_t)length;
    *owned = strndup(text, length);
    char *to = strdup(*owned ? *owned : "");
    if (!*owned || !to) {
        free(to);
        return out_of_memory();
    }
    if (t->byte_level) bytes_of(t, *owned, to, &bytes);
    free(*owned);
    *owned = to;
    *out = (tokenizer_text){to, (size_t)(bytes < 0 ? 0 : bytes)};
    return STATUS_OK;
}

/* A merge is "left right" or ["left", "right"]. */
static status read_merge(tokenizer_json *t, const json_t *merge, int32_t rank) {
    const char *left = json_string_value(json_array_get(merge, 0)),
               *right = json_string_value(json_array_get(merge, 1));
    size_t left_length = left ? strlen(left) : 0;
    if (json_is_string(merge)) {
        left = json_string_value(merge);
        const char *space = strchr(left, ' ');
        right = space && !strchr(space + 1, ' ') ? space + 1 : NULL;
        left_length = space ? (size_t)(space - left) : 0;
    } else if (json_array_size(merge) != 2)
        right = NULL;
    if (!left || !right) return status_fail(STATUS_DATA, "merge %d is no pair of tokens", rank);
    tokenizer_text sides[2] = {{0}};
    char *owned[2] = {0};
    status s = merge_side(t, left, left_length, &sides[0], &owned[0]);
    if (s == STATUS_OK) s = merge_side(t, right, strlen(right), &sides[1], &owned[1]);
    if (s == STATUS_OK) s = bpe_add_merge(&t->bpe, rank, &sides[0], &sides[1]);
    free(owned[0]);
    free(owned[1]);
    return s;
}

/* Which token each byte is, where all have one; with characters they may be missing. */
static status find_bytes(tokenizer_json *t, bool fallback) {
    for (int byte = 0; byte < 256; byte++) {
        char name[8] = {(char)byte};
        if (!t->byte_level) snprintf(name, sizeof name, "<0x%02X>", (unsigned)byte);
        bool wanted = t->byte_level || fallback;
        t->bpe.bytes[byte] = wanted ? token_table_find(&t->bpe.tokens, name, t->byte_level ? 1 : strlen(name)) : -1;
        if (t->byte_level && t->bpe.bytes[byte] < 0 && t->bpe.unknown < 0)
            return status_fail(STATUS_DATA, "the vocabulary has no token for the byte 0x%02X", (unsigned)byte);
    }
    return STATUS_OK;
}

static status read_model(tokenizer_json *t, const json_t *model, const json_t *added) {
    /* Files of the first years, GPT-2's own, do not say it. */
    if (!strict_is_type(model, "BPE") && !strict_nothing_at(model, "type")) return strict_unknown_type("model", model);
    TRY(strict_check_keys(model, "model",
                          STRICT_KEYS("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                                      "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges")));
    const json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    const json_t *dropout = json_object_get(model, "dropout");
    const char *text;
    json_t *value;
    size_t i;
    if (!json_is_object(vocab) || !json_is_array(merges))
        return status_fail(STATUS_DATA, "the model has no \"vocab\" or no \"merges\"");
    if (json_number_value(dropout) != 0)
        return status_fail(STATUS_DATA, "the model has a \"dropout\", which is not known here");
    if (strict_text_at(model, "continuing_subword_prefix")[0] || strict_text_at(model, "end_of_word_suffix")[0])
        return status_fail(STATUS_DATA,
                           "the model marks parts of words (continuing_subword_prefix, end_of_word_suffix), "
                           "which is not known here");
    TRY(make_tokens(t, vocab, added));
    json_object_foreach((json_t *)vocab, text, value) TRY(add_token(t, text, json_integer_value(value)));
    t->bpe.characters = !t->byte_level;
    t->bpe.whole_words_first = strict_flag_at(model, "ignore_merges", false);
    t->bpe.fuse_unknown = strict_flag_at(model, "fuse_unk", false);
    t->bpe.unknown = -1;
    if (!strict_nothing_at(model, "unk_token")) {
        const json_t *id = json_object_get(vocab, strict_text_at(model, "unk_token"));
        if (!id)
            return status_fail(STATUS_DATA, "unk_token \"%s\" is not in the vocabulary",
                               strict_text_at(model, "unk_token"));
        t->bpe.unknown = (int32_t)json_integer_value(id);
    }
    TRY(find_bytes(t, strict_flag_at(model, "byte_fallback", false)));
    TRY(bpe_begin_merges(&t->bpe, json_array_size(merges)));
    json_array_foreach(merges, i, value) TRY(read_merge(t, value, (int32_t)i));
    return STATUS_OK;
}

/* ---- added tokens ---- */

static int by_length(const void *a, const void *b) {
    size_t x = strlen(*(const char *const *)a), y = strlen(*(const char *const *)b);
    return x < y ? 1 : x > y ? -1 : 0;
}

/* A step that finds any of the texts, of several at one place the longest. */
static status find_texts(splitter *s, const char **texts, size_t count) {
    char *pattern = NULL;
    size_t bytes = 0;
    if (count == 0) return STATUS_OK;
    qsort(texts, count, sizeof *texts, by_length);
    FILE *out = open_memstream(&pattern, &bytes);
    if (!out) return out_of_memory();
    for (size_t i = 0; i < count; i++) {
        if (i > 0) fputc('|', out);
        for (const char *c = texts[i]; *c; c++) {
            if (strchr("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~", *c)) fputc('\\', out);
            fputc(*c, out);
        }
    }
    status result = fclose(out) == 0 ? splitter_add(s, pattern, false, SPLIT_ISOLATED) : out_of_memory();
    free(pattern);
    return result;
}

/* texts[0] of those found before normalizing, texts[1] after; each has room for all. */
static status read_added(tokenizer_json *t, const json_t *added, bool normalizes, const char **texts[2],
                         size_t counts[2]) {
    size_t i;
    json_t *value;
    json_array_foreach(added, i, value) {
        const char *text = strict_text_at(value, "content");
        TRY(strict_check_keys(
            value, "added_tokens",
            STRICT_KEYS("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")));
        int64_t id = json_integer_value(json_object_get(value, "id"));
        if (!text[0]) return status_fail(STATUS_DATA, "an added token has no content");
        TRY(set_token(t, id, text));
        t->tokens[id].special = strict_flag_at(value, "special", false);
        if (t->tokens[id].special) continue;
        bool normalized = strict_flag_at(value, "normalized", true);
        const char *unknown = strict_flag_at(value, "single_word", false) ? "single_word"
                              : strict_flag_at(value, "lstrip", false)    ? "lstrip"
                              : strict_flag_at(value, "rstrip", false)    ? "rstrip"
                              : normalized && normalizes                  ? "normalized"
                                                                          : NULL;
        if (unknown)
            return status_fail(STATUS_DATA, "the added token \"%s\" is \"%s\", which is not known here", text, unknown);
        TRY(token_table_add(&t->by_text, text, strlen(text), (int32_t)id));
        texts[normalized][counts[normalized]++] = text;
    }
    return STATUS_OK;
}

/* The first of the names that is a special token's; -1: none. */
static int32_t special_named(const tokenizer_json *t, const char *const *names) {
    for (int i = 0; names[i]; i++)
        for (int64_t id = 0; id < t->count; id++)
            if (t->tokens[id].special && strcmp(t->tokens[id].text, names[i]) == 0) return (int32_t)id;
    return -1;
}

static status add_added(tokenizer_json *t, const json_t *added, bool normalizes) {
    size_t count = json_array_size(added), counts[2] = {0};
    const char **texts[2] = {calloc(count + 1, sizeof *texts[0]), calloc(count + 1, sizeof *texts[1])};
    status s = texts[0] && texts[1] ? read_added(t, added, normalizes, texts, counts) : out_of_memory();
    for (int i = 0; i < 2 && s == STATUS_OK; i++) s = find_texts(&t->added[i], texts[i], counts[i]);
    free(texts[0]);
    free(texts[1]);
    TRY(s);
    t->eos = special_named(t, STRICT_KEYS("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>",
                                          "<\xEF\xBD\x9C"
                                          "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"));
    t->bos = special_named(t, STRICT_KEYS("<s>", "<|begin_of_text|>", "<bos>",
                                          "<\xEF\xBD\x9C"
                                          "begin\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"));
    if (t->eos >= 0) return STATUS_OK;
    return status_fail(STATUS_DATA,
                       "none of its special tokens is known as the end of a document (</s>, <|endoftext|>, "
                       "<|end_of_text|>, <eos>)");
}

status tokenizer_json_read_tokens(tokenizer_json *t, const json_t *root) {
    const json_t *added = json_object_get(root, "added_tokens");
    make_byte_characters(t);
    TRY(read_model(t, json_object_get(root, "model"), added));
    return add_added(t, added, strict_parts_of(json_object_get(root, "normalizer"), "normalizers") > 0);
}
