/* What every test program for several ranks includes: a main that starts MPI and, when a test fails on one rank, ends
 * all, so that none waits for the others. A program ends with DIST_MAIN(tests). */
#pragma once

#include "check.h"

#include "comm/roles.h"

static inline int world_rank(void) {
    int rank = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    return rank;
}

static inline int world_size(void) {
    int size = 1;
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    return size;
}

static inline int dist_run(int argc, char **argv, const struct CMUnitTest *tests, size_t count) {
    if (comm_start(&argc, &argv) != STATUS_OK) {
        fprintf(stderr, "%s\n", status_message());
        return 1;
    }
    if (test_run(argc, argv, tests, count) != 0) comm_abort(1);
    comm_stop();
    return 0;
}

#define DIST_MAIN(tests)                                                                                               \
    int main(int argc, char **argv) {                                                                                  \
        return dist_run(argc, argv, tests, sizeof(tests) / sizeof(tests)[0]);                                          \
    }
