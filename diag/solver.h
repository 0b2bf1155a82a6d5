/* Square cores collected from all workers and solved together on a device. Private to diag/. */
#pragma once

#include "diag/svd.h"

typedef struct solver solver;

/* Memory for cores 0 .. count - 1 of sides[i] x sides[i]; side 0: that one does not come here. device stays the
 * caller's and outlives the solver. CONFIG when there is not the memory. */
status solver_open(solver **out, svd_device *device, const int *sides, int count);
void solver_close(solver *s);

/* Whether core i comes here. */
bool solver_takes(const solver *s, int i);

/* Forgets all cores. */
void solver_start(solver *s);

/* Keeps core i, finite, as fp32 scaled to entries near 1. Any thread, one a core. */
void solver_put(solver *s, int i, const double *core);

/* Singular values of everything that was put; waits. INTERNAL when the device fails. */
status solver_run(solver *s);

bool solver_has(const solver *s, int i); /* it was put */

/* values [sides[i]], descending, of a core that was put and solved; false when the device did not find them. */
bool solver_values(const solver *s, int i, double *values);

/* A core that was put, as it was up to fp32. */
void solver_core(const solver *s, int i, double *core);
