/* Who does what in a job (docs/design.md section 4): P x Q compute ranks and the diagnostics ranks, from one world.
 *
 * Diagnostics ranks are the highest local ranks of the hosts with the most ranks; compute ranks are numbered host by
 * host after that. Tensor-parallel groups are P contiguous compute ranks, data-parallel groups stride across them. */
#pragma once

#include "comm/comm.h"

#include <stdbool.h>

enum { COMM_PATIENCE_S = 300 };

typedef struct comm_roles {
    int world_rank, world_size;
    bool diagnostics; /* this rank's role */
    int diagnostics_ranks;
    int diagnostics_rank;    /* 0 (writes the database) .. diagnostics_ranks - 1, or -1 on a compute rank */
    int tp, dp;              /* P and Q */
    int compute_rank;        /* 0 .. P Q - 1, or -1 on a diagnostics rank */
    int tp_rank, dp_rank;    /* likewise */
    int local_compute_rank;  /* index among this host's compute ranks: its GPU */
    int local_compute_ranks; /* compute ranks on this host: how its cores are shared; at least 1 */
    bool oversubscribed;     /* more ranks on this host than cores */
    int turn;                /* 0, 1 or 2: which watchdogs speak before this one's, so that one does (layout_turn) */
    double patience_s;       /* how long the channel waits for a rank that takes nothing before it fails */
    char host[64];
    MPI_Comm world;               /* copy of MPI_COMM_WORLD, for comm_agree and shutdown */
    MPI_Comm compute;             /* all compute ranks in their order; MPI_COMM_NULL on a diagnostics rank */
    MPI_Comm channel;             /* whole world, used by the snapshot channel alone */
    int *diagnostics_world_ranks; /* [diagnostics_ranks] */
    int *compute_world_ranks;     /* [P Q], by compute rank */
} comm_roles;

/* Splits the world. dp = 0: as many as fit. CONFIG, with the launch line that would be right, when the world is not
 * P Q + diagnostics ranks. Collective; the verdict is the same on every rank. Call after MPI_Init_thread. */
status comm_roles_split(comm_roles *out, int tp, int dp, int diagnostics_ranks);

/* The tensor-parallel and data-parallel group of this compute rank for buffers of its device, each closed by the
 * caller. Collective over r->compute; on a diagnostics rank there is none to make: do not call it. */
status comm_roles_groups(const comm_roles *r, ops *device, comm_group *tp, comm_group *dp);

void comm_roles_free(comm_roles *r);

/* MPI_Init_thread with MPI_THREAD_MULTIPLE, errors returned; INTERNAL when the library does not offer it. */
status comm_start(int *argc, char ***argv);

/* MPI_Finalize. */
void comm_stop(void);

/* Ends every rank of the job at once with this exit code (MPI_Abort): for failures in the middle of a step. */
_Noreturn void comm_abort(int exit_code);

/* All ranks of c call it with their own status; all get the worst (the highest code), and its message: the one of the
 * lowest rank that had it, passed on to every rank (status_message()). */
status comm_agree(MPI_Comm c, status mine);
