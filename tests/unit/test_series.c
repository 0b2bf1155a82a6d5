/* The step in a checkpoint's name. */
#include "check.h"

#include "diag/analyze/series.h"

static void steps_in_names(void **state) {
    static const struct {
        const char *path;
        int64_t step;
    } cases[] = {
        {"run/checkpoints/step-00001000", 1000},
        {"checkpoint-200/", 200},
        {"global_step143000", 143000},
        {"a/Step=5.safetensors", 5},
        {"step_0", 0},
        {"models/Llama-2-7b", -1},
        {"epoch-3", -1},
        {"step", -1},
        {"step-", -1},
        {"12", -1},
        {"/", -1},
        {"", -1},
        {"step-1/model", -1},
        {"step-1234567890123456", -1}, /* more digits than any step */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (series_step_of(cases[i].path) != cases[i].step)
            fail_msg("%s is of step %lld, want %lld", cases[i].path, (long long)series_step_of(cases[i].path),
                     (long long)cases[i].step);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(steps_in_names),
};

TEST_MAIN(tests)
