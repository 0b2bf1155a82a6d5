/* Private to comm/: the backends that comm.c chooses from, and how failures are reported. */
#pragma once

#include "comm/comm.h"

extern const comm_backend comm_backend_self, comm_backend_mpi;

/* A group of GPUs over NCCL, which starts through communicator c; o is the CUDA table of this rank. What a rank finds
 * wrong by itself is agreed on; a rank that fails after that, or waits for one that does not come, ends the job
 * (comm_abort). */
status comm_over_nccl(comm_group *out, MPI_Comm c, ops *o);

/* CONFIG when two ranks of c compute on one GPU, by its identity: NCCL would fail in words of its own, or hang, and
 * ranks of different groups would share it unseen. Collective over c; the verdict is the same on every rank. */
status comm_own_devices(MPI_Comm c, const ops *o);

/* Keeps the group's first error: what failed in the collective that the group names, with this rank's number in the
 * job. */
void comm_group_fail(comm_group *g, const char *operation, const char *reason);

/* The collective that began last, and how the group names another one from here on. */
comm_pending comm_group_begun(const comm_group *g);
void comm_group_name(comm_group *g, const comm_pending *at);

/* Before and after a call that needs the other ranks. */
void comm_group_wait(comm_group *g);

/* INTERNAL, with the library's text, when an MPI call did not return MPI_SUCCESS. */
status comm_check(int code, const char *what);
