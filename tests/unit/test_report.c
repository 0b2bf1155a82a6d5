/* The report's bins, medians and codes against the same computed directly, on fresh random values. */
#include "check.h"
#include "diag/report.h"
#include "diag/report_bins.h"

#include <time.h>
#include <unistd.h>

static uint64_t seed;

static double uniform(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (double)(seed >> 11) / (double)(1ull << 53);
}

static int setup(void **state) {
    seed = (uint64_t)time(NULL) ^ (uint64_t)getpid() << 32;
    print_message("seed %llu\n", (unsigned long long)seed);
    return 0;
}

static void steps_are_divided_evenly(void **state) {
    const int64_t totals[] = {0, 1, 199, 200, 201, 399, 1000, 12345};
    for (size_t t = 0; t < sizeof totals / sizeof *totals; t++) {
        report_bins b;
        int64_t total = totals[t], step = -7, rows = 0, least = total, most = 0;
        int64_t *steps = malloc((size_t)(total + 1) * sizeof *steps);
        report_bins_begin(&b, total);
        for (int64_t i = 0; i < total; i++) report_bins_add(&b, steps[i] = step += 1 + (int64_t)(uniform() * 9));
        report_bins_add(&b, step + 1); /* one more than was counted */
        assert_int_equal(b.count, total < 200 ? total : 200);
        for (int bin = 0; bin < b.count; bin++) {
            assert_true(b.first[bin] == steps[rows]);
            rows += b.rows[bin];
            assert_true(b.last[bin] == steps[rows - 1]);
            least = b.rows[bin] < least ? b.rows[bin] : least;
            most = b.rows[bin] > most ? b.rows[bin] : most;
        }
        assert_true(rows == total && most - least <= 1);
        for (int64_t i = 0; i < total; i++) {
            int bin = report_bins_find(&b, steps[i]);
            assert_in_range(bin, 0, b.count - 1);
            assert_true(b.first[bin] <= steps[i] && steps[i] <= b.last[bin]);
        }
        assert_int_equal(report_bins_find(&b, -100), -1);
        assert_int_equal(report_bins_find(&b, step + 1), -1);
        if (b.count > 1) assert_int_equal(report_bins_find(&b, b.first[1] - 1), b.last[0] == b.first[1] - 1 ? 0 : -1);
        free(steps);
    }
}

/* By counting how many are smaller, not by sorting. */
static double direct_median(const double *values, int n) {
    double low = NAN, high = NAN;
    for (int i = 0; i < n; i++) {
        int smaller = 0, equal = 0;
        for (int j = 0; j < n; j++) smaller += values[j] < values[i], equal += values[j] == values[i];
        if (smaller <= (n - 1) / 2 && (n - 1) / 2 < smaller + equal) low = values[i];
        if (smaller <= n / 2 && n / 2 < smaller + equal) high = values[i];
    }
    return (low + high) / 2;
}

static void a_bin_keeps_median_and_maximum(void **state) {
    enum { CELLS = 6, BINS = 5, MOST = 40 };
    for (int round = 0; round < 50; round++) {
        double values[CELLS][BINS][MOST];
        int held[CELLS][BINS] = {{0}};
        report_grid g;
        check_status(report_grid_open(&g, CELLS, BINS), STATUS_OK);
        for (int bin = 0; bin < BINS; bin++) {
            if (round % 3 == 1 && bin == 2) continue; /* a bin without rows */
            int rows = (int)(uniform() * MOST);
            for (int row = 0; row < rows; row++)
                for (int cell = 0; cell < CELLS; cell++) {
                    double x = uniform() < 0.3 || cell == 3 ? NAN : floor(20 * uniform()) - 10; /* with ties */
                    check_status(report_grid_add(&g, bin, cell, x), STATUS_OK);
                    if (!isnan(x)) values[cell][bin][held[cell][bin]++] = x;
                }
        }
        report_grid_finish(&g);
        for (int cell = 0; cell < CELLS; cell++)
            for (int bin = 0; bin < BINS; bin++) {
                double median = g.median[cell * BINS + bin], max = g.max[cell * BINS + bin], most = -INFINITY;
                int n = held[cell][bin];
                if (n == 0) {
                    assert_true(isnan(median) && isnan(max));
                    continue;
                }
                for (int i = 0; i < n; i++) most = fmax(most, values[cell][bin][i]);
                check_near(median, direct_median(values[cell][bin], n), 0);
                check_near(max, most, 0);
            }
        report_grid_close(&g);
    }
}

static void a_code_is_within_half_a_step(void **state) {
    enum { N = 500 };
    const double scales[] = {1, 1e-300, 1e300, 1.7e308}, offsets[] = {0, 1e6, -3, 0};
    for (int round = 0; round < 4; round++) {
        double values[N], low, high, least = INFINITY, most = -INFINITY;
        unsigned char codes[N];
        for (int i = 0; i < N; i++) {
            values[i] = uniform() < 0.2 ? NAN : offsets[round] * scales[round] + scales[round] * (2 * uniform() - 1);
            if (round == 1) values[i] = uniform() < 0.2 ? NAN : 1e6 + 1e-6 * uniform();
            least = fmin(least, values[i]);
            most = fmax(most, values[i]);
        }
        report_codes(values, N, codes, &low, &high);
        check_near(low, least, 0);
        check_near(high, most, 0);
        for (int i = 0; i < N; i++) {
            assert_int_equal(codes[i] == 0, isnan(values[i]));
            if (codes[i] == 0) continue;
            double half = (most / 2 - least / 2) / 254, read = least / 2 + (codes[i] - 1) * half; /* all halved */
            check_near(read, values[i] / 2, half / 2 * (1 + 1e-9) + fabs(least) * 1e-15);
        }
    }
}

static void equal_values_and_none_have_codes(void **state) {
    double same[] = {2.5, NAN, 2.5}, none[] = {NAN, NAN}, low, high;
    unsigned char codes[3];
    report_codes(same, 3, codes, &low, &high);
    assert_memory_equal(codes, "\1\0\1", 3);
    assert_true(low == 2.5 && high == 2.5);
    report_codes(none, 2, codes, &low, &high);
    assert_memory_equal(codes, "\0\0", 2);
    assert_true(low == 0 && high == 0);
}

static void base64_is_that_of_the_rfc(void **state) {
    const char *const pairs[][2] = {{"", ""},
                                    {"f", "Zg=="},
                                    {"fo", "Zm8="},
                                    {"foo", "Zm9v"},
                                    {"foob", "Zm9vYg=="},
                                    {"fooba", "Zm9vYmE="},
                                    {"\xff\xfe", "//4="},
                                    {"\xfb\xef\xbe", "++++"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char *text = report_base64(pairs[i][0], strlen(pairs[i][0]));
        assert_string_equal(text, pairs[i][1]);
        free(text);
    }
}

static void columns_are_known_and_few(void **state) {
    static const char *const names[] = {"lambda_max", "lambda_sum", "sigma2",  "mp_gap",
                                        "mp_ks",      "alpha",      "alpha_n", "tw_score"};
    report_request r = {0};
    for (int i = 0; i < REPORT_COLUMNS; i++) check_status(report_add_column(&r, names[i]), STATUS_OK);
    check_status(report_add_column(&r, "stable_rank"), STATUS_USAGE);
    assert_non_null(strstr(status_message(), "8 columns"));
    status_clear();
    check_status(report_add_column(&r, "alpha"), STATUS_USAGE);
    assert_non_null(strstr(status_message(), "twice"));
    status_clear();
    check_status(report_add_column(&r, "loss; DROP TABLE runs"), STATUS_USAGE);
    status_clear();
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test_setup(steps_are_divided_evenly, setup),
    cmocka_unit_test_setup(a_bin_keeps_median_and_maximum, setup),
    cmocka_unit_test_setup(a_code_is_within_half_a_step, setup),
    cmocka_unit_test(equal_values_and_none_have_codes),
    cmocka_unit_test(base64_is_that_of_the_rfc),
    cmocka_unit_test(columns_are_known_and_few),
};

TEST_MAIN(tests)
