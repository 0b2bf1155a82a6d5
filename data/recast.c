#include "data/recast.h"

#include "core/file.h"
#include "core/json.h"
#include "core/rng.h"
#include "data/pieces.h"
#include "data/strict_json.h"
#include "data/token_table.h"
#include "data/tokenizer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char SPACE_MARK[] = "\xE2\x96\x81";
enum { SPACE_MARK_BYTES = 3, FILE_BYTES_MOST = 1 << 30 };

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory");
}

static size_t character_bytes(const char *at) {
    unsigned char c = (unsigned char)*at;
    return c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

static bool is_character(const char *text) {
    return text[0] && strlen(text) == character_bytes(text);
}

/* ---- the trial ---- */

enum { TEXTS = 20000, MOST_PARTS = 12, TEXT_BYTES = 4096 };

/* A text of random ones of the pieces, some several times in a row, and characters; spaces for marks. */
static size_t draw_text(const piece *const *normal, int64_t count, uint64_t number, char text[TEXT_BYTES]) {
    size_t length = 0;
    uint64_t draw = 0, parts = 1 + rng_u64(1, number, draw++) % MOST_PARTS;
    for (uint64_t part = 0; part < parts; part++) {
        uint64_t kind = rng_u64(1, number, draw++) % 8, times = kind < 2 ? 2 + rng_u64(1, number, draw++) % 6 : 1;
        const piece *one = normal[rng_u64(1, number, draw++) % (uint64_t)count];
        char other[2] = {(char)(' ' + rng_u64(1, number, draw++) % 95)};
        const char *from = kind < 7 ? one->text : other;
        for (uint64_t i = 0; i < times && length + strlen(from) < TEXT_BYTES; i++)
            length = (size_t)(stpcpy(text + length, from) - text);
    }
    char *to = text;
    for (size_t i = 0; i < length; to++) {
        bool mark = strncmp(text + i, SPACE_MARK, SPACE_MARK_BYTES) == 0;
        *to = mark ? ' ' : text[i];
        i += mark ? SPACE_MARK_BYTES : 1;
    }
    return (size_t)(to - text);
}

static bool same_ids(const tokenizer_ids *a, const tokenizer_ids *b) {
    return a->count == b->count && (a->count == 0 || memcmp(a->ids, b->ids, (size_t)a->count * sizeof *a->ids) == 0);
}

static status try_texts(const pieces *p, const tokenizer *before, const tokenizer *after) {
    tokenizer_ids a = {0}, b = {0};
    const piece **normal = malloc((size_t)p->count * sizeof *normal);
    int64_t count = 0;
    if (!normal) return out_of_memory();
    for (int64_t id = 0; id < p->count; id++)
        if (p->list[id].type == PIECE_NORMAL) normal[count++] = &p->list[id];
    status s = count > 0 ? STATUS_OK : status_fail(STATUS_DATA, "it has no pieces");
    for (uint64_t number = 0; number < TEXTS && s == STATUS_OK; number++) {
        char bytes[TEXT_BYTES];
        tokenizer_text text = {bytes, draw_text(normal, count, number, bytes)};
        a.count = b.count = 0;
        s = tokenizer_encode(before, &text, 1, 1, &a);
        if (s == STATUS_OK) s = tokenizer_encode(after, &text, 1, 1, &b);
        if (s == STATUS_OK && !same_ids(&a, &b))
            s = status_fail(STATUS_DATA, "it cannot be converted: \"%.*s\" would have other ids", (int)text.length,
                            bytes);
    }
    free(normal);
    free(a.ids);
    free(b.ids);
    return s;
}

static status try_files(const pieces *p, const char *in, const char *out) {
    tokenizer *before = NULL, *after = NULL;
    status s = tokenizer_load(&before, in);
    if (s == STATUS_OK) s = tokenizer_load(&after, out);
    if (s == STATUS_OK) s = try_texts(p, before, after);
    tokenizer_free(before);
    tokenizer_free(after);
    return s;
}

/* Writes the bytes under another name, tries them, and gives them theirs. */
static status write_tried(const pieces *p, const char *in, const char *out, const char *bytes, size_t length) {
    char *untried;
    if (asprintf(&untried, "%s.untried", out) < 0) return out_of_memory();
    status s = file_write_atomic(untried, bytes, length);
    if (s == STATUS_OK) s = try_files(p, in, untried);
    if (s == STATUS_OK && rename(untried, out) != 0)
        s = status_fail(STATUS_IO, "cannot write %s: %s", out, strerror(errno));
    if (s != STATUS_OK) unlink(untried);
    free(untried);
    return s;
}

/* A failure with the file's name in front. */
static status with_path(const char *path, status s) {
    char message[512];
    if (s == STATUS_OK) return s;
    snprintf(message, sizeof message, "%s", status_message());
    status_clear();
    return status_fail(s, "%s: %s", path,
                       strncmp(message, path, strlen(path)) == 0 ? message + strlen(path) + 2 : message);
}

/* ---- to tokenizer.json ---- */

static status check_model(const pieces *p) {
    static const char *const kinds[] = {[PIECE_USER_DEFINED] = "user-defined", [PIECE_UNUSED] = "unused"};
    if (p->model_type == PIECES_UNIGRAM)
        return status_fail(STATUS_DATA,
                           "it is a unigram model, whose ties fall differently in a tokenizer.json: the ids "
                           "would not be the same; use the model file as it is");
    if (p->model_type != PIECES_BPE) return status_fail(STATUS_DATA, "it is no BPE model");
    if (p->has_rules || p->removes_spaces || !p->escapes_spaces || p->space_behind)
        return status_fail(STATUS_DATA, "it changes characters or spaces of a text, which is not converted");
    if (!p->byte_fallback) return status_fail(STATUS_DATA, "it has no bytes for what has no piece (byte_fallback)");
    for (int64_t i = 0; i < p->count; i++)
        if (p->list[i].type == PIECE_USER_DEFINED || p->list[i].type == PIECE_UNUSED)
            return status_fail(STATUS_DATA, "its piece \"%s\" is %s, which is not converted", p->list[i].text,
                               kinds[p->list[i].type]);
    return STATUS_OK;
}

typedef struct merge {
    float score;
    int32_t left, right;
} merge;

static int by_rank(const void *a, const void *b) {
    const merge *x = a, *y = b;
    if (x->score != y->score) return x->score > y->score ? -1 : 1;
    return x->left != y->left ? (x->left > y->left) - (x->left < y->left)
                              : (x->right > y->right) - (x->right < y->right);
}

typedef struct merges {
    merge *list;
    size_t count, room;
} merges;

static status add_merge(merges *m, merge one) {
    if (m->count == m->room) {
        size_t room = m->room ? 2 * m->room : 1024;
        merge *grown = realloc(m->list, room * sizeof *grown);
        if (!grown) return out_of_memory();
        m->list = grown;
        m->room = room;
    }
    m->list[m->count++] = one;
    return STATUS_OK;
}

/* Every cut of a piece into two pieces, between characters. */
static status find_merges(const pieces *p, const token_table *normal, merges *out) {
    for (int64_t i = 0; i < p->count; i++) {
        const char *text = p->list[i].text;
        size_t length = strlen(text);
        if (p->list[i].type != PIECE_NORMAL) continue;
        for (size_t cut = length ? character_bytes(text) : 0; cut < length; cut += character_bytes(text + cut)) {
            int32_t left = token_table_find(normal, text, cut),
                    right = token_table_find(normal, text + cut, length - cut);
            if (left >= 0 && right >= 0) TRY(add_merge(out, (merge){p->list[i].score, left, right}));
        }
    }
    if (out->count > 0) qsort(out->list, out->count, sizeof *out->list, by_rank);
    return STATUS_OK;
}

static status find_normal(const pieces *p, token_table *out) {
    for (int64_t i = 0; i < p->count; i++)
        if (p->list[i].type == PIECE_NORMAL)
            TRY(token_table_add(out, p->list[i].text, strlen(p->list[i].text), (int32_t)i));
    return STATUS_OK;
}

static json_t *mark_step(const char *type, const char *from, const char *to) {
    return json_pack("{s:s, s:{s:s}, s:s}", "type", type, "pattern", "String", from, "content", to);
}

static json_t *describe_normalizer(const pieces *p) {
    json_t *steps = json_array();
    if (p->dummy_prefix)
        json_array_append_new(steps, json_pack("{s:s, s:s}", "type", "Prepend", "prepend", SPACE_MARK));
    json_array_append_new(steps, mark_step("Replace", " ", SPACE_MARK));
    return json_pack("{s:s, s:o}", "type", "Sequence", "normalizers", steps);
}

static json_t *describe_decoder(const pieces *p) {
    json_t *steps = json_array();
    json_array_append_new(steps, mark_step("Replace", SPACE_MARK, " "));
    json_array_append_new(steps, json_pack("{s:s}", "type", "ByteFallback"));
    json_array_append_new(steps, json_pack("{s:s}", "type", "Fuse"));
    if (p->dummy_prefix)
        json_array_append_new(
            steps, json_pack("{s:s, s:s, s:i, s:i}", "type", "Strip", "content", " ", "start", 1, "stop", 0));
    return json_pack("{s:s, s:o}", "type", "Sequence", "decoders", steps);
}

static json_t *describe_model(const pieces *p, const merges *m) {
    json_t *vocab = json_object(), *list = json_array(), *unknown = json_null();
    for (int64_t i = 0; i < p->count; i++) {
        json_object_set_new(vocab, p->list[i].text, json_integer(i));
        if (p->list[i].type == PIECE_UNKNOWN) unknown = json_string(p->list[i].text);
    }
    for (size_t i = 0; i < m->count; i++)
        json_array_append_new(list, json_pack("[s, s]", p->list[m->list[i].left].text, p->list[m->list[i].right].text));
    return json_pack("{s:s, s:n, s:o, s:n, s:n, s:b, s:b, s:b, s:o, s:o}", "type", "BPE", "dropout", "unk_token",
                     unknown, "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", 1, "byte_fallback", 1,
                     "ignore_merges", 0, "vocab", vocab, "merges", list);
}

static json_t *describe(const pieces *p, const merges *m) {
    json_t *added = json_array();
    for (int64_t i = 0; i < p->count; i++)
        if (p->list[i].type == PIECE_CONTROL || p->list[i].type == PIECE_UNKNOWN)
            json_array_append_new(added, json_pack("{s:I, s:s, s:b, s:b, s:b, s:b, s:b}", "id", (json_int_t)i,
                                                   "content", p->list[i].text, "single_word", 0, "lstrip", 0, "rstrip",
                                                   0, "normalized", 0, "special", 1));
    return json_pack("{s:s, s:n, s:n, s:o, s:o, s:n, s:n, s:o, s:o}", "version", "1.0", "truncation", "padding",
                     "added_tokens", added, "normalizer", describe_normalizer(p), "pre_tokenizer", "post_processor",
                     "decoder", describe_decoder(p), "model", describe_model(p, m));
}

static status write_json(const pieces *p, const char *in, const char *out) {
    token_table normal = {0};
    merges m = {0};
    TRY(check_model(p));
    status s = find_normal(p, &normal);
    if (s == STATUS_OK) s = find_merges(p, &normal, &m);
    json_t *root = s == STATUS_OK ? describe(p, &m) : NULL;
    char *text = root ? json_dumps(root, JSON_INDENT(1)) : NULL;
    if (s == STATUS_OK) s = text ? write_tried(p, in, out, text, strlen(text)) : out_of_memory();
    json_decref(root);
    free(text);
    free(m.list);
    token_table_free(&normal);
    return s;
}

status recast_to_json(const char *model_file, const char *json_file) {
    char *bytes;
    size_t length;
    pieces p;
    TRY(file_read_all(&bytes, &length, model_file, FILE_BYTES_MOST));
    status s = pieces_read(&p, bytes, length);
    free(bytes);
    if (s == STATUS_OK) {
        s = write_json(&p, model_file, json_file);
        pieces_free(&p);
    }
    return with_path(model_file, s);
}

/* ---- to SentencePiece's model ---- */

/* The spaces: Replace alone, or behind Prepend. That they are of marks tokenizer_json has seen. */
static status read_spaces(pieces *p, const json_t *root) {
    const json_t *normalizer = json_object_get(root, "normalizer"), *steps = json_object_get(normalizer, "normalizers");
    size_t count = json_array_size(steps);
    p->dummy_prefix = count == 2 && strict_is_type(json_array_get(steps, 0), "Prepend");
    const json_t *last = count > 0 ? json_array_get(steps, count - 1) : normalizer;
    bool known = strict_is_type(last, "Replace") && (count <= 1 || p->dummy_prefix);
    if (known && json_is_null(json_object_get(root, "pre_tokenizer"))) return STATUS_OK;
    return status_fail(STATUS_DATA, "it does more to a text than to write spaces as U+2581, which is not converted");
}

static status add_tokens(pieces *p, const tokenizer *t) {
    p->list = calloc((size_t)tokenizer_vocab(t), sizeof *p->list);
    if (!p->list) return out_of_memory();
    for (; p->count < tokenizer_vocab(t); p->count++) {
        piece *one = &p->list[p->count];
        const char *text = tokenizer_piece(t, (int32_t)p->count);
        if (!text) return status_fail(STATUS_DATA, "no token has the id %lld", (long long)p->count);
        *one = (piece){.text = strdup(text), .type = PIECE_NORMAL};
        if (!one->text) return out_of_memory();
        if (strlen(text) == 6 && strncmp(text, "<0x", 3) == 0) one->type = PIECE_BYTE;
    }
    return STATUS_OK;
}

static status read_special(pieces *p, const json_t *root) {
    const json_t *unknown = json_object_get(json_object_get(root, "model"), "unk_token");
    json_t *added;
    size_t i;
    json_array_foreach(json_object_get(root, "added_tokens"), i, added) {
        piece *one = &p->list[json_integer_value(json_object_get(added, "id"))];
        if (!json_is_true(json_object_get(added, "special")))
            return status_fail(STATUS_DATA, "its added token \"%s\" is found in texts, which is not converted",
                               one->text);
        one->type = PIECE_CONTROL;
    }
    int64_t found = 0, bytes = 0;
    for (int64_t id = 0; id < p->count; id++) {
        bool is_unknown = json_is_string(unknown) && strcmp(p->list[id].text, json_string_value(unknown)) == 0;
        if (is_unknown) p->list[id].type = PIECE_UNKNOWN;
        found += is_unknown;
        bytes += p->list[id].type == PIECE_BYTE;
    }
    if (found == 1 && bytes == 256) return STATUS_OK;
    return status_fail(STATUS_DATA, "it lacks an unknown token or one for each byte, which SentencePiece's must have");
}

/* A piece's score is that of the first merge that makes it. Characters that none makes never compete. */
static status read_scores(pieces *p, const json_t *merges_list) {
    token_table normal = {0};
    json_t *one;
    size_t rank;
    status s = find_normal(p, &normal);
    for (int64_t id = 0; id < p->count; id++) p->list[id].score = -(float)json_array_size(merges_list);
    json_array_foreach(merges_list, rank, one) {
        const char *left = json_string_value(json_array_get(one, 0)),
                   *right = json_string_value(json_array_get(one, 1));
        char text[TEXT_BYTES];
        if (left)
            snprintf(text, sizeof text, "%s%s", left, right);
        else { /* "left right" */
            snprintf(text, sizeof text, "%s", json_string_value(one));
            char *space = strchr(text, ' ');
            memmove(space, space + 1, strlen(space));
        }
        int32_t id = s == STATUS_OK ? token_table_find(&normal, text, strlen(text)) : -1;
        if (id >= 0 && p->list[id].score < -(float)rank) p->list[id].score = -(float)rank;
    }
    token_table_free(&normal);
    for (int64_t id = 0; id < p->count && s == STATUS_OK; id++)
        if (p->list[id].type == PIECE_NORMAL && !is_character(p->list[id].text) &&
            p->list[id].score == -(float)json_array_size(merges_list))
            s = status_fail(STATUS_DATA, "no merge makes its token \"%s\", which SentencePiece would",
                            p->list[id].text);
    return s;
}

static status write_model(pieces *p, const json_t *root, const tokenizer *t, const char *in, const char *out) {
    char *bytes;
    size_t length;
    TRY(read_spaces(p, root));
    TRY(add_tokens(p, t));
    TRY(read_special(p, root));
    TRY(read_scores(p, json_object_get(json_object_get(root, "model"), "merges")));
    p->bos = tokenizer_piece(t, tokenizer_bos(t));
    p->eos = tokenizer_piece(t, tokenizer_eos(t));
    TRY(pieces_write(p, &bytes, &length));
    status s = write_tried(p, in, out, bytes, length);
    free(bytes);
    return s;
}

status recast_to_model(const char *json_file, const char *model_file) {
    pieces p = {.model_type = PIECES_BPE, .byte_fallback = true, .escapes_spaces = true};
    tokenizer *t;
    json_t *root;
    TRY(tokenizer_load(&t, json_file)); /* it is one that is known, or the reason why not */
    status s = json_read_file(&root, json_file, FILE_BYTES_MOST);
    if (s == STATUS_OK) {
        s = write_model(&p, root, t, json_file, model_file);
        json_decref(root);
    }
    tokenizer_free(t);
    pieces_free(&p);
    return with_path(json_file, s);
}
