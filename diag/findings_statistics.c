/* Ranks, permutation tests and survival curves. Sums that ties make equal differ in their last bits by the order of
 * their terms: "at least as extreme" has a tolerance. */
#include "diag/findings_statistics.h"

#include "core/rng.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

static const uint64_t SEED = 1;
static const double PI = 3.14159265358979323846;

static status out_of_memory(void) {
    return status_fail(STATUS_INTERNAL, "out of memory for the tests of the findings");
}

static double tolerance_of(double scale) {
    return 1e-10 * scale;
}

/* ---------------------------------------------------------------- thresholds */

double findings_tracy_widom_threshold(double tail) {
    double low = 1, high = 200;
    for (int i = 0; i < 200; i++) {
        double u = 0.5 * (low + high);
        double log_tail = -2.0 / 3.0 * u * sqrt(u) - log(4 * sqrt(PI)) - 0.75 * log(u);
        *(log_tail > log(tail) ? &low : &high) = u;
    }
    return 0.5 * (low + high);
}

double findings_normal_quantile(double tail) {
    double low = -38, high = 0;
    for (int i = 0; i < 200; i++) {
        double z = 0.5 * (low + high);
        *(0.5 * erfc(-z / sqrt(2)) < tail ? &low : &high) = z;
    }
    return 0.5 * (low + high);
}

/* P(|T| < t) by the angle atan(t / sqrt(df)). */
static double student_inside(double angle, int df) {
    double cosine = cos(angle), term = df % 2 ? cosine : 1, sum = 0;
    for (int k = df % 2 ? 3 : 2; k <= df; k += 2) {
        sum += term;
        term *= cosine * cosine * (k - 1) / k;
    }
    return df % 2 ? 2 / PI * (angle + sin(angle) * sum) : sin(angle) * sum;
}

double findings_student_quantile(double tail, int df) {
    double low = 0, high = PI / 2;
    for (int i = 0; i < 200; i++) {
        double angle = 0.5 * (low + high);
        *(1 - student_inside(angle, df) > 2 * tail ? &low : &high) = angle;
    }
    return sqrt(df) * tan(0.5 * (low + high));
}

void findings_ranks(const double *x, int n, double *ranks) {
    for (int i = 0; i < n; i++) {
        int below = 0, same = 0;
        for (int k = 0; k < n; k++) {
            below += x[k] < x[i];
            same += x[k] == x[i];
        }
        ranks[i] = below + 0.5 * (same + 1);
    }
}

void findings_holm(const double *p, int n, double *adjusted) {
    double largest = 0;
    for (int i = 0; i < n; i++) adjusted[i] = NAN;
    for (int rank = 0; rank < n; rank++) {
        int next = -1;
        for (int i = 0; i < n; i++)
            if (isnan(adjusted[i]) && (next < 0 || p[i] < p[next])) next = i;
        largest = fmax(largest, fmin(1, (n - rank) * p[next]));
        adjusted[next] = largest;
    }
}

/* ---------------------------------------------------------------- random numbers */

typedef struct draws {
    uint64_t stream, next;
} draws;

static draws draws_of(const char *label) {
    return (draws){.stream = rng_stream(label)};
}

/* Uniform in 0..n-1: the upper half of a product; its bias is under n / 2^64. */
static int draw_below(draws *d, int n) {
    return (int)(((unsigned __int128)rng_u64(SEED, d->stream, d->next++) * (unsigned)n) >> 64);
}

/* Fisher and Yates. */
static void shuffle(draws *d, int *order, int n) {
    for (int i = n - 1; i > 0; i--) {
        int k = draw_below(d, i + 1), kept = order[i];
        order[i] = order[k];
        order[k] = kept;
    }
}

static double random_p(int extreme) {
    return (1.0 + extreme) / (1.0 + FINDINGS_DRAWS);
}

/* ---------------------------------------------------------------- signs */

static double flipped_sum(const double *d, int n, uint64_t signs) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += signs >> i & 1 ? -d[i] : d[i];
    return sum;
}

static double random_flipped_sum(const double *d, int n, draws *from) {
    double sum = 0;
    uint64_t bits = 0;
    for (int i = 0; i < n; i++, bits >>= 1) {
        if (i % 64 == 0) bits = rng_u64(SEED, from->stream, from->next++);
        sum += bits & 1 ? -d[i] : d[i];
    }
    return sum;
}

double findings_sign_flip(const double *d, int n, const char *label) {
    double observed = 0, scale = 0;
    int extreme = 0;
    for (int i = 0; i < n; i++) {
        observed += d[i];
        scale += fabs(d[i]);
    }
    double least = observed - tolerance_of(scale);
    if (n <= FINDINGS_EXACT_SIGNS) {
        for (uint64_t signs = 0; signs < (uint64_t)1 << n; signs++) extreme += flipped_sum(d, n, signs) >= least;
        return extreme / (double)((uint64_t)1 << n);
    }
    draws from = draws_of(label);
    for (int i = 0; i < FINDINGS_DRAWS; i++) extreme += random_flipped_sum(d, n, &from) >= least;
    return random_p(extreme);
}

/* ---------------------------------------------------------------- propagation */

/* Mean covariance of adjacent layers less that of all others. x [seeds, layers], each layer's mean 0; layer l of seed s
 * is read at row order[l * seeds + s]. */
static double adjacency(const double *x, const int *order, int seeds, int layers) {
    double near = 0, far = 0;
    for (int a = 0; a < layers; a++)
        for (int b = a + 1; b < layers; b++) {
            double sum = 0;
            for (int s = 0; s < seeds; s++)
                sum += x[order[a * seeds + s] * layers + a] * x[order[b * seeds + s] * layers + b];
            *(b == a + 1 ? &near : &far) += sum;
        }
    return (near / (layers - 1) - far / (0.5 * (layers - 1) * (layers - 2))) / (seeds - 1);
}

static void center_layers(double *x, int seeds, int layers) {
    for (int l = 0; l < layers; l++) {
        double sum = 0;
        for (int s = 0; s < seeds; s++) sum += x[s * layers + l];
        for (int s = 0; s < seeds; s++) x[s * layers + l] -= sum / seeds;
    }
}

static findings_test test_adjacency(const double *x, int *order, int seeds, int layers, const char *label) {
    draws from = draws_of(label);
    double scale = 0, observed = adjacency(x, order, seeds, layers);
    int extreme = 0;
    for (int i = 0; i < seeds * layers; i++) scale += x[i] * x[i];
    for (int i = 0; i < FINDINGS_DRAWS; i++) {
        for (int l = 0; l < layers; l++) shuffle(&from, order + l * seeds, seeds);
        extreme += adjacency(x, order, seeds, layers) >= observed - tolerance_of(scale);
    }
    return (findings_test){.statistic = observed, .p = random_p(extreme)};
}

/* Two layers whose ranks differ between seeds, or there is nothing that could vary together. */
static bool varies(const double *x, int seeds, int layers) {
    int varying = 0;
    for (int l = 0; l < layers; l++) {
        double most = 0;
        for (int s = 0; s < seeds; s++) most = fmax(most, fabs(x[s * layers + l]));
        varying += most > 1e-9;
    }
    return varying >= 2;
}

status findings_propagation(const double *onsets, int seeds, int layers, const char *label, findings_test *out) {
    *out = (findings_test){.statistic = NAN, .p = NAN};
    if (seeds < 2 || layers < 3) return STATUS_OK;
    size_t cells = (size_t)seeds * (size_t)layers;
    double *ranks = malloc(cells * sizeof *ranks);
    int *order = malloc(cells * sizeof *order);
    status result = ranks && order ? STATUS_OK : out_of_memory();
    if (result == STATUS_OK) {
        for (int s = 0; s < seeds; s++) findings_ranks(onsets + s * layers, layers, ranks + s * layers);
        for (int i = 0; i < seeds * layers; i++) order[i] = i % seeds;
        center_layers(ranks, seeds, layers);
        if (varies(ranks, seeds, layers)) *out = test_adjacency(ranks, order, seeds, layers, label);
    }
    free(ranks);
    free(order);
    return result;
}

/* ---------------------------------------------------------------- coincidence */

/* The pairs with both events, layer after layer. */
typedef struct pairs {
    double *spikes, *collapses;
    int *order, *ends; /* [pairs]: whose collapse; [layers]: where each layer's pairs end */
    int count, layers;
} pairs;

static double distance(const pairs *p) {
    double sum = 0;
    for (int i = 0; i < p->count; i++) sum += fabs(p->spikes[i] - p->collapses[p->order[i]]);
    return sum;
}

static void collect_pairs(pairs *p, const double *spikes, const double *collapses, int seeds) {
    for (int l = 0; l < p->layers; l++) {
        for (int s = 0; s < seeds; s++) {
            double spike = spikes[s * p->layers + l], collapse = collapses[s * p->layers + l];
            if (!isfinite(spike) || !isfinite(collapse)) continue;
            p->spikes[p->count] = spike;
            p->collapses[p->count] = collapse;
            p->order[p->count] = p->count;
            p->count++;
        }
        p->ends[l] = p->count;
    }
}

static double permutations_of(const pairs *p) {
    double log_count = 0;
    for (int l = 0; l < p->layers; l++) log_count += lgamma(p->ends[l] - (l ? p->ends[l - 1] : 0) + 1.0);
    return fmin(1e300, round(exp(fmin(log_count, 690))));
}

static findings_test test_distance(pairs *p, const char *label) {
    draws from = draws_of(label);
    double observed = distance(p);
    int extreme = 0;
    bool moves = false;
    for (int i = 0; i < FINDINGS_DRAWS; i++) {
        for (int l = 0; l < p->layers; l++) {
            int first = l ? p->ends[l - 1] : 0;
            shuffle(&from, p->order + first, p->ends[l] - first);
        }
        double sum = distance(p);
        extreme += sum <= observed + tolerance_of(observed);
        moves |= fabs(sum - observed) > tolerance_of(observed);
    }
    return (findings_test){.statistic = observed, .p = moves ? random_p(extreme) : NAN};
}

status findings_coincidence(const double *spikes, const double *collapses, int seeds, int layers, const char *label,
                            findings_test *out, int *count, double *patterns) {
    size_t most = (size_t)seeds * (size_t)layers + 1;
    pairs p = {.spikes = malloc(most * sizeof *p.spikes),
               .collapses = malloc(most * sizeof *p.collapses),
               .order = malloc(most * sizeof *p.order),
               .ends = malloc(((size_t)layers + 1) * sizeof *p.ends),
               .layers = layers};
    *out = (findings_test){.statistic = NAN, .p = NAN};
    status result = p.spikes && p.collapses && p.order && p.ends ? STATUS_OK : out_of_memory();
    if (result == STATUS_OK) {
        collect_pairs(&p, spikes, collapses, seeds);
        *count = p.count;
        *patterns = permutations_of(&p);
        if (p.count > 0) *out = test_distance(&p, label);
    }
    free(p.spikes);
    free(p.collapses);
    free(p.order);
    free(p.ends);
    return result;
}

/* ---------------------------------------------------------------- survival */

typedef struct lifetime {
    double time;
    bool happened;
} lifetime;

static int by_time(const void *a, const void *b) {
    const lifetime *x = a, *y = b;
    return (x->time > y->time) - (x->time < y->time);
}

status findings_kaplan_meier(const double *times, const bool *happened, int n, findings_survival *out, int *count) {
    lifetime *lives = malloc(((size_t)n + 1) * sizeof *lives);
    *count = 0;
    if (!lives) return out_of_memory();
    for (int i = 0; i < n; i++) lives[i] = (lifetime){times[i], happened[i]};
    qsort(lives, (size_t)n, sizeof *lives, by_time);
    double share = 1;
    for (int first = 0, end; first < n; first = end) {
        int events = 0;
        for (end = first; end < n && lives[end].time == lives[first].time; end++) events += lives[end].happened;
        if (events == 0) continue;
        share *= 1 - events / (double)(n - first);
        out[(*count)++] =
            (findings_survival){.time = lives[first].time, .share = share, .at_risk = n - first, .events = events};
    }
    free(lives);
    return STATUS_OK;
}

double findings_median_survival(const findings_survival *s, int count) {
    for (int i = 0; i < count; i++)
        if (s[i].share <= 0.5 + 1e-12) return s[i].time;
    return NAN;
}
