/* logits MODEL ID...: the logits of a model that `bulkhead eval` takes, one line a token, for the tests in Python. */
#include "trainer/trained.h"

#include <stdio.h>
#include <stdlib.h>

static status run(trained *t, const char *const *ids, int count) {
    const model *m = &t->model;
    if (count > m->context) return status_fail(STATUS_USAGE, "more tokens than the context has");
    int32_t *tokens = calloc((size_t)m->context, sizeof *tokens);
    float *logits = malloc((size_t)(count * m->vocab) * sizeof *logits);
    status s = tokens && logits ? STATUS_OK : status_fail(STATUS_INTERNAL, "out of memory");
    for (int i = 0; i < count && s == STATUS_OK; i++) tokens[i] = (int32_t)strtol(ids[i], NULL, 10);
    if (s == STATUS_OK) {
        model_evaluate(&t->model, tokens, tokens, 1);
        model_logits(&t->model, 0, count, logits);
        s = model_status(m);
    }
    for (int64_t i = 0; i < count && s == STATUS_OK; i++)
        for (int64_t v = 0; v < m->vocab; v++)
            printf("%.9g%c", logits[i * m->vocab + v], v + 1 < m->vocab ? ' ' : '\n');
    free(tokens);
    free(logits);
    return s;
}

int main(int argc, char **argv) {
    const trained_options options = {.device = "cpu", .threads = 1};
    trained t;
    if (argc < 3) return STATUS_USAGE;
    status s = trained_find(&t, argv[1], &options);
    if (s == STATUS_OK) {
        s = trained_load(&t, 1, 0);
        if (s == STATUS_OK) s = run(&t, (const char *const *)argv + 2, argc - 2);
        trained_close(&t);
    }
    if (s != STATUS_OK) fprintf(stderr, "logits: %s\n", status_message());
    return s;
}
