/* Ensembles of the named sizes' heads: made by the program make_nulls, not by hand. */
#include "diag/nulls_cache.h"

#include <math.h>

/* clang-format off */
const nulls_entry nulls_table[] = {
    {{0}, 0, {{0}, {0}}},
};
/* clang-format on */
const int nulls_table_count = 0;
