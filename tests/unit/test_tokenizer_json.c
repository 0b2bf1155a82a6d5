/* tokenizer.json gives the ids that Hugging Face's tokenizers gives (tests/golden/tokenizers), merges words as the
 * definition of BPE does, keeps text, and refuses what it does not know by name. */
#include "check.h"

#include "core/file.h"
#include "core/rng.h"
#include "data/bpe.h"
#include "data/splitter.h"
#include "folder.h"
#include "tokens.h"

#include <jansson.h>
#include <time.h>

/* The first keep text, of them the first any bytes. */
static const char *const kinds[] = {"gpt2", "llama3", "deepseek", "llama2", "gemma", "metaspace", "unknowns"};
enum { KEEP_BYTES = 4, KEEP_TEXT = 5, KINDS = 7 };

static json_t *golden(const char *name) {
    char path[512];
    json_error_t error;
    snprintf(path, sizeof path, "%s/%s.json", GOLDEN_TOKENIZERS, name);
    json_t *root = json_load_file(path, JSON_ALLOW_NUL, &error);
    if (!root) fail_msg("%s: %s", path, error.text);
    return root;
}

static tokenizer *load(const char *name) {
    char path[512];
    tokenizer *t;
    snprintf(path, sizeof path, "%s/%s.json", GOLDEN_TOKENIZERS, name);
    check_status(tokenizer_load(&t, path), STATUS_OK);
    return t;
}

static void ids_are_those_of_tokenizers(void **state) {
    json_t *cases = golden("cases"), *texts = json_object_get(cases, "texts");
    int compared = 0;
    for (int k = 0; k < KINDS; k++) {
        tokenizer *t = load(kinds[k]);
        const json_t *lists = json_object_get(json_object_get(cases, "ids"), kinds[k]), *text;
        size_t i;
        json_array_foreach(texts, i, text) {
            const json_t *want = json_array_get(lists, i);
            tokenizer_ids got = encode(t, json_string_value(text), json_string_length(text));
            bool same = (size_t)got.count == json_array_size(want);
            for (int64_t j = 0; same && j < got.count; j++)
                same = got.ids[j] == json_integer_value(json_array_get(want, (size_t)j));
            if (!same) fail_msg("%s, text %zu (\"%s\"): other ids", kinds[k], i, json_string_value(text));
            compared += same;
            free(got.ids);
        }
        tokenizer_free(t);
    }
    assert_in_range(compared, 200, 1000);
    json_decref(cases);
}

static void its_ids_and_names(void **state) {
    static const struct {
        const char *name;
        int32_t eos, bos;
        int64_t vocab;
        const char *piece; /* of the last id */
    } want[] = {{"gpt2", 0, -1, 420, NULL},
                {"llama3", 1, 0, 424, "   "},
                {"deepseek", 1, 0, 420, NULL},
                {"llama2", 2, 1, 520, NULL},
                {"gemma", 1, 2, 520, NULL}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        tokenizer *t = load(want[i].name);
        assert_int_equal(tokenizer_eos(t), want[i].eos);
        assert_int_equal(tokenizer_bos(t), want[i].bos);
        assert_int_equal(tokenizer_vocab(t), want[i].vocab);
        assert_string_equal(tokenizer_file_name(t), "tokenizer.json");
        if (want[i].piece) assert_string_equal(tokenizer_piece(t, (int32_t)want[i].vocab - 1), want[i].piece);
        assert_null(tokenizer_piece(t, (int32_t)want[i].vocab));
        assert_null(tokenizer_piece(t, -1));
        tokenizer_free(t);
    }
}

/* ---- text comes back ---- */

static void comes_back(const tokenizer *t, const char *name, const char *bytes, size_t length, uint64_t seed) {
    tokenizer_ids ids = encode(t, bytes, length);
    char *back;
    size_t back_length;
    check_status(tokenizer_decode(t, ids.ids, ids.count, &back, &back_length), STATUS_OK);
    if (back_length != length || memcmp(back, bytes, length) != 0)
        fail_msg("%s, seed %llu: %zu bytes came back as %zu", name, (unsigned long long)seed, length, back_length);
    free(back);
    free(ids.ids);
}

static size_t put_character(char *out, uint32_t c) {
    if (c < 0x80) return out[0] = (char)c, 1;
    if (c < 0x800) return out[0] = (char)(0xC0 | c >> 6), out[1] = (char)(0x80 | (c & 63)), 2;
    out[0] = (char)(0xE0 | c >> 12), out[1] = (char)(0x80 | (c >> 6 & 63)), out[2] = (char)(0x80 | (c & 63));
    return 3;
}

static void random_text_comes_back(void **state) {
    uint64_t seed = (uint64_t)time(NULL), draw = 0;
    for (int k = 0; k < KEEP_TEXT; k++) {
        tokenizer *t = load(kinds[k]);
        for (int text = 0; text < 300; text++) {
            char bytes[3 * 100];
            size_t length = 0, count = rng_u64(seed, 1, draw++) % 100;
            for (size_t i = 0; i < count; i++) {
                uint64_t r = rng_u64(seed, 1, draw++);
                uint32_t c = r & 1 ? (uint32_t)(r >> 32) % 0x80 : (uint32_t)(r >> 32) % 0xD800;
                length += put_character(bytes + length, c == 0x2581 ? ' ' : c);
            }
            comes_back(t, kinds[k], bytes, length, seed);
        }
        tokenizer_free(t);
    }
}

/* Bytes, not characters: where there is no added token, whatever they are. */
static void bytes_that_are_no_text_come_back(void **state) {
    uint64_t seed = (uint64_t)time(NULL), draw = 0;
    for (int k = 0; k < KEEP_BYTES; k++) {
        tokenizer *t = load(kinds[k]);
        for (int text = 0; text < 300; text++) {
            char bytes[64];
            size_t length = rng_u64(seed, 2, draw++) % sizeof bytes;
            for (size_t i = 0; i < length; i++) bytes[i] = (char)(rng_u64(seed, 2, draw++) >> 40);
            comes_back(t, kinds[k], bytes, length, seed);
        }
        tokenizer_free(t);
    }
}

static void ids_that_no_token_has_are_refused(void **state) {
    tokenizer *t = load("gpt2");
    char *text;
    size_t length;
    for (int i = 0; i < 3; i++) {
        const int32_t bad = ((int32_t[]){420, -1, INT32_MAX})[i];
        check_status(tokenizer_decode(t, &bad, 1, &text, &length), STATUS_DATA);
        status_clear();
    }
    check_status(tokenizer_decode(t, (int32_t[]){0, 0}, 2, &text, &length), STATUS_OK);
    assert_int_equal(length, 0); /* special tokens are nothing */
    free(text);
    tokenizer_free(t);
}

/* ---- merges ---- */

enum { LETTERS = 3, MERGES = 60, TEXT_ROOM = 64 };

/* The definition: as long as there is a pair with a merge, join the leftmost of the lowest rank. */
static int naive(const int (*merges)[2], const char *word, int32_t *ids) {
    int count = 0;
    for (; word[count]; count++) ids[count] = word[count] - 'a';
    for (;;) {
        int best = -1, rank = MERGES;
        for (int i = 0; i + 1 < count; i++)
            for (int r = 0; r < rank; r++)
                if (merges[r][0] == ids[i] && merges[r][1] == ids[i + 1]) best = i, rank = r;
        if (best < 0) return count;
        ids[best] = LETTERS + rank;
        memmove(ids + best + 1, ids + best + 2, (size_t)(count - best - 2) * sizeof *ids);
        count--;
    }
}

static void merges_follow_the_definition(void **state) {
    uint64_t seed = (uint64_t)time(NULL), draw = 0;
    for (int round = 0; round < 20; round++) {
        char tokens[LETTERS + MERGES][TEXT_ROOM] = {"a", "b", "c"};
        int merges[MERGES][2], count = 0;
        bpe b = {.unknown = -1};
        for (int i = 0; i < 256; i++) b.bytes[i] = i >= 'a' && i < 'a' + LETTERS ? i - 'a' : -1;
        for (int i = 0; i < LETTERS; i++) check_status(token_table_add(&b.tokens, tokens[i], 1, i), STATUS_OK);
        check_status(bpe_begin_merges(&b, MERGES), STATUS_OK);
        while (count < MERGES) { /* each makes a token of its own */
            int left = (int)(rng_u64(seed, 3, draw++) % (uint64_t)(LETTERS + count)),
                right = (int)(rng_u64(seed, 3, draw++) % (uint64_t)(LETTERS + count));
            char made[TEXT_ROOM];
            if (strlen(tokens[left]) + strlen(tokens[right]) > 12) continue;
            snprintf(made, TEXT_ROOM, "%.12s%.12s", tokens[left], tokens[right]);
            if (token_table_find(&b.tokens, made, strlen(made)) >= 0) continue;
            strcpy(tokens[LETTERS + count], made);
            check_status(token_table_add(&b.tokens, made, strlen(made), LETTERS + count), STATUS_OK);
            tokenizer_text sides[] = {{tokens[left], strlen(tokens[left])}, {tokens[right], strlen(tokens[right])}};
            check_status(bpe_add_merge(&b, count, &sides[0], &sides[1]), STATUS_OK);
            merges[count][0] = left;
            merges[count++][1] = right;
        }
        bpe_scratch scratch = {0};
        for (int i = 0; i < 200; i++) {
            char word[TEXT_ROOM] = "";
            int32_t want[TEXT_ROOM];
            int length = (int)(rng_u64(seed, 3, draw++) % (TEXT_ROOM - 1));
            for (int j = 0; j < length; j++) word[j] = (char)('a' + rng_u64(seed, 3, draw++) % LETTERS);
            int wanted = naive(merges, word, want);
            tokenizer_ids got = {0};
            check_status(bpe_encode(&b, &scratch, word, (size_t)length, &got), STATUS_OK);
            assert_int_equal(got.count, wanted);
            for (int j = 0; j < wanted; j++)
                if (got.ids[j] != want[j]) fail_msg("seed %llu, \"%s\"", (unsigned long long)seed, word);
            free(got.ids);
        }
        bpe_scratch_free(&scratch);
        bpe_free(&b);
    }
}

/* A text without words is one word: in quadratic time this would take minutes. */
static void a_long_word_takes_no_longer_a_byte(void **state) {
    enum { BYTES = 1 << 21 };
    char *text = malloc(BYTES);
    for (int i = 0; i < BYTES; i++) text[i] = "theofand"[(i * 7 + i / 3) % 8];
    for (int k = 2; k < 4; k++) {
        tokenizer *t = load(kinds[k]);
        comes_back(t, kinds[k], text, BYTES, 0);
        tokenizer_free(t);
    }
    free(text);
}

/* ---- what is refused ---- */

/* The status of a tokenizer.json with that value at a path like "model.dropout"; value: JSON, NULL takes it away. */
static status with(const char *kind, const char *path, const char *value) {
    folder f = folder_make();
    const char *file = folder_path(&f, "tokenizer.json");
    json_t *root = golden(kind), *at = root;
    char keys[128], *key, *rest = keys;
    tokenizer *t;
    snprintf(keys, sizeof keys, "%s", path);
    while ((key = strsep(&rest, ".")) && rest)
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
    json_t *new = value ? json_loads(value, JSON_DECODE_ANY, NULL) : NULL;
    if (value && !new) fail_msg("no JSON: %s", value);
    int failed = json_is_array(at) ? json_array_append_new(at, new)
                 : value           ? json_object_set_new(at, key, new)
                                   : json_object_del(at, key);
    assert_int_equal(failed, 0);
    assert_int_equal(json_dump_file(root, file, 0), 0);
    status s = tokenizer_load(&t, file);
    tokenizer_free(t);
    json_decref(root);
    folder_remove(&f);
    return s;
}

static void what_it_does_not_know_is_refused_by_name(void **state) {
    static const struct {
        const char *kind, *path, *value, *says;
    } cases[] = {
        {"gpt2", "normalizer", "{\"type\":\"NFC\"}", "NFC"},
        {"gpt2", "normalizer", "{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Lowercase\"}]}", "Lowercase"},
        {"gpt2", "normalizer", "{\"type\":\"Prepend\",\"prepend\":\"\u2581\"}", "ByteLevel"},
        {"gpt2", "pre_tokenizer", "{\"type\":\"BertPreTokenizer\"}", "BertPreTokenizer"},
        {"gpt2", "pre_tokenizer.byte", "1", "\"byte\""},
        {"gpt2", "post_processor", "{\"type\":\"Mystery\"}", "Mystery"},
        {"gpt2", "decoder", "{\"type\":\"WordPiece\"}", "WordPiece"},
        {"gpt2", "decoder", "null", "decoder"},
        {"gpt2", "truncation", "{\"max_length\":3}", "truncation"},
        {"gpt2", "padding", "{\"pad_id\":3}", "padding"},
        {"gpt2", "extra", "null", "extra"},
        {"gpt2", "model.type", "\"Unigram\"", "Unigram"},
        {"gpt2", "model.dropout", "0.1", "dropout"},
        {"gpt2", "model.end_of_word_suffix", "\"</w>\"", "end_of_word_suffix"},
        {"gpt2", "model.surprise", "1", "surprise"},
        {"gpt2", "model.unk_token", "\"<none>\"", "<none>"},
        {"gpt2", "model.merges", "7", "merges"},
        {"gpt2", "model.merges.0", "\"a b c\"", "merge"},
        {"gpt2", "model.merges.0", "\"zz qq\"", "zz"},
        {"gpt2", "model.merges.0", "[\"a\"]", "merge"},
        {"gpt2", "model.vocab.new", "3", "same id"},
        {"gpt2", "model.vocab.new", "-3", "new"},
        {"gpt2", "model.vocab.new", "999999999", "new"},
        {"gpt2", "model.vocab.~", NULL, "0x7E"},
        {"gpt2", "added_tokens.0", "{\"id\":500,\"content\":\"x\",\"lstrip\":true}", "lstrip"},
        {"gpt2", "added_tokens.0", "{\"id\":500,\"content\":\"x\",\"single_word\":true}", "single_word"},
        {"gpt2", "added_tokens.0", "{\"id\":500,\"content\":\"\"}", "content"},
        {"gpt2", "added_tokens.0.special", "false", "end of a document"},
        {"llama2", "added_tokens.0", "{\"id\":600,\"content\":\"x\",\"normalized\":true}", "normalized"},
        {"llama2", "decoder.decoders.0", "{\"type\":\"CTC\"}", "CTC"},
        {"llama2", "normalizer.normalizers.0",
         "{\"type\":\"Replace\",\"pattern\":{\"String\":\"a\"},\"content\":\"b\"}", "Replace"},
        {"metaspace", "pre_tokenizer.replacement", "\"_\"", "_"},
        {"gemma", "pre_tokenizer.behavior", "\"Removed\"", "Removed"},
        {"gemma", "pre_tokenizer.invert", "true", "inverted"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        check_status(with(cases[i].kind, cases[i].path, cases[i].value), STATUS_DATA);
        if (!strstr(status_message(), cases[i].says) || !strstr(status_message(), "tokenizer.json: "))
            fail_msg("%s: \"%s\" does not say %s", cases[i].path, status_message(), cases[i].says);
        status_clear();
    }
    check_status(with("gpt2", "model.type", NULL), STATUS_OK);
    check_status(with("gpt2", "model.dropout", "0.0"), STATUS_OK);
    check_status(with("gpt2", "model.vocab.new", "700"), STATUS_OK);
}

static void patterns_that_may_mean_something_else_are_refused(void **state) {
    static const char *const bad[] = {"\\w+",    "\\h",    "\\p{Han}", "\\pL",  "a*",      "^a",      "a$",
                                      "[a[b]]",  "[a&&b]", "[]a]",     "(?m)a", "(?i)a|b", "a{1,3}+", "(a",
                                      "\\u0041", "a\\",    "(?P<n>a)", "[^]a]", "\\p{L"};
    static const char *const good[] = {"\\p{N}{1,3}", "[^\\s\\p{L}]++", "(?i:ab|c)",
                                       "a(?!\\S)",    "[\\]\\[\\\\]",   "[^^$]"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        splitter s = {0};
        check_status(splitter_add(&s, bad[i], false, SPLIT_ISOLATED), STATUS_DATA);
        if (!strstr(status_message(), bad[i])) fail_msg("\"%s\" does not name %s", status_message(), bad[i]);
        status_clear();
    }
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        splitter s = {0};
        check_status(splitter_add(&s, good[i], false, SPLIT_ISOLATED), STATUS_OK);
        splitter_free(&s);
    }
}

/* Collects pieces, each followed by a bar. */
static status collect(void *user, const char *piece, size_t length) {
    strncat(user, piece, length);
    strcat(user, "|");
    return STATUS_OK;
}

static void pieces_are_cut_where_the_behavior_says(void **state) {
    static const struct {
        const char *pattern;
        splitter_behavior behavior;
        const char *text, *want;
    } cases[] = {
        {"-", SPLIT_ISOLATED, "a--b-", "a|-|-|b|-|"},
        {"-", SPLIT_WITH_PREVIOUS, "the-final--countdown", "the-|final-|-|countdown|"},
        {"-", SPLIT_WITH_NEXT, "the-final--countdown", "the|-final|-|-countdown|"},
        {"-", SPLIT_WITH_NEXT, "-a-", "-a|-|"},
        {"\\S+", SPLIT_ISOLATED,
         "\xE1\xA0\x8E! a\xC2\xA0"
         "b",
         "\xE1\xA0\x8E!| |a|\xC2\xA0|b|"}, /* U+180E is no space */
        {"b", SPLIT_ISOLATED,
         "ab\xFF\xFF"
         "c",
         "a|b|\xFF|\xFF|c|"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        splitter s = {0};
        splitter_scratch *m = splitter_scratch_make();
        char got[128] = "";
        check_status(splitter_add(&s, cases[i].pattern, false, cases[i].behavior), STATUS_OK);
        check_status(splitter_run(&s, m, cases[i].text, strlen(cases[i].text), collect, got), STATUS_OK);
        assert_string_equal(got, cases[i].want);
        splitter_scratch_free(m);
        splitter_free(&s);
    }
}

/* Whatever a file holds, it is taken or refused. */
static void damaged_files_are_taken_or_refused(void **state) {
    folder f = folder_make();
    const char *file = folder_path(&f, "tokenizer.json");
    uint64_t seed = (uint64_t)time(NULL), draw = 0;
    for (int i = 0; i < 400; i++) {
        char path[512], *text;
        size_t bytes;
        tokenizer *t;
        snprintf(path, sizeof path, "%s/%s.json", GOLDEN_TOKENIZERS, kinds[i % KINDS]);
        check_status(file_read_all(&text, &bytes, path, 1 << 20), STATUS_OK);
        for (uint64_t n = 1 + rng_u64(seed, 4, draw++) % 3; n > 0; n--) {
            size_t at = rng_u64(seed, 4, draw++) % bytes;
            text[at] = "0179\",:{}[]ntaZ\\\xC4\xA0"[rng_u64(seed, 4, draw++) % 18];
        }
        if (i % 10 == 0) bytes = rng_u64(seed, 4, draw++) % bytes;
        check_status(file_write_atomic(file, text, bytes), STATUS_OK);
        free(text);
        status s = tokenizer_load(&t, file);
        if (s == STATUS_OK) {
            tokenizer_ids ids = {0};
            const tokenizer_text some = {"spectra of every head", 21};
            if (tokenizer_encode(t, &some, 1, 1, &ids) == STATUS_OK) assert_in_range(ids.count, 0, 30);
            free(ids.ids);
            tokenizer_free(t);
        } else
            assert_int_equal(s, STATUS_DATA);
        status_clear();
    }
    folder_remove(&f);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(ids_are_those_of_tokenizers),
    cmocka_unit_test(its_ids_and_names),
    cmocka_unit_test(random_text_comes_back),
    cmocka_unit_test(bytes_that_are_no_text_come_back),
    cmocka_unit_test(ids_that_no_token_has_are_refused),
    cmocka_unit_test(merges_follow_the_definition),
    cmocka_unit_test(a_long_word_takes_no_longer_a_byte),
    cmocka_unit_test(what_it_does_not_know_is_refused_by_name),
    cmocka_unit_test(patterns_that_may_mean_something_else_are_refused),
    cmocka_unit_test(pieces_are_cut_where_the_behavior_says),
    cmocka_unit_test(damaged_files_are_taken_or_refused),
};
TEST_MAIN(tests)
