/* A safetensors file: what opens has entries that can all be read and that together are the data. */
#include "input.h"

#include "core/safetensors.h"

#include <string.h>

enum { MOST_ELEMENTS = 1 << 20 };

/* Tensors of no elements may be of any shape; others are as large as the input. */
static void read_values(const safetensors_entry *e) {
    int64_t count = safetensors_elements(e);
    if (count > MOST_ELEMENTS) FINDING("%lld elements in a small file", (long long)count);
    float *numbers = malloc(((size_t)count + 1) * sizeof *numbers);
    int64_t *integers = malloc(((size_t)count + 1) * sizeof *integers);
    if (!numbers || !integers) abort();
    safetensors_f32(e, numbers);
    safetensors_i64(e, integers);
    free(numbers);
    free(integers);
}

static void check(const uint8_t *data, size_t bytes) {
    safetensors f;
    status got = safetensors_open(&f, input_file(data, bytes));
    if (got != STATUS_OK) {
        check_refusal(got, STATUS_DATA);
        return;
    }
    uint64_t length;
    size_t covered = 0;
    memcpy(&length, f.map, sizeof length);
    for (int i = 0; i < f.count; i++) {
        const safetensors_entry *e = &f.entries[i];
        if (safetensors_find(&f, e->name) != e) FINDING("%s is not found", e->name);
        covered += e->bytes;
        read_values(e);
        safetensors_let_go(&f, e);
    }
    if (covered != f.map_bytes - sizeof length - length) FINDING("the entries are not the data");
    safetensors_metadata(&f, "format");
    safetensors_close(&f);
}

/* Where the last brace is, counted from behind the length: what an edited header's length should be. */
static uint64_t header_length(const uint8_t *data, size_t bytes) {
    size_t end = bytes;
    while (end > sizeof(uint64_t) && data[end - 1] != '}') end--;
    return end - sizeof(uint64_t);
}

/* As it is, and with its length put right, without which hardly an edit would get behind the length. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    check(data, bytes);
    if (bytes < sizeof(uint64_t)) return 0;
    uint64_t length = header_length(data, bytes);
    uint8_t *right = malloc(bytes);
    if (!right) abort();
    memcpy(right, data, bytes);
    memcpy(right, &length, sizeof length);
    check(right, bytes);
    free(right);
    return 0;
}
