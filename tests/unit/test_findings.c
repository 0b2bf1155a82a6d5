/* The statistics of the findings: closed forms, and the rate at which each test rejects where there is nothing to find.
 */
#include "check.h"
#include "core/rng.h"
#include "diag/findings_statistics.h"

/* Uniform in (0, 1), by number. */
static double draw(uint64_t stream, uint64_t index) {
    return ((double)(rng_u64(7, stream, index) >> 11) + 0.5) / 0x1p53;
}

static void thresholds_solve_their_equations(void **state) {
    for (double tail = 1e-2; tail > 1e-12; tail /= 10) {
        double u = findings_tracy_widom_threshold(tail), z = findings_normal_quantile(tail);
        check_near(exp(-2.0 / 3.0 * pow(u, 1.5)) / (4 * sqrt(M_PI) * pow(u, 0.75)) / tail, 1, 1e-10);
        check_near(0.5 * erfc(-z / M_SQRT2) / tail, 1, 1e-10);
    }
    check_near(findings_normal_quantile(0.5), 0, 1e-12);
    check_near(findings_normal_quantile(0.025), -1.959963984540054, 1e-9);
}

/* Closed forms at one, two and four degrees of freedom (Shaw 2006), and the normal's limit. */
static void student_quantiles_solve_their_equations(void **state) {
    for (double tail = 0.4; tail > 1e-6; tail /= 3) {
        double p = 1 - tail, alpha = 4 * p * (1 - p), q = cos(acos(sqrt(alpha)) / 3) / sqrt(alpha);
        check_near(findings_student_quantile(tail, 1) * tan(M_PI * tail), 1, 1e-9);
        check_near(findings_student_quantile(tail, 2) / ((2 * p - 1) * sqrt(2 / alpha)), 1, 1e-9);
        check_near(findings_student_quantile(tail, 4) / (2 * sqrt(q - 1)), 1, 1e-9);
    }
    check_near(findings_student_quantile(0.025, 100000), 1.959963984540054, 1e-4);
}

static void ranks_share_ties(void **state) {
    const double x[] = {30, INFINITY, 10, 30, INFINITY, 20}, want[] = {3.5, 5.5, 1, 3.5, 5.5, 2};
    double ranks[6];
    findings_ranks(x, 6, ranks);
    for (int i = 0; i < 6; i++) check_near(ranks[i], want[i], 0);
}

static void holm_steps_down(void **state) {
    const double p[] = {0.04, 0.01, 0.03, 0.5}, want[] = {0.09, 0.04, 0.09, 0.5};
    double adjusted[4];
    findings_holm(p, 4, adjusted);
    for (int i = 0; i < 4; i++) check_near(adjusted[i], want[i], 1e-15);
}

static void signs_are_counted_exactly(void **state) {
    const double up[] = {1, 2, 3, 4, 5, 6}, tied[] = {1, -1, 0}, none[] = {0, 0};
    check_near(findings_sign_flip(up, 6, "x"), 1.0 / 64, 0);
    check_near(findings_sign_flip(tied, 3, "x"), 6.0 / 8, 0); /* only -1, -1 is below, with either sign of 0 */
    check_near(findings_sign_flip(none, 2, "x"), 1, 0);
    check_near(findings_sign_flip(NULL, 0, "x"), 1, 0);
    double many[40]; /* beyond the exact ones: P(sum of 40 signs >= 12) */
    for (int i = 0; i < 40; i++) many[i] = i < 26 ? 1 : -1;
    double tail = 0;
    for (int k = 26; k <= 40; k++) tail += exp(lgamma(41) - lgamma(k + 1) - lgamma(41 - k) - 40 * log(2));
    check_near(findings_sign_flip(many, 40, "x"), tail, 5 * sqrt(tail * (1 - tail) / FINDINGS_DRAWS));
}

static void survival_of_a_known_sample(void **state) {
    /* 6 lives: ends at 3, 3 and 8, censored at 3, 5 and 9. */
    const double times[] = {8, 3, 9, 3, 5, 3};
    const bool happened[] = {true, true, false, false, false, true};
    findings_survival s[6];
    int n;
    check_status(findings_kaplan_meier(times, happened, 6, s, &n), STATUS_OK);
    assert_int_equal(n, 2);
    check_near(s[0].time, 3, 0);
    check_near(s[0].at_risk, 6, 0);
    check_near(s[0].events, 2, 0);
    check_near(s[0].share, 2.0 / 3, 1e-15);
    check_near(s[1].time, 8, 0);
    check_near(s[1].at_risk, 2, 0);
    check_near(s[1].share, 1.0 / 3, 1e-15);
    check_near(findings_median_survival(s, n), 8, 0);
    assert_true(isnan(findings_median_survival(s, 1)));
    check_status(findings_kaplan_meier(times, happened, 0, s, &n), STATUS_OK);
    assert_int_equal(n, 0);
}

/* Layers 0 and 1 change places with 2 and 3 from seed to seed: ranks 1 2 3 4 and 3 4 1 2, less their means -1 or +1.
 * Adjacent: +, -, +; others: -, -, -... */
static void covariance_of_two_orders(void **state) {
    double onsets[6 * 4];
    for (int s = 0; s < 6; s++)
        for (int l = 0; l < 4; l++) onsets[s * 4 + l] = 10.0 * (s % 2 ? (l + 2) % 4 : l) + s;
    findings_test t;
    check_status(findings_propagation(onsets, 6, 4, "x", &t), STATUS_OK);
    double c = 6.0 / 5; /* each covariance is this or its negative */
    check_near(t.statistic, (c - c + c) / 3 - (-c - c - c) / 3, 1e-12);
    assert_true(t.p <= 0.01);
}

static void nothing_varies_nothing_is_tested(void **state) {
    double onsets[12], steps[12];
    findings_test t;
    int pairs;
    double patterns;
    for (int i = 0; i < 12; i++) onsets[i] = i % 4, steps[i] = INFINITY;
    check_status(findings_propagation(onsets, 3, 4, "x", &t), STATUS_OK);
    assert_true(isnan(t.p) && isnan(t.statistic));
    check_status(findings_propagation(onsets, 6, 2, "x", &t), STATUS_OK);
    assert_true(isnan(t.p));
    check_status(findings_coincidence(onsets, onsets, 3, 4, "x", &t, &pairs, &patterns), STATUS_OK);
    assert_int_equal(pairs, 12);
    check_near(patterns, 6 * 6 * 6 * 6, 0);
    check_near(t.statistic, 0, 0);
    assert_true(isnan(t.p));
    check_status(findings_coincidence(onsets, steps, 3, 4, "x", &t, &pairs, &patterns), STATUS_OK);
    assert_int_equal(pairs, 0);
    assert_true(isnan(t.p));
}

static void the_same_label_gives_the_same_p(void **state) {
    double onsets[24];
    findings_test a, b, other;
    for (int i = 0; i < 24; i++) onsets[i] = draw(1, (uint64_t)i);
    check_status(findings_propagation(onsets, 6, 4, "one", &a), STATUS_OK);
    check_status(findings_propagation(onsets, 6, 4, "one", &b), STATUS_OK);
    check_status(findings_propagation(onsets, 6, 4, "two", &other), STATUS_OK);
    check_near(a.p, b.p, 0);
    check_near(other.p, a.p, 0.05);
    assert_true(other.p != a.p);
}

enum { STUDIES = 120, SEEDS = 6, LAYERS = 5 };

/* Rejections at 5% in STUDIES studies are binomial: 6 expected, 16 are exceeded once in 10,000 times. */
enum { MOST_REJECTIONS = 16 };

/* Layers have their own times, later with depth, and nothing to do with one another: a trend that all seeds share is no
 * propagation, and a collapse that follows depth as the spike does is no coincidence. */
static void a_shared_trend_is_no_finding(void **state) {
    int propagations = 0, coincidences = 0, upward = 0, pairs;
    double spikes[SEEDS * LAYERS], collapses[SEEDS * LAYERS], patterns;
    findings_test t;
    for (uint64_t study = 0; study < STUDIES; study++) {
        for (int i = 0; i < SEEDS * LAYERS; i++) {
            spikes[i] = 20 * (i % LAYERS) + 50 * draw(2 * study, (uint64_t)i);
            collapses[i] = 20 * (i % LAYERS) + 50 * draw(2 * study + 1, (uint64_t)i);
        }
        check_status(findings_propagation(spikes, SEEDS, LAYERS, "trend", &t), STATUS_OK);
        propagations += t.p <= 0.05;
        check_status(findings_coincidence(spikes, collapses, SEEDS, LAYERS, "trend", &t, &pairs, &patterns), STATUS_OK);
        coincidences += t.p <= 0.05;
        double lean[SEEDS]; /* of layers in random order: no direction */
        for (int s = 0; s < SEEDS; s++) lean[s] = draw(9 * study, (uint64_t)s) - 0.5;
        upward += findings_sign_flip(lean, SEEDS, "trend") <= 0.05;
    }
    assert_true(propagations <= MOST_REJECTIONS);
    assert_true(coincidences <= MOST_REJECTIONS);
    assert_true(upward <= MOST_REJECTIONS);
}

/* What each layer gets from the one below it makes neighbours move together; collapses a few steps behind their spikes.
 */
static void what_neighbours_share_is_found(void **state) {
    int propagations = 0, coincidences = 0, pairs;
    enum { MORE_SEEDS = 10, MORE_LAYERS = 8, FEWER = 20 };
    double spikes[MORE_SEEDS * MORE_LAYERS], collapses[MORE_SEEDS * MORE_LAYERS], patterns;
    findings_test t;
    for (uint64_t study = 0; study < FEWER; study++) {
        for (int i = 0; i < MORE_SEEDS * MORE_LAYERS; i++) {
            double below = i % MORE_LAYERS ? spikes[i - 1] : 0;
            spikes[i] = below + 100 * draw(study, (uint64_t)i) + (i % MORE_LAYERS ? -50 : 0);
            collapses[i] = spikes[i] + 10 * draw(study + 1000, (uint64_t)i);
        }
        check_status(findings_propagation(spikes, MORE_SEEDS, MORE_LAYERS, "shared", &t), STATUS_OK);
        propagations += t.p <= 0.01;
        check_status(findings_coincidence(spikes, collapses, MORE_SEEDS, MORE_LAYERS, "shared", &t, &pairs, &patterns),
                     STATUS_OK);
        coincidences += t.p <= 0.01;
    }
    assert_true(propagations >= FEWER - 2);
    assert_int_equal(coincidences, FEWER);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(thresholds_solve_their_equations),
    cmocka_unit_test(student_quantiles_solve_their_equations),
    cmocka_unit_test(ranks_share_ties),
    cmocka_unit_test(holm_steps_down),
    cmocka_unit_test(signs_are_counted_exactly),
    cmocka_unit_test(survival_of_a_known_sample),
    cmocka_unit_test(covariance_of_two_orders),
    cmocka_unit_test(nothing_varies_nothing_is_tested),
    cmocka_unit_test(the_same_label_gives_the_same_p),
    cmocka_unit_test(a_shared_trend_is_no_finding),
    cmocka_unit_test(what_neighbours_share_is_found),
};

TEST_MAIN(tests)
