#include "trainer/agreement.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char place[] = "the step's agreement";

enum { MOST_NAMED = 8 };

status agreement_make(comm_group *all, agreement *a) {
    double values[] = {a->signal, a->stop, a->save, a->writing, a->failed};
    comm_all_reduce(all, values, sizeof values / sizeof *values, DTYPE_F64, COMM_MAX, place, -1);
    *a = (agreement){.signal = (int)values[0],
                     .stop = values[1] > 0,
                     .save = values[2] > 0,
                     .writing = values[3] > 0,
                     .failed = values[4] > 0};
    return comm_status(all);
}

/* The ranks in a text; yes [count]. */
static void name_ranks(const double *yes, int count, char *out, size_t size) {
    int found = 0;
    for (int i = 0; i < count; i++) found += yes[i] > 0;
    snprintf(out, size, "%s", found == 0 ? "no rank" : found == 1 ? "rank" : "ranks");
    for (int i = 0, named = 0; i < count && named < MOST_NAMED; i++) {
        size_t used = strlen(out);
        if (yes[i] > 0) snprintf(out + used, size - used, "%s%d", named++ ? ", " : " ", i);
    }
    size_t used = strlen(out);
    if (found > MOST_NAMED) snprintf(out + used, size - used, " and %d more", found - MOST_NAMED);
}

status agreement_who(comm_group *all, bool mine, char *out, size_t size) {
    double *yes = calloc((size_t)all->size, sizeof *yes);
    if (!yes) return status_fail(STATUS_INTERNAL, "out of memory for %d ranks", all->size);
    yes[all->rank] = mine;
    comm_all_reduce(all, yes, all->size, DTYPE_F64, COMM_MAX, place, -1);
    name_ranks(yes, all->size, out, size);
    free(yes);
    return comm_status(all);
}
