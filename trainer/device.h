/* The device of a compute rank: its table of operations and the attention core that goes with it. */
#pragma once

#include "attention/core.h"
#include "comm/roles.h"
#include "core/config.h"

/* What run.device and train.precision ask for: auto takes a GPU where the program sees one. A compute rank takes the
 * GPU of its index among the compute ranks of its host, or the only one it sees: launchers may show each rank only its
 * own. run.threads must be resolved. CONFIG when there is no such device, when a host has more compute ranks than GPUs,
 * or bf16 is asked of a CPU. The caller ends the table with device_close. */
status device_open(ops *o, const attn_core **core, const config *c, const comm_roles *roles);

void device_close(ops *o);

/* The CPU cores that this process may use. */
int64_t device_cores(void);
