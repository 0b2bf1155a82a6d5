/* bench_tokens TOKENIZER TEXT [THREADS]: encodes a text file in parts of 64 KiB, as `bulkhead prepare` encodes many
 * documents at once; checks that decoding gives them back (a tokenizer that changes text is told, not refused), then
 * takes the best of five times. One JSON line. */
#include "core/clock.h"
#include "core/file.h"
#include "data/reader.h"
#include "data/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PART_BYTES = 1 << 16, ROUNDS = 5 };

static status encode(const tokenizer *t, const tokenizer_text *parts, int64_t count, int threads, tokenizer_ids *ids,
                     double *best_s) {
    for (int round = 0; round < ROUNDS; round++) {
        for (int64_t i = 0; i < count; i++) ids[i].count = 0;
        double start = clock_now_s();
        TRY(tokenizer_encode(t, parts, count, threads, ids));
        double took = clock_now_s() - start;
        if (round == 0 || took < *best_s) *best_s = took;
    }
    return STATUS_OK;
}

static status run(const char *model, const char *path, int threads) {
    tokenizer *t;
    char *text;
    size_t bytes;
    int64_t count = 0, tokens = 0;
    double best_s = 0;
    bool same = true;
    TRY(tokenizer_load(&t, model));
    TRY(file_read_all(&text, &bytes, path, (size_t)1 << 30));
    size_t most = bytes / (PART_BYTES / 2) + 2;
    tokenizer_text *parts = calloc(most, sizeof *parts);
    tokenizer_ids *ids = calloc(most, sizeof *ids);
    if (!parts || !ids) return status_fail(STATUS_INTERNAL, "out of memory");
    for (size_t done = 0; done < bytes; done += parts[count++].length)
        parts[count] = (tokenizer_text){text + done, reader_cut(text + done, bytes - done, PART_BYTES)};
    TRY(encode(t, parts, count, threads, ids, &best_s));
    for (int64_t i = 0; i < count; i++) {
        char *back;
        size_t length;
        TRY(tokenizer_decode(t, ids[i].ids, ids[i].count, &back, &length));
        same = same && length == parts[i].length && memcmp(back, parts[i].bytes, length) == 0;
        tokens += ids[i].count;
        free(back);
        free(ids[i].ids);
    }
    printf("{\"bench\": \"tokens\", \"tokenizer\": \"%s\", \"vocab\": %lld, \"threads\": %d, \"mb\": %.1f, "
           "\"bytes_a_token\": %.3f, \"lossless\": %s, \"mb_per_s\": %.2f}\n",
           tokenizer_file_name(t), (long long)tokenizer_vocab(t), threads, (double)bytes / 1e6,
           (double)bytes / (double)tokens, same ? "true" : "false", (double)bytes / 1e6 / best_s);
    free(parts);
    free(ids);
    free(text);
    tokenizer_free(t);
    return STATUS_OK;
}

int main(int argc, char **argv) {
    if (argc < 3) {
        fprintf(stderr, "usage: bench_tokens TOKENIZER TEXT [THREADS]\n");
        return STATUS_USAGE;
    }
    status s = run(argv[1], argv[2], argc > 3 ? atoi(argv[3]) : 1);
    if (s != STATUS_OK) fprintf(stderr, "bench_tokens: %s\n", status_message());
    return s;
}
