/* bench_step: time of one training step on the CPU, alone in one process.
 *
 * usage: bench_step SIZE VARIANT BATCH [STEPS [THREADS]]     e.g. bench_step tiny mha 16
 * Checks first that the loss starts at ln V and falls when one batch is repeated; then prints one JSON line: median ms
 * a step, tokens/s, achieved GFLOP/s and the share of the time inside matrix products, whoever makes them (those of the
 * attention core not counted). */
#include "core/clock.h"
#include "core/ops/ops.h"
#include "trainer/optimizer.h"

#include "bench/times.h"
#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { WARM_UP_STEPS = 3, MOST_STEPS = 1000 };

static double step(model *m, const config *c, const int32_t *input, const int32_t *target) {
    model_train(m, input, target, (float)(1.0 / (double)m->tokens), true, true);
    optimizer_reduce(m);
    optimizer_norm(m);
    optimizer_update(m, c, 1e-4); /* small: no warm-up, one batch */
    return model_take_loss(m) / (double)m->tokens;
}

static status run(const char *size, const char *variant, int64_t batch, int steps, int threads) {
    char size_setting[64], variant_setting[64];
    snprintf(size_setting, sizeof size_setting, "model.size=%s", size);
    snprintf(variant_setting, sizeof variant_setting, "attention.variant=%s", variant);
    const char *settings[] = {size_setting, variant_setting};
    config c;
    ops o;
    comm_group self;
    model m;
    TRY(config_load(&c, NULL, settings, 2));
    TRY(ops_cpu(&o, threads));
    comm_self(&self);
    TRY(model_create(&m, &c, &o, &attn_core_cpu, &self, &self, batch));

    int32_t *tokens = malloc((size_t)(m.tokens + 1) * sizeof *tokens);
    if (!tokens) return status_fail(STATUS_INTERNAL, "out of memory");
    for (int64_t i = 0; i <= m.tokens; i++) tokens[i] = (int32_t)(rng_u64(1, 2, (uint64_t)i) % (uint64_t)m.vocab);
    double first = 0, last = 0, times[MOST_STEPS];
    for (int i = 0; i < WARM_UP_STEPS; i++) {
        last = step(&m, &c, tokens, tokens + 1);
        if (i == 0) first = last;
    }
    if (fabs(first - log((double)m.vocab)) > 0.3 || !(last < first))
        return status_fail(STATUS_INTERNAL, "wrong result: loss %.4f, then %.4f; ln V is %.4f", first, last,
                           log((double)m.vocab));
    double gemm = o.gemm_seconds, flops = o.flops, total = 0;
    for (int i = 0; i < steps; i++) {
        double start = clock_now_s();
        step(&m, &c, tokens, tokens + 1);
        times[i] = clock_now_s() - start;
        total += times[i];
    }
    gemm = (o.gemm_seconds - gemm) / total;
    flops = (o.flops - flops) / total;
    times_sort(times, steps);
    double median = times[steps / 2];
    printf("{\"bench\": \"step\", \"device\": \"cpu\", \"size\": \"%s\", \"variant\": \"%s\", \"batch\": %ld, "
           "\"context\": %ld, "
           "\"threads\": %d, \"ms\": %.2f, \"tokens_per_s\": %.0f, \"gemm_gflops\": %.1f, \"gemm_share\": %.3f}\n",
           size, variant, (long)batch, (long)m.context, threads, 1e3 * median, (double)m.tokens / median, flops / 1e9,
           gemm);
    free(tokens);
    model_free(&m);
    config_free(&c);
    return STATUS_OK;
}

int main(int argc, char **argv) {
    ops_cpu_begin(argv);
    if (argc < 4) {
        fprintf(stderr, "usage: bench_step SIZE VARIANT BATCH [STEPS [THREADS]]\n");
        return STATUS_USAGE;
    }
    int steps = argc > 4 ? atoi(argv[4]) : 10, threads = argc > 5 ? atoi(argv[5]) : (int)sysconf(_SC_NPROCESSORS_ONLN);
    if (steps < 1 || steps > MOST_STEPS || threads < 1 || atoll(argv[3]) < 1) {
        fprintf(stderr, "bench_step: 1 to %d steps, at least 1 thread and 1 sample\n", MOST_STEPS);
        return STATUS_USAGE;
    }
    status s = run(argv[1], argv[2], atoll(argv[3]), steps, threads);
    if (s != STATUS_OK) fprintf(stderr, "bench_step: %s\n", status_message());
    return s;
}
