/* Every line draws a key from (seed, its number); those with the smallest keys stay. A heap with the largest key on top
 * gives up its top while more is held than allowed. */
#include "data/lines.h"

#include "core/rng.h"
#include "data/reader.h"

#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES = 1024 };

typedef struct kept {
    uint64_t key, number;
    tokenizer_text text;
} kept;

struct lines {
    kept *heap;
    tokenizer_text *texts; /* lines_kept's answer */
    int64_t count, bytes, count_most, bytes_most;
    uint64_t seed, stream, seen;
};

status lines_open(lines **out, int64_t count, int64_t bytes, uint64_t seed) {
    lines *l = calloc(1, sizeof *l);
    *out = NULL;
    if (l) {
        *l = (lines){.count_most = count, .bytes_most = bytes, .seed = seed, .stream = rng_stream("tokenizer lines")};
        l->heap = malloc((size_t)(count + 1) * sizeof *l->heap);
        l->texts = malloc((size_t)(count + 1) * sizeof *l->texts);
    }
    if (!l || !l->heap || !l->texts) {
        lines_close(l);
        return status_fail(STATUS_INTERNAL, "out of memory");
    }
    *out = l;
    return STATUS_OK;
}

void lines_close(lines *l) {
    if (!l) return;
    for (int64_t i = 0; i < l->count; i++) free((char *)l->heap[i].text.bytes);
    free(l->heap);
    free(l->texts);
    free(l);
}

static void swap(kept *a, kept *b) {
    kept c = *a;
    *a = *b;
    *b = c;
}

static void sift_up(kept *heap, int64_t at) {
    for (; at > 0 && heap[at].key > heap[(at - 1) / 2].key; at = (at - 1) / 2) swap(&heap[at], &heap[(at - 1) / 2]);
}

static void sift_down(kept *heap, int64_t count) {
    for (int64_t at = 0;;) {
        int64_t larger = 2 * at + 1;
        if (larger + 1 < count && heap[larger + 1].key > heap[larger].key) larger++;
        if (larger >= count || heap[larger].key <= heap[at].key) return;
        swap(&heap[at], &heap[larger]);
        at = larger;
    }
}

static status offer(lines *l, const char *line, size_t length) {
    uint64_t number = l->seen++, key = rng_u64(l->seed, l->stream, number);
    bool full = l->count == l->count_most || l->bytes + (int64_t)length > l->bytes_most;
    if (full && l->count > 0 && key >= l->heap[0].key) return STATUS_OK;
    char *copy = malloc(length);
    if (!copy) return status_fail(STATUS_INTERNAL, "out of memory");
    memcpy(copy, line, length);
    l->heap[l->count] = (kept){key, number, {copy, length}};
    l->bytes += (int64_t)length;
    sift_up(l->heap, l->count++);
    while (l->count > l->count_most || l->bytes > l->bytes_most) {
        l->bytes -= (int64_t)l->heap[0].text.length;
        free((char *)l->heap[0].text.bytes);
        l->heap[0] = l->heap[--l->count];
        sift_down(l->heap, l->count);
    }
    return STATUS_OK;
}

/* The bytes of the first line with the newlines behind it, or of as much of it as one sample may have, cut at a space
 * where there is one. */
static size_t line_length(const char *text, size_t length) {
    const char *newline = memchr(text, '\n', length);
    size_t end = newline ? (size_t)(newline - text) + 1 : length;
    while (newline && end < length && text[end] == '\n') end++;
    if (end <= LINE_BYTES) return end;
    size_t cut = LINE_BYTES;
    while (cut > LINE_BYTES / 2 && text[cut] != ' ') cut--;
    return text[cut] == ' ' ? cut : reader_cut(text, end, LINE_BYTES);
}

status lines_add(lines *l, const char *text, size_t length) {
    while (length > 0) {
        size_t line = line_length(text, length);
        TRY(offer(l, text, line));
        text += line;
        length -= line;
    }
    return STATUS_OK;
}

static int by_number(const void *a, const void *b) {
    uint64_t x = ((const kept *)a)->number, y = ((const kept *)b)->number;
    return (x > y) - (x < y);
}

/* Sorting ends the heap, so this is the last call before lines_close. */
const tokenizer_text *lines_kept(lines *l, int64_t *count, int64_t *bytes) {
    qsort(l->heap, (size_t)l->count, sizeof *l->heap, by_number);
    for (int64_t i = 0; i < l->count; i++) l->texts[i] = l->heap[i].text;
    *count = l->count;
    *bytes = l->bytes;
    return l->texts;
}
