/* What a glance at a run tells, while it is written or afterwards: how far it is, its loss, its spectra as a small heat
 * map, its last events. */
#pragma once

#include "core/json.h"
#include "diag/report_bins.h"

#include <stdbool.h>

enum { GLANCE_EVENTS = 20 };

typedef struct glance_event {
    int64_t step;
    char time[24], level[8], kind[16], message[256];
} glance_event;

typedef struct glance {
    char name[128], variant[24], status[16];
    int64_t run_id;
    int64_t attempt, exit_code; /* of the last session; exit_code -1: none yet */
    double idle_s;              /* since the database was last written */

    int64_t step, steps; /* of the last update, of train.steps; -1: not known */
    double loss, grad_norm, lr;
    double tokens_per_s, seconds_left; /* by the last 20 steps; without validations and checkpoints */
    double validation_loss;
    int64_t validation_step;
    report_bins loss_bins;
    double losses[REPORT_BINS]; /* [loss_bins.count] medians over a bin's steps */

    int64_t snapshots, waiting, missed; /* done; planned but not done: what the diagnostics ranks are behind; others */
    int64_t snapshot_step;              /* the last that is done, -1: none */
    double lag_ms, compute_ms;          /* of that one */

    const char *column; /* the map's */
    int layers;
    report_bins map_bins;
    double *map; /* [layers, map_bins.count] medians over heads and a bin's snapshots; NaN: no value */

    int event_count;
    int64_t events_total;
    glance_event events[GLANCE_EVENTS]; /* the last ones, oldest first */
} glance;

/* The columns of spectra that a map can show; NULL behind the last. */
const char *glance_column(int index);

/* The number of that column; USAGE: there is none of that name. */
status glance_find_column(const char *name, int *index);

/* Reads a database or run folder as of one moment; of several runs the one that began last. Unknown numbers are NaN, or
 * -1. NO_INPUT where it is missing or no run has begun in it, DATA where it is no run's, IO where it cannot be read
 * now. The caller frees *out.
 */
status glance_read(const char *path, const char *column, glance *out);

void glance_free(glance *g);

/* Finished, stopped, interrupted or failed. */
bool glance_has_ended(const glance *g);

/* All of it as one JSON object; a new reference, NULL: out of memory. */
json_t *glance_json(const glance *g);
