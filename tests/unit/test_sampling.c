/* The distribution of the next token on small cases that can be worked out by hand, and draws from it. */
#include "check.h"

#include "trainer/sampling.h"

enum { VOCAB = 5 };

/* Probabilities 1/16, 1/2, 1/4, 1/16, 1/8. */
static const float logits[VOCAB] = {-4 * (float)M_LN2, -(float)M_LN2, -2 * (float)M_LN2, -4 * (float)M_LN2,
                                    -3 * (float)M_LN2};

static void check_choices(sampling s, int64_t count, const int32_t *tokens, const double *probabilities) {
    sampling_choice got[VOCAB];
    int64_t got_count;
    check_status(sampling_choices(&s, logits, VOCAB, got, &got_count), STATUS_OK);
    assert_int_equal(got_count, count);
    for (int64_t i = 0; i < count; i++) {
        assert_int_equal(got[i].token, tokens[i]);
        check_near(got[i].probability, probabilities[i], 1e-6);
    }
}

static const int32_t order[] = {1, 2, 4, 0, 3}; /* of equals the smaller id first */

static void all_tokens(void **state) {
    const double p[] = {1. / 2, 1. / 4, 1. / 8, 1. / 16, 1. / 16};
    check_choices((sampling){.temperature = 1, .top_p = 1}, 5, order, p);
    check_choices((sampling){.temperature = 1, .top_p = 1, .top_k = 9}, 5, order, p);
}

static void temperature(void **state) {
    const double half[] = {64. / 86, 16. / 86, 4. / 86, 1. / 86,
                           1. / 86}; /* squares: 1/4 : 1/16 : 1/64 : 1/256 twice */
    const double one[] = {1};
    check_choices((sampling){.temperature = 0.5, .top_p = 1}, 5, order, half);
    check_choices((sampling){.temperature = 0, .top_p = 1}, 1, order, one);
    check_choices((sampling){.temperature = 1e-6, .top_p = 0.999}, 1, order, one);
}

static void top_k(void **state) {
    const double two[] = {2. / 3, 1. / 3}, four[] = {8. / 15, 4. / 15, 2. / 15, 1. / 15}, one[] = {1};
    check_choices((sampling){.temperature = 1, .top_p = 1, .top_k = 2}, 2, order, two);
    check_choices((sampling){.temperature = 1, .top_p = 1, .top_k = 4}, 4, order, four);
    check_choices((sampling){.temperature = 1, .top_p = 1, .top_k = 1}, 1, order, one);
}

static void top_p(void **state) {
    const double two[] = {2. / 3, 1. / 3}, three[] = {4. / 7, 2. / 7, 1. / 7}, one[] = {1};
    check_choices((sampling){.temperature = 1, .top_p = 0.4}, 1, order, one);
    check_choices((sampling){.temperature = 1, .top_p = 0.6}, 2, order, two);
    check_choices((sampling){.temperature = 1, .top_p = 0.8}, 3, order, three);
    /* of the two likeliest the first has 2/3 */
    check_choices((sampling){.temperature = 1, .top_k = 2, .top_p = 0.6}, 1, order, one);
    check_choices((sampling){.temperature = 1, .top_k = 2, .top_p = 0.7}, 2, order, two);
}

static void picks_by_share(void **state) {
    const sampling_choice choices[] = {{7, 0.5}, {3, 0.25}, {9, 0.25}};
    const struct {
        double u;
        int32_t token;
    } cases[] = {{0, 7}, {0.499, 7}, {0.5, 3}, {0.749, 3}, {0.75, 9}, {0.999999, 9}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(sampling_pick(choices, 3, cases[i].u), cases[i].token);
}

/* 40,000 draws: each token's count within 5 standard deviations of its share. */
static void draws_follow_the_distribution(void **state) {
    enum { DRAWS = 40000 };
    sampling s = {.temperature = 1, .top_p = 1, .seed = 7}, other = s;
    sampling_choice choices[VOCAB];
    int64_t count, same = 0;
    int seen[VOCAB] = {0};
    other.seed = 8;
    check_status(sampling_choices(&s, logits, VOCAB, choices, &count), STATUS_OK);
    for (int64_t i = 0; i < DRAWS; i++) {
        double u = sampling_draw(&s, i);
        assert_true(u >= 0 && u < 1 && u == sampling_draw(&s, i));
        same += u == sampling_draw(&other, i);
        seen[sampling_pick(choices, count, u)]++;
    }
    assert_int_equal(same, 0);
    for (int i = 0; i < VOCAB; i++) {
        double p = choices[i].probability;
        check_near(seen[choices[i].token], DRAWS * p, 5 * sqrt(DRAWS * p * (1 - p)));
    }
}

static void logits_that_are_no_numbers(void **state) {
    const float bad[] = {0, NAN, 1};
    sampling s = {.temperature = 1, .top_p = 1};
    sampling_choice choices[3];
    int64_t count;
    check_status(sampling_choices(&s, bad, 3, choices, &count), STATUS_DATA);
    assert_non_null(strstr(status_message(), "token 1"));
    status_clear();
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(all_tokens),
    cmocka_unit_test(temperature),
    cmocka_unit_test(top_k),
    cmocka_unit_test(top_p),
    cmocka_unit_test(picks_by_share),
    cmocka_unit_test(draws_follow_the_distribution),
    cmocka_unit_test(logits_that_are_no_numbers),
};
TEST_MAIN(tests)
