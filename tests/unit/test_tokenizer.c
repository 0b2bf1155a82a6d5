/* The tokenizer keeps any valid UTF-8 exactly, trains the same model twice, and says what to do where it cannot train.
 */
#include "check.h"

#include "core/file.h"
#include "core/rng.h"
#include "folder.h"
#include "tokens.h"

#include <time.h>

enum { SAMPLES = 3000, VOCAB = 600 };

/* Lines of made-up words, some indented, some with double spaces, some followed by a blank line. */
static tokenizer_text *make_samples(uint64_t seed, int64_t count) {
    static const char *const syllables[] = {"ba", "ker", "lo",  "min",      "dre", "sta",
                                            "u",  "pon", "thi", "\xC3\xA9", "ze"};
    tokenizer_text *samples = calloc((size_t)count, sizeof *samples);
    uint64_t draw = 0;
    for (int64_t i = 0; i < count; i++) {
        char line[1024] = "";
        size_t length = 0, words = 1 + rng_u64(seed, 1, draw++) % 9;
        if (rng_u64(seed, 1, draw++) % 4 == 0) length += (size_t)sprintf(line, "    ");
        for (size_t w = 0; w < words; w++) {
            size_t parts = 1 + rng_u64(seed, 1, draw++) % 3;
            for (size_t p = 0; p < parts; p++)
                length += (size_t)sprintf(line + length, "%s", syllables[rng_u64(seed, 1, draw++) % 11]);
            length += (size_t)sprintf(line + length, "%s",
                                      w + 1 < words ? rng_u64(seed, 1, draw++) % 8 ? " " : ",  " : ".\n");
        }
        if (rng_u64(seed, 1, draw++) % 5 == 0) length += (size_t)sprintf(line + length, "\n");
        samples[i] = (tokenizer_text){memcpy(malloc(length), line, length), length};
    }
    return samples;
}

static void free_samples(tokenizer_text *samples, int64_t count) {
    for (int64_t i = 0; i < count; i++) free((char *)samples[i].bytes);
    free(samples);
}

static status train(const char *path, int64_t count, int64_t vocab) {
    tokenizer_text *samples = make_samples(1, count);
    status result = tokenizer_train(path, samples, count, vocab);
    free_samples(samples, count);
    return result;
}

static tokenizer *trained(folder *f) {
    tokenizer *t;
    const char *path = folder_path(f, "t.model");
    check_status(train(path, SAMPLES, VOCAB), STATUS_OK);
    check_status(tokenizer_load(&t, path), STATUS_OK);
    return t;
}

/* false, with a hex dump on stderr, when the text does not come back. */
static bool comes_back(const tokenizer *t, const char *bytes, size_t length) {
    char *back;
    size_t back_length;
    tokenizer_ids ids = encode(t, bytes, length);
    check_status(tokenizer_decode(t, ids.ids, ids.count, &back, &back_length), STATUS_OK);
    bool same = back_length == length && memcmp(back, bytes, length) == 0;
    for (int64_t i = 0; i < ids.count; i++) same = same && ids.ids[i] >= 2 && ids.ids[i] < tokenizer_vocab(t);
    if (!same) {
        fprintf(stderr, "%zu bytes came back as %zu:", length, back_length);
        for (size_t i = 0; i < length && i < 64; i++) fprintf(stderr, " %02x", (unsigned char)bytes[i]);
        fprintf(stderr, "\n");
    }
    free(back);
    free(ids.ids);
    return same;
}

static void special_texts_come_back(void **state) {
    folder f = folder_make();
    tokenizer *t = trained(&f);
    static const struct {
        const char *bytes;
        size_t length;
    } texts[] = {
#define TEXT(literal) {literal, sizeof literal - 1}
        TEXT(""),
        TEXT(" "),
        TEXT("  "),
        TEXT("\n"),
        TEXT("\n\n\n"),
        TEXT("\t"),
        TEXT("\r\n"),
        TEXT("\0"),
        TEXT("a\0b\0"),
        TEXT("baker lomin."),
        TEXT(" baker"),
        TEXT("baker "),
        TEXT("    baker   lomin  \n"),
        TEXT("\n baker\n\n\n  lo\n"),
        TEXT("ba\tker\r\nlo\rmin\x0b\x0c"),
        TEXT("\xE2\x96\x81"),
        TEXT("\xE2\x96\x81 \xE2\x96\x81"),
        TEXT("ba\xE2\x96\x81ker"),
        TEXT(" \xE2\x96\x81\xE2\x96\x81 ba"),
        TEXT("\xE2\x96\x85 \xE2\x96\x85"),
        TEXT("\xEF\xBF\xBD"),
        TEXT("\xEF\xBB\xBFx"),
        TEXT("\xF0\x9F\x98\x80\xF0\x9F\x91\xA9\xE2\x80\x8D\xF0\x9F\x91\xA9"),
        TEXT("e\xCC\x81 \xC3\xA9 \xC3\x85 \xE2\x84\xAB"),
        TEXT("\xEF\xAC\x81 \xC2\xBD \xE3\x8E\x8F \xEF\xBC\xA1"),
        TEXT("\xC2\xA0 \xE3\x80\x80 \xE2\x80\x83"),
        TEXT("<0x41> </s> <unk> <s> <0xE2><0x96><0x81>"),
        TEXT("</s>"),
        TEXT("\xF4\x8F\xBF\xBF \xEE\x80\x80 \xEF\xBF\xBE"),
        TEXT("\xED\x9F\xBF\xE0\xA0\x80\xDF\xBF\x7F"),
        TEXT("\xE4\xB8\xAD\xE6\x96\x87\xE3\x81\x8B\xEA\xB0\x80"),
#undef TEXT
    };
    int bad = 0;
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) bad += !comes_back(t, texts[i].bytes, texts[i].length);
    assert_int_equal(bad, 0);
    tokenizer_free(t);
    folder_remove(&f);
}

static size_t put_utf8(char *out, uint32_t c) {
    if (c < 0x80) return out[0] = (char)c, 1;
    if (c < 0x800) return out[0] = (char)(0xC0 | c >> 6), out[1] = (char)(0x80 | (c & 63)), 2;
    if (c < 0x10000) {
        out[0] = (char)(0xE0 | c >> 12), out[1] = (char)(0x80 | (c >> 6 & 63)), out[2] = (char)(0x80 | (c & 63));
        return 3;
    }
    out[0] = (char)(0xF0 | c >> 18), out[1] = (char)(0x80 | (c >> 12 & 63)), out[2] = (char)(0x80 | (c >> 6 & 63));
    out[3] = (char)(0x80 | (c & 63));
    return 4;
}

/* Any scalar value may come; spaces, newlines, U+2581 and letters of the samples come often. */
static uint32_t draw_scalar(uint64_t r) {
    static const uint32_t often[] = {' ', ' ', '\n', '\t', 0x2581, 0x2585, 'b', 'a', 'k', 'e', 'r', '.', 0, 0xE9, '<'};
    uint32_t kind = (uint32_t)(r & 7), value = (uint32_t)(r >> 32);
    if (kind < 4) return often[value % (sizeof often / sizeof often[0])];
    uint32_t c = kind == 4 ? value % 0x110000 : kind == 5 ? value % 0x3000 : value % 0x100;
    return c >= 0xD800 && c < 0xE000 ? 0xFFFD : c;
}

static void random_texts_come_back(void **state) {
    folder f = folder_make();
    tokenizer *t = trained(&f);
    const uint64_t seeds[] = {1, 2, (uint64_t)time(NULL)};
    for (int k = 0; k < 3; k++)
        for (uint64_t text = 0; text < 400; text++) {
            char bytes[4 * 200];
            size_t length = 0, count = rng_u64(seeds[k], text, 0) % 200;
            for (size_t i = 0; i < count; i++)
                length += put_utf8(bytes + length, draw_scalar(rng_u64(seeds[k], text, i + 1)));
            if (!comes_back(t, bytes, length))
                fail_msg("seed %llu, text %llu", (unsigned long long)seeds[k], (unsigned long long)text);
        }
    tokenizer_free(t);
    folder_remove(&f);
}

static void training_is_deterministic(void **state) {
    folder f = folder_make();
    const char *paths[] = {folder_path(&f, "a.model"), folder_path(&f, "b.model")};
    char hashes[2][64];
    for (int i = 0; i < 2; i++) {
        tokenizer *t;
        check_status(train(paths[i], SAMPLES, VOCAB), STATUS_OK);
        check_status(tokenizer_load(&t, paths[i]), STATUS_OK);
        snprintf(hashes[i], sizeof hashes[i], "%s", tokenizer_hash(t));
        assert_int_equal(tokenizer_vocab(t), VOCAB);
        assert_int_equal(tokenizer_eos(t), 1);
        assert_int_equal(tokenizer_bos(t), -1);
        assert_int_equal(strlen(hashes[i]), 32);
        tokenizer_free(t);
    }
    assert_string_equal(hashes[0], hashes[1]);
    folder_remove(&f);
}

/* Pieces are learned over spaces and newlines: text like the samples takes well under half a token a byte. */
static void whitespace_has_pieces(void **state) {
    folder f = folder_make();
    tokenizer *t = trained(&f);
    static const char text[] = "    baker lomin,  drestaupon.\n\n";
    tokenizer_ids ids = encode(t, text, sizeof text - 1);
    assert_in_range(ids.count, 4, 15);
    free(ids.ids);
    tokenizer_free(t);
    folder_remove(&f);
}

static void ids_do_not_depend_on_threads(void **state) {
    folder f = folder_make();
    tokenizer *t = trained(&f);
    enum { COUNT = 500 };
    tokenizer_text *texts = make_samples(9, COUNT);
    tokenizer_ids one[COUNT] = {0}, many[COUNT] = {0};
    check_status(tokenizer_encode(t, texts, COUNT, 1, one), STATUS_OK);
    check_status(tokenizer_encode(t, texts, COUNT, 7, many), STATUS_OK);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(one[i].count, many[i].count);
        assert_memory_equal(one[i].ids, many[i].ids, (size_t)one[i].count * sizeof(int32_t));
        free(one[i].ids);
        free(many[i].ids);
    }
    free_samples(texts, COUNT);
    tokenizer_free(t);
    folder_remove(&f);
}

/* Follows the advice of a refusal once and expects it to work. */
static void advice_works(int64_t vocab, const char *words) {
    folder f = folder_make();
    const char *path = folder_path(&f, "t.model");
    check_status(train(path, 300, vocab), STATUS_DATA);
    const char *advice = strstr(status_message(), "--vocab ");
    if (!strstr(status_message(), words) || !advice) fail_msg("\"%s\"", status_message());
    int64_t better = strtoll(advice + 8, NULL, 10);
    status_clear();
    assert_int_equal(folder_entries(&f), 0);
    check_status(train(path, 300, better), STATUS_OK);
    folder_remove(&f);
}

static void too_large_a_vocabulary_is_refused_with_the_largest(void **state) {
    advice_works(30000, "too small for a vocabulary");
}
static void too_small_a_vocabulary_is_refused_with_the_least(void **state) {
    advice_works(262, "or more");
}

static void poor_texts_are_refused(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "t.model");
    static const char *const texts[] = {"",  "\n",          " ", "    ", "\t", "\xE2\x96\x85", "\xE2\x96\x81",
                                        "a", "aaaaaaaaaa\n"};
    check_status(tokenizer_train(path, NULL, 0, VOCAB), STATUS_DATA);
    status_clear();
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        tokenizer_text sample = {texts[i], strlen(texts[i])};
        check_status(tokenizer_train(path, &sample, 1, VOCAB), STATUS_DATA);
        assert_int_not_equal(strlen(status_message()), 0);
        status_clear();
    }
    /* Over these SentencePiece ends its process. */
    static const char spaces[] = "                                                    ",
                      returns[] = "\r\r\r\r\r\r\r\r\r\r\r\r";
    const tokenizer_text same[] = {{spaces, sizeof spaces - 1}, {returns, sizeof returns - 1}};
    for (int i = 0; i < 2; i++)
        for (int64_t vocab = 1; vocab < 300; vocab += vocab < 250 ? 50 : 1) {
            status result = tokenizer_train(path, &same[i], 1, vocab);
            if (result != STATUS_OK) check_status(result, STATUS_DATA);
            if (result == STATUS_OK) remove(path);
            status_clear();
        }
    assert_int_equal(folder_entries(&f), 0);
    folder_remove(&f);
}

static void broken_models_are_refused(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "t.model"), *broken = folder_path(&f, "broken.model");
    tokenizer *t;
    check_status(tokenizer_load(&t, broken), STATUS_NO_INPUT);
    status_clear();
    check_status(train(path, SAMPLES, VOCAB), STATUS_OK);
    char *model;
    size_t bytes;
    check_status(file_read_all(&model, &bytes, path, 1 << 20), STATUS_OK);
    static const char text[] = "this is not a model\n";
    const tokenizer_text files[] = {{"", 0}, {text, sizeof text - 1}, {model, bytes / 2 + 1}, {model, 5}};
    for (int i = 0; i < 4; i++) {
        check_status(file_write_atomic(broken, files[i].bytes, files[i].length), STATUS_OK);
        check_status(tokenizer_load(&t, broken), STATUS_DATA);
        if (!strstr(status_message(), broken)) fail_msg("\"%s\" does not name the file", status_message());
        assert_null(t);
        status_clear();
    }
    free(model);
    folder_remove(&f);
}

static void decoding_refuses_ids_that_the_model_lacks(void **state) {
    folder f = folder_make();
    tokenizer *t = trained(&f);
    const int32_t bad[] = {VOCAB, -1, INT32_MAX};
    char *text;
    size_t length;
    for (int i = 0; i < 3; i++) {
        check_status(tokenizer_decode(t, &bad[i], 1, &text, &length), STATUS_DATA);
        status_clear();
    }
    check_status(tokenizer_decode(t, (int32_t[]){1, 1}, 2, &text, &length), STATUS_OK);
    assert_int_equal(length, 0);
    free(text);
    tokenizer_free(t);
    folder_remove(&f);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(special_texts_come_back),
    cmocka_unit_test(random_texts_come_back),
    cmocka_unit_test(training_is_deterministic),
    cmocka_unit_test(whitespace_has_pieces),
    cmocka_unit_test(ids_do_not_depend_on_threads),
    cmocka_unit_test(too_large_a_vocabulary_is_refused_with_the_largest),
    cmocka_unit_test(too_small_a_vocabulary_is_refused_with_the_least),
    cmocka_unit_test(poor_texts_are_refused),
    cmocka_unit_test(broken_models_are_refused),
    cmocka_unit_test(decoding_refuses_ids_that_the_model_lacks),
};
TEST_MAIN(tests)
