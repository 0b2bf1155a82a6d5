/* What the compute ranks agree on after every step: one small all-reduce, so that all of them stop, save and go on at
 * the same step whichever of them heard of it. */
#pragma once

#include "comm/comm.h"

#include <stdbool.h>

typedef struct agreement { /* before: what this rank knows; after: what any of them knew */
    int signal;            /* asks for a checkpoint and the end; 0: none */
    bool stop;             /* an alert asked for the end of the run */
    bool save;             /* one asked for a checkpoint */
    bool writing;          /* a checkpoint is on its way */
    bool failed;           /* a part of one could not be written */
} agreement;

/* Collective over the group, whose failure it returns. */
status agreement_make(comm_group *all, agreement *a);

/* Which ranks say so, as "rank 3" or "ranks 0, 3", of many the first ones, and "no rank" where none does. Collective
 * over the group, whose failure it returns. */
status agreement_who(comm_group *all, bool mine, char *out, size_t size);
