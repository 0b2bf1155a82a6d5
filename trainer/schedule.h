/* The learning rate of a step: linear warm-up, then half a cosine down to a share of the peak. */
#pragma once

#include "core/config.h"

/* Step t = 1 .. steps: lr t/w up to t = w = warmup; then lr (r + (1 - r) (1 + cos(pi (t - w)/(steps - w)))/2), r =
 * min_lr_ratio, reached at the last step. */
double schedule_lr(const config *c, int64_t step);
