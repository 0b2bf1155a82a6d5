/* What the libFuzzer targets share: one input as a file that needs no disk, and an end that the fuzzer sees. */
#pragma once

#include "core/status.h"

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

/* Ends the process with the reason: the input is a finding. */
#define FINDING(...)                                                                                                   \
    do {                                                                                                               \
        fprintf(stderr, "finding: " __VA_ARGS__);                                                                      \
        fprintf(stderr, " (%s)\n", status_message());                                                                  \
        abort();                                                                                                       \
    } while (0)

/* The path of a file in memory that holds data; the same file and path every time. */
static inline const char *input_file(const uint8_t *data, size_t bytes) {
    static char path[32];
    static int fd = -1;
    if (fd < 0) {
        fd = memfd_create("input", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, bytes, 0) != (ssize_t)bytes) abort();
    status_clear();
    return path;
}

/* A refusal has the right code and a message. */
static inline void check_refusal(status got, status allowed) {
    if (got != allowed || !status_message()[0]) FINDING("refused with %s", status_text(got));
}
