/* What every test program includes: cmocka, a main that runs all tests or the one named by argv[1], and asserts that print
 * both values. A test program ends with TEST_MAIN(tests). */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>

#include "core/status.h"

/* |value - want| <= tolerance. */
#define check_near(value, want, tolerance)                                                                             \
    do {                                                                                                               \
        double value_ = (value), want_ = (want), tolerance_ = (tolerance);                                             \
        if (!(fabs(value_ - want_) <= tolerance_))                                                                     \
            fail_msg("%s = %.17g, want %s = %.17g, off by %.3g > %.3g", #value, value_, #want, want_,                  \
                     fabs(value_ - want_), tolerance_);                                                                \
    } while (0)

/* The call returns that status. */
#define check_status(call, want)                                                                                       \
    do {                                                                                                               \
        status got_ = (call);                                                                                          \
        if (got_ != (want)) fail_msg("%s: %s (%s), want %s", #call, status_text(got_), status_message(), status_text(want)); \
    } while (0)

/* ||a - b|| / ||b|| over n floats, in double; 0/0 is 0. */
static inline double relative_error(const float *a, const float *b, size_t n) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        norm += (double)b[i] * b[i];
    }
    return difference == 0 ? 0 : sqrt(difference / norm);
}

static inline int test_run(int argc, char **argv, const struct CMUnitTest *tests, size_t count) {
    if (argc > 1) {
        cmocka_set_test_filter(argv[1]);
        size_t found = 0;
        for (size_t i = 0; i < count; i++) found += strcmp(tests[i].name, argv[1]) == 0;
        if (found != 1) {
            fprintf(stderr, "no test %s\n", argv[1]);
            return 1;
        }
    }
    return _cmocka_run_group_tests("tests", tests, count, NULL, NULL);
}

#define TEST_MAIN(tests)                                                                                               \
    int main(int argc, char **argv) { return test_run(argc, argv, tests, sizeof(tests) / sizeof(tests)[0]); }
