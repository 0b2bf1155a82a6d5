#include "data/split.h"

#include "core/rng.h"

#include <math.h>
#include <stddef.h>

enum { ENOUGH_DOCUMENTS = 8, RUNS_MOST = 64, RUN_BYTES = 16384, RUN_BYTES_LEAST = 512 };

static int64_t between(int64_t value, int64_t least, int64_t most) {
    return value < least ? least : value > most ? most : value;
}

split split_plan(int64_t documents, int64_t bytes, double fraction, uint64_t seed) {
    split s = {.by_documents = (double)documents * fraction >= ENOUGH_DOCUMENTS, .seed = seed};
    s.total = s.by_documents ? documents : bytes;
    if (fraction <= 0) return s;
    if (s.by_documents) {
        s.strata = llround((double)documents * fraction);
        s.length = 1;
        return s;
    }
    double want = (double)bytes * fraction;
    int64_t least = RUN_BYTES_LEAST < bytes / 4 ? RUN_BYTES_LEAST : bytes / 4;
    s.strata = between((int64_t)(want / RUN_BYTES), 1, RUNS_MOST);
    s.length = between((int64_t)(want / (double)s.strata), least, bytes / s.strata);
    if (s.length == 0) s.strata = 0;
    return s;
}

/* The start of a stratum. */
static int64_t edge(const split *s, int64_t stratum) {
    return (int64_t)((__int128)stratum * s->total / s->strata);
}

bool split_validation(const split *s, int64_t position, int64_t *until) {
    int64_t unused;
    if (!until) until = &unused;
    *until = s->total;
    if (s->strata == 0) return false;
    int64_t stratum = (int64_t)((__int128)position * s->strata / s->total);
    if (position >= edge(s, stratum + 1)) stratum++; /* edges are rounded down */
    int64_t low = edge(s, stratum), high = edge(s, stratum + 1);
    uint64_t places = (uint64_t)(high - low - s->length + 1);
    int64_t start = low + (int64_t)(rng_u64(s->seed, rng_stream("validation"), (uint64_t)stratum) % places);
    *until = position < start ? start : position < start + s->length ? start + s->length : high;
    return position >= start && position < start + s->length;
}
