/* A token shard: every token of what opens can be read. */
#include "input.h"

#include "data/shard.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    shard s;
    status got = shard_open(&s, input_file(data, bytes));
    if (got != STATUS_OK) {
        check_refusal(got, STATUS_DATA);
        return 0;
    }
    if (s.tokens < 0 || (size_t)s.tokens > bytes) FINDING("%lld tokens", (long long)s.tokens);
    int32_t *tokens = malloc(((size_t)s.tokens + 1) * sizeof *tokens);
    if (!tokens) abort();
    shard_read(&s, 0, s.tokens, tokens);
    free(tokens);
    shard_close(&s);
    return 0;
}
