/* bulkhead analyze: the statistics of training's snapshots from a model's checkpoints, whoever trained them. The same
 * maps compute them (diag/maps.h), one layer a thread at a time, so memory holds the weights of that many layers and
 * every layer's rows. */
#pragma once

#include "core/status.h"

#include <stdint.h>

typedef struct analyze_request {
    const char *const *models; /* [model_count] see series.h and checkpoint.h */
    int model_count;
    const char *output;          /* the database; it must not be there yet */
    const char *config;          /* config.yaml for tensors of Bulkhead's names, or NULL */
    const char *const *settings; /* "section.key=value", as in config_load */
    int setting_count;
    int64_t step;    /* of a single model; -1: its name says it */
    int threads;     /* 0: as many as OpenMP would take */
    int null_wait_s; /* how long to wait, after the last checkpoint, for null ensembles that are not known yet */
} analyze_request;

/* One run with a snapshot a checkpoint. All checkpoints are opened and checked before anything is written. USAGE, DATA,
 * NO_INPUT, CONFIG as the headers above; DATA also when the checkpoints are not of one model; IO when the database
 * cannot be written. */
status analyze_run(const analyze_request *request);
