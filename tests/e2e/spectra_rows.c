/* What the diagnostics make of weights in a safetensors file, for tests in other languages: one snapshot through the
 * maps, every matrix with its columns, singular values and top pair as JSON.
 *
 * usage: spectra_rows FILE section.key=value ...     the file's tensors are named and shaped as a snapshot's */
#include "core/safetensors.h"
#include "diag/maps.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static status load_snapshot(snapshot *s, const char *path) {
    safetensors f = {0};
    status result = safetensors_open(&f, path);
    s->tensors = calloc((size_t)f.count + 1, sizeof(*s->tensors));
    for (int i = 0; result == STATUS_OK && i < f.count; i++) {
        const safetensors_entry *e = &f.entries[i];
        snapshot_tensor *t = &s->tensors[s->count++];
        *t = (snapshot_tensor){.rows = e->shape[0], .cols = e->shape[1]};
        strncpy(t->name, e->name, sizeof(t->name) - 1);
        t->data = malloc((size_t)safetensors_elements(e) * sizeof(float));
        result = safetensors_f32(e, t->data);
    }
    safetensors_close(&f);
    return result;
}

static json_t *number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *list(const double *x, const float *y, int n) {
    json_t *a = json_array();
    for (int i = 0; i < n; i++) json_array_append_new(a, number(x ? x[i] : (double)y[i]));
    return a;
}

static json_t *row(const maps_matrix *m, const spectrum *s, const double *values, const float *pairs) {
    json_t *o =
        json_pack("{ss ss ss si si ss si si ss}", "form", maps_form_names[m->form], "part", maps_part_names[m->part],
                  "scope", maps_scope_names[m->scope], "layer", m->layer, "head", m->head, "tensor", m->tensor, "rows",
                  m->rows, "cols", m->cols, "status", spectrum_status_name(s->status));
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++)
        json_object_set_new(o, spectrum_columns[i].name, number(s->column[i]));
    json_object_set_new(o, "values", list(values + m->first_value, NULL, m->rank));
    json_object_set_new(o, "u", list(NULL, pairs + m->first_pair, m->left));
    json_object_set_new(o, "v", list(NULL, pairs + m->first_pair + m->left, m->right));
    return o;
}

static status print_rows(maps *m, const snapshot *s) {
    int count = maps_count(m);
    spectrum *rows = calloc((size_t)count, sizeof(*rows));
    double *values = calloc((size_t)maps_value_count(m), sizeof(double));
    bool *wanted = malloc((size_t)count * sizeof(bool));
    float *pairs = calloc((size_t)maps_pair_count(m), sizeof(float));
    memset(wanted, true, (size_t)count * sizeof(bool));
    status result = maps_compute_pairs(m, s, rows, values, &(maps_pairs){.wanted = wanted, .pairs = pairs});
    json_t *all = json_array();
    for (int i = 0; result == STATUS_OK && i < count; i++)
        json_array_append_new(all, row(&maps_matrices(m)[i], &rows[i], values, pairs));
    json_dumpf(all, stdout, JSON_REAL_PRECISION(17) | JSON_COMPACT);
    json_decref(all);
    free(rows);
    free(values);
    free(wanted);
    free(pairs);
    return result;
}

int main(int argc, char **argv) {
    config c = {0};
    snapshot s = {0};
    maps *m = NULL;
    if (argc < 2) return STATUS_USAGE;
    status result = config_load(&c, NULL, (const char *const *)argv + 2, argc - 2);
    if (result == STATUS_OK) result = load_snapshot(&s, argv[1]);
    if (result == STATUS_OK) result = maps_open(&m, &c, 1);
    if (result == STATUS_OK) result = print_rows(m, &s);
    if (result != STATUS_OK) fprintf(stderr, "spectra_rows: %s\n", status_message());
    maps_close(m);
    snapshot_free(&s);
    config_free(&c);
    return result;
}
