#include "trainer/scoring.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

status scorer_open(scorer *out, model *m) {
    size_t tokens = (size_t)m->tokens;
    *out = (scorer){
        .model = m,
        .input = calloc(tokens, sizeof *out->input),
        .target = calloc(tokens, sizeof *out->target),
        .losses = calloc(tokens, sizeof *out->losses),
        .window = calloc((size_t)m->batch, sizeof *out->window),
    };
    if (out->input && out->target && out->losses && out->window) return STATUS_OK;
    return status_fail(STATUS_INTERNAL, "out of memory for a batch of %zu tokens", tokens);
}

void scorer_close(scorer *s) {
    free(s->input);
    free(s->target);
    free(s->losses);
    free(s->window);
    *s = (scorer){0};
}

status scorer_flush(scorer *s) {
    model *m = s->model;
    if (s->filled == 0) return STATUS_OK;
    model_token_losses(m, s->input, s->target, s->filled, s->losses);
    TRY(model_status(m));
    for (int64_t w = 0; w < s->filled; w++) {
        const scoring_window *window = &s->window[w];
        double sum = 0;
        for (int64_t i = window->skip; i < window->count; i++) sum += (double)s->losses[w * m->context + i];
        if (!isfinite(sum)) return status_fail(STATUS_DATA, "the model's loss is %g; its weights are no use", sum);
        *window->nats += sum;
    }
    s->filled = 0;
    return STATUS_OK;
}

status scorer_add(scorer *s, const int32_t *ids, int64_t n, int64_t skip, double *nats) {
    int64_t at = s->filled * s->model->context;
    memcpy(s->input + at, ids, (size_t)n * sizeof *ids);
    memcpy(s->target + at, ids + 1, (size_t)n * sizeof *ids);
    s->window[s->filled++] = (scoring_window){.skip = skip, .count = n, .nats = nats};
    return s->filled == s->model->batch ? scorer_flush(s) : STATUS_OK;
}

status scorer_add_sequence(scorer *s, scoring_read read, void *user, int64_t count, int64_t stride, double *nats) {
    const int64_t context = s->model->context, positions = count - 1;
    int32_t *ids = malloc((size_t)(context + 1) * sizeof *ids);
    status result = ids ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory for a window");
    for (int64_t done = 0; done < positions && result == STATUS_OK;) {
        int64_t step = done == 0 ? context : stride, end = positions - done < step ? positions : done + step;
        int64_t first = end > context ? end - context : 0;
        read(user, first, end - first + 1, ids);
        result = scorer_add(s, ids, end - first, done - first, nats);
        done = end;
    }
    free(ids);
    return result;
}
