/* For tests of tokenizers. */
#pragma once

#include "check.h"
#include "data/tokenizer.h"

/* The ids of one text, to be freed by the caller. */
static inline tokenizer_ids encode(const tokenizer *t, const char *bytes, size_t length) {
    tokenizer_ids ids = {0};
    tokenizer_text text = {bytes, length};
    check_status(tokenizer_encode(t, &text, 1, 1, &ids), STATUS_OK);
    return ids;
}
