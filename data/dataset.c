/* Shards as one sequence of windows, and the order in which a run sees them. Opening reads every token once, to refuse
 * an id that the model has no row for; after that nothing is allocated. */
#include "data/dataset.h"

#include "core/rng.h"

#include <assert.h>
#include <glob.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static status add_shard(dataset *d, const char *path) {
    shard *grown = realloc(d->shards, (size_t)(d->count + 1) * sizeof *grown);
    if (!grown) return status_fail(STATUS_INTERNAL, "out of memory");
    d->shards = grown;
    TRY(shard_open(&d->shards[d->count], path));
    d->count++;
    return STATUS_OK;
}

static int by_bytes(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static status add_pattern(dataset *d, const char *pattern) {
    if (access(pattern, F_OK) == 0) return add_shard(d, pattern); /* a path, even one with a bracket in its name */
    glob_t found;
    int failed = glob(pattern, GLOB_NOSORT, NULL, &found);
    if (failed == GLOB_NOMATCH) return status_fail(STATUS_NO_INPUT, "no shard matches %s", pattern);
    if (failed) return status_fail(STATUS_IO, "cannot list the shards %s", pattern);
    /* By bytes, not by the locale: the order of the data must not depend on who starts the run. */
    qsort(found.gl_pathv, found.gl_pathc, sizeof *found.gl_pathv, by_bytes);
    status result = STATUS_OK;
    for (size_t i = 0; i < found.gl_pathc && result == STATUS_OK; i++) result = add_shard(d, found.gl_pathv[i]);
    globfree(&found);
    return result;
}

static status bad_id(const shard *s, int64_t position, uint32_t id, int64_t vocab) {
    return status_fail(STATUS_DATA,
                       "%s: token %" PRId64 " is id %" PRIu32 ", but the vocabulary has %" PRId64 " ids (0 to %" PRId64
                       "); use the vocabulary that the shards were made with",
                       s->path, position, id, vocab, vocab - 1);
}

/* The largest of a block is found without a branch, so that the scan runs at memory speed. */
#define SCAN(name, type)                                                                                               \
    static status name(const shard *s, int64_t vocab) {                                                                \
        const type *tokens = s->data;                                                                                  \
        for (int64_t first = 0; first < s->tokens; first += 65536) {                                                   \
            int64_t end = s->tokens - first < 65536 ? s->tokens : first + 65536;                                       \
            type largest = 0;                                                                                          \
            for (int64_t i = first; i < end; i++) largest = tokens[i] > largest ? tokens[i] : largest;                 \
            if (largest < vocab) continue;                                                                             \
            for (int64_t i = first; i < end; i++)                                                                      \
                if (tokens[i] >= vocab) return bad_id(s, i, tokens[i], vocab);                                         \
        }                                                                                                              \
        return STATUS_OK;                                                                                              \
    }
SCAN(scan_16, uint16_t)
SCAN(scan_32, uint32_t)

static status count_windows(dataset *d) {
    d->first_window = calloc((size_t)d->count + 1, sizeof *d->first_window);
    if (!d->first_window) return status_fail(STATUS_INTERNAL, "out of memory");
    for (int i = 0; i < d->count; i++) {
        int64_t tokens = d->shards[i].tokens, windows = tokens > 0 ? (tokens - 1) / d->context : 0;
        d->tokens += tokens;
        d->windows += windows;
        d->first_window[i + 1] = d->windows;
    }
    if (d->windows > 0) return STATUS_OK;
    return status_fail(STATUS_DATA,
                       "%s%s: %" PRId64 " tokens are too few for one sample of %" PRId64
                       " (context + 1); use more text or a smaller model.context",
                       d->count ? d->shards[0].path : "no shard", d->count > 1 ? " and the other shards" : "",
                       d->tokens, d->context + 1);
}

static status open_all(dataset *d, const char *const *patterns, int pattern_count) {
    if (d->context < 1) return status_fail(STATUS_CONFIG, "a context of %" PRId64 " tokens is too short", d->context);
    if (pattern_count == 0) return status_fail(STATUS_NO_INPUT, "no token shards are named");
    for (int i = 0; i < pattern_count; i++) TRY(add_pattern(d, patterns[i]));
    TRY(count_windows(d));
    for (int i = 0; i < d->count; i++) {
        const shard *s = &d->shards[i];
        TRY(s->token_bytes == 2 ? scan_16(s, d->vocab) : scan_32(s, d->vocab));
    }
    return STATUS_OK;
}

status dataset_open(dataset *out, const char *const *patterns, int pattern_count, int64_t context, int64_t vocab) {
    *out = (dataset){.context = context, .vocab = vocab};
    status result = open_all(out, patterns, pattern_count);
    if (result != STATUS_OK) dataset_close(out);
    return result;
}

void dataset_close(dataset *d) {
    for (int i = 0; i < d->count; i++) shard_close(&d->shards[i]);
    free(d->shards);
    free(d->first_window);
    *d = (dataset){0};
}

/* The shard that holds window w: the last one whose first window is at or before it. */
static int shard_of(const dataset *d, int64_t w) {
    int low = 0, high = d->count - 1;
    while (low < high) {
        int middle = low + (high - low) / 2;
        if (d->first_window[middle + 1] <= w)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

void dataset_window(const dataset *d, int64_t w, int32_t *input, int32_t *target) {
    assert(w >= 0 && w < d->windows);
    int index = shard_of(d, w);
    int64_t first = (w - d->first_window[index]) * d->context;
    shard_read(&d->shards[index], first, d->context, input);
    shard_read(&d->shards[index], first + 1, d->context, target);
}

/* Place `index` of a permutation of n that is never stored: a Feistel network on pairs (left < rows, right < columns)
 * with rows x columns >= n, whose rounds add a random function of one half to the other. It permutes all pairs; walking
 * on from a place >= n until one lies inside leaves a permutation of n (Black & Rogaway, CT-RSA 2002). Both sides are
 * near sqrt(n), so a walk is rare, and a half always fits 32 bits. Eight rounds leave a bias that a test sees at n = 5;
 * with 16 none is left in a million epochs. */
static int64_t permute(uint64_t seed, uint64_t stream, int64_t n, int64_t index) {
    enum { ROUNDS = 16 };
    uint64_t rows = (uint64_t)ceil(sqrt((double)n)), columns = ((uint64_t)n + rows - 1) / rows, place = (uint64_t)index;
    do {
        uint64_t left = place / columns, right = place % columns;
        for (uint64_t round = 0; round < ROUNDS; round += 2) {
            left = (left + rng_u64(seed, stream, round << 32 | right) % rows) % rows;
            right = (right + rng_u64(seed, stream, (round + 1) << 32 | left) % columns) % columns;
        }
        place = left * columns + right;
    } while (place >= (uint64_t)n);
    return (int64_t)place;
}

int64_t sampler_window(const sampler *s, int64_t step, int64_t sample) {
    assert(step >= 1 && sample >= 0 && sample < s->global_batch);
    uint64_t windows = (uint64_t)s->data->windows;
    uint64_t position = (uint64_t)(step - 1) * (uint64_t)s->global_batch + (uint64_t)sample, epoch = position / windows;
    return permute(s->seed, rng_stream("data order") + epoch, (int64_t)windows, (int64_t)(position % windows));
}

int64_t sampler_last_step(const sampler *s) {
    return s->repeat ? INT64_MAX : s->data->windows / s->global_batch;
}
