/* Private to comm/: the backends that comm.c chooses from, and how failures are reported. */
#pragma once

#include "comm/comm.h"

extern const comm_backend comm_backend_self, comm_backend_mpi;

/* A group of GPUs over NCCL, which starts through communicator c; o is the CUDA table of this rank. */
status comm_over_nccl(comm_group *out, MPI_Comm c, const ops *o);

/* Keeps the group's first error: what failed in the collective that began last, with this rank's number in the job. */
void comm_group_fail(comm_group *g, const char *operation, const char *reason);

/* INTERNAL, with the library's text, when an MPI call did not return MPI_SUCCESS. */
status comm_check(int code, const char *what);
