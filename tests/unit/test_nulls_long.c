/* What the nulls promise, with the numbers it takes to see it: minutes of work, label `long`. */
#include "check.h"
#include "diag/nulls.h"
#include "noise_runs.h"
#include "nulls_models.h"
#include "spectra_models.h"

/* At the shapes of 130m, around where the largest eigenvalue passes from content to rope: the sharpest turn. */
static void interpolation_at_130m(void **state) {
    nulls_shape block = {.kind = NULLS_BLOCK, .content = 64, .copies = 1, .rope = 32, .latent = 256, .width = 768};
    nulls_shape channel = block,
                mixed = {.kind = NULLS_MIXED, .half = 768, .dim_count = 5, .dim = {768, 64, 256, 1536, 768}};
    channel.channel = true;
    nulls_shape_finish(&block);
    nulls_shape_finish(&channel);
    nulls_shape_finish(&mixed);
    for (double x = -1; x < 1.5; x += 0.07) nulls_check_interpolation(&block, x, 0, 500);
    for (double x = -0.8; x < 0.9; x += 0.4)
        for (double y = -0.9; y < 1.2; y += 0.45) nulls_check_interpolation(&channel, x, y, 300);
    for (double x = 0; x < 3; x += 0.3) nulls_check_interpolation(&mixed, x, 0, 500);
}

/* ---------------------------------------------------------------- levels */

enum { LEVELS = 3, LEAST_HEADS = 50000 };

typedef struct size {
    int layers, heads, width, latent; /* heads of 64; latent: kv_lora_rank */
} size;

static const size TINY = {50, 4, 256, 128}, SMALL_60M = {25, 8, 512, 256}, MIDDLE_130M = {12, 12, 768, 256};

/* 95%, 99% and 99.9% points of Tracy-Widom 1. */
static const double points[LEVELS] = {0.97932, 2.02345, 3.27216};

typedef struct count {
    int heads, fired[LEVELS];
    double sum;
} count;

static void count_rows(const maps *m, const spectrum *rows, count c[MAPS_FORM_COUNT][MAPS_PART_COUNT]) {
    for (int i = 0; i < maps_count(m); i++) {
        const maps_matrix *x = &maps_matrices(m)[i];
        count *to = &c[x->form][x->part];
        if (isnan(rows[i].tw_score)) fail_msg("matrix %d has no tw_score: its ensemble is not shipped", i);
        to->heads++;
        to->sum += rows[i].tw_score;
        for (int k = 0; k < LEVELS; k++) to->fired[k] += rows[i].tw_score > points[k];
    }
}

/* Untrained heads, through the maps and the shipped ensembles. */
static void count_untrained(config_variant variant, size z, count c[MAPS_FORM_COUNT][MAPS_PART_COUNT]) {
    static char *forms[] = {"score", "channel"}, *scopes[] = {"head"};
    config k = diagnostics_config(variant, z.layers, z.heads, 64, z.width);
    k.attention.kv_lora_rank = z.latent;
    k.diagnostics.forms = (config_list){2, forms};
    k.diagnostics.scopes = (config_list){1, scopes};
    for (int i = 0; i * z.layers * z.heads < LEAST_HEADS; i++) {
        snapshot s = {0};
        nulls *n;
        char note[512];
        snapshot_fill(&s, &k, (uint64_t)(1000 + i));
        nulls_even_gains(&s);
        computed q = compute(&k, &s, NULL, 2);
        check_status(nulls_open(&n, &k, maps_matrices(q.maps), maps_count(q.maps), ".", 16384, 1, note, sizeof(note)),
                     STATUS_OK);
        nulls_place(n, &s, q.rows, q.values);
        nulls_fill(n, &(store_snapshot){.step = 0, .status = "done", .rows = q.rows});
        if (i == 0 && nulls_finish(n, 600) == 0) nulls_fill(n, &(store_snapshot){.rows = q.rows});
        count_rows(q.maps, q.rows, c);
        nulls_close(n);
        release(&q);
        snapshot_free(&s);
    }
}

static void check_levels(config_variant variant, size z) {
    static const double low[] = {0.045, 0.008, 0.0006}, high[] = {0.055, 0.012, 0.0014};
    count c[MAPS_FORM_COUNT][MAPS_PART_COUNT] = {0};
    bool right = true;
    count_untrained(variant, z, c);
    for (int form = 0; form < MAPS_weight; form++)
        for (int part = 0; part < MAPS_ov; part++) {
            const count *x = &c[form][part];
            if (x->heads == 0) continue;
            assert_true(x->heads >= LEAST_HEADS);
            printf("%s %s: %d heads, mean %.3f, fires", maps_form_names[form], maps_part_names[part], x->heads,
                   x->sum / x->heads);
            for (int k = 0; k < LEVELS; k++) {
                double rate = (double)x->fired[k] / x->heads;
                printf(" %.5f", rate);
                right &= rate >= low[k] && rate <= high[k];
            }
            printf("\n");
        }
    assert_true(right);
}

static void levels_of_mha_at_tiny(void **state) {
    check_levels(VARIANT_MHA, TINY);
}
static void levels_of_prerope_at_tiny(void **state) {
    check_levels(VARIANT_MLA_PREROPE, TINY);
}
static void levels_of_decoupled_at_tiny(void **state) {
    check_levels(VARIANT_MLA_DECOUPLED, TINY);
}
static void levels_of_mha_at_60m(void **state) {
    check_levels(VARIANT_MHA, SMALL_60M);
}
static void levels_of_prerope_at_60m(void **state) {
    check_levels(VARIANT_MLA_PREROPE, SMALL_60M);
}
static void levels_of_decoupled_at_60m(void **state) {
    check_levels(VARIANT_MLA_DECOUPLED, SMALL_60M);
}
static void levels_of_mha_at_130m(void **state) {
    check_levels(VARIANT_MHA, MIDDLE_130M);
}
static void levels_of_prerope_at_130m(void **state) {
    check_levels(VARIANT_MLA_PREROPE, MIDDLE_130M);
}
static void levels_of_decoupled_at_130m(void **state) {
    check_levels(VARIANT_MLA_DECOUPLED, MIDDLE_130M);
}

/* ---------------------------------------------------------------- the onset rules */

enum { NOISE_RUNS = 500, NOISE_LAYERS = 2, NOISE_SNAPSHOTS = 12, PLANTED_RUNS = 36 };

/* Runs whose weights drift and whose gains drift with them: u* alone, whatever the size, fires in at most 1%. */
static void check_noise(const char *variant) {
    noise_model n = noise_open(variant, NOISE_LAYERS, NOISE_SNAPSHOTS);
    int runs[NOISE_DRIFTS] = {0}, early[NOISE_DRIFTS] = {0}, references[NOISE_DRIFTS] = {0},
        rejected[NOISE_DRIFTS] = {0}, all = 0;
    for (int i = 0; i < NOISE_RUNS; i++) {
        noise_run r = {.drift = i % NOISE_DRIFTS, .moves_gains = true, .seed = inputs_seed + (uint64_t)i};
        noise_outcome o = noise_go(&n, &r, 1);
        runs[r.drift]++;
        early[r.drift] += o.onsets + o.hidden > 0;
        references[r.drift] += o.references > 0;
        rejected[r.drift] += o.rejected;
        all += o.onsets + o.hidden + o.references > 0;
    }
    noise_close(&n);
    for (int d = 0; d < NOISE_DRIFTS; d++)
        printf("%s, %s: of %d runs %d have an onset at u* alone, %d a reference of top_overlap, %d a start that is "
               "rejected\n",
               variant, noise_names[d], runs[d], early[d], references[d], rejected[d]);
    if (all > NOISE_RUNS / 100) fail_msg("%d of %d noise runs fire", all, NOISE_RUNS);
}

static void check_spikes(const char *variant) {
    noise_check_spikes(variant, NOISE_LAYERS, NOISE_SNAPSHOTS, PLANTED_RUNS);
}

static void noise_of_mha(void **state) {
    check_noise("mha");
}
static void noise_of_prerope(void **state) {
    check_noise("mla-prerope");
}
static void noise_of_decoupled(void **state) {
    check_noise("mla-decoupled");
}
static void spikes_of_mha(void **state) {
    check_spikes("mha");
}
static void spikes_of_prerope(void **state) {
    check_spikes("mla-prerope");
}
static void spikes_of_decoupled(void **state) {
    check_spikes("mla-decoupled");
}

static const struct CMUnitTest tests[] = {
    cmocka_unit_test(interpolation_at_130m),
    cmocka_unit_test(levels_of_mha_at_tiny),
    cmocka_unit_test(levels_of_prerope_at_tiny),
    cmocka_unit_test(levels_of_decoupled_at_tiny),
    cmocka_unit_test(levels_of_mha_at_60m),
    cmocka_unit_test(levels_of_prerope_at_60m),
    cmocka_unit_test(levels_of_decoupled_at_60m),
    cmocka_unit_test(levels_of_mha_at_130m),
    cmocka_unit_test(levels_of_prerope_at_130m),
    cmocka_unit_test(levels_of_decoupled_at_130m),
    cmocka_unit_test_setup_teardown(noise_of_mha, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(noise_of_prerope, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(noise_of_decoupled, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(spikes_of_mha, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(spikes_of_prerope, noise_start, noise_end),
    cmocka_unit_test_setup_teardown(spikes_of_decoupled, noise_start, noise_end),
};

TEST_MAIN(tests)
