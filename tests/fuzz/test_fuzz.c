/* Mutated input: a parser may refuse it or accept it, but never crash, hang, or accept what it then cannot stand by.
 * Meant to run under asan. The seed is fixed; BULKHEAD_FUZZ_SEED and BULKHEAD_FUZZ_ROUNDS search further, and a failure
 * prints the seed and round that lead to it. */
#include "check.h"

#include "core/config.h"
#include "core/file.h"
#include "core/rng.h"
#include "core/safetensors.h"

#include <unistd.h>

enum { INPUT_MAX_BYTES = 8192 };

typedef struct fuzz {
    char folder[64], path[96];
    uint64_t seed, round, drawn;
    char data[INPUT_MAX_BYTES];
    size_t bytes;
} fuzz;

static uint64_t from_environment(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static int start(void **state) {
    fuzz *f = calloc(1, sizeof *f);
    if (!f) return -1;
    strcpy(f->folder, "/tmp/bulkhead-fuzz-XXXXXX");
    if (!mkdtemp(f->folder)) return -1;
    snprintf(f->path, sizeof f->path, "%s/input", f->folder);
    f->seed = from_environment("BULKHEAD_FUZZ_SEED", 1);
    *state = f;
    return 0;
}

static int stop(void **state) {
    fuzz *f = *state;
    unlink(f->path);
    int left = rmdir(f->folder);
    free(f);
    return left;
}

/* 0 .. below - 1; a round's draws do not depend on those of the rounds before it. */
static uint64_t draw(fuzz *f, uint64_t below) {
    return rng_u64(f->seed, f->round, f->drawn++) % below;
}

static void splice(fuzz *f, size_t at, size_t remove, const char *text, size_t length) {
    if (remove > f->bytes - at) remove = f->bytes - at;
    if (f->bytes - remove + length > INPUT_MAX_BYTES) return;
    memmove(f->data + at + length, f->data + at + remove, f->bytes - at - remove);
    memcpy(f->data + at, text, length);
    f->bytes += length - remove;
}

/* One edit of the input: a byte, a bit, a run removed or doubled, or a word that parsers trip over. */
static void mutate(fuzz *f, const char *const *words, size_t word_count) {
    size_t at = draw(f, f->bytes + 1), length = 1 + draw(f, 16);
    char byte = (char)draw(f, 256), run[16];
    switch (draw(f, 6)) {
    case 0:
        splice(f, at, 1, &byte, 1);
        break;
    case 1:
        if (at < f->bytes) f->data[at] ^= (char)(1 << draw(f, 8));
        break;
    case 2:
        splice(f, at, length, "", 0);
        break;
    case 3:
        if (at + length > f->bytes) break;
        memcpy(run, f->data + at, length);
        splice(f, draw(f, f->bytes + 1), 0, run, length);
        break;
    default: {
        const char *word = words[draw(f, word_count)];
        splice(f, at, draw(f, 2) ? strlen(word) : 0, word, strlen(word));
    }
    }
}

static void make_input(fuzz *f, uint64_t round, const char *from, size_t bytes, const char *const *words,
                       size_t count) {
    f->round = round;
    f->drawn = 0;
    memcpy(f->data, from, bytes);
    f->bytes = bytes;
    for (uint64_t edits = 1 + draw(f, 6); edits > 0; edits--) mutate(f, words, count);
    FILE *file = fopen(f->path, "wb");
    assert_non_null(file);
    fwrite(f->data, 1, f->bytes, file);
    assert_int_equal(fclose(file), 0);
    status_clear();
}

#define fail_round(f, ...)                                                                                             \
    do {                                                                                                               \
        print_error("BULKHEAD_FUZZ_SEED=%llu, round %llu: ", (unsigned long long)(f)->seed,                            \
                    (unsigned long long)(f)->round);                                                                   \
        fail_msg(__VA_ARGS__);                                                                                         \
    } while (0)

/* ---- safetensors ---- */

/* Every byte that an opened file offers can be read, and together they are the data. */
static size_t read_all(const safetensors *s, unsigned *sum) {
    size_t bytes = 0;
    for (int i = 0; i < s->count; i++) {
        const safetensors_entry *e = &s->entries[i];
        for (size_t j = 0; j < e->bytes; j++) *sum += ((const unsigned char *)e->data)[j];
        if (safetensors_find(s, e->name) == e) bytes += e->bytes;
        float *values = malloc(((size_t)safetensors_elements(e) + 1) * sizeof *values);
        safetensors_f32(e, values);
        free(values);
    }
    return bytes;
}

static void safetensors_input(void **state) {
    static const char *const words[] = {"9223372036854775807",
                                        "-1",
                                        "0",
                                        "1e3",
                                        "[",
                                        "]",
                                        "{",
                                        "}",
                                        "\"",
                                        ",",
                                        ":",
                                        "null",
                                        "\"F64\"",
                                        "\"F8_E4M3\"",
                                        "\"__metadata__\":{},",
                                        "\"a\":",
                                        "[0,0]",
                                        "\\u0000",
                                        "24"};
    fuzz *f = *state;
    const float values[6] = {1, 2, 3, 4, 5, 6};
    const int64_t ids[2] = {7, 8};
    const safetensors_entry entries[] = {{"a", SAFETENSORS_F32, 2, {2, 3}, values, sizeof values},
                                         {"bc", SAFETENSORS_I64, 1, {2}, ids, sizeof ids},
                                         {"d", SAFETENSORS_BF16, 2, {0, 4}, NULL, 0}};
    const char *const metadata[][2] = {{"format", "pt"}};
    check_status(safetensors_write(f->path, entries, 3, metadata, 1), STATUS_OK);
    char *valid;
    size_t bytes;
    check_status(file_read_all(&valid, &bytes, f->path, INPUT_MAX_BYTES / 2), STATUS_OK);
    uint64_t rounds = from_environment("BULKHEAD_FUZZ_ROUNDS", 4000), accepted = 0;
    unsigned sum = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        make_input(f, round, valid, bytes, words, sizeof words / sizeof *words);
        uint64_t length;
        if (f->bytes >= sizeof length && draw(f, 2)) { /* let half of the edits get past the length */
            memcpy(&length, valid, sizeof length);
            length += f->bytes - bytes;
            memcpy(f->data, &length, sizeof length);
            check_status(file_write_atomic(f->path, f->data, f->bytes), STATUS_OK);
        }
        safetensors s;
        status got = safetensors_open(&s, f->path);
        if (got != STATUS_OK && (got != STATUS_DATA || !status_message()[0]))
            fail_round(f, "%s (%s)", status_text(got), status_message());
        if (got != STATUS_OK) continue;
        memcpy(&length, s.map, sizeof length);
        if (read_all(&s, &sum) != s.map_bytes - sizeof length - length)
            fail_round(f, "the entries do not cover the data");
        safetensors_close(&s);
        accepted++;
    }
    free(valid);
    if (rounds >= 1000) assert_true(accepted > rounds / 100 && accepted < rounds);
}

/* ---- configurations ---- */

static void config_input(void **state) {
    static const char *const words[] = {"\n",
                                        "  ",
                                        "\t",
                                        ": ",
                                        "- ",
                                        "[",
                                        "]",
                                        "{",
                                        "}",
                                        "'",
                                        "\"",
                                        "#",
                                        "*x",
                                        "&x",
                                        "!!str ",
                                        "~",
                                        "null",
                                        "1e3",
                                        "0x1",
                                        "nan",
                                        "1_0",
                                        "---\n",
                                        "no",
                                        "|",
                                        ">",
                                        "%",
                                        "model:\n",
                                        "tiny",
                                        "mla-decoupled",
                                        "9223372036854775808",
                                        "\xff",
                                        "\xe2\x80\xa8"};
    static const char valid[] = "run: {name: pilot, tags: [a, 'b c'], seed: 3}\n"
                                "model:\n  size: tiny\n  layers: 2\n  kv_heads: 4\n"
                                "attention:\n  variant: mla-decoupled\n  q_lora_rank: 32\n"
                                "train:\n  lr: 1e-3 # peak\n  steps: \"1_000\"\n  global_batch: 8\n  micro_batch: 2\n"
                                "data:\n  train:\n    - data/*.bin\n    - \"more\"\n"
                                "diagnostics: {scopes: [head], every: 5}\n";
    fuzz *f = *state;
    uint64_t rounds = from_environment("BULKHEAD_FUZZ_ROUNDS", 4000), accepted = 0;
    for (uint64_t round = 0; round < rounds; round++) {
        make_input(f, round, valid, sizeof valid - 1, words, sizeof words / sizeof *words);
        config c, again;
        status got = config_load(&c, f->path, NULL, 0);
        if (got != STATUS_OK && (got != STATUS_CONFIG || !strstr(status_message(), f->path)))
            fail_round(f, "%s (%s)", status_text(got), status_message());
        if (got != STATUS_OK) continue;
        char *yaml = config_to_yaml(&c); /* what was accepted can be written and read back to the same */
        if (!yaml) fail_round(f, "no YAML");
        check_status(file_write_atomic(f->path, yaml, strlen(yaml)), STATUS_OK);
        if (config_load(&again, f->path, NULL, 0) != STATUS_OK) fail_round(f, "%s\n%s", status_message(), yaml);
        char *yaml_again = config_to_yaml(&again);
        if (strcmp(yaml, yaml_again) != 0) fail_round(f, "%s\nbecame\n%s", yaml, yaml_again);
        free(yaml);
        free(yaml_again);
        config_free(&c);
        config_free(&again);
        accepted++;
    }
    if (rounds >= 1000) assert_true(accepted > rounds / 100 && accepted < rounds);
}

static void setting_input(void **state) {
    static const char *const words[] = {"=",  ".", "train.lr", "[",     "]", ",",    "'",
                                        "\"", " ", "\t",       "1e400", "~", "\xff", "\xc3"};
    static const char valid[] = "run.tags=[a, 'b c', \"d\"]";
    fuzz *f = *state;
    uint64_t rounds = from_environment("BULKHEAD_FUZZ_ROUNDS", 4000);
    for (uint64_t round = 0; round < rounds; round++) {
        make_input(f, round, valid, sizeof valid - 1, words, sizeof words / sizeof *words);
        f->data[f->bytes < INPUT_MAX_BYTES ? f->bytes : INPUT_MAX_BYTES - 1] = '\0';
        const char *settings[] = {"model.size=tiny", f->data};
        config c;
        status got = config_load(&c, NULL, settings, 2);
        if (got != STATUS_OK && (got != STATUS_CONFIG || !status_message()[0]))
            fail_round(f, "%s: %s (%s)", f->data, status_text(got), status_message());
        if (got == STATUS_OK) config_free(&c);
    }
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup_teardown(safetensors_input, start, stop),
    cmocka_unit_test_setup_teardown(config_input, start, stop),
    cmocka_unit_test_setup_teardown(setting_input, start, stop),
};

TEST_MAIN(tests)
