/* A watchdog for collectives: where a rank waits for others that do not come (stopped, hung, out of step), nothing in
 * MPI or NCCL ever gives up. It polls the groups from a thread of its own, and after `patience_s` inside one
 * collective, whether the call does not return or the device does not finish it, says which rank waits in which
 * operation, layer and step, and ends the job (comm_abort); so it does where the library found a fault by itself. A
 * rank that died is not its business: mpirun and srun end the others by themselves. */
#pragma once

#include "comm/comm.h"

typedef struct comm_watchdog comm_watchdog;

/* Watches groups[count], which must outlive it. */
status comm_watch(comm_watchdog **out, const comm_group *const *groups, int count, double patience_s);

/* The training step that begins, for the message. */
void comm_watch_step(comm_watchdog *w, int64_t step);

/* Ends it; NULL is none. */
void comm_unwatch(comm_watchdog *w);
