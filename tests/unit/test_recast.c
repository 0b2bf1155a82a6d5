/* Tokenizers that become the other kind give the same ids, on texts that the conversion did not try; what cannot is
 * refused. Models are made here: random pieces over two letters, whose ties are many. */
#include "check.h"

#include "core/file.h"
#include "core/rng.h"
#include "data/pieces.h"
#include "data/recast.h"
#include "data/tokenizer.h"
#include "folder.h"

#include <time.h>

enum { PIECES = 300, TEXT_ROOM = 256 };

static void add(pieces *p, const char *text, piece_type type, float score) {
    p->list[p->count++] = (piece){strdup(text), score, type};
}

static bool has(const pieces *p, const char *text) {
    for (int64_t i = 0; i < p->count; i++)
        if (strcmp(p->list[i].text, text) == 0) return true;
    return false;
}

/* A BPE model whose longer pieces are each two earlier ones. */
static pieces make_model(uint64_t seed, int longer) {
    pieces p = {.list = calloc(PIECES, sizeof *p.list),
                .model_type = PIECES_BPE,
                .byte_fallback = true,
                .escapes_spaces = true,
                .bos = "<s>",
                .eos = "</s>",
                .dummy_prefix = seed & 1};
    uint64_t draw = 0;
    char text[TEXT_ROOM];
    add(&p, "<unk>", PIECE_UNKNOWN, 0);
    add(&p, "<s>", PIECE_CONTROL, 0);
    add(&p, "</s>", PIECE_CONTROL, 0);
    for (int byte = 0; byte < 256; byte++) {
        snprintf(text, sizeof text, "<0x%02X>", (unsigned)byte);
        add(&p, text, PIECE_BYTE, 0);
    }
    int64_t first = p.count;
    add(&p, "\xE2\x96\x81", PIECE_NORMAL, -1000);
    add(&p, "a", PIECE_NORMAL, -1001);
    add(&p, "b", PIECE_NORMAL, -1002);
    for (int made = 0; made < longer;) {
        const char *left = p.list[first + (int64_t)(rng_u64(seed, 1, draw++) % (uint64_t)(p.count - first))].text;
        const char *right = p.list[first + (int64_t)(rng_u64(seed, 1, draw++) % (uint64_t)(p.count - first))].text;
        snprintf(text, sizeof text, "%.12s%.12s", left, right);
        if (has(&p, text) || strlen(left) > 12 || strlen(right) > 12) continue;
        add(&p, text, PIECE_NORMAL, -(float)made++);
    }
    return p;
}

static void write_model(const pieces *p, const char *path) {
    char *bytes;
    size_t length;
    check_status(pieces_write(p, &bytes, &length), STATUS_OK);
    check_status(file_write_atomic(path, bytes, length), STATUS_OK);
    free(bytes);
}

/* How many of the texts have other ids. */
static int differences(const char *one, const char *other, uint64_t seed, int texts) {
    tokenizer *t[2];
    int bad = 0;
    check_status(tokenizer_load(&t[0], one), STATUS_OK);
    check_status(tokenizer_load(&t[1], other), STATUS_OK);
    for (int i = 0; i < texts; i++) {
        char text[TEXT_ROOM];
        size_t length = rng_u64(seed, 2, (uint64_t)i) % 60;
        for (size_t j = 0; j < length; j++) text[j] = "aaabbb  ac"[rng_u64(seed, 3 + (uint64_t)i, j) % 10];
        tokenizer_ids ids[2] = {0};
        const tokenizer_text whole = {text, length};
        for (int k = 0; k < 2; k++) check_status(tokenizer_encode(t[k], &whole, 1, 1, &ids[k]), STATUS_OK);
        bad += ids[0].count != ids[1].count ||
               (ids[0].count > 0 && memcmp(ids[0].ids, ids[1].ids, (size_t)ids[0].count * 4) != 0);
        free(ids[0].ids);
        free(ids[1].ids);
    }
    tokenizer_free(t[0]);
    tokenizer_free(t[1]);
    return bad;
}

static void a_model_becomes_json_and_comes_back(void **state) {
    folder f = folder_make();
    const char *model = folder_path(&f, "m.model"), *json = folder_path(&f, "m.json"),
               *back = folder_path(&f, "b.model"), *again = folder_path(&f, "again.json");
    uint64_t seed = (uint64_t)time(NULL);
    for (uint64_t i = 0; i < 4; i++) {
        pieces p = make_model(seed + i, 3 + 2 * (int)i);
        write_model(&p, model);
        check_status(recast_to_json(model, json), STATUS_OK);
        assert_int_equal(differences(model, json, seed + i, 2000), 0);
        check_status(recast_to_model(json, back), STATUS_OK);
        assert_int_equal(differences(json, back, seed + i, 2000), 0);
        check_status(recast_to_json(back, again), STATUS_OK);
        char *texts[2];
        size_t bytes;
        check_status(file_read_all(&texts[0], &bytes, json, 1 << 24), STATUS_OK);
        check_status(file_read_all(&texts[1], &bytes, again, 1 << 24), STATUS_OK);
        assert_string_equal(texts[0], texts[1]);
        free(texts[0]);
        free(texts[1]);
        pieces_free(&p);
    }
    folder_remove(&f);
}

/* SentencePiece joins characters that are no pieces to one that is; merges are of tokens. */
static void a_model_whose_ids_would_change_is_refused(void **state) {
    folder f = folder_make();
    const char *model = folder_path(&f, "m.model"), *json = folder_path(&f, "m.json");
    pieces p = make_model(1, 5);
    write_model(&p, model);
    check_status(recast_to_json(model, json), STATUS_OK);
    assert_int_equal(unlink(json), 0);
    add(&p, "xy", PIECE_NORMAL, -7.5F);
    write_model(&p, model);
    check_status(recast_to_json(model, json), STATUS_DATA);
    if (!strstr(status_message(), "other ids")) fail_msg("%s", status_message());
    status_clear();
    assert_int_equal(folder_entries(&f), 1);
    pieces_free(&p);
    folder_remove(&f);
}

static void models_that_cannot_be_the_other_kind_are_refused(void **state) {
    static const struct {
        const char *says;
        int change;
    } cases[] = {{"unigram", 0}, {"changes characters", 1}, {"byte_fallback", 2}, {"user-defined", 3}, {"unused", 4},
                 {"no BPE", 5}};
    folder f = folder_make();
    const char *model = folder_path(&f, "m.model"), *json = folder_path(&f, "m.json");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        pieces p = make_model(1, 3);
        if (cases[i].change == 0) p.model_type = PIECES_UNIGRAM;
        if (cases[i].change == 1) p.removes_spaces = true;
        if (cases[i].change == 2) p.byte_fallback = false;
        if (cases[i].change == 3) p.list[p.count - 1].type = PIECE_USER_DEFINED;
        if (cases[i].change == 4) p.list[p.count - 1].type = PIECE_UNUSED;
        if (cases[i].change == 5) p.model_type = 4;
        write_model(&p, model);
        check_status(recast_to_json(model, json), STATUS_DATA);
        if (!strstr(status_message(), cases[i].says) || !strstr(status_message(), model))
            fail_msg("\"%s\" does not say %s", status_message(), cases[i].says);
        status_clear();
        pieces_free(&p);
    }
    assert_int_equal(folder_entries(&f), 1);
    folder_remove(&f);
}

static void damaged_models_are_taken_or_refused(void **state) {
    pieces p = make_model(1, 5), got;
    char *bytes;
    size_t length;
    uint64_t seed = (uint64_t)time(NULL), draw = 0;
    check_status(pieces_write(&p, &bytes, &length), STATUS_OK);
    for (int i = 0; i < 2000; i++) {
        char *copy = memcpy(malloc(length), bytes, length);
        size_t part = i % 2 ? length : rng_u64(seed, 1, draw++) % length;
        for (int n = 0; n < 3; n++) {
            size_t at = rng_u64(seed, 1, draw++) % length;
            copy[at] = (char)rng_u64(seed, 1, draw++);
        }
        char *exact = memcpy(malloc(part + (part == 0)), copy, part); /* a sanitizer sees what is read behind it */
        status s = pieces_read(&got, exact, part);
        free(exact);
        if (s == STATUS_OK)
            pieces_free(&got);
        else
            assert_int_equal(s, STATUS_DATA);
        status_clear();
        free(copy);
    }
    free(bytes);
    pieces_free(&p);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(a_model_becomes_json_and_comes_back),
    cmocka_unit_test(a_model_whose_ids_would_change_is_refused),
    cmocka_unit_test(models_that_cannot_be_the_other_kind_are_refused),
    cmocka_unit_test(damaged_models_are_taken_or_refused),
};
TEST_MAIN(tests)
