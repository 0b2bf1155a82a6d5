/* `bulkhead train`: from a launched rank to a finished run. */
#pragma once

#include "core/status.h"

#include <stdint.h>

typedef struct train_options {
    const char *config_path;
    const char *const *settings; /* "section.key=value" */
    int setting_count;
    int64_t profile;    /* steps to profile; 0: none */
    const char *resume; /* NULL: a new run; or what it goes on from (trainer/resume.h) */
} train_options;

/* The body of one rank, compute or diagnostics; MPI is started and all ranks call it. On failure all ranks return the
 * same status and message, except after a failure in mid-step, which ends the job from inside (comm_abort). */
status train_run(const train_options *options);
