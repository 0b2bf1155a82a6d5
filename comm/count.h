/* A group that moves nothing and counts: set-up code runs over it to find out what a step communicates. */
#pragma once

#include "comm/comm.h"

typedef struct comm_counter {
    int64_t collectives, bytes; /* payload of the buffers, once a collective */
} comm_counter;

/* A group that looks like rank `rank` of `size`. */
void comm_count(comm_group *out, comm_counter *counter, int rank, int size);
