/* Reading takes the file apart strictly: an unknown key or type ends it. Encoding: added tokens are cut out, what is
 * between them gets U+2581 for its spaces where the file says so, is split into words, and those go to bpe. */
#include "data/tokenizer_json.h"

#include <stdlib.h>
#include <string.h>

static const char SPACE_MARK[] = "\xE2\x96\x81";
enum { SPACE_MARK_BYTES = 3, LARGEST_ID = 1 << 24 };

typedef enum prefix { PREFIX_NEVER, PREFIX_ALWAYS, PREFIX_UNLESS_THERE, PREFIX_FIRST_UNLESS_THERE } prefix;

typedef struct token {
    char *text;  /* as the file has it; NULL: no token has this id */
    char *bytes; /* that it stands for in a text */
    size_t length;
    bool special;
} token;

struct tokenizer_json {
    bpe bpe;
    token *tokens; /* [count] */
    int64_t count;
    splitter added[2];   /* of tokens that are found in any text; before and after normalizing */
    token_table by_text; /* those tokens */
    splitter words;
    bool byte_level; /* else: characters, with marks for spaces */
    bool marks_spaces;
    prefix prefix;          /* of a mark, or with byte_level of a space */
    bool strips_space;      /* decoding drops one space at the start */
    bool strips_marks;      /* and all marks at the start of the first token */
    int32_t byte_of[0x144]; /* by the character that stands for it in the file; -1: none does */
    int32_t eos, bos;
};

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory");
}

/* ---- reading JSON strictly ---- */

/* Every key of the object is among the names, which end with NULL. */
static status check_keys(const json_t *object, const char *where, const char *const *names) {
    const char *key;
    json_t *value;
    if (!json_is_object(object)) return status_fail(STATUS_DATA, "\"%s\" is no object", where);
    json_object_foreach((json_t *)object, key, value) {
        int i = 0;
        while (names[i] && strcmp(names[i], key) != 0) i++;
        if (!names[i]) return status_fail(STATUS_DATA, "\"%s\" has \"%s\", which is not known here", where, key);
    }
    return STATUS_OK;
}

#define KEYS(...) ((const char *const[]){__VA_ARGS__, NULL})

static const char *text_at(const json_t *object, const char *key) {
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static bool is_type(const json_t *object, const char *type) {
    return strcmp(text_at(object, "type"), type) == 0;
}

static bool flag_at(const json_t *object, const char *key, bool otherwise) {
    const json_t *value = json_object_get(object, key);
    return json_is_boolean(value) ? json_is_true(value) : otherwise;
}

static bool nothing_at(const json_t *object, const char *key) {
    const json_t *value = json_object_get(object, key);
    return !value || json_is_null(value);
}

static status unknown_type(const char *where, const json_t *object) {
    return status_fail(STATUS_DATA, "the %s \"%s\" is not known here", where, text_at(object, "type"));
}

/* The parts of a Sequence, or the thing itself as its only part; 0 for null. */
static size_t parts_of(const json_t *object, const char *list) {
    if (!object || json_is_null(object)) return 0;
    return is_type(object, "Sequence") ? json_array_size(json_object_get(object, list)) : 1;
}

static const json_t *part_of(const json_t *object, const char *list, size_t i) {
    return is_type(object, "Sequence") ? json_array_get(json_object_get(object, list), i) : object;
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
        TRY(check_id(json_object_get(value, "id"), text_at(value, "content"), &id));
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
    if (!is_type(model, "BPE")) return unknown_type("model", model);
    TRY(check_keys(model, "model",
                   KEYS("type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
                        "byte_fallback", "ignore_merges", "vocab", "merges")));
    const json_t *vocab = json_object_get(model, "vocab"), *merges = json_object_get(model, "merges");
    const json_t *dropout = json_object_get(model, "dropout");
    const char *text;
    json_t *value;
    size_t i;
    if (!json_is_object(vocab) || !json_is_array(merges))
        return status_fail(STATUS_DATA, "the model has no \"vocab\" or no \"merges\"");
    if (json_number_value(dropout) != 0)
        return status_fail(STATUS_DATA, "the model has a \"dropout\", which is not known here");
    if (text_at(model, "continuing_subword_prefix")[0] || text_at(model, "end_of_word_suffix")[0])
        return status_fail(STATUS_DATA,
                           "the model marks parts of words (continuing_subword_prefix, end_of_word_suffix), "
                           "which is not known here");
    TRY(make_tokens(t, vocab, added));
    json_object_foreach((json_t *)vocab, text, value) TRY(add_token(t, text, json_integer_value(value)));
    t->bpe.characters = !t->byte_level;
    t->bpe.whole_words_first = flag_at(model, "ignore_merges", false);
    t->bpe.fuse_unknown = flag_at(model, "fuse_unk", false);
    t->bpe.unknown = -1;
    if (!nothing_at(model, "unk_token")) {
        const json_t *id = json_object_get(vocab, text_at(model, "unk_token"));
        if (!id)
            return status_fail(STATUS_DATA, "unk_token \"%s\" is not in the vocabulary", text_at(model, "unk_token"));
        t->bpe.unknown = (int32_t)json_integer_value(id);
    }
    TRY(find_bytes(t, flag_at(model, "byte_fallback", false)));
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
        const char *text = text_at(value, "content");
        TRY(check_keys(value, "added_tokens",
                       KEYS("id", "content", "single_word", "lstrip", "rstrip", "normalized", "special")));
        int64_t id = json_integer_value(json_object_get(value, "id"));
        if (!text[0]) return status_fail(STATUS_DATA, "an added token has no content");
        TRY(set_token(t, id, text));
        t->tokens[id].special = flag_at(value, "special", false);
        if (t->tokens[id].special) continue;
        bool normalized = flag_at(value, "normalized", true);
        const char *unknown = flag_at(value, "single_word", false) ? "single_word"
                              : flag_at(value, "lstrip", false)    ? "lstrip"
                              : flag_at(value, "rstrip", false)    ? "rstrip"
                              : normalized && normalizes           ? "normalized"
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
    t->eos = special_named(t, KEYS("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>",
                                   "<\xEF\xBD\x9C"
                                   "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"));
    t->bos = special_named(t, KEYS("<s>", "<|begin_of_text|>", "<bos>",
                                   "<\xEF\xBD\x9C"
                                   "begin\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"));
    if (t->eos >= 0) return STATUS_OK;
    return status_fail(STATUS_DATA,
                       "none of its special tokens is known as the end of a document (</s>, <|endoftext|>, "
                       "<|end_of_text|>, <eos>)");
}

/* ---- normalizer, pre-tokenizer, decoder ---- */

/* Known: null, and parts that write spaces as U+2581, at the start of the text too. */
static status read_normalizer(tokenizer_json *t, const json_t *normalizer) {
    for (size_t i = 0; i < parts_of(normalizer, "normalizers"); i++) {
        const json_t *part = part_of(normalizer, "normalizers", i);
        if (is_type(part, "Prepend") && strcmp(text_at(part, "prepend"), SPACE_MARK) == 0)
            t->prefix = PREFIX_ALWAYS;
        else if (is_type(part, "Replace") && strcmp(text_at(json_object_get(part, "pattern"), "String"), " ") == 0 &&
                 strcmp(text_at(part, "content"), SPACE_MARK) == 0)
            t->marks_spaces = true;
        else
            return unknown_type("normalizer", part);
    }
    return STATUS_OK;
}

static status read_split(tokenizer_json *t, const json_t *part) {
    static const char *const names[] = {"Isolated", "MergedWithPrevious", "MergedWithNext"};
    TRY(check_keys(part, "Split", KEYS("type", "pattern", "behavior", "invert")));
    const json_t *pattern = json_object_get(part, "pattern");
    const char *expression = text_at(pattern, "Regex"), *text = text_at(pattern, "String");
    int behavior = 0;
    while (behavior < 3 && strcmp(names[behavior], text_at(part, "behavior")) != 0) behavior++;
    if (behavior == 3 || flag_at(part, "invert", false))
        return status_fail(STATUS_DATA, "a Split of behavior \"%s\"%s is not known here", text_at(part, "behavior"),
                           behavior == 3 ? "" : ", inverted,");
    return splitter_add(&t->words, expression[0] ? expression : text, !expression[0], (splitter_behavior)behavior);
}

static status read_byte_level(tokenizer_json *t, const json_t *part, bool alone) {
    static const char words[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
    TRY(check_keys(part, "ByteLevel", KEYS("type", "add_prefix_space", "trim_offsets", "use_regex")));
    if (flag_at(part, "add_prefix_space", true)) {
        if (!alone)
            return status_fail(STATUS_DATA, "ByteLevel with add_prefix_space behind other steps is not known here");
        t->prefix = PREFIX_UNLESS_THERE;
    }
    t->byte_level = true;
    return flag_at(part, "use_regex", true) ? splitter_add(&t->words, words, false, SPLIT_ISOLATED) : STATUS_OK;
}

static status read_metaspace(tokenizer_json *t, const json_t *part) {
    TRY(check_keys(part, "Metaspace",
                   KEYS("type", "replacement", "add_prefix_space", "prepend_scheme", "split", "str_rep")));
    const char *scheme = text_at(part, "prepend_scheme");
    if (strcmp(text_at(part, "replacement"), SPACE_MARK) != 0)
        return status_fail(STATUS_DATA, "Metaspace with \"%s\" for a space is not known here",
                           text_at(part, "replacement"));
    t->marks_spaces = true;
    if (strcmp(scheme, "first") == 0)
        t->prefix = PREFIX_FIRST_UNLESS_THERE;
    else if (strcmp(scheme, "never") != 0 && (scheme[0] || flag_at(part, "add_prefix_space", true)))
        t->prefix = PREFIX_UNLESS_THERE;
    return flag_at(part, "split", true) ? splitter_add(&t->words, SPACE_MARK, true, SPLIT_WITH_NEXT) : STATUS_OK;
}

static status read_digits(tokenizer_json *t, const json_t *part) {
    bool single = flag_at(part, "individual_digits", false);
    return splitter_add(&t->words, single ? "\\p{N}" : "\\p{N}+", false, SPLIT_ISOLATED);
}

static status read_pre_tokenizer(tokenizer_json *t, const json_t *all) {
    size_t parts = parts_of(all, "pretokenizers");
    for (size_t i = 0; i < parts; i++) {
        const json_t *part = part_of(all, "pretokenizers", i);
        if (t->byte_level)
            return status_fail(STATUS_DATA, "a pre-tokenizer behind ByteLevel (\"%s\") is not known here",
                               text_at(part, "type"));
        if (is_type(part, "Split"))
            TRY(read_split(t, part));
        else if (is_type(part, "Digits"))
            TRY(read_digits(t, part));
        else if (is_type(part, "ByteLevel"))
            TRY(read_byte_level(t, part, parts == 1));
        else if (is_type(part, "Metaspace") && parts == 1 && t->prefix == PREFIX_NEVER)
            TRY(read_metaspace(t, part));
        else
            return unknown_type("pre-tokenizer", part);
    }
    if (t->byte_level && (t->marks_spaces || t->prefix == PREFIX_ALWAYS))
        return status_fail(STATUS_DATA, "ByteLevel behind a normalizer that writes spaces as U+2581 is not known here");
    return STATUS_OK;
}

/* Steps that are the plain way back; what they leave at the start of a text is what the prefix was. */
static status read_decoder(tokenizer_json *t, const json_t *decoder) {
    size_t parts = parts_of(decoder, "decoders");
    bool replaces = false;
    for (size_t i = 0; i < parts; i++) {
        const json_t *part = part_of(decoder, "decoders", i);
        bool plain = is_type(part, "ByteFallback") || is_type(part, "Fuse");
        if (t->byte_level ? is_type(part, "ByteLevel") : plain) continue;
        if (!t->byte_level && is_type(part, "Metaspace")) {
            replaces = true;
            const char *scheme = text_at(part, "prepend_scheme");
            t->strips_marks = strcmp(scheme, "never") != 0 && (scheme[0] || flag_at(part, "add_prefix_space", true));
        } else if (!t->byte_level && is_type(part, "Replace") && strcmp(text_at(part, "content"), " ") == 0 &&
                   strcmp(text_at(json_object_get(part, "pattern"), "String"), SPACE_MARK) == 0)
            replaces = true;
        else if (!t->byte_level && is_type(part, "Strip") && strcmp(text_at(part, "content"), " ") == 0 &&
                 json_integer_value(json_object_get(part, "start")) == 1 &&
                 json_integer_value(json_object_get(part, "stop")) == 0)
            t->strips_space = true;
        else
            return unknown_type("decoder", part);
    }
    if (parts == 0 || (!t->byte_level && replaces != t->marks_spaces))
        return status_fail(STATUS_DATA, "the decoder does not undo what is done to a text");
    return STATUS_OK;
}

/* What follows puts special tokens around a text, which is not asked for. */
static status check_post_processor(const json_t *all) {
    static const char *const known[] = {"ByteLevel", "TemplateProcessing", "BertProcessing", "RobertaProcessing", NULL};
    for (size_t i = 0; i < parts_of(all, "processors"); i++) {
        const json_t *part = part_of(all, "processors", i);
        int k = 0;
        while (known[k] && !is_type(part, known[k])) k++;
        if (!known[k]) return unknown_type("post-processor", part);
    }
    return STATUS_OK;
}

static status read_all(tokenizer_json *t, const json_t *root) {
    TRY(check_keys(root, "tokenizer.json",
                   KEYS("version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer",
                        "post_processor", "decoder", "model")));
    const json_t *added = json_object_get(root, "added_tokens"), *normalizer = json_object_get(root, "normalizer");
    for (int i = 0; i < 2; i++)
        if (!nothing_at(root, KEYS("truncation", "padding")[i]))
            return status_fail(STATUS_DATA, "it has a \"%s\", which is not known here",
                               KEYS("truncation", "padding")[i]);
    TRY(read_normalizer(t, normalizer));
    TRY(read_pre_tokenizer(t, json_object_get(root, "pre_tokenizer")));
    TRY(read_decoder(t, json_object_get(root, "decoder")));
    TRY(check_post_processor(json_object_get(root, "post_processor")));
    TRY(read_model(t, json_object_get(root, "model"), added));
    return add_added(t, added, parts_of(normalizer, "normalizers") > 0);
}

status tokenizer_json_load(tokenizer_json **out, const json_t *root) {
    tokenizer_json *t = calloc(1, sizeof *t);
    *out = NULL;
    if (!t) return out_of_memory();
    make_byte_characters(t);
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
