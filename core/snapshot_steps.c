#include "core/snapshot_steps.h"

bool snapshot_steps_due(const config *c, int64_t step) {
    return step <= c->diagnostics.dense_until || step % c->diagnostics.every == 0 || step == c->train.steps;
}

/* Not by snapshot_steps_due: runs may be far too long to count. */
int64_t snapshot_steps_count(const config *c) {
    int64_t last = c->train.steps, every = c->diagnostics.every;
    int64_t dense = c->diagnostics.dense_until < last ? c->diagnostics.dense_until : last;
    if (c->diagnostics.ranks == 0) return 0;
    return 1 + dense + (last / every - dense / every) + (last > dense && last % every != 0);
}

int64_t snapshot_steps_next(const config *c, int64_t step) {
    int64_t last = c->train.steps, every = c->diagnostics.every;
    if (step >= last) return -1;
    if (step < c->diagnostics.dense_until) return step + 1;
    int64_t next = (step / every + 1) * every;
    return next < last ? next : last;
}
