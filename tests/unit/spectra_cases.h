/* The spectral oracle's cases (tests/golden/spectra, packed by its script `convert`): arrays in float64, the scalars
 * and the expected rows as JSON, and the comparison of one computed row with its expected one. */
#pragma once

#include "check.h"
#include "diag/spectrum.h"

#include <jansson.h>

typedef struct spectra_array {
    const char *name;
    int rows, cols;
    double *data;
} spectra_array;

typedef struct spectra_case {
    json_t *all, *json; /* the file, and this case in it */
    const char *name, *kind;
    int count;
    spectra_array array[12];
} spectra_case;

static inline void *spectra_file(const char *name, size_t *bytes) {
    char path[512];
    const char *elsewhere = getenv("BULKHEAD_SPECTRA_CASES"); /* on another machine than the one that built */
    snprintf(path, sizeof(path), "%s/%s", elsewhere ? elsewhere : SPECTRA_CASES, name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s", path);
    fseek(f, 0, SEEK_END);
    *bytes = (size_t)ftell(f);
    rewind(f);
    void *data = malloc(*bytes);
    assert_int_equal(fread(data, 1, *bytes, f), *bytes);
    fclose(f);
    return data;
}

static inline int64_t spectra_int(const json_t *object, const char *key, int64_t absent) {
    const json_t *v = json_object_get(object, key);
    return v ? (int64_t)json_integer_value(v) : absent;
}

/* Case number i; false behind the last. */
static inline bool spectra_case_open(spectra_case *c, size_t i) {
    size_t bytes;
    char *text = spectra_file("cases.json", &bytes);
    *c = (spectra_case){.all = json_loadb(text, bytes, 0, NULL)};
    free(text);
    assert_non_null(c->all);
    c->json = json_array_get(c->all, i);
    if (!c->json) {
        json_decref(c->all);
        return false;
    }
    c->name = json_string_value(json_object_get(c->json, "name"));
    c->kind = json_string_value(json_object_get(c->json, "kind"));
    char *blob = spectra_file("cases.bin", &bytes);
    size_t k;
    json_t *a;
    json_array_foreach(json_object_get(c->json, "arrays"), k, a) {
        spectra_array *to = &c->array[c->count++];
        to->name = json_string_value(json_object_get(a, "name"));
        to->rows = (int)spectra_int(a, "rows", 0);
        to->cols = (int)spectra_int(a, "cols", 0);
        size_t n = (size_t)to->rows * (size_t)to->cols, offset = (size_t)spectra_int(a, "offset", 0);
        bool narrow = strcmp(json_string_value(json_object_get(a, "type")), "f4") == 0;
        assert_true(offset + n * (narrow ? 4 : 8) <= bytes);
        to->data = malloc(n * sizeof(double));
        for (size_t e = 0; e < n; e++) {
            float f;
            if (narrow) memcpy(&f, blob + offset + 4 * e, 4);
            if (!narrow) memcpy(&to->data[e], blob + offset + 8 * e, 8);
            if (narrow) to->data[e] = f;
        }
    }
    free(blob);
    return true;
}

static inline void spectra_case_close(spectra_case *c) {
    for (int i = 0; i < c->count; i++) free(c->array[i].data);
    json_decref(c->all);
}

static inline const spectra_array *spectra_find(const spectra_case *c, const char *name) {
    for (int i = 0; i < c->count; i++)
        if (strcmp(c->array[i].name, name) == 0) return &c->array[i];
    return NULL;
}

/* Integers, NULLs and the status exact; numbers to 1e-8 relative, the fit to its own grid's 1e-5, KS distances
 * (differences of numbers up to 1) to 1e-8 absolute. Values s: to 1e-12 of the largest. */
static inline void spectra_compare(const spectra_case *c, const json_t *want, const spectrum *got, const double *s) {
    const char *status_name = json_string_value(json_object_get(want, "status"));
    const json_t *form = json_object_get(want, "form"), *part = json_object_get(want, "part");
    char where[160];
    snprintf(where, sizeof(where), "%s %s %s %s head %lld", c->name, json_string_value(json_object_get(want, "scope")),
             json_string_value(form), json_string_value(part), (long long)spectra_int(want, "head", -1));
    if (strcmp(spectrum_status_name(got->status), status_name) != 0)
        fail_msg("%s: status %s, want %s", where, spectrum_status_name(got->status), status_name);
    for (int i = 0; i < SPECTRUM_COLUMN_COUNT; i++) {
        const json_t *v = json_object_get(want, spectrum_columns[i].name);
        double x = got->column[i], y = json_is_number(v) ? json_number_value(v) : NAN;
        if (isnan(x) && isnan(y)) continue;
        bool fit = i == SPECTRUM_sigma2_fit, ks = i == SPECTRUM_mp_ks || i == SPECTRUM_alpha_ks;
        double tolerance = spectrum_columns[i].integer ? 0 : fit ? 1e-5 * fabs(y) : ks ? 1e-8 : 1e-8 * fabs(y);
        if (!(fabs(x - y) <= tolerance))
            fail_msg("%s: %s = %.17g, want %.17g (relative %.2g)", where, spectrum_columns[i].name, x, y,
                     fabs(x - y) / fabs(y));
    }
    const json_t *lambda = json_object_get(want, "lam"), *one;
    size_t k;
    if (!json_is_array(lambda)) return;
    double largest = sqrt(json_number_value(json_array_get(lambda, 0)));
    json_array_foreach(lambda, k, one) check_near(s[k], sqrt(json_number_value(one)), 1e-12 * largest);
}
