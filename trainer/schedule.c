#include "trainer/schedule.h"

#include <math.h>

double schedule_lr(const config *c, int64_t step) {
    int64_t warmup = c->train.warmup, steps = c->train.steps;
    double peak = c->train.lr, least = c->train.min_lr_ratio;
    if (step <= warmup) return peak * (double)step / (double)warmup;
    if (step >= steps) return peak * least;
    double progress = (double)(step - warmup) / (double)(steps - warmup);
    return peak * (least + (1 - least) * 0.5 * (1 + cos(M_PI * progress)));
}
