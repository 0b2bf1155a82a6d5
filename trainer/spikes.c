#include "trainer/spikes.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Of values[SPIKES_WINDOW], which it sorts. */
static double median(double *values) {
    qsort(values, SPIKES_WINDOW, sizeof *values, by_size);
    return (values[(SPIKES_WINDOW - 1) / 2] + values[SPIKES_WINDOW / 2]) / 2;
}

static bool exceeds(const spikes *s, double loss, double *usual) {
    const double deviations = 6, sd_of_mad = 1.4826, least = 0.01;
    double values[SPIKES_WINDOW];
    memcpy(values, s->losses, sizeof values);
    *usual = median(values);
    for (int i = 0; i < SPIKES_WINDOW; i++) values[i] = fabs(values[i] - *usual);
    return loss - *usual > fmax(deviations * sd_of_mad * median(values), least * fabs(*usual));
}

static void keep(spikes *s, double loss) {
    if (s->count == SPIKES_WINDOW) memmove(s->losses, s->losses + 1, sizeof s->losses - sizeof *s->losses);
    s->losses[s->count < SPIKES_WINDOW ? s->count++ : SPIKES_WINDOW - 1] = loss;
}

bool spikes_note(spikes *s, double loss, double *usual) {
    if (!isfinite(loss)) return false;
    bool was_above = s->above;
    s->above = s->count == SPIKES_WINDOW && exceeds(s, loss, usual);
    keep(s, loss);
    return s->above && !was_above;
}
