/* Private to the two processes of diag/worker.h. */
#pragma once

#include "comm/message.h"
#include "diag/worker.h"

#include <sys/types.h>

enum { WORKER_SOCKET = 3, WORKER_SESSION = 1 /* the kind of a worker's first message: this, then the configuration */ };

typedef struct worker_session {
    pid_t supervisor;
    int rank, tp, dp;
    int64_t resume_step;
    char run_dir[4096], device[64], hosts[256];
} worker_session;
