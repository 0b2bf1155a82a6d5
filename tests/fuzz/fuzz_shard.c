/* A token shard: the tokens of what opens are what the file has behind its header. */
#include "input.h"

#include "data/shard.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    shard s;
    status got = shard_open(&s, input_file(data, bytes));
    if (got != STATUS_OK) {
        check_refusal(got, STATUS_DATA);
        return 0;
    }
    const char *end = (const char *)s.map + bytes;
    if (s.tokens < 0 || (const char *)s.data + s.tokens * s.token_bytes != end)
        FINDING("%lld tokens of %d bytes do not end where the file does", (long long)s.tokens, s.token_bytes);
    int32_t *tokens = malloc(((size_t)s.tokens + 1) * sizeof *tokens);
    if (!tokens) abort();
    shard_read(&s, 0, s.tokens, tokens);
    free(tokens);
    shard_close(&s);
    return 0;
}
