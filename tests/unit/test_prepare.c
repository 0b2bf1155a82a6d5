/* bulkhead prepare from text to shards: nothing of the text is lost or doubled, the split is what it says, the same
 * input gives the same bytes, and a refusal leaves nothing behind. */
#include "check.h"

#include "core/file.h"
#include "core/log.h"
#include "core/rng.h"
#include "data/dataset.h"
#include "data/info.h"
#include "data/lines.h"
#include "data/output.h"
#include "data/prepare.h"
#include "data/split.h"
#include "data/tokenizer.h"
#include "folder.h"

#include <fcntl.h>
#include <sys/stat.h>

enum { VOCAB = 310 };

/* Made-up prose: lines of words, blank lines now and then. */
static char *make_text(uint64_t seed, size_t length) {
    static const char *const words[] = {"anchor ", "bulk", "head ",   "the ",    "sea ",           "deck",
                                        "s ",      "of ",  "a ",      "  keel ", "\xC3\xA9toile ", "\xE2\x9A\x93 ",
                                        ".\n",     ",\n",  "\n\n    "};
    char *text = malloc(length + 16);
    size_t used = 0;
    for (uint64_t i = 0; used < length; i++) {
        const char *word = words[rng_u64(seed, 11, i) % 15];
        used += (size_t)sprintf(text + used, "%s", word);
    }
    return text;
}

static prepare_options options_for(const char *const *inputs, int count, const char *out) {
    return (prepare_options){.inputs = inputs,
                             .input_count = count,
                             .out_dir = out,
                             .vocab = VOCAB,
                             .reading = {.field = "text"},
                             .val_fraction = 0.1,
                             .seed = 1,
                             .shard_tokens = 100000000,
                             .threads = 2};
}

static void put(const char *path, const char *text) {
    check_status(file_write_atomic(path, text, strlen(text)), STATUS_OK);
}

static const char *in(folder *f, const char *dir, const char *name) {
    char path[256];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return folder_path(f, path);
}

/* All tokens of a split's shards, in order. */
static int32_t *read_tokens(const folder *f, const char *dir, const char *split_name, int64_t *count) {
    int32_t *tokens = NULL;
    *count = 0;
    for (int i = 0;; i++) {
        char path[1024];
        snprintf(path, sizeof path, "%s/%s/%s-%05d.bin", f->path, dir, split_name, i);
        if (!file_exists(path)) return tokens;
        shard s;
        check_status(shard_open(&s, path), STATUS_OK);
        tokens = realloc(tokens, (size_t)(*count + s.tokens) * sizeof *tokens);
        shard_read(&s, 0, s.tokens, tokens + *count);
        *count += s.tokens;
        shard_close(&s);
    }
}

/* The decoded documents of a split. */
typedef struct decoded {
    int count;
    char *texts[2048];
} decoded;

static decoded *decode_split(folder *f, const char *dir, const char *split_name, const dataset_split *want) {
    decoded *d = calloc(1, sizeof *d);
    tokenizer *t;
    int64_t count, start = 0;
    check_status(tokenizer_load(&t, in(f, dir, "tokenizer.model")), STATUS_OK);
    int32_t *tokens = read_tokens(f, dir, split_name, &count);
    assert_int_equal(count, want->tokens);
    for (int64_t i = 0; i < count; i++)
        if (tokens[i] == tokenizer_eos(t)) {
            size_t length;
            check_status(tokenizer_decode(t, tokens + start, i - start, &d->texts[d->count++], &length), STATUS_OK);
            start = i + 1;
        }
    assert_int_equal(start, count); /* the last token ends a document */
    assert_int_equal(d->count, want->documents);
    free(tokens);
    tokenizer_free(t);
    return d;
}

static void free_decoded(decoded *d) {
    for (int i = 0; i < d->count; i++) free(d->texts[i]);
    free(d);
}

static double entropy_of(folder *f, const char *dir, const char *split_name) {
    int64_t count, counts[VOCAB] = {0};
    int32_t *tokens = read_tokens(f, dir, split_name, &count);
    double sum = 0;
    for (int64_t i = 0; i < count; i++) counts[tokens[i]]++;
    for (int i = 0; i < VOCAB; i++)
        if (counts[i]) sum += (double)counts[i] * log((double)count / (double)counts[i]);
    free(tokens);
    return sum / (double)count;
}

/* A text of one document: its parts, taken in turn from both splits, are the text again. */
static void one_document_is_split_into_runs(void **state) {
    folder f = folder_make();
    enum { LENGTH = 600000 };
    char *text = make_text(1, LENGTH), *joined = calloc(1, LENGTH + 64);
    const char *inputs[] = {folder_path(&f, "a.txt")};
    put(inputs[0], text);
    dataset_info info, loaded;
    prepare_options o = options_for(inputs, 1, folder_path(&f, "new/out"));
    check_status(prepare(&o, &info), STATUS_OK);
    decoded *train = decode_split(&f, "new/out", "train", &info.train),
            *val = decode_split(&f, "new/out", "val", &info.validation);
    bool val_first = strncmp(val->texts[0], text, strlen(val->texts[0])) == 0;
    for (int i = 0; i < train->count + val->count; i++) {
        const decoded *d = (i % 2 == 0) == val_first ? val : train;
        if (i / 2 >= d->count) fail_msg("part %d is missing", i);
        strcat(joined, d->texts[i / 2]);
    }
    assert_true(strcmp(joined, text) == 0);
    assert_int_equal(val->count, 3); /* 60,000 bytes in runs of at least 16,384 */
    assert_int_equal(info.train.bytes + info.validation.bytes, strlen(text));
    check_near((double)info.validation.bytes, 0.1 * (double)strlen(text), 3 * 200); /* runs end with a line */
    check_near(info.train.unigram_entropy_nats, entropy_of(&f, "new/out", "train"), 1e-9);
    check_near(info.validation.unigram_entropy_nats, entropy_of(&f, "new/out", "val"), 1e-9);
    assert_int_equal(info.vocab, VOCAB);
    assert_int_equal(info.eos_id, 1);
    assert_true(info.document_token_ends);
    check_status(dataset_info_load(&loaded, in(&f, "new/out", "train-00000.bin")), STATUS_OK);
    assert_memory_equal(&loaded, &info, sizeof info);
    free_decoded(train);
    free_decoded(val);
    free(text);
    free(joined);
    folder_remove(&f);
}

/* Many documents: each stays whole, on one side, in order. */
static void documents_are_split_whole(void **state) {
    folder f = folder_make();
    enum { DOCUMENTS = 1000 };
    static const char words[] = "anchors the sea deck of keel";
    const char *inputs[] = {folder_path(&f, "a.jsonl"), folder_path(&f, "b.jsonl")};
    char *file = calloc(1, DOCUMENTS * 64);
    for (int i = 0; i < DOCUMENTS; i++) {
        sprintf(file + strlen(file), "{\"text\": \"document %d %.8s\"}\n", i, &words[i % 20]);
        if (i == 499) put(inputs[0], file), file[0] = '\0';
    }
    put(inputs[1], file);
    dataset_info info;
    prepare_options o = options_for(inputs, 2, folder_path(&f, "out"));
    o.vocab = 310;
    check_status(prepare(&o, &info), STATUS_OK);
    assert_int_equal(info.validation.documents, 100);
    assert_int_equal(info.train.documents, 900);
    decoded *splits[] = {decode_split(&f, "out", "train", &info.train),
                         decode_split(&f, "out", "val", &info.validation)};
    int at[2] = {0}, place_sum = 0;
    for (int i = 0; i < DOCUMENTS; i++) {
        char want[64];
        snprintf(want, sizeof want, "document %d %.8s", i, &words[i % 20]);
        int side = at[1] < 100 && strcmp(splits[1]->texts[at[1]], want) == 0;
        if (strcmp(splits[side]->texts[at[side]++], want) != 0) fail_msg("%s is missing", want);
        if (side) place_sum += i % 10;
    }
    assert_in_range(place_sum, 450 - 6 * 29,
                    450 + 6 * 29); /* a uniform place in each ten: deviation sqrt(100 * 8.25) */
    free_decoded(splits[0]);
    free_decoded(splits[1]);
    free(file);
    folder_remove(&f);
}

static void expect_same_file(folder *f, const char *a, const char *b, const char *name, bool same) {
    char *x, *y;
    size_t m, n;
    check_status(file_read_all(&x, &m, in(f, a, name), 1 << 26), STATUS_OK);
    check_status(file_read_all(&y, &n, in(f, b, name), 1 << 26), STATUS_OK);
    if ((m == n && memcmp(x, y, m) == 0) != same) fail_msg("%s: %s and %s", name, a, b);
    free(x);
    free(y);
}

static void the_result_is_a_function_of_input_and_seed(void **state) {
    folder f = folder_make();
    char *text = make_text(3, 5 << 19), *start = make_text(3, 50000);
    const char *inputs[] = {folder_path(&f, "a.txt")}, *short_inputs[] = {folder_path(&f, "b.txt")};
    put(inputs[0], text); /* several pieces, so that several threads have work */
    put(short_inputs[0], start);
    free(text);
    free(start);
    dataset_info info;
    for (int i = 0; i < 2; i++) {
        prepare_options trained = options_for(short_inputs, 1, folder_path(&f, i ? "model-1" : "model-0"));
        check_status(prepare(&trained, &info), STATUS_OK);
    }
    prepare_options one = options_for(inputs, 1, folder_path(&f, "one")),
                    many = options_for(inputs, 1, folder_path(&f, "many"));
    prepare_options other = options_for(inputs, 1, folder_path(&f, "other"));
    one.threads = 1;
    many.threads = 5;
    other.seed = 2;
    one.tokenizer = many.tokenizer = other.tokenizer = in(&f, "model-0", "tokenizer.model");
    check_status(prepare(&one, &info), STATUS_OK);
    check_status(prepare(&many, &info), STATUS_OK);
    check_status(prepare(&other, &info), STATUS_OK);
    static const char *const names[] = {"tokenizer.model", "train-00000.bin", "val-00000.bin", "dataset.json"};
    for (int i = 0; i < 4; i++) {
        expect_same_file(&f, "model-0", "model-1", names[i], true);
        expect_same_file(&f, "one", "many", names[i], true);
    }
    expect_same_file(&f, "one", "other", "tokenizer.model", true);
    expect_same_file(&f, "one", "other", "val-00000.bin", false);
    folder_remove(&f);
}

static void shards_are_cut_at_their_size(void **state) {
    folder f = folder_make();
    char *text = make_text(4, 100000);
    const char *inputs[] = {folder_path(&f, "a.txt")};
    put(inputs[0], text);
    free(text);
    dataset_info whole, cut;
    prepare_options o = options_for(inputs, 1, folder_path(&f, "whole"));
    check_status(prepare(&o, &whole), STATUS_OK);
    o.out_dir = folder_path(&f, "cut");
    o.shard_tokens = 1000;
    check_status(prepare(&o, &cut), STATUS_OK);
    assert_int_equal(whole.train.shards, 1);
    assert_int_equal(cut.train.shards, (cut.train.tokens + 999) / 1000);
    int64_t a, b;
    int32_t *x = read_tokens(&f, "whole", "train", &a), *y = read_tokens(&f, "cut", "train", &b);
    assert_int_equal(a, b);
    assert_int_equal(a, whole.train.tokens);
    assert_memory_equal(x, y, (size_t)a * sizeof *x);
    dataset d;
    const char *pattern = in(&f, "cut", "train-*.bin");
    check_status(dataset_open(&d, &pattern, 1, 99, VOCAB), STATUS_OK);
    assert_int_equal(d.count, cut.train.shards);
    dataset_close(&d);
    free(x);
    free(y);
    folder_remove(&f);
}

/* docs/cases.md 12 where training a model would take too long: what prepare writes through, with vocabularies at the
 * edge. */
static void width_follows_the_vocabulary(void **state) {
    const struct {
        int64_t vocab;
        int token_bytes;
    } cases[] = {{65535, 2}, {65536, 2}, {65537, 4}, {70000, 4}};
    for (int i = 0; i < 4; i++) {
        folder f = folder_make();
        output o;
        int32_t ids[] = {0, 1, (int32_t)cases[i].vocab - 1, 5}, too_large = (int32_t)cases[i].vocab;
        check_status(output_open(&o, f.path, "train", cases[i].vocab, 1000), STATUS_OK);
        check_status(output_add(&o, ids, 4), STATUS_OK);
        check_status(output_finish(&o), STATUS_OK);
        output_close(&o);
        dataset d;
        int32_t input[3], target[3];
        const char *path = folder_path(&f, "train-00000.bin");
        check_status(dataset_open(&d, &path, 1, 3, cases[i].vocab), STATUS_OK);
        assert_int_equal(d.shards[0].token_bytes, cases[i].token_bytes);
        dataset_window(&d, 0, input, target);
        assert_memory_equal(input, ids, sizeof input);
        assert_memory_equal(target, ids + 1, sizeof target);
        dataset_close(&d);
        check_status(dataset_open(&d, &path, 1, 3, cases[i].vocab - 1), STATUS_DATA);
        status_clear();
        check_status(output_open(&o, f.path, "val", cases[i].vocab, 1000), STATUS_OK);
        check_status(output_add(&o, &too_large, 1), STATUS_DATA);
        status_clear();
        output_close(&o);
        assert_int_equal(folder_entries(&f), 1);
        folder_remove(&f);
    }
}

static void refuse(folder *f, const prepare_options *o, status want, const char *words) {
    int before = folder_entries(f);
    dataset_info info;
    check_status(prepare(o, &info), want);
    if (!strstr(status_message(), words)) fail_msg("\"%s\" does not say \"%s\"", status_message(), words);
    status_clear();
    assert_int_equal(folder_entries(f), before);
}

static void refusals_leave_nothing_behind(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.txt"), *out = folder_path(&f, "out"), *gz = folder_path(&f, "a.txt.gz");
    const char *inputs[] = {path}, *missing[] = {path, folder_path(&f, "missing.txt")}, *folders[] = {f.path},
               *truncated[] = {gz};
    char *text = make_text(5, 50000);
    prepare_options o = options_for(inputs, 1, out), bad;
    put(path, "");
    refuse(&f, &o, STATUS_DATA, "no text");
    put(path, "a few words\n");
    refuse(&f, &o, STATUS_DATA, "too small for a vocabulary of 310");
    put(path, "\n");
    refuse(&f, &o, STATUS_DATA, "--vocab");
    put(path, text);
    bad = options_for(missing, 2, out);
    refuse(&f, &bad, STATUS_NO_INPUT, "missing.txt");
    bad = options_for(folders, 1, out);
    refuse(&f, &bad, STATUS_NO_INPUT, "is a folder");
    put(gz, "\x1f\x8b\x08");
    bad = options_for(truncated, 1, out);
    refuse(&f, &bad, STATUS_DATA, "truncated");
    bad = o;
    bad.vocab = 100000;
    refuse(&f, &bad, STATUS_DATA, "or less");
    bad = o;
    bad.tokenizer = folder_path(&f, "missing.model");
    refuse(&f, &bad, STATUS_NO_INPUT, "missing.model");
    bad.tokenizer = path;
    refuse(&f, &bad, STATUS_DATA, "neither a SentencePiece model nor");
    bad = o;
    bad.out_dir = path;
    refuse(&f, &bad, STATUS_USAGE, "that is a file");
    bad.out_dir = f.path;
    refuse(&f, &bad, STATUS_USAGE, "not empty");
    bad.out_dir = folder_path(&f, "a.txt/out");
    refuse(&f, &bad, STATUS_IO, "a.txt");
    strcpy(text + 1000, "fa\xE7"
                        "ade\n");
    put(path, text);
    refuse(&f, &o, STATUS_DATA, "1 line is not UTF-8");
    free(text);
    folder_remove(&f);
}

static void an_unwritable_folder_is_an_io_error(void **state) {
    if (geteuid() == 0) skip(); /* root writes everywhere */
    folder f = folder_make();
    const char *inputs[] = {folder_path(&f, "a.txt")}, *closed = folder_path(&f, "closed");
    put(inputs[0], "text\n");
    assert_int_equal(mkdir(closed, 0500), 0);
    prepare_options o = options_for(inputs, 1, in(&f, "closed", "out"));
    refuse(&f, &o, STATUS_IO, "Permission denied");
    assert_int_equal(chmod(inputs[0], 0), 0);
    o.out_dir = folder_path(&f, "out");
    refuse(&f, &o, STATUS_NO_INPUT, "Permission denied");
    folder_remove(&f);
}

static void an_empty_folder_is_filled(void **state) {
    folder f = folder_make();
    char *text = make_text(6, 50000);
    const char *inputs[] = {folder_path(&f, "a.txt")}, *out = folder_path(&f, "out");
    put(inputs[0], text);
    free(text);
    assert_int_equal(mkdir(out, 0777), 0);
    prepare_options o = options_for(inputs, 1, folder_path(&f, "out//"));
    dataset_info info;
    check_status(prepare(&o, &info), STATUS_OK);
    refuse(&f, &o, STATUS_USAGE, "not empty");
    folder_remove(&f);
}

/* Standard input is read once, yet the text is needed twice. */
static void standard_input_is_kept(void **state) {
    folder f = folder_make();
    char *text = make_text(7, 40000); /* fits a pipe */
    int ends[2], saved = dup(STDIN_FILENO);
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(write(ends[1], text, strlen(text)), strlen(text));
    close(ends[1]);
    assert_int_equal(dup2(ends[0], STDIN_FILENO), STDIN_FILENO);
    close(ends[0]);
    const char *inputs[] = {"-"}, *files[] = {folder_path(&f, "a.txt")};
    prepare_options o = options_for(inputs, 1, folder_path(&f, "piped")),
                    g = options_for(files, 1, folder_path(&f, "file"));
    dataset_info info;
    check_status(prepare(&o, &info), STATUS_OK);
    dup2(saved, STDIN_FILENO);
    close(saved);
    put(files[0], text);
    check_status(prepare(&g, &info), STATUS_OK);
    expect_same_file(&f, "piped", "file", "train-00000.bin", true);
    expect_same_file(&f, "piped", "file", "val-00000.bin", true);
    assert_int_equal(folder_entries(&f), 3); /* no spool is left */
    free(text);
    folder_remove(&f);
}

static void fraction_zero_makes_no_validation(void **state) {
    folder f = folder_make();
    char *text = make_text(8, 50000);
    const char *inputs[] = {folder_path(&f, "a.txt")};
    put(inputs[0], text);
    prepare_options o = options_for(inputs, 1, folder_path(&f, "out"));
    o.val_fraction = 0;
    dataset_info info;
    check_status(prepare(&o, &info), STATUS_OK);
    assert_int_equal(info.validation.tokens, 0);
    assert_int_equal(info.validation.shards, 0);
    assert_int_equal(info.train.documents, 1);
    assert_false(file_exists(in(&f, "out", "val-00000.bin")));
    free(text);
    folder_remove(&f);
}

/* Every position is judged; runs have the size that was planned and `until` never skips a change. */
static void splits_have_their_size(void **state) {
    static const double fractions[] = {0, 0.001, 0.01, 0.1, 0.3, 0.5, 0.9};
    static const int64_t extents[][2] = {{1, 1},      {1, 3},       {1, 4},        {1, 100},      {2, 5000},
                                         {7, 100000}, {80, 100000}, {1000, 99999}, {99999, 99999}};
    for (int e = 0; e < 9; e++)
        for (int i = 0; i < 7; i++) {
            int64_t documents = extents[e][0], bytes = extents[e][1], taken = 0, until = 0;
            split s = split_plan(documents, bytes, fractions[i], 5);
            bool now = false;
            for (int64_t p = 0; p < s.total; p++) {
                int64_t next;
                bool v = split_validation(&s, p, &next);
                if (v != now && p != until && p > 0)
                    fail_msg("a change at %lld, not at %lld", (long long)p, (long long)until);
                if (next <= p || next > s.total)
                    fail_msg("until %lld at %lld of %lld", (long long)next, (long long)p, (long long)s.total);
                now = v;
                until = next;
                taken += v;
            }
            assert_int_equal(taken, s.strata * s.length);
            double want = fractions[i] * (double)s.total;
            if (want > 1000) check_near((double)taken, want, 0.01 * want + 64);
            if (fractions[i] == 0)
                assert_int_equal(taken, 0);
            else if (s.total >= 4)
                assert_in_range(taken, 1, s.total - 1);
        }
}

/* The sample keeps within its limits, is drawn from all of the text, and loses nothing when all fits. */
static void lines_are_sampled_evenly(void **state) {
    char text[64], *long_line = malloc(5000);
    lines *l;
    int64_t count, bytes;
    check_status(lines_open(&l, 1000, 1 << 20, 3), STATUS_OK);
    for (int i = 0; i < 20000; i++) check_status(lines_add(l, text, (size_t)sprintf(text, "%d\n", i)), STATUS_OK);
    const tokenizer_text *kept = lines_kept(l, &count, &bytes);
    assert_int_equal(count, 1000);
    double sum = 0;
    long last = -1;
    for (int64_t i = 0; i < count; i++) {
        long number = strtol(kept[i].bytes, NULL, 10);
        if (number <= last) fail_msg("%ld behind %ld", number, last);
        last = number;
        sum += (double)number;
    }
    check_near(sum / 1000, 10000, 6 * 20000 / sqrt(12 * 1000)); /* six deviations of a uniform mean */
    lines_close(l);
    check_status(lines_open(&l, 1000000, 1000, 3), STATUS_OK);
    for (int i = 0; i < 20000; i++) check_status(lines_add(l, "ten bytes\n", 10), STATUS_OK);
    lines_kept(l, &count, &bytes);
    assert_int_equal(count, 100);
    assert_int_equal(bytes, 1000);
    lines_close(l);
    /* A long line is split, blank lines stay with the line before. */
    check_status(lines_open(&l, 100, 1 << 20, 3), STATUS_OK);
    for (int i = 0; i < 5000; i++) long_line[i] = "\xC3\xA9"[i % 2];
    check_status(lines_add(l, long_line, 5000), STATUS_OK);
    check_status(lines_add(l, "a\n\n\nb", 5), STATUS_OK);
    kept = lines_kept(l, &count, &bytes);
    assert_int_equal(bytes, 5005);
    assert_int_equal(count, 7);
    for (int64_t i = 0; i < count; i++) {
        assert_in_range(kept[i].length, 1, 1024);
        assert_int_equal(reader_valid_utf8(kept[i].bytes, kept[i].length), kept[i].length);
    }
    assert_memory_equal(kept[5].bytes, "a\n\n\n", 4);
    lines_close(l);
    free(long_line);
}

static void foreign_descriptions_are_refused(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "dataset.json"), *shard_path = folder_path(&f, "train-00000.bin");
    dataset_info info;
    check_status(dataset_info_load(&info, shard_path), STATUS_NO_INPUT);
    status_clear();
    static const char *const bad[] = {
        "", "{", "[]", "{}", "{\"tokenizer\": 1}", "{\"tokenizer\": \"t\", \"vocab\": 5}"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        put(path, bad[i]);
        check_status(dataset_info_load(&info, shard_path), STATUS_DATA);
        status_clear();
    }
    folder_remove(&f);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(one_document_is_split_into_runs),
    cmocka_unit_test(documents_are_split_whole),
    cmocka_unit_test(the_result_is_a_function_of_input_and_seed),
    cmocka_unit_test(shards_are_cut_at_their_size),
    cmocka_unit_test(width_follows_the_vocabulary),
    cmocka_unit_test(refusals_leave_nothing_behind),
    cmocka_unit_test(an_unwritable_folder_is_an_io_error),
    cmocka_unit_test(an_empty_folder_is_filled),
    cmocka_unit_test(standard_input_is_kept),
    cmocka_unit_test(fraction_zero_makes_no_validation),
    cmocka_unit_test(splits_have_their_size),
    cmocka_unit_test(lines_are_sampled_evenly),
    cmocka_unit_test(foreign_descriptions_are_refused),
};

int main(int argc, char **argv) {
    log_setup("", LOG_ERROR);
    return test_run(argc, argv, tests, sizeof tests / sizeof tests[0]);
}
