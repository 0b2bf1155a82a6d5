/* The dataset's windows and the sampler's order. */
#include "check.h"

#include "core/rng.h"
#include "data/dataset.h"
#include "folder.h"

#include <time.h>

/* Token i of the shard is first + i, modulo 60000. */
static void write_counting_shard(const char *path, int32_t first, int64_t count) {
    int32_t *tokens = malloc((size_t)(count + 1) * sizeof *tokens);
    for (int64_t i = 0; i < count; i++) tokens[i] = (int32_t)((first + i) % 60000);
    shard_writer *w;
    check_status(shard_writer_open(&w, path, 65535), STATUS_OK);
    check_status(shard_writer_add(w, tokens, count), STATUS_OK);
    check_status(shard_writer_finish(w), STATUS_OK);
    free(tokens);
}

static status open_one(dataset *d, const char *pattern, int64_t context, int64_t vocab) {
    return dataset_open(d, &pattern, 1, context, vocab);
}

/* 26 tokens hold 5 windows of 5, 25 tokens only 4: a window's last target must exist. */
static void windows_of_several_shards(void **state) {
    folder f = folder_make();
    write_counting_shard(folder_path(&f, "t-2.bin"), 2000, 26);
    write_counting_shard(folder_path(&f, "t-1.bin"), 1000, 25);
    write_counting_shard(folder_path(&f, "t-3.bin"), 3000, 0);
    write_counting_shard(folder_path(&f, "t-4.bin"), 4000, 5);
    write_counting_shard(folder_path(&f, "t-5.bin"), 5000, 6);
    dataset d;
    check_status(open_one(&d, folder_path(&f, "t-*.bin"), 5, 60000), STATUS_OK);
    assert_int_equal(d.count, 5);
    assert_int_equal(d.windows, 10);
    assert_int_equal(d.tokens, 62);
    const int32_t starts[] = {1000, 1005, 1010, 1015, 2000, 2005, 2010, 2015, 2020, 5000};
    for (int w = 0; w < 10; w++) {
        int32_t input[5], target[5];
        dataset_window(&d, w, input, target);
        for (int i = 0; i < 5; i++) {
            assert_int_equal(input[i], starts[w] + i);
            assert_int_equal(target[i], starts[w] + i + 1);
        }
    }
    dataset_close(&d);
    folder_remove(&f);
}

static void patterns_are_paths_or_globs(void **state) {
    folder f = folder_make();
    write_counting_shard(folder_path(&f, "a[1].bin"), 0, 11);
    write_counting_shard(folder_path(&f, "b.bin"), 100, 11);
    const char *both[] = {folder_path(&f, "b.bin"), folder_path(&f, "a[1].bin")};
    dataset d;
    int32_t input[5], target[5];
    check_status(dataset_open(&d, both, 2, 5, 200), STATUS_OK);
    dataset_window(&d, 0, input, target);
    assert_int_equal(input[0], 100); /* patterns keep their order */
    dataset_close(&d);
    check_status(open_one(&d, folder_path(&f, "*.bin"), 5, 200), STATUS_OK);
    dataset_window(&d, 0, input, target);
    assert_int_equal(input[0], 0); /* a glob's files are sorted */
    dataset_close(&d);
    folder_remove(&f);
}

static void refused(const char *pattern, int64_t context, int64_t vocab, status want, const char *words) {
    dataset d;
    check_status(open_one(&d, pattern, context, vocab), want);
    if (!strstr(status_message(), words)) fail_msg("\"%s\" does not say \"%s\"", status_message(), words);
    status_clear();
    assert_null(d.shards);
}

static void refuses_what_cannot_be_trained_on(void **state) {
    folder f = folder_make();
    const char *path = folder_path(&f, "a.bin");
    refused(path, 5, 100, STATUS_NO_INPUT, path);
    refused(folder_path(&f, "x-*.bin"), 5, 100, STATUS_NO_INPUT, "x-*.bin");
    write_counting_shard(path, 0, 5);
    refused(path, 5, 100, STATUS_DATA, "5 tokens are too few for one sample of 6");
    write_counting_shard(path, 0, 0);
    refused(path, 5, 100, STATUS_DATA, "too few");
    dataset d;
    check_status(dataset_open(&d, NULL, 0, 5, 100), STATUS_NO_INPUT);
    status_clear();
    folder_remove(&f);
}

/* docs/cases.md 12: V = 512 and a shard that holds id 512, in a block of its own far behind the start, or as the last
 * token. */
static void an_id_outside_the_vocabulary_is_named(void **state) {
    folder f = folder_make();
    const int64_t places[] = {0, 65535, 65536, 199999};
    const char *path = folder_path(&f, "a.bin");
    int32_t *tokens = calloc(200000, sizeof *tokens);
    for (int wide = 0; wide < 2; wide++)
        for (int i = 0; i < 4; i++) {
            char words[64];
            shard_writer *w;
            tokens[places[i]] = wide ? INT32_MAX : 512;
            check_status(shard_writer_open(&w, path, wide ? INT32_MAX : 512), STATUS_OK);
            check_status(shard_writer_add(w, tokens, 200000), STATUS_OK);
            check_status(shard_writer_finish(w), STATUS_OK);
            snprintf(words, sizeof words, "token %lld is id %d", (long long)places[i], tokens[places[i]]);
            refused(path, 256, 512, STATUS_DATA, words);
            tokens[places[i]] = 511;
        }
    shard_writer *w;
    check_status(shard_writer_open(&w, path, 511), STATUS_OK);
    check_status(shard_writer_add(w, tokens, 200000), STATUS_OK);
    check_status(shard_writer_finish(w), STATUS_OK);
    dataset d;
    check_status(open_one(&d, path, 256, 512), STATUS_OK);
    dataset_close(&d);
    free(tokens);
    folder_remove(&f);
}

/* A sampler needs no more of a dataset than its number of windows. */
static sampler sampler_of(dataset *d, int64_t windows, uint64_t seed, int64_t batch) {
    *d = (dataset){.windows = windows};
    return (sampler){.data = d, .seed = seed, .global_batch = batch, .repeat = true};
}

static int64_t at(const sampler *s, int64_t position) {
    return sampler_window(s, position / s->global_batch + 1, position % s->global_batch);
}

static void an_epoch_is_a_permutation(void **state) {
    char *seen = malloc(2000);
    for (int64_t n = 1; n <= 2000; n++)
        for (int64_t epoch = 0; epoch < 2; epoch++) {
            dataset d;
            sampler s = sampler_of(&d, n, (uint64_t)n * 31, 7);
            memset(seen, 0, (size_t)n);
            for (int64_t i = 0; i < n; i++) {
                int64_t w = at(&s, epoch * n + i);
                if (w < 0 || w >= n || seen[w])
                    fail_msg("n %lld, place %lld: window %lld", (long long)n, (long long)i, (long long)w);
                seen[w] = 1;
            }
        }
    free(seen);
}

static int by_value(const void *a, const void *b) {
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

/* Scattered places of large epochs meet no window twice, and neighbours do not stay neighbours. */
static void large_epochs_are_injective(void **state) {
    enum { DRAWS = 50000 };
    const int64_t sizes[] = {100003, 1 << 20, (1LL << 31) + 11, (1LL << 40) - 87, (1LL << 62) + 1};
    int64_t *windows = malloc(DRAWS * sizeof *windows);
    for (int k = 0; k < 5; k++) {
        dataset d;
        int64_t n = sizes[k];
        sampler s = sampler_of(&d, n, 99, 1);
        int kept = 0;
        for (int64_t i = 0; i < DRAWS; i++) {
            int64_t place = i < DRAWS / 2 ? i : n - 1 - (i - DRAWS / 2);
            windows[i] = at(&s, place);
            assert_in_range(windows[i], 0, n - 1);
            kept += i > 0 && llabs(windows[i] - windows[i - 1]) <= 1;
        }
        assert_in_range(kept, 0, 10); /* a random order has about 3 DRAWS / n, at most 1.5 */
        qsort(windows, DRAWS, sizeof *windows, by_value);
        for (int64_t i = 1; i < DRAWS; i++) assert_int_not_equal(windows[i], windows[i - 1]);
    }
    free(windows);
}

/* Over many epochs each window comes first equally often, and each of the n! orders of a small epoch too. The limits
 * are chi-square plus six of its standard deviations; the seed is fixed, so the outcome is too. */
static void orders_are_uniform(void **state) {
    enum { EPOCHS = 100000 };
    const int64_t sizes[] = {2, 3, 4, 5, 10, 37};
    for (int k = 0; k < 6; k++) {
        dataset d;
        int64_t n = sizes[k];
        sampler s = sampler_of(&d, n, 5, 1);
        for (int64_t place = 0; place<n; place += n> 5 ? 9 : 1) {
            int counts[37] = {0};
            double chi = 0, want = (double)EPOCHS / (double)n;
            for (int64_t e = 0; e < EPOCHS; e++) counts[at(&s, e * n + place)]++;
            for (int64_t w = 0; w < n; w++) chi += (counts[w] - want) * (counts[w] - want) / want;
            if (chi > (double)(n - 1) + 6 * sqrt(2.0 * (double)(n - 1)))
                fail_msg("n %lld, place %lld: chi-square %g", (long long)n, (long long)place, chi);
        }
    }
    int orders[24] = {0};
    dataset d;
    sampler s = sampler_of(&d, 4, 6, 4);
    for (int64_t e = 1; e <= EPOCHS; e++) {
        int64_t w[4];
        int rank = 0, factor[] = {6, 2, 1, 1};
        for (int i = 0; i < 4; i++) w[i] = sampler_window(&s, e, i);
        for (int i = 0; i < 4; i++)
            for (int j = i + 1; j < 4; j++) rank += factor[i] * (w[j] < w[i]);
        orders[rank]++;
    }
    double chi = 0;
    for (int i = 0; i < 24; i++) chi += (orders[i] - EPOCHS / 24.0) * (orders[i] - EPOCHS / 24.0) / (EPOCHS / 24.0);
    if (chi > 23 + 6 * sqrt(46)) fail_msg("orders of 4: chi-square %g", chi);
}

/* The position in the sequence decides, not how it is cut into steps; seeds and epochs change the order. */
static void a_pure_function_of_seed_and_position(void **state) {
    dataset d;
    int64_t n = 1000, same_seed = 0, same_epoch = 0;
    sampler s = sampler_of(&d, n, 1, 1), other = s, batched = s;
    other.seed = 2;
    batched.global_batch = 16;
    for (int64_t i = 0; i < 5 * n; i++) {
        assert_int_equal(at(&s, i), at(&batched, i));
        same_seed += at(&s, i) == at(&other, i);
        same_epoch += at(&s, i) == at(&s, i + n);
    }
    assert_in_range(same_seed, 0, 25); /* 5 expected, deviation 2.2 */
    assert_in_range(same_epoch, 0, 25);
    /* The largest step and batch that a configuration allows. */
    s.global_batch = 16777216;
    assert_in_range(sampler_window(&s, 1000000000000, 16777215), 0, n - 1);
}

/* The order is part of what a run's seed means: it must not change from one version to the next. */
static void the_order_is_pinned(void **state) {
    dataset d;
    sampler s = sampler_of(&d, 11, 42, 3);
    int64_t got[12];
    for (int i = 0; i < 12; i++) got[i] = at(&s, i);
    const int64_t want[12] = {7, 9, 8, 4, 1, 0, 2, 3, 10, 5, 6, 3};
    for (int i = 0; i < 12; i++)
        if (got[i] != want[i]) fail_msg("place %d: %lld, want %lld", i, (long long)got[i], (long long)want[i]);
}

/* docs/cases.md 13, the data's half: one global batch plus 3 samples. Without repetition there is one step; with it the
 * second step goes on into the next epoch and still visits every window once an epoch. */
static void the_end_of_the_data(void **state) {
    dataset d;
    sampler s = sampler_of(&d, 8 + 3, 1, 8);
    assert_true(sampler_last_step(&s) == INT64_MAX);
    int seen[11] = {0};
    for (int64_t i = 0; i < 2 * 11; i++) seen[at(&s, i)]++;
    for (int i = 0; i < 11; i++) assert_int_equal(seen[i], 2);
    s.repeat = false;
    assert_int_equal(sampler_last_step(&s), 1);
    d.windows = 16;
    assert_int_equal(sampler_last_step(&s), 2);
    d.windows = 7;
    assert_int_equal(sampler_last_step(&s), 0);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(windows_of_several_shards),
    cmocka_unit_test(patterns_are_paths_or_globs),
    cmocka_unit_test(refuses_what_cannot_be_trained_on),
    cmocka_unit_test(an_id_outside_the_vocabulary_is_named),
    cmocka_unit_test(an_epoch_is_a_permutation),
    cmocka_unit_test(large_epochs_are_injective),
    cmocka_unit_test(orders_are_uniform),
    cmocka_unit_test(a_pure_function_of_seed_and_position),
    cmocka_unit_test(the_order_is_pinned),
    cmocka_unit_test(the_end_of_the_data),
};
TEST_MAIN(tests)
