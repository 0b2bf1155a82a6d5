/* Loss spikes: a loss far above those just before it. */
#pragma once

#include <stdbool.h>

enum { SPIKES_WINDOW = 100 };

/* What is remembered between steps: part of a checkpoint, so that a resumed run tells the same spikes. */
typedef struct spikes {
    int count;                    /* of the losses before the next one, at most SPIKES_WINDOW */
    double losses[SPIKES_WINDOW]; /* the oldest first */
    bool above;                   /* the last loss was part of a spike */
} spikes;

/* Takes a step's loss (one that is not finite is no news here: false). True when a spike begins: with a full window,
 * the loss exceeds the window's median by more than 6 standard deviations, estimated as 1.4826 times the median
 * absolute deviation (Rousseeuw & Croux 1993), and by more than 1% of the median; *usual is that median. A few high
 * losses hardly move the median; losses that stay high become what is usual. */
bool spikes_note(spikes *s, double loss, double *usual);
