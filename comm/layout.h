/* Private to comm/: the arithmetic of docs/design.md section 4, from the host of each world rank to every rank's role,
 * without MPI, so that layouts of many hosts are tested on one. */
#pragma once

#include "core/status.h"

#include <stdbool.h>

typedef struct layout {
    int tp, dp;           /* P and Q, both known now */
    int *compute;         /* [P Q]: world rank of each compute rank */
    int *diagnostics;     /* [diagnostics ranks]: their world ranks, ascending */
    int *local_compute;   /* [world]: index among the compute ranks of its host, -1 on a diagnostics rank */
    int *compute_on_host; /* [world]: how many compute ranks its host has */
} layout;

/* host[i]: any number that names the host of world rank i. slots: ranks that mpirun starts here without being told to
 * put more on a host than it has cores; only for the launch line in the message. CONFIG when the world is not
 * P Q + diagnostics ranks, or a tensor-parallel group would cross hosts, with the line that would be right. */
status layout_make(layout *out, const int *host, int world, int tp, int dp, int diagnostics, int slots);

/* When a rank or a host is lost, one of those that wait for it tells: the one whose turn is the lowest. 0: compute rank
 * 0's; 1: the first one's of the second host that computes, where there is one host compute rank 1's; 2: all others'.
 */
int layout_turn(const layout *l, int world_rank);

void layout_free(layout *l);
