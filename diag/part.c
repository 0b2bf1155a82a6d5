/* One walk over a rank's matrices serves sizing, packing and unpacking. */
#include "diag/part.h"

#include <stdlib.h>
#include <string.h>

typedef struct walk {
    char *at;      /* in the message; NULL: only counted */
    bool out;      /* out of the message */
    size_t passed; /* bytes */
} walk;

static void pass(walk *w, void *data, size_t bytes) {
    if (w->at && w->out) memcpy(data, w->at + w->passed, bytes);
    if (w->at && !w->out) memcpy(w->at + w->passed, data, bytes);
    w->passed += bytes;
}

static void pass_rows(walk *w, const maps *m, int i, int n, const part_head *head, const part_results *r) {
    const maps_matrix *matrices = maps_matrices(m);
    for (int k = 0; head->done && k < maps_count(m); k++)
        if (matrices[k].layer % n == i) pass(w, &r->rows[k], sizeof(*r->rows));
    for (int k = 0; head->done && head->values && k < maps_count(m); k++)
        if (matrices[k].layer % n == i)
            pass(w, &r->values[matrices[k].first_value], (size_t)matrices[k].rank * sizeof(*r->values));
    for (int k = 0; head->done && k < maps_count(m); k++)
        if (matrices[k].layer % n == i && r->top.wanted[k])
            pass(w, &r->top.pairs[matrices[k].first_pair],
                 (size_t)(matrices[k].left + matrices[k].right) * sizeof(*r->top.pairs));
}

void *part_pack(const maps *m, int i, int n, const part_head *head, const part_results *results, size_t *bytes) {
    walk w = {.passed = sizeof(*head)};
    pass_rows(&w, m, i, n, head, results);
    *bytes = w.passed;
    char *message = malloc(w.passed);
    if (!message) return NULL;
    memcpy(message, head, sizeof(*head));
    w = (walk){.at = message, .passed = sizeof(*head)};
    pass_rows(&w, m, i, n, head, results);
    return message;
}

status part_unpack(const maps *m, int i, int n, const void *message, size_t bytes, part_head *head,
                   const part_results *results) {
    walk w = {.passed = sizeof(*head)};
    if (bytes < sizeof(*head)) return status_fail(STATUS_DATA, "%zu bytes are too few for spectra", bytes);
    memcpy(head, message, sizeof(*head));
    head->why[sizeof(head->why) - 1] = '\0';
    pass_rows(&w, m, i, n, head, results);
    if (w.passed != bytes)
        return status_fail(STATUS_DATA, "%zu bytes where its layers' spectra have %zu", bytes, w.passed);
    w = (walk){.at = (char *)message, .out = true, .passed = sizeof(*head)};
    pass_rows(&w, m, i, n, head, results);
    return STATUS_OK;
}
