/* At which steps a run takes snapshots (docs/design.md section 5): step 0, every step up to diagnostics.dense_until,
 * every diagnostics.every-th, and the last. Pure functions of the configuration. */
#pragma once

#include "core/config.h"

bool snapshot_steps_due(const config *c, int64_t step);

/* How many there are in the whole run; 0 with diagnostics.ranks: 0. */
int64_t snapshot_steps_count(const config *c);

/* The first after step; -1 behind the last. */
int64_t snapshot_steps_next(const config *c, int64_t step);
