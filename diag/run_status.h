/* What a run's database says of the run as a whole: for whoever starts runs and has to know which are done. */
#pragma once

#include "core/config.h"

typedef struct run_status {
    char word[16]; /* running, finished, stopped, interrupted, failed (docs/operations.md); "": there is no run yet */
    int64_t exit_code; /* of the last session; -1: none is recorded */
} run_status;

/* path: the database or the run's folder. DATA, IO where it is there and cannot be read. */
status run_status_read(const char *path, run_status *out);

/* CONFIG when the run was made with other values than c's of what its results depend on (model, attention, data, train,
 * run.seed; of c what is not derived yet says nothing), naming the first such key and both values. Else as
 * run_status_read. */
status run_status_compare(const char *path, const config *c);
