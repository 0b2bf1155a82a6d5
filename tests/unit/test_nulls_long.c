/* What the nulls promise, with the numbers it takes to see it: minutes of work, label `long`. */
#include "check.h"
#include "diag/nulls_columns.h"
#include "nulls_models.h"

/* At the shapes of 130m, around where the largest eigenvalue passes from content to rope: the sharpest turn. */
static void interpolation_at_130m(void **state) {
    nulls_shape block = {.kind = NULLS_BLOCK, .content = 64, .copies = 1, .rope = 32, .latent = 256, .width = 768};
    nulls_shape channel = block,
                mixed = {.kind = NULLS_MIXED, .half = 768, .dim_count = 5, .dim = {768, 64, 256, 1536, 768}};
    channel.channel = true;
    nulls_shape_finish(&block);
    nulls_shape_finish(&channel);
    nulls_shape_finish(&mixed);
    for (double x = -1; x < 1.5; x += 0.07) nulls_check_interpolation(&block, x, 0, 500);
    for (double x = -0.8; x < 0.9; x += 0.4)
        for (double y = -0.9; y < 1.2; y += 0.45) nulls_check_interpolation(&channel, x, y, 300);
    for (double x = 0; x < 3; x += 0.3) nulls_check_interpolation(&mixed, x, 0, 500);
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(interpolation_at_130m),
};

TEST_MAIN(tests)
