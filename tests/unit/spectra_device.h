/* The spectra that a device computes in fp32 beside those of LAPACK in float64. */
#pragma once

#include "spectra_models.h"

/* Of a matrix of fp32 entries whose largest singular value is 1. */
static inline double fp32_error(int side) {
    return side * 0x1p-23;
}

/* Values to side 2^-23 of the largest; numbers that depend on them smoothly to 1e-3. Statuses are the same, but for a
 * value that lies at the limit of numerical_rank. */
static inline void compare_spectra(const computed *want, const computed *got, const char *what) {
    static const int smooth[] = {SPECTRUM_lambda_max,          SPECTRUM_lambda_sum,     SPECTRUM_sigma2,
                                 SPECTRUM_mp_lambda_plus,      SPECTRUM_mp_gap,         SPECTRUM_stable_rank,
                                 SPECTRUM_participation_ratio, SPECTRUM_effective_rank, SPECTRUM_effective_rank_rv};
    for (int i = 0; i < maps_count(want->maps); i++) {
        const maps_matrix *x = &maps_matrices(want->maps)[i];
        const double *a = want->values + x->first_value, *b = got->values + x->first_value;
        const spectrum *wanted = &want->rows[i], *row = &got->rows[i];
        bool numbers = wanted->status == SPECTRUM_STATUS_ok || wanted->status == SPECTRUM_STATUS_rank_deficient;
        bool same = wanted->status == row->status ||
                    (numbers && (row->status == SPECTRUM_STATUS_ok || row->status == SPECTRUM_STATUS_rank_deficient) &&
                     fabs(wanted->numerical_rank - row->numerical_rank) <= 1);
        if (!same)
            fail_msg("%s: matrix %d is %s, want %s", what, i, spectrum_status_name(row->status),
                     spectrum_status_name(wanted->status));
        for (int k = 0; k < x->rank && !isnan(a[0]); k++) {
            if (!(fabs(a[k] - b[k]) <= fp32_error(x->rank) * a[0]))
                fail_msg("%s: matrix %d, value %d of %d: %.9g, want %.9g (%.2g of the largest)", what, i, k, x->rank,
                         b[k], a[k], fabs(a[k] - b[k]) / a[0]);
            if (k > 0 && b[k] > b[k - 1]) fail_msg("%s: matrix %d: value %d is over the one before", what, i, k);
        }
        for (size_t k = 0; k < sizeof smooth / sizeof *smooth && numbers; k++)
            check_near(row->column[smooth[k]], wanted->column[smooth[k]], 1e-3 * fabs(wanted->column[smooth[k]]));
    }
}

/* Both, of all matrices of a snapshot. */
static inline void compare_device(const config *c, const snapshot *s, svd_device *device, const char *what) {
    computed want = compute(c, s, NULL, 2), got = compute(c, s, device, 2);
    compare_spectra(&want, &got, what);
    release(&want);
    release(&got);
}

/* The oracle's models. */
static inline int compare_models(svd_device *device) {
    int models = 0;
    spectra_case c;
    for (size_t i = 0; spectra_case_open(&c, i); i++) {
        if (strcmp(c.kind, "matrix") != 0 && strcmp(c.kind, "chain") != 0) {
            snapshot s = {0};
            config k = case_config(&c, &s);
            compare_device(&k, &s, device, c.name);
            snapshot_free(&s);
            models++;
        }
        spectra_case_close(&c);
    }
    return models;
}

/* Every wiring, with all forms, parts and scopes. */
static inline void compare_wirings(svd_device *device, int heads, int head_dim, int width) {
    for (int wiring = 0; wiring < 5; wiring++) {
        config_variant variant = wiring < 1 ? VARIANT_MHA : wiring < 3 ? VARIANT_MLA_PREROPE : VARIANT_MLA_DECOUPLED;
        config c = diagnostics_config(variant, 2, heads, head_dim, width);
        if (wiring == 2) c.attention.prerope_source = SOURCE_HIDDEN;
        if (wiring == 4) c.attention.q_lora_rank = head_dim + 4;
        char what[32];
        snapshot s = {0};
        snapshot_fill(&s, &c, 20 + (uint64_t)wiring);
        snprintf(what, sizeof what, "wiring %d", wiring);
        compare_device(&c, &s, device, what);
        snapshot_free(&s);
    }
}
